//! The engine's counters, written by the scheduler thread and read by `/metrics`. Plain atomics: the
//! scheduler takes no lock, and a scrape never waits for a step.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::engine::Health;

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Gauges and counters of one engine.
        #[derive(Debug, Default)]
        pub struct EngineStats {
            $($(#[$doc])* pub $name: AtomicU64,)*
            health: AtomicU8,
        }
    };
}

stats! {
    /// Gauge: admitted and not yet ended.
    in_flight,
    /// Gauge: in a step or between steps.
    running,
    /// Gauge: admitted, not yet started (or preempted).
    waiting,
    pages_total,
    /// Gauge: pages that no sequence uses and no prefix occupies.
    pages_free,
    /// Gauge: pages that hold reusable prefixes and are not leased.
    pages_cached,
    /// Tokens looked up in the prefix cache, and how many of them hit.
    prefix_query_tokens,
    prefix_hit_tokens,
    /// Those of the hits that were restored from host memory.
    host_hit_tokens,
    /// Loads from cold tiers begun, not begun because computing is faster, and given up waiting for.
    prefetches,
    prefetch_declined,
    prefetch_timeouts,
    prefetched_pages,
    prompt_tokens,
    generation_tokens,
    /// Prompt tokens actually computed (not served from cache).
    computed_tokens,
    preemptions,
    evicted_pages,
    steps,
    /// Nanoseconds the executor spent in steps.
    step_ns,
    finished_stop,
    finished_length,
    finished_abort,
    finished_error,
    /// Requests refused because their deadline had passed.
    expired,
    executor_restarts,
}

impl EngineStats {
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Ready,
            1 => Health::Draining,
            _ => Health::Unhealthy,
        }
    }

    pub(crate) fn set_health(&self, health: Health) {
        let code = match health {
            Health::Ready => 0,
            Health::Draining => 1,
            Health::Unhealthy => 2,
        };
        self.health.store(code, Ordering::Release);
    }

    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sub(gauge: &AtomicU64, n: u64) {
        gauge.fetch_sub(n, Ordering::AcqRel);
    }

    pub(crate) fn put(gauge: &AtomicU64, value: u64) {
        gauge.store(value, Ordering::Relaxed);
    }

    /// Relaxed read, for display.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}
