//! Claims about whole fleets, each a run of some seconds of virtual time.

use std::sync::Arc;
use std::time::Duration;

use base::Nanos;
use quire_sim::fleet::fault::{Fault, Memory};
use quire_sim::fleet::laws::Watch;
use quire_sim::fleet::net::{Loss, NetConfig};
use quire_sim::fleet::router::RouterConfig;
use quire_sim::fleet::{FleetConfig, RunEnd, run};
use quire_sim::replica::ReplicaConfig;
use quire_sim::trace::{Class, Generator, Talk, Trace};
use router::decide::Policy;

fn kv_aware() -> RouterConfig {
    RouterConfig::new(Policy::default())
}

fn chat(talks: usize, per_s: f64) -> Talk {
    Talk { turns: (1, 1), ..Talk::chat(talks, per_s) }
}

fn no_law_is_broken(end: &RunEnd) {
    assert!(end.violations.is_empty(), "{:?}\n{}", end.violations, end.tail.join("\n"));
}

/// Everybody has one system prompt of 4096 tokens and a short question, at a load that takes the whole fleet: what
/// half of it can do alone need not be spread.
fn one_system_prompt(seed: u64) -> Arc<Trace> {
    let talk = Talk {
        systems: 1,
        system_tokens: 4_096,
        ask_tokens: 60.0,
        answer_tokens: 120.0,
        ..chat(6_000, 400.0)
    };
    Arc::new(Generator::new(seed, [talk]).trace())
}

#[test]
fn one_4k_system_prompt_for_all_spreads_over_eight_replicas_and_is_reused() {
    for seed in 1..=3 {
        let trace = one_system_prompt(seed);
        let end = run(FleetConfig::new(seed, 8, ReplicaConfig::h200_8b(), kv_aware()), &trace);
        no_law_is_broken(&end);
        let tally = &end.tally;
        let reused = tally.hit_tokens() as f64 / (4_096.0 * trace.calls.len() as f64);
        println!(
            "seed {seed}: max/min {:.2}, {:.1} % of the prefix reused, idle {:?}",
            tally.imbalance(),
            reused * 100.0,
            tally.idle_while_waiting
        );
        assert_eq!(tally.answered, trace.calls.len() as u64);
        assert!(tally.imbalance() <= 1.5, "max/min token work {:.2}", tally.imbalance());
        assert!(reused >= 0.95, "{:.3} of the prefix reused", reused);
        assert!(
            tally.idle_while_waiting <= Duration::from_secs(1),
            "idle for {:?}",
            tally.idle_while_waiting
        );
    }
}

/// Three tenants and two classes ask for about three times what two small replicas can do.
fn overload(seed: u64) -> (FleetConfig, Arc<Trace>) {
    let people = Talk {
        tenants: 3,
        ask_tokens: 900.0,
        answer_tokens: 60.0,
        system_tokens: 64,
        deadline: Some(Duration::from_secs(4)),
        ..chat(3_000, 150.0)
    };
    let batch = Talk { class: Class::Batch, deadline: Some(Duration::from_secs(15)), ..people.clone() };
    let batch = Talk { talks: 1_500, per_s: 75.0, ..batch };
    let trace = Arc::new(Generator::new(seed, [people, batch]).trace());
    let router =
        RouterConfig { admit_within: Some(Duration::from_millis(400)), queue_max: 400, ..kv_aware() };
    let mut config = FleetConfig::new(seed, 2, ReplicaConfig::h200_8b(), router);
    config.watch = Watch::Closely { cache_every: 512 };
    (config, trace)
}

#[test]
fn threefold_overload_ends_every_request_once_and_none_late() {
    let (config, trace) = overload(1);
    let end = run(config, &trace);
    no_law_is_broken(&end); // one end each; none placed after its deadline
    let tally = &end.tally;
    println!(
        "{:?}, refusals p99 {:.1} ms, TTFT p99 {:.0} ms",
        tally.ends,
        tally.refusal.percentile_ms(99.0),
        tally.ttft.percentile_ms(99.0)
    );
    assert_eq!(tally.ends.values().sum::<u64>(), trace.calls.len() as u64);
    assert_eq!(tally.failed(), 0, "{:?}", tally.ends);
    assert!(tally.refused() > trace.calls.len() as u64 / 3, "not overloaded: {:?}", tally.ends);
    assert!(tally.answered > trace.calls.len() as u64 / 5, "{:?}", tally.ends);
}

