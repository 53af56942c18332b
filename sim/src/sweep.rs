//! Many small fleets, one for each seed: what the laws are held against.
//!
//! A seed decides everything: how many replicas and routers, how small their caches and queues, the policy, the
//! traffic, the network's losses, the faults. Small, because a law that a fleet of four breaks in two thousand
//! steps is found a thousand times as fast as in a fleet of sixty-four, and read as easily.
//!
//! A seed that fails is played again by the command that [`replay_command`] gives; nothing else is needed.

use std::sync::Arc;
use std::time::Duration;

use base::{Nanos, SplitMix};
use router::decide::Policy;

use crate::fleet::fault::Menu;
use crate::fleet::laws::Watch;
use crate::fleet::net::{Loss, NetConfig};
use crate::fleet::router::{Plant, RouterConfig};
use crate::fleet::{FleetConfig, RunEnd, run};
use crate::journal::Verbosity;
use crate::replica::ReplicaConfig;
use crate::trace::{Class, Generator, Talk, Trace};

/// One seed's fleet and traffic.
pub fn scenario(seed: u64, plant: Plant) -> (FleetConfig, Arc<Trace>) {
    let mut rng = SplitMix::new(seed ^ 0x7377_6565_7000);
    let replicas = 2 + rng.below(4) as usize;
    let routers = 1 + rng.below(3) as usize;
    let tenants = 1 + rng.below(3) as u16;
    let trace = traffic(seed, tenants, &mut rng).trace();
    let loss = if rng.below(2) == 0 { Loss::NONE } else { Loss::permille(5 + rng.below(60)) };
    let menu = Menu {
        replicas,
        routers,
        namespaces: u64::from(tenants),
        faults: rng.below(7) as usize,
        span: Duration::from_secs(6),
    };
    let mut config = FleetConfig::new(seed, replicas, replica(&mut rng), router(&mut rng, plant));
    config.routers = routers;
    config.plan = menu.plan(&mut rng);
    config.net = NetConfig { events: loss, gossip: loss, ..NetConfig::near() };
    config.lossy_until = Nanos::from_millis(1_000 + rng.below(7_000));
    config.watch = Watch::Closely { cache_every: 64 };
    config.verbosity = Verbosity::Tail(60);
    config.hangups_permille = [0, 0, 50][rng.below(3) as usize];
    (config, Arc::new(trace))
}

fn traffic(seed: u64, tenants: u16, rng: &mut SplitMix) -> Generator {
    let deadline = (rng.below(3) == 0).then(|| Duration::from_millis(200 + rng.below(3_000)));
    let chat = Talk {
        systems: 2,
        system_tokens: 48 + rng.below(120) as u32,
        ask_tokens: 20.0 + rng.unit() * 60.0,
        answer_tokens: 6.0 + rng.unit() * 18.0,
        think: Duration::from_millis(100 + rng.below(900)),
        turns: (1, 3),
        tenants,
        deadline,
        ..Talk::chat(12 + rng.below(40) as usize, 8.0 + rng.unit() * 40.0)
    };
    let batch =
        Talk { class: Class::Batch, deadline: None, turns: (1, 1), ask_tokens: 100.0, ..chat.clone() };
    let batch = Talk { talks: rng.below(20) as usize, per_s: 10.0, ..batch };
    Generator::new(seed, [chat, batch])
}

fn replica(rng: &mut SplitMix) -> ReplicaConfig {
    let small = ReplicaConfig::small();
    ReplicaConfig {
        pages: 96 + rng.below(160) as u32,
        requests_max: [6, 24, 64][rng.below(3) as usize],
        step_seqs: 2 + rng.below(8) as usize,
        log_batches: [4, 64, 1_024][rng.below(3) as usize],
        ..small
    }
}

fn router(rng: &mut SplitMix, plant: Plant) -> RouterConfig {
    let names = Policy::NAMES;
    let name = if rng.below(2) == 0 { "kv-aware" } else { names[rng.below(names.len() as u64) as usize] };
    let mut config = RouterConfig::new(Policy::from_name(name).expect("it is listed"));
    config.admit_within = [None, Some(Duration::from_millis(20 + rng.below(500)))][rng.below(2) as usize];
    config.queue_max = [8, 64, 1_024][rng.below(3) as usize];
    config.plant = plant;
    config
}

/// Plays one seed.
pub fn play(seed: u64, plant: Plant) -> RunEnd {
    let (config, trace) = scenario(seed, plant);
    run(config, &trace)
}

/// How to see a seed again, and nothing but it.
pub fn replay_command(seed: u64) -> String {
    format!("QUIRE_SIM_SEED={seed} cargo test -p quire-sim --release seeds -- --nocapture")
}

/// What is said of a seed that failed.
pub fn story(seed: u64, end: &RunEnd) -> String {
    let mut story = format!("seed {seed}, run {:016x}, {} events\n", end.hash, end.events);
    end.violations.iter().for_each(|violation| story.push_str(&format!("  broken: {violation}\n")));
    end.tail.iter().for_each(|line| story.push_str(&format!("  {line}\n")));
    story.push_str(&format!("again: {}\n", replay_command(seed)));
    story
}
