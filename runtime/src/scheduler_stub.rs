//! Stand-in while the scheduler's parts are put together.
use base::Nanos;
use tokio::sync::mpsc::UnboundedSender;
use crate::request::{Event, Request};

#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    pub requests_max: usize,
    pub step_tokens: u32,
    pub step_seqs: u32,
    pub chunk_tokens: u32,
    pub prefix_cache: PrefixCache,
    pub step_budget: std::time::Duration,
    pub stall_after: std::time::Duration,
    pub namespace_key: base::NamespaceKey,
}
impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            requests_max: 4096,
            step_tokens: 2048,
            step_seqs: 256,
            chunk_tokens: 512,
            prefix_cache: PrefixCache::On,
            step_budget: std::time::Duration::from_millis(200),
            stall_after: std::time::Duration::from_secs(120),
            namespace_key: base::NamespaceKey([0; 32]),
        }
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixCache {
    On,
    Off,
}
pub(crate) struct Submission {
    pub request: Request,
    pub sender: UnboundedSender<Event>,
    pub arrived: Nanos,
}
pub(crate) mod driver {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender};
    pub(crate) fn spawn(
        _executor: Box<dyn crate::executor::Executor>,
        _config: super::SchedulerConfig,
        _clock: Arc<dyn base::Clock>,
        _stats: Arc<crate::stats::EngineStats>,
        _results: SyncSender<crate::engine::Message>,
        _inbox: Receiver<crate::engine::Message>,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        base::spawn("scheduler", || ())
    }
}
