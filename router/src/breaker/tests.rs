//! What opens a breaker, what does not, and that it always closes again.

use std::time::Duration;

use base::Nanos;
use proptest::prelude::*;

use super::*;
use crate::{Seat, SeatSet};

const SEAT: Seat = Seat(0);
const OK: Answer = Answer::Success;

fn pool(replicas: u16, change: impl FnOnce(&mut BreakerConfig)) -> Breakers {
    let mut config = BreakerConfig::default();
    change(&mut config);
    let mut breakers = Breakers::new(config, 7).unwrap();
    breakers.set_members(Nanos(0), (0..replicas).map(Seat).collect());
    breakers
}

fn ms(ms: u64) -> Nanos {
    Nanos::from_millis(ms)
}

/// One request to the seat, answered at once.
fn answer(breakers: &mut Breakers, now: Nanos, seat: Seat, answer: Answer) -> Result<(), Refused> {
    let permit = breakers.take(now, seat)?;
    breakers.answered(now, permit, answer);
    breakers.check();
    Ok(())
}

fn burst(breakers: &mut Breakers, now: Nanos, what: Answer, times: u32) -> State {
    (0..times).for_each(|_| _ = answer(breakers, now, SEAT, what));
    breakers.state(now, SEAT).unwrap()
}

fn opened(breakers: &mut Breakers, now: Nanos) -> Nanos {
    match burst(breakers, now, Answer::Transport, 5) {
        State::Open { until } => until,
        state => panic!("{state:?}"),
    }
}

#[test]
fn a_burst_of_4xx_opens_no_breaker() {
    let mut breakers = pool(2, |_| ());
    for status in [400, 401, 404, 408, 413, 422, 499] {
        assert_eq!(burst(&mut breakers, ms(1), Answer::of_status(status, None), 1000), State::Closed);
    }
    assert_eq!(breakers.view(ms(1)).usable.len(), 2);
}

#[test]
fn a_busy_answer_opens_no_breaker_and_is_waited_for() {
    for status in [503, 429, 529] {
        let mut breakers = pool(2, |_| ());
        let busy = Answer::of_status(status, Some(Duration::from_secs(3)));
        assert_eq!(burst(&mut breakers, ms(0), busy, 1), State::Closed);
        let view = breakers.view(ms(2_999));
        assert_eq!((view.usable, view.busy), (SeatSet::of(Seat(1)), SeatSet::of(SEAT)), "{status}");
        assert_eq!(view.soonest, Some(ms(3_000)));
        assert_eq!(breakers.take(ms(0), SEAT), Err(Refused::Busy { until: ms(3_000) }));
        assert_eq!(breakers.view(ms(3_000)).usable.len(), 2);
    }
}

#[test]
fn requests_already_under_way_may_all_come_back_busy() {
    let mut breakers = pool(2, |_| ());
    let permits: Vec<_> = (0..100).map(|_| breakers.take(ms(0), SEAT).unwrap()).collect();
    permits.into_iter().for_each(|p| breakers.answered(ms(1), p, Answer::of_status(503, None)));
    assert_eq!(breakers.state(ms(1), SEAT), Some(State::Closed));
}

