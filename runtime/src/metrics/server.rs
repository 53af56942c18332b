//! What the server's side counts; the engine counts the rest itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use web::Histogram;

use crate::metrics::rpc::RpcMetrics;

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];

/// How a sequence's answer ended; vLLM's `finished_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Stop,
    Length,
    /// The client went away.
    Abort,
    Error,
}

impl Ending {
    pub const ALL: [Ending; 4] = [Ending::Stop, Ending::Length, Ending::Abort, Ending::Error];

    pub fn label(self) -> &'static str {
        match self {
            Ending::Stop => "stop",
            Ending::Length => "length",
            Ending::Abort => "abort",
            Ending::Error => "error",
        }
    }
}

/// Status classes of answers.
const CLASSES: usize = 5;

/// Histograms and counters of one server.
#[derive(Debug)]
pub struct ServerMetrics {
    pub ttft: Histogram,
    pub inter_token: Histogram,
    pub e2e: Histogram,
    pub queue: Histogram,
    pub prompt: Histogram,
    pub generation: Histogram,
    endings: [AtomicU64; 4],
    responses: [AtomicU64; CLASSES],
    pub rpc: RpcMetrics,
}

impl Default for ServerMetrics {
    fn default() -> Self {
        Self {
            ttft: Histogram::new(TTFT),
            inter_token: Histogram::new(INTER_TOKEN),
            e2e: Histogram::new(REQUEST),
            queue: Histogram::new(REQUEST),
            prompt: Histogram::new(TOKENS),
            generation: Histogram::new(TOKENS),
            endings: Default::default(),
            responses: Default::default(),
            rpc: RpcMetrics::default(),
        }
    }
}

impl ServerMetrics {
    pub fn first_token(&self, since_arrival: Duration, queued: Duration) {
        self.ttft.observe(since_arrival, 1);
        self.queue.observe(queued, 1);
    }

    /// `count` tokens with this much time between them.
    pub fn tokens(&self, gap: Duration, count: u32) {
        self.inter_token.observe(gap, u64::from(count));
    }

    pub fn ended(&self, ending: Ending, took: Duration, prompt: u64, generated: u64) {
        self.endings[ending as usize].fetch_add(1, Ordering::Relaxed);
        if matches!(ending, Ending::Stop | Ending::Length) {
            self.e2e.observe(took, 1);
            self.prompt.observe_count(prompt);
            self.generation.observe_count(generated);
        }
    }

    pub fn endings(&self, ending: Ending) -> u64 {
        self.endings[ending as usize].load(Ordering::Relaxed)
    }

    pub fn response(&self, status: u16) {
        let class = (usize::from(status / 100)).clamp(1, CLASSES) - 1;
        self.responses[class].fetch_add(1, Ordering::Relaxed);
    }

    /// `("2xx", answers)` and so on.
    pub fn responses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let names = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        names.into_iter().zip(self.responses.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}
