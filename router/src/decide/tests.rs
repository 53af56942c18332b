//! What decisions promise, one replica's advantage at a time; and what they never do, for any view.

use base::AdapterId;
use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::Held;
use crate::book::Load;
use crate::fleet::Rates;

fn views(count: u16) -> Vec<View> {
    (0..count).map(|seat| View::idle(Seat(seat))).collect()
}

fn ask(prompt_tokens: u32) -> Ask {
    Ask { prompt_tokens, ..Ask::default() }
}

fn chosen(ask: &Ask, views: &[View]) -> Seat {
    decide(&Policy::default(), ask, views).unwrap().chosen
}

fn device(blocks: u32) -> Held {
    Held { blocks: [blocks, 0, 0, 0] }
}

fn pending(tokens: u64) -> Load {
    Load { pending_prefill_tokens: tokens, pending_prefills: 1, active: 1, ..Load::default() }
}

#[test]
fn who_holds_the_prefix_gets_the_request() {
    let mut views = views(4);
    views[2].held = device(100);
    assert_eq!(chosen(&ask(2000), &views), Seat(2));
}

#[test]
fn a_queue_longer_than_the_prefix_is_worth_sends_it_elsewhere() {
    let mut views = views(2);
    views[1].held = device(100);
    views[1].load = pending(1000);
    assert_eq!(chosen(&ask(2000), &views), Seat(1));
    views[1].load = pending(3000);
    assert_eq!(chosen(&ask(2000), &views), Seat(0));
}

#[test]
fn a_beginning_that_many_have_is_computed_where_there_is_less_to_do() {
    let mut views = views(2);
    views[1].held = device(100);
    views[1].load = pending(400);
    assert_eq!(chosen(&ask(2000), &views), Seat(1));
    let hot = Ask { hot: Hot { blocks: 96, uses: 100.0 }, ..ask(2000) };
    assert_eq!(chosen(&hot, &views), Seat(0));
    views[1].load = Load::default();
    assert_eq!(chosen(&hot, &views), Seat(1));
}

#[test]
fn a_slower_replica_is_charged_its_own_time() {
    let mut views = views(2);
    views[0].rates = Rates::default().paced(3.0, 1.0);
    views[0].held = device(60);
    assert_eq!(
        chosen(&ask(2000), &views),
        Seat(1),
        "computing half takes it longer than the other the whole"
    );
    views[0].held = device(110);
    assert_eq!(chosen(&ask(2000), &views), Seat(0));
}

#[test]
fn a_tier_is_restored_where_that_beats_computing_and_ignored_where_not() {
    let mut view = View::idle(Seat(0));
    view.held = Held { blocks: [10, 100, 0, 0] };
    let near = decide(&Policy::default(), &ask(2000), &[view]).unwrap();
    assert_eq!((near.score().uncached_tokens, near.score().restore_ms), (400, 9.0));
    view.rates.restore_ms_per_block[1] = 10.0;
    let far = decide(&Policy::default(), &ask(2000), &[view]).unwrap();
    assert_eq!((far.score().uncached_tokens, far.score().restore_ms), (1840, 0.0));
}

#[test]
fn nobody_computes_nothing() {
    let mut view = View::idle(Seat(0));
    view.held = device(1000);
    assert_eq!(decide(&Policy::default(), &ask(1600), &[view]).unwrap().score().uncached_tokens, 1);
}

#[test]
fn a_session_is_preferred_softly() {
    let mut views = views(3);
    let asked = Ask { session: Some(Seat(1)), ..ask(2000) };
    assert!((0..20).all(|seed| chosen(&Ask { seed, ..asked }, &views) == Seat(1)));
    views[1].load = pending(3000);
    assert_ne!(chosen(&asked, &views), Seat(1));
}

#[test]
fn an_adapter_that_is_there_is_worth_its_loading() {
    let mut views = views(2);
    let asked = Ask { adapter: AdapterId(4), ..ask(2000) };
    views[0].adapter = AdapterState::Absent;
    assert_eq!(chosen(&asked, &views), Seat(1));
    views[1].load = pending(30_000);
    assert_eq!(chosen(&asked, &views), Seat(0));
    views[0].adapter = AdapterState::Unsupported;
    assert_eq!(chosen(&asked, &views), Seat(1));
}

#[test]
fn below_the_target_a_prefix_beats_idle_slots_and_above_it_does_not() {
    let mut views = views(2);
    views[1].held = device(100);
    views[1].load = Load { active: 8, resident_tokens: 40_000, ..Load::default() };
    assert_eq!(chosen(&ask(2000), &views), Seat(1));
    views[1].load = Load { active: 200, resident_tokens: 3_000_000, ..Load::default() };
    assert_eq!(chosen(&ask(2000), &views), Seat(0));
}

