//! What the router counts, under `quire_router_`.
//!
//! Nothing here is per request or per client: labels are replicas, reasons and endings, all of bounded number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use web::{Histogram, Page};

use super::refusal::Reason;
use crate::placement::Ending;

const SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const DECISION: &[f64] = &[1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2];

/// Counters of one router.
pub struct Metrics {
    refusals: [AtomicU64; Reason::ALL.len()],
    endings: [AtomicU64; Ending::ALL.len()],
    retries: AtomicU64,
    prompt_blocks: AtomicU64,
    held_blocks: AtomicU64,
    pub decision: Histogram,
    pub queue: Histogram,
    pub first_byte: Histogram,
    pub whole: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            refusals: std::array::from_fn(|_| AtomicU64::new(0)),
            endings: std::array::from_fn(|_| AtomicU64::new(0)),
            retries: AtomicU64::new(0),
            prompt_blocks: AtomicU64::new(0),
            held_blocks: AtomicU64::new(0),
            decision: Histogram::new(DECISION),
            queue: Histogram::new(SECONDS),
            first_byte: Histogram::new(SECONDS),
            whole: Histogram::new(SECONDS),
        }
    }
}

impl Metrics {
    pub fn refused(&self, reason: Reason) {
        let place = Reason::ALL.iter().position(|known| *known == reason);
        self.refusals[place.expect("all reasons are listed")].fetch_add(1, Ordering::Relaxed);
    }

    pub fn ended(&self, ending: Ending, took: Duration) {
        self.endings[ending as usize].fetch_add(1, Ordering::Relaxed);
        self.whole.observe(took, 1);
    }

    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A prompt of `prompt` blocks went to a replica believed to hold `held` of them.
    pub fn placed(&self, prompt: u64, held: u64, took: Duration) {
        self.prompt_blocks.fetch_add(prompt, Ordering::Relaxed);
        self.held_blocks.fetch_add(held, Ordering::Relaxed);
        self.decision.observe(took, 1);
    }

    pub fn write(&self, page: &mut Page) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        page.head("requests_total", "counter", "Requests that were placed, by how they ended.");
        for ending in Ending::ALL {
            page.sample("requests_total", &[("ending", ending.label())], get(&self.endings[ending as usize]));
        }
        page.head("refusals_total", "counter", "Answers of the router itself, by reason.");
        for (reason, count) in Reason::ALL.iter().zip(&self.refusals) {
            page.sample("refusals_total", &[("reason", reason.code())], get(count));
        }
        page.counter("retries", "Requests sent to a second replica.", get(&self.retries));
        page.counter("prompt_blocks", "Blocks of placed prompts.", get(&self.prompt_blocks));
        page.counter(
            "held_blocks",
            "Blocks of those that the chosen replica was known to hold.",
            get(&self.held_blocks),
        );
        page.histogram("decision_seconds", "Naming, looking up and choosing.", &self.decision);
        page.histogram("queue_seconds", "From arrival to admission.", &self.queue);
        page.histogram(
            "first_byte_seconds",
            "From arrival to the first byte of the answer.",
            &self.first_byte,
        );
        page.histogram("request_seconds", "From arrival to the last byte of the answer.", &self.whole);
    }
}
