//! Too little room, more important newcomers, late starts, and a device that fails.

use std::time::Duration;

use base::{NamespaceId, Priority, StepId};
use kvcache::TreeKey;

use super::harness::Harness;
use crate::executor::sim::SimConfig;
use crate::request::{Finish, Refusal, Request};
use crate::scheduler::SchedulerConfig;
use crate::stats::EngineStats;

fn prompt(from: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (from + i) % 900).collect()
}

#[test]
fn preempted_sequences_resume_with_the_same_tokens() {
    // Three sequences of 12 pages each at the end, over a pool of 20.
    let mut h = Harness::small(20, 16);
    let ids: Vec<_> = (0..3).map(|i| h.ask(&prompt(i * 200, 30), 150)).collect();
    h.run(5000);
    assert!(EngineStats::get(&h.stats.preemptions) > 0, "the pool is too small not to preempt");
    for id in ids {
        assert_eq!(h.heard(id).tokens, h.expected(&h.clients[&id].request));
    }
}

#[test]
fn a_more_important_request_takes_a_seat() {
    let config = SchedulerConfig { step_seqs: 2, ..SchedulerConfig::default() };
    let mut h = Harness::new(SimConfig::new(64, 16, 1000), config, 1);
    let slow: Vec<_> = (0..2).map(|i| h.ask(&prompt(i * 200, 20), 60)).collect();
    for _ in 0..5 {
        h.tick();
    }
    let urgent = Request { priority: Priority(-1), ..h.request(&prompt(700, 20), 5) };
    let urgent = h.submit(urgent);
    for _ in 0..8 {
        h.tick();
    }
    assert_eq!(h.heard(urgent).end, Some(Ok(Finish::Length)));
    assert!(slow.iter().all(|id| h.clients[id].heard.end.is_none()));
    h.run(1000);
    for client in h.clients.values() {
        h.verify(client);
    }
}

#[test]
fn a_request_that_cannot_start_in_time_says_so() {
    let config = SchedulerConfig { step_seqs: 1, ..SchedulerConfig::default() };
    let mut h = Harness::new(SimConfig::new(64, 16, 1000), config, 1);
    let first = h.ask(&prompt(0, 20), 50);
    h.tick();
    let deadline = Some(h.now.plus(Duration::from_millis(10)));
    let late = Request { deadline, ..h.request(&prompt(300, 20), 5) };
    let late = h.submit(late);
    h.run(1000);
    assert_eq!(h.heard(late).end, Some(Err(Refusal::Expired)));
    assert_eq!(h.heard(first).end, Some(Ok(Finish::Length)));
}

#[test]
fn a_started_request_is_not_failed_by_its_deadline() {
    let mut h = Harness::small(64, 16);
    let deadline = Some(h.now.plus(Duration::from_millis(5)));
    let request = Request { deadline, ..h.request(&prompt(300, 20), 50) };
    let id = h.submit(request);
    h.run(1000);
    assert_eq!(h.heard(id).end, Some(Ok(Finish::Length)));
}

#[test]
fn a_failed_step_fails_its_own_requests_and_nobody_else() {
    let config = SchedulerConfig { step_seqs: 2, ..SchedulerConfig::default() };
    for depth in [1, 2] {
        for fault in 1..12 {
            let mut h = Harness::new(SimConfig::new(64, 16, 1000), config.clone(), depth);
            h.fault_at(StepId(fault));
            let ids: Vec<_> = (0..5).map(|i| h.ask(&prompt(i * 100, 40), 10)).collect();
            h.run(1000);
            let ends: Vec<_> = ids.iter().map(|&id| h.heard(id).end.expect("every request ends")).collect();
            let failed = ends.iter().filter(|end| matches!(end, Err(Refusal::Engine(_)))).count();
            assert!((1..=2).contains(&failed), "step {fault} at depth {depth}: {ends:?}");
            assert!(ends.iter().filter(|e| e.is_ok()).count() == 5 - failed);
            for client in h.clients.values() {
                h.verify(client);
            }
        }
    }
}

#[test]
fn aborted_sequences_free_their_pages_within_two_steps() {
    let mut h = Harness::small(64, 16);
    let id = h.ask(&prompt(0, 300), 100);
    for _ in 0..6 {
        h.tick();
    }
    h.abort(id);
    for _ in 0..2 {
        h.tick();
    }
    h.scheduler.clear_cache();
    h.scheduler.publish_stats();
    assert_eq!(EngineStats::get(&h.stats.pages_free), 64);
    assert_eq!(h.heard(id).end, Some(Ok(Finish::Aborted)));
}

#[test]
fn long_prompts_do_not_starve_decodes() {
    let config = SchedulerConfig { step_tokens: 64, chunk_tokens: 64, ..SchedulerConfig::default() };
    let mut h = Harness::new(SimConfig::new(512, 16, 1000), config, 1);
    let short = h.ask(&prompt(0, 10), 40);
    h.tick();
    let long = h.ask(&prompt(100, 5000), 2);
    for _ in 0..40 {
        h.tick();
    }
    assert_eq!(h.heard(short).end, Some(Ok(Finish::Length)), "a decode is part of every step");
    assert!(h.heard(long).end.is_none());
    h.run(1000);
}

#[test]
fn a_prompt_as_large_as_the_pool_runs_alone() {
    let mut h = Harness::small(8, 16);
    let other = h.ask(&prompt(500, 20), 20);
    let large = h.ask(&prompt(0, 120), 8);
    h.run(1000);
    for id in [other, large] {
        assert_eq!(h.heard(id).tokens, h.expected(&h.clients[&id].request));
    }
}

#[test]
fn a_head_that_does_not_fit_does_not_use_its_prefix() {
    let mut h = Harness::small(32, 16);
    let shared = prompt(0, 64);
    h.ask(&shared, 1);
    h.run(100);
    // A long answer holds the pool while the head waits for more than is left.
    h.ask(&prompt(300, 128), 250);
    for _ in 0..4 {
        h.tick();
    }
    let big: Vec<u32> = shared.iter().copied().chain(prompt(600, 336)).collect();
    let blocked = h.ask(&big, 1);
    h.tick();
    let used = |h: &Harness| {
        let device = &h.scheduler.tiers.device;
        let key = TreeKey::new(NamespaceId(0), h.sim.shape.model);
        (device.frequency(&key, &shared), device.stats().counters.queries)
    };
    let before = used(&h);
    assert!(before.0 > 0, "what the head shares is cached");
    for _ in 0..20 {
        h.tick();
    }
    assert_eq!((h.heard(blocked).cached, used(&h)), (None, before));
    h.run(2000);
    assert!(h.heard(blocked).cached.is_some() && used(&h).1 > before.1);
}