#[test]
fn nobody_is_preempted_while_another_has_room() {
    let mut views = views(2);
    views.iter_mut().for_each(|v| v.pages = Pages { total: 1000, free: 500, cached: 400 });
    views[1].held = device(20);
    assert_eq!(chosen(&ask(2000), &views), Seat(1));
    views[1].pages = Pages { total: 1000, free: 5, cached: 20 };
    assert_eq!(chosen(&ask(2000), &views), Seat(0));
}

#[test]
fn ties_go_to_everybody_and_the_same_seed_to_the_same() {
    let views = views(8);
    let seats: SeatSet = (0..200).map(|turn| chosen(&Ask { turn, seed: 9, ..ask(500) }, &views)).collect();
    assert_eq!(seats.len(), 8);
    let again =
        |seed| (0..50).map(|turn| chosen(&Ask { turn, seed, ..ask(500) }, &views)).collect::<Vec<_>>();
    assert_eq!(again(1), again(1));
    assert_ne!(again(1), again(2));
}

#[test]
fn refusals_say_why() {
    let mut views = views(5);
    views[0].readiness = Readiness::Draining;
    views[1].readiness = Readiness::Dead;
    views[2].role = Role::Decode;
    views[3].pages.total = 10;
    let refused =
        decide(&Policy::default(), &Ask { excluded: SeatSet::of(Seat(4)), ..ask(2000) }, &views).unwrap_err();
    expect![[r#"no replica can serve: 1 excluded, 2 not ready, 1 in another role, 0 without the adapter, 1 too small (not_ready)"#]]
        .assert_eq(&format!("{refused} ({})", refused.kind()));
    assert_eq!(decide(&Policy::default(), &ask(1), &[]).unwrap_err().kind(), "no_replicas");
}

#[test]
fn a_decision_is_read_as_json() {
    let mut views = views(2);
    views[1].held = device(100);
    views[0].load = pending(1000);
    let decision = decide(&Policy::default(), &ask(2000), &views).unwrap();
    let text = serde_json::to_string(&decision).unwrap();
    assert_eq!(serde_json::from_str::<Decision>(&text).unwrap(), decision);
    for field in
        ["chosen", "why", "prefill_ms", "queue_ms", "decode_ms", "restore_ms", "other_ms", "total_ms"]
    {
        assert!(text.contains(&format!("\"{field}\":")), "{text}");
    }
}

#[test]
fn policies_have_names_that_lead_back() {
    for name in Policy::NAMES {
        assert_eq!(Policy::from_name(name).map(|p| p.name()), Some(name));
    }
    assert_eq!(Policy::from_name("best"), None);
}

#[test]
fn a_prefixs_replica_keeps_it_when_another_goes() {
    let mut views = views(8);
    let at = |views: &[View], prefix| {
        decide(&Policy::PrefixHash, &Ask { prefix, ..ask(500) }, views).unwrap().chosen
    };
    let before: Vec<Seat> = (0..100).map(|p| at(&views, p)).collect();
    views[3].readiness = Readiness::Dead;
    for (prefix, seat) in before.into_iter().enumerate().filter(|(_, seat)| *seat != Seat(3)) {
        assert_eq!(at(&views, prefix as u64), seat);
    }
}

#[test]
fn a_pair_is_taken_where_a_prefill_would_stall_many() {
    let mut views = views(2);
    views[1].role = Role::Prefill;
    let quiet = place(&Policy::default(), &ask(8000), &views).unwrap();
    assert!(matches!(quiet, Placement::Whole { pair_ms: Some(_), .. }), "{quiet:?}");
    views[0].load = Load { active: 32, resident_tokens: 60_000, ..Load::default() };
    let busy = place(&Policy::default(), &ask(8000), &views).unwrap();
    let Placement::Pair { prefill, decode, transfer_ms, .. } = busy else { panic!("{busy:?}") };
    assert_eq!((prefill.chosen, decode.chosen, transfer_ms), (Seat(1), Seat(0), 50.0));
}

#[test]
fn a_slow_link_keeps_a_request_whole() {
    let mut views = views(2);
    views[1].role = Role::Prefill;
    views[0].load = Load { active: 32, resident_tokens: 60_000, ..Load::default() };
    views[0].rates.transfer_ms_per_block = 10.0;
    let placed = place(&Policy::default(), &ask(8000), &views).unwrap();
    assert!(matches!(placed, Placement::Whole { .. }), "{placed:?}");
}

#[test]
fn where_nobody_does_both_every_policy_pairs() {
    let mut views = views(4);
    views.iter_mut().enumerate().for_each(|(i, v)| v.role = if i < 2 { Role::Prefill } else { Role::Decode });
    for name in Policy::NAMES {
        let placed = place(&Policy::from_name(name).unwrap(), &ask(2000), &views).unwrap();
        let Placement::Pair { prefill, decode, .. } = placed else { panic!("{name}: {placed:?}") };
        assert!(prefill.chosen.0 < 2 && decode.chosen.0 >= 2);
    }
    views.truncate(2);
    assert_eq!(place(&Policy::default(), &ask(2000), &views).unwrap_err().wrong_role, 2);
}

fn any_view(seat: u16) -> impl Strategy<Value = View> {
    let load = (any::<u32>(), 0..1000u32, any::<u32>(), 0..1_000_000u64, 0.0f64..1e6);
    let held = prop::array::uniform4(any::<u32>());
    let rates = (0.0f64..100.0, 0.0f64..1.0, 0.0f64..1e-3, 0.0f64..100.0);
    (load, held, rates, any::<[u32; 3]>(), 0..5u8).prop_map(move |(load, blocks, rates, pages, state)| View {
        load: Load {
            pending_prefill_tokens: u64::from(load.0),
            pending_prefills: load.1,
            active: load.1.saturating_add(load.2 % 1000),
            resident_tokens: load.3,
            head_elapsed_ms: load.4,
            ..Load::default()
        },
        held: Held { blocks },
        rates: Rates {
            prefill_fixed_ms: rates.0,
            prefill_ms_per_token: rates.1,
            prefill_ms_per_token_context: rates.2,
            decode_fixed_ms: rates.3,
            ..Rates::default()
        },
        pages: Pages { total: u64::from(pages[0]), free: u64::from(pages[1]), cached: u64::from(pages[2]) },
        readiness: if state == 0 { Readiness::Dead } else { Readiness::Ready },
        ..View::idle(Seat(seat))
    })
}

fn any_views() -> impl Strategy<Value = Vec<View>> {
    (1..12u16).prop_flat_map(|count| (0..count).map(any_view).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn whoever_is_chosen_can_serve_and_costs_a_time(
        views in any_views(), tokens: u32, block in 1..512u32, output: u32, excluded: u64, seed: u64, policy in 0..5usize
    ) {
        let policy = Policy::from_name(Policy::NAMES[policy]).unwrap();
        let ask = Ask {
            prompt_tokens: tokens, block_tokens: block, output_tokens: output, seed, turn: seed,
            excluded: SeatSet(excluded), ..Ask::default()
        };
        let Ok(decision) = decide(&policy, &ask, &views) else { return Ok(()) };
        prop_assert_eq!(&decide(&policy, &ask, &views).unwrap(), &decision);
        prop_assert!(!ask.excluded.has(decision.chosen));
        prop_assert_eq!(views[decision.chosen.index()].readiness, Readiness::Ready);
        for score in &decision.scores {
            let parts = [score.prefill_ms, score.restore_ms, score.queue_ms, score.decode_ms, score.other_ms];
            prop_assert!(parts.iter().all(|ms| ms.is_finite() && *ms >= 0.0), "{score:?}");
            prop_assert!((parts.iter().sum::<f64>() - score.total_ms).abs() <= 1e-6 * score.total_ms.max(1.0));
            prop_assert!(score.uncached_tokens <= tokens);
        }
        if let Policy::KvAware(_) = policy {
            prop_assert!(decision.scores.iter().all(|s| s.total_ms >= decision.score().total_ms - 1e-6));
        }
        place(&policy, &ask, &views).unwrap();
    }

    /// More of everything bad never makes a replica cheaper.
    #[test]
    fn a_replica_with_more_to_do_is_no_cheaper(view in any_view(0), more in 1..10_000u64, tokens in 1..50_000u32) {
        let weights = Weights::default();
        let ask = Ask { prompt_tokens: tokens, ..Ask::default() };
        let before = cost::score(&weights, &ask, &view, 1).total_ms;
        let mut busier = view;
        busier.load.resident_tokens += more;
        prop_assert!(cost::score(&weights, &ask, &busier, 1).total_ms >= before);
        let mut fuller = view;
        fuller.pages.cached = fuller.pages.cached.saturating_sub(more);
        prop_assert!(cost::score(&weights, &ask, &fuller, 1).total_ms >= before);
    }
}
