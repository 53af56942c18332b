//! The engine's counters, written by the scheduler thread and read by `/metrics`. Plain atomics: the
//! scheduler takes no lock, and a scrape never waits for a step.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use base::Tier;
use kvcache::{Spans, TierStats};

use crate::engine::Health;

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Gauges and counters of one engine.
        #[derive(Debug, Default)]
        pub struct EngineStats {
            $($(#[$doc])* pub $name: AtomicU64,)*
            /// By tier, nearest first.
            pub tiers: [TierGauges; Tier::ALL.len()],
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
    /// Pages copied device to host, host to device, host to cold tiers, and cold tiers to host.
    tier_saved_pages,
    tier_restored_pages,
    tier_stored_pages,
    tier_loaded_pages,
    /// Copies between tiers not made, that failed, and whose bytes were wrong.
    tier_shed_pages,
    tier_failed_pages,
    tier_wrong_pages,
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

/// One tier's numbers. A tier without places is not there.
#[derive(Debug, Default)]
pub struct TierGauges {
    pub places: AtomicU64,
    pub held: AtomicU64,
    pub query_tokens: AtomicU64,
    pub hit_tokens: AtomicU64,
    pub evicted: AtomicU64,
    spans: Mutex<Spans>,
}

impl TierGauges {
    /// Takes over what a tier says of itself.
    pub(crate) fn put(&self, stats: &TierStats) {
        let (cache, counters) = (&stats.cache, &stats.cache.counters);
        EngineStats::put(&self.places, cache.pages_total as u64);
        EngineStats::put(&self.held, (cache.pages_leased + cache.pages_cached) as u64);
        EngineStats::put(&self.query_tokens, counters.queried_tokens);
        EngineStats::put(&self.hit_tokens, counters.hit_tokens);
        EngineStats::put(&self.evicted, counters.evicted_pages);
        // A scrape that reads at this moment makes this one update wait for the next step instead.
        if let Ok(mut spans) = self.spans.try_lock() {
            *spans = stats.spans;
        }
    }

    pub fn spans(&self) -> Spans {
        *self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EngineStats {
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Ready,
            1 => Health::Draining,
            3 => Health::Lost,
            _ => Health::Unhealthy,
        }
    }

    pub(crate) fn set_health(&self, health: Health) {
        let code = match health {
            Health::Ready => 0,
            Health::Draining => 1,
            Health::Unhealthy => 2,
            Health::Lost => 3,
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
