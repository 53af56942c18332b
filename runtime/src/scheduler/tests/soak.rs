//! No leak: random submits, aborts, ends and evictions for as many steps as asked, the integrity law
//! after each one and the device's own check of every page it reads.
//!
//! `QUIRE_SOAK_STEPS=1000000 cargo test --workspace --lib soak_random_load` is the full run; the suite
//! runs a bounded one.

use std::sync::Arc;

use base::{Generation, NamespaceId, NamespaceKey, Priority, SplitMix, Tier};
use kernels::SamplingParams;
use kvcache::{LowerConfig, WritePolicy};

use super::harness::Harness;
use crate::executor::Restores;
use crate::executor::sim::SimConfig;
use crate::request::{Request, Tenant};
use crate::scheduler::{PurgeRunning, SchedulerConfig};
use crate::stats::EngineStats;

const STEPS_IN_SUITE: u64 = 30_000;
const SEEDS: u64 = 6;

fn random_request(h: &mut Harness, rng: &mut SplitMix) -> Request {
    let family = rng.below(4) as u32;
    let len = 1 + rng.below(120) as u32;
    let mut prompt: Vec<u32> = (0..len).map(|i| (family * 20 + i) % 90).collect();
    if rng.below(3) == 0 {
        // Leaves its family somewhere, so that nodes split.
        prompt[rng.below(u64::from(len)) as usize] = 89;
    }
    let params = SamplingParams {
        temperature: rng.below(2) as f32,
        seed: rng.below(5),
        stop_ids: vec![rng.below(90) as u32],
        ..SamplingParams::default()
    };
    let deadline = (rng.below(8) == 0).then(|| h.now.plus(std::time::Duration::from_millis(rng.below(40))));
    Request {
        params: Arc::new(params),
        tenant: Tenant { namespace: NamespaceId(rng.below(2)), ..Tenant::default() },
        priority: Priority(rng.below(3) as i32),
        deadline,
        prompt_logprobs: (rng.below(10) == 0).then_some(1),
        ..h.request(&prompt, 1 + rng.below(60) as u32)
    }
}

/// None, then one lower tier, then all of them under each write policy.
fn tiers(seed: u64) -> Vec<LowerConfig> {
    let places = [(Tier::Host, 60), (Tier::Nvme, 90), (Tier::Object, 150)];
    let write = match seed % 3 {
        0 => WritePolicy::WriteThrough,
        1 => WritePolicy::WriteThroughSelective { uses: 2 },
        _ => WritePolicy::WriteBack,
    };
    let depth = if seed < 4 { seed as usize } else { places.len() };
    let lower = places[..depth.min(3)].iter();
    lower
        .map(|&(tier, pages)| LowerConfig { write, watermark: 0.4, ..LowerConfig::new(tier, pages) })
        .collect()
}

fn soak(steps: u64, seed: u64) -> u64 {
    let mut rng = SplitMix::new(seed);
    let config = SchedulerConfig {
        step_tokens: 96,
        step_seqs: 6,
        chunk_tokens: 40,
        tiers: tiers(seed),
        ..SchedulerConfig::default()
    };
    let mut sim = SimConfig::new(40, 16, 90);
    if seed % 2 == 1 {
        sim.shape.restores = Restores::Beside;
        sim.landing_steps = seed;
    }
    let mut h = Harness::new(sim, config, 1 + (seed / 2 % 2) as usize);
    h.scheduler.register_namespace(NamespaceId(1), NamespaceKey([1; 32]), Generation(0));
    h.spoil_every(9);
    let mut done = 0;
    while done < steps {
        if h.clients.len() < 24 && rng.below(3) == 0 {
            let request = random_request(&mut h, &mut rng);
            h.submit(request);
        }
        if rng.below(12) == 0
            && let Some(&id) = h.clients.keys().nth(rng.below(h.clients.len().max(1) as u64) as usize)
        {
            h.abort(id);
        }
        if rng.below(500) == 0 {
            h.scheduler.clear_cache();
        }
        if rng.below(900) == 0 {
            let running = if rng.below(2) == 0 { PurgeRunning::Wait } else { PurgeRunning::Cancel };
            let namespace = NamespaceId(rng.below(2));
            let up_to = h.scheduler.generation(namespace);
            h.scheduler.purge(namespace, up_to, running);
        }
        if rng.below(2) == 0 {
            h.cold(rng.below(6) as usize);
        }
        done += u64::from(h.tick());
        reap(&mut h);
    }
    h.run(100_000);
    reap(&mut h);
    assert!(h.clients.is_empty());
    h.scheduler.clear_cache();
    h.scheduler.publish_stats();
    assert_eq!(EngineStats::get(&h.stats.pages_free), 40, "pages leaked");
    assert_eq!(EngineStats::get(&h.stats.in_flight), 0, "requests leaked");
    done
}

/// Ended clients leave; what they heard must be right.
fn reap(h: &mut Harness) {
    let ended: Vec<_> = h.clients.iter().filter(|(_, c)| c.heard.end.is_some()).map(|(&id, _)| id).collect();
    for id in ended {
        if let Some(client) = h.clients.remove(&id) {
            h.verify(&client);
        }
    }
}

#[test]
fn soak_random_load_leaks_nothing_and_serves_no_wrong_page() {
    let asked = std::env::var("QUIRE_SOAK_STEPS").ok().and_then(|s| s.parse().ok());
    let steps = asked.unwrap_or(STEPS_IN_SUITE);
    for seed in 0..SEEDS {
        assert!(soak(steps / SEEDS, seed) >= steps / SEEDS);
    }
}