#[test]
fn one_that_stays_busy_is_left_alone_ever_longer() {
    let mut breakers = pool(2, |_| ());
    let mut pauses = Vec::new();
    let mut now = ms(0);
    for _ in 0..8 {
        answer(&mut breakers, now, SEAT, Answer::of_status(503, None)).unwrap();
        let until = breakers.view(now).soonest.unwrap();
        pauses.push(until.since(now).as_millis());
        now = until;
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    answer(&mut breakers, now, SEAT, OK).unwrap();
    answer(&mut breakers, now, SEAT, Answer::of_status(503, None)).unwrap();
    assert_eq!(breakers.view(now).soonest.unwrap().since(now).as_millis(), 100, "well again, short again");
}

#[test]
fn broken_answers_in_a_row_open_it() {
    for what in
        [Answer::Transport, Answer::TimedOut, Answer::of_status(500, None), Answer::of_status(502, None)]
    {
        let mut breakers = pool(2, |_| ());
        assert_eq!(burst(&mut breakers, ms(0), what, 4), State::Closed);
        assert_eq!(burst(&mut breakers, ms(0), OK, 1), State::Closed);
        assert_eq!(burst(&mut breakers, ms(0), what, 4), State::Closed, "a success between");
        assert!(matches!(burst(&mut breakers, ms(0), what, 1), State::Open { .. }), "{what:?}");
        assert_eq!(breakers.view(ms(1)).open, SeatSet::of(SEAT));
    }
}

#[test]
fn a_large_share_of_failures_opens_it_and_old_ones_are_forgotten() {
    let mut breakers = pool(2, |_| ());
    for n in 0..9 {
        burst(&mut breakers, ms(n * 100), OK, 1);
        assert_eq!(burst(&mut breakers, ms(n * 100), Answer::TimedOut, 1), State::Closed);
    }
    for n in 0..40 {
        let now = ms(20_000 + n * 1_500);
        burst(&mut breakers, now, OK, 1);
        assert_eq!(
            burst(&mut breakers, now, Answer::TimedOut, 1),
            State::Closed,
            "18 requests in ten seconds"
        );
    }
    let now = ms(200_000);
    for _ in 0..9 {
        burst(&mut breakers, now, OK, 1);
        assert_eq!(burst(&mut breakers, now, Answer::TimedOut, 1), State::Closed);
    }
    burst(&mut breakers, now, OK, 1);
    assert!(matches!(burst(&mut breakers, now, Answer::TimedOut, 1), State::Open { .. }), "10 of 20");
}

#[test]
fn half_open_lets_few_through_and_closes_on_their_success() {
    let mut breakers = pool(2, |_| ());
    let until = opened(&mut breakers, ms(0));
    assert_eq!(breakers.take(Nanos(until.0 - 1), SEAT), Err(Refused::Open { until }));
    let first = breakers.take(until, SEAT).unwrap();
    let second = breakers.take(until, SEAT).unwrap();
    assert_eq!(breakers.take(until, SEAT), Err(Refused::Probing));
    breakers.answered(until, first, OK);
    assert_eq!(breakers.state(until, SEAT), Some(State::HalfOpen));
    breakers.answered(until, second, Answer::of_status(404, None));
    assert_eq!(
        breakers.state(until, SEAT),
        Some(State::Closed),
        "it answered, whatever the request was worth"
    );
}

#[test]
fn a_probe_that_fails_or_is_lost_opens_it_for_longer() {
    let mut breakers = pool(2, |c| c.jitter_permille = 0);
    let mut until = opened(&mut breakers, ms(0));
    assert_eq!(until, ms(1_000));
    answer(&mut breakers, until, SEAT, Answer::Transport).unwrap();
    assert_eq!(breakers.state(until, SEAT), Some(State::Open { until: ms(3_000) }));
    until = ms(3_000);
    let lost = breakers.take(until, SEAT).unwrap();
    let given_up = until.plus(Duration::from_secs(30));
    assert_eq!(breakers.state(Nanos(given_up.0 - 1), SEAT), Some(State::HalfOpen));
    let again = given_up.plus(Duration::from_secs(4));
    assert_eq!(breakers.state(given_up, SEAT), Some(State::Open { until: again }));
    breakers.answered(again, lost, OK);
    assert_eq!(breakers.state(again, SEAT), Some(State::HalfOpen), "too late to count");
}

#[test]
fn a_probe_its_client_gave_up_makes_room_for_another() {
    let mut breakers = pool(2, |c| c.probes_max = 1);
    let until = opened(&mut breakers, ms(0));
    for _ in 0..10 {
        answer(&mut breakers, until, SEAT, Answer::Abandoned).unwrap();
        assert_eq!(breakers.state(until, SEAT), Some(State::HalfOpen));
    }
}

#[test]
fn pauses_double_to_the_longest_and_begin_anew_after_a_long_good_time() {
    let mut breakers = pool(2, |c| c.jitter_permille = 0);
    let mut now = ms(0);
    let mut pauses = Vec::new();
    let mut until = opened(&mut breakers, now);
    for _ in 0..8 {
        pauses.push(until.since(now).as_secs());
        now = until;
        answer(&mut breakers, now, SEAT, Answer::Transport).unwrap();
        let Some(State::Open { until: next }) = breakers.state(now, SEAT) else { panic!() };
        until = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    (0..2).for_each(|_| answer(&mut breakers, until, SEAT, OK).unwrap());
    let soon = until.plus(Duration::from_secs(1));
    assert_eq!(opened(&mut breakers, soon).since(soon).as_secs(), 60, "it was not well for long");
    let back = soon.plus(Duration::from_secs(60));
    (0..2).for_each(|_| answer(&mut breakers, back, SEAT, OK).unwrap());
    let later = back.plus(Duration::from_secs(60));
    assert_eq!(opened(&mut breakers, later).since(later).as_secs(), 1);
}

#[test]
fn pauses_of_different_replicas_differ_and_a_seed_repeats_them() {
    let pauses = |seed: u64| {
        let mut breakers = Breakers::new(BreakerConfig::default(), seed).unwrap();
        breakers.set_members(ms(0), (0..8).map(Seat).collect());
        (0..4)
            .map(|seat| {
                (0..5).for_each(|_| _ = answer(&mut breakers, ms(0), Seat(seat), Answer::Transport));
                match breakers.state(ms(0), Seat(seat)) {
                    Some(State::Open { until }) => until,
                    state => panic!("{state:?}"),
                }
            })
            .collect::<Vec<_>>()
    };
    let drawn = pauses(1);
    let distinct: std::collections::BTreeSet<_> = drawn.iter().collect();
    assert_eq!(distinct.len(), 4);
    assert!(drawn.iter().all(|until| (ms(1_000)..=ms(1_250)).contains(until)), "{drawn:?}");
    assert_eq!(drawn, pauses(1));
    assert_ne!(drawn, pauses(2));
}

#[test]
fn no_more_than_the_share_is_out_even_when_all_fail() {
    for (replicas, out_max) in [(1, 0), (2, 1), (3, 1), (8, 4)] {
        let mut breakers = pool(replicas, |_| ());
        for _ in 0..50 {
            (0..replicas).for_each(|seat| _ = answer(&mut breakers, ms(0), Seat(seat), Answer::Transport));
        }
        assert_eq!(breakers.view(ms(0)).open.len(), out_max, "of {replicas}");
    }
}

#[test]
fn a_pool_that_shrinks_takes_back_what_it_can_no_longer_spare() {
    let mut breakers = pool(4, |_| ());
    for seat in [Seat(0), Seat(1)] {
        (0..5).for_each(|_| _ = answer(&mut breakers, ms(u64::from(seat.0)), seat, Answer::Transport));
    }
    assert_eq!(breakers.view(ms(2)).open.len(), 2);
    breakers.set_members(ms(2), (0..2).map(Seat).collect());
    breakers.check();
    assert_eq!(breakers.view(ms(2)).usable.len(), 1);
}

#[test]
fn an_answer_of_the_seats_former_replica_is_not_counted() {
    let mut breakers = pool(2, |_| ());
    let permits: Vec<_> = (0..5).map(|_| breakers.take(ms(0), SEAT).unwrap()).collect();
    breakers.set_members(ms(1), SeatSet::of(Seat(1)));
    breakers.set_members(ms(2), SeatSet::of(SEAT).with(Seat(1)));
    permits.into_iter().for_each(|permit| breakers.answered(ms(3), permit, Answer::Transport));
    assert_eq!(breakers.state(ms(3), SEAT), Some(State::Closed));
    assert_eq!(breakers.take(ms(3), Seat(9)), Err(Refused::Unknown));
}

#[test]
fn statuses_are_told_apart() {
    let kinds = [200, 206, 304, 400, 404, 429, 499, 500, 501, 502, 503, 504, 529]
        .map(|status| format!("{status} {}", Answer::of_status(status, None).kind()));
    expect_test::expect![
        "200 success · 206 success · 304 success · 400 client_error · 404 client_error · 429 busy · \
         499 client_error · 500 server_error · 501 server_error · 502 server_error · 503 busy · \
         504 timed_out · 529 busy"
    ]
    .assert_eq(&kinds.join(" · "));
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    let kind = |change: fn(&mut BreakerConfig)| {
        let mut config = BreakerConfig::default();
        change(&mut config);
        Breakers::new(config, 0).unwrap_err().kind()
    };
    assert_eq!(kind(|c| c.probes_max = 0), "zero");
    assert_eq!(kind(|c| c.out_permille_max = 1001), "not_a_share");
}

#[derive(Clone, Debug)]
enum Op {
    Take { seat: u16 },
    Answer { at: usize, answer: Answer },
    Forget { at: usize },
    Wait { ms: u64 },
    Members { bits: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let answers = prop_oneof![
        4 => Just(Answer::Transport),
        2 => Just(Answer::TimedOut),
        2 => Just(Answer::ServerError),
        2 => Just(Answer::Success),
        1 => Just(Answer::ClientError),
        1 => Just(Answer::Abandoned),
        1 => (0..9000u64).prop_map(|ms| Answer::Busy { retry_after: Some(Duration::from_millis(ms)) }),
        1 => Just(Answer::Busy { retry_after: None }),
    ];
    prop_oneof![
        8 => (0..6u16).prop_map(|seat| Op::Take { seat }),
        8 => (0..32usize, answers).prop_map(|(at, answer)| Op::Answer { at, answer }),
        1 => (0..32usize).prop_map(|at| Op::Forget { at }),
        2 => (0..20_000u64).prop_map(|ms| Op::Wait { ms }),
        1 => (1..64u64).prop_map(|bits| Op::Members { bits }),
    ]
}

/// After any history, with every probe that can be had lost, and replicas that answer from then on.
fn recovers(breakers: &mut Breakers, mut now: Nanos, well: Answer) -> Result<(), TestCaseError> {
    for seat in breakers.view(now).half_open.iter() {
        while breakers.take(now, seat).is_ok() {}
    }
    for _ in 0..400 {
        now = now.plus(Duration::from_secs(5));
        for seat in breakers.members().iter() {
            let _ = answer(breakers, now, seat, well);
        }
    }
    for seat in breakers.members().iter() {
        prop_assert_eq!(breakers.state(now, seat), Some(State::Closed), "seat {}", seat);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_share_holds_and_half_open_always_ends(
        ops in proptest::collection::vec(op(), 1..200),
        well in prop_oneof![Just(OK), Just(Answer::ClientError)],
    ) {
        let mut breakers = pool(6, |_| ());
        let mut permits: Vec<Permit> = Vec::new();
        let mut now = ms(0);
        for op in ops {
            match op {
                Op::Take { seat } => permits.extend(breakers.take(now, Seat(seat))),
                Op::Answer { at, answer } if at < permits.len() => {
                    let permit = permits.swap_remove(at);
                    breakers.answered(now, permit, answer);
                }
                Op::Forget { at } if at < permits.len() => drop(permits.swap_remove(at)),
                Op::Wait { ms } => now = now.plus(Duration::from_millis(ms)),
                Op::Members { bits } => breakers.set_members(now, SeatSet(bits)),
                _ => {}
            }
            breakers.check();
            let view = breakers.view(now);
            let away = view.open.len() + view.half_open.len();
            prop_assert!(away * 2 <= breakers.members().len(), "{} of {} out", away, breakers.members().len());
        }
        recovers(&mut breakers, now, well)?;
    }

    #[test]
    fn whatever_says_the_client_is_wrong_or_the_replica_busy_never_opens(
        statuses in proptest::collection::vec(prop_oneof![400..=499u16, Just(503), Just(529), Just(200)], 1..300),
        pause_ms in 0..2000u64,
    ) {
        let mut breakers = pool(2, |_| ());
        let mut now = ms(0);
        for status in statuses {
            let retry_after = (status % 2 == 0).then_some(Duration::from_millis(pause_ms));
            let _ = answer(&mut breakers, now, SEAT, Answer::of_status(status, retry_after));
            prop_assert_eq!(breakers.state(now, SEAT), Some(State::Closed));
            now = now.plus(Duration::from_millis(pause_ms));
        }
    }
}
