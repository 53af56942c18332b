//! The scheduler (under construction): owns all engine state on one thread.

pub(crate) mod driver;

use base::Nanos;
use tokio::sync::mpsc::UnboundedSender;

use crate::request::{Event, Request};

/// Policy knobs of one replica.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Admitted and not yet ended; the bound of every queue here.
    pub requests_max: usize,
    /// Most tokens of one step (`--max-num-batched-tokens`).
    pub step_tokens: u32,
    /// Most sequences running at once (`--max-num-seqs`).
    pub step_seqs: u32,
    /// Most prompt tokens of one sequence in one step (`--prefill-chunk`).
    pub chunk_tokens: u32,
    /// Share prefixes at all (`--no-enable-prefix-caching` switches it off).
    pub prefix_cache: PrefixCache,
    /// Aim for steps no longer than this while decodes wait; prefill chunks shrink to fit.
    pub step_budget: std::time::Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCache {
    On,
    Off,
}

/// A request on its way into the scheduler.
pub(crate) struct Submission {
    pub request: Request,
    pub sender: UnboundedSender<Event>,
    pub arrived: Nanos,
}