fn three_routers(seed: u64, routers: usize, kill: bool) -> RunEnd {
    let trace = Arc::new(
        Generator::new(seed, [Talk { systems: 6, tenants: 2, system_tokens: 1_500, ..chat(1_500, 60.0) }])
            .trace(),
    );
    let mut config = FleetConfig::new(seed, 8, ReplicaConfig::h200_8b(), kv_aware());
    config.routers = routers;
    config.watch = Watch::Closely { cache_every: 4_096 };
    if kill {
        let down = Duration::from_secs(3);
        config.plan = vec![(Nanos::from_millis(8_000), Fault::KillRouter { router: 1, down })];
    }
    let end = run(config, &trace);
    no_law_is_broken(&end);
    assert_eq!(end.tally.ends.values().sum::<u64>(), trace.calls.len() as u64);
    end
}

#[test]
fn one_of_three_routers_killed_fails_no_request() {
    let end = three_routers(1, 3, true);
    println!("{:?}, asked again {}", end.tally.ends, end.tally.asked_again);
    assert_eq!(end.tally.ends.keys().copied().collect::<Vec<_>>(), ["answered"]);
    assert!(end.tally.asked_again > 0, "the router died while it had nothing to do");
}

#[test]
fn three_routers_herd_at_most_a_third_more_than_one() {
    let (mut one, mut three) = (0.0, 0.0);
    for seed in 1..=3 {
        one += three_routers(seed, 1, false).tally.imbalance();
        three += three_routers(seed, 3, false).tally.imbalance();
    }
    println!("max/min with one router {:.2}, with three {:.2}", one / 3.0, three / 3.0);
    assert!(three <= 1.3 * one, "max/min {three} against {one}");
}

/// Lost, doubled and late events, replicas and routers that restart: at rest, two seconds after the last of it, every
/// source is exact and where its replica is, and no score was above the truth before.
#[test]
fn events_lost_doubled_and_late_are_mended_within_two_seconds() {
    for seed in 1..=4 {
        let trace = Arc::new(Generator::new(seed, [Talk { systems: 4, ..chat(900, 60.0) }]).trace());
        let replica = ReplicaConfig { pages: 600, page_tokens: 16, ..ReplicaConfig::h200_8b() };
        let mut config = FleetConfig::new(seed, 4, replica, kv_aware());
        config.routers = 2;
        config.net = NetConfig { events: Loss::permille(10), ..NetConfig::near() };
        config.lossy_until = Nanos::from_millis(12_000);
        config.watch = Watch::Closely { cache_every: 1_024 };
        config.settle = Duration::from_secs(2);
        let down = Duration::from_millis(400);
        config.plan = vec![
            (Nanos::from_millis(3_000), Fault::KillReplica { replica: 1, down, memory: Memory::Empty }),
            (Nanos::from_millis(5_000), Fault::KillReplica { replica: 2, down, memory: Memory::Kept }),
            (Nanos::from_millis(7_000), Fault::KillRouter { router: 0, down }),
        ];
        let end = run(config, &trace);
        no_law_is_broken(&end);
    }
}

#[test]
fn a_rolling_restart_drops_no_stream() {
    let trace = Arc::new(Generator::new(5, [Talk { systems: 4, ..chat(1_500, 50.0) }]).trace());
    let mut config = FleetConfig::new(5, 4, ReplicaConfig::h200_8b(), kv_aware());
    config.routers = 2;
    config.watch = Watch::Closely { cache_every: 4_096 };
    let roll =
        |replica: usize| Fault::Roll { replica, down: Duration::from_millis(1_500), memory: Memory::Empty };
    config.plan = (0..4).map(|at| (Nanos::from_millis(4_000 + 5_000 * at as u64), roll(at))).collect();
    let end = run(config, &trace);
    no_law_is_broken(&end);
    println!("{:?}, retried {}", end.tally.ends, end.tally.retried);
    assert_eq!(end.tally.ends.keys().copied().collect::<Vec<_>>(), ["answered"]);
}
