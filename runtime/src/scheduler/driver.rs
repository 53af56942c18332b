//! The thread around the scheduler.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread::JoinHandle;

use base::Clock;

use crate::engine::Message;
use crate::executor::Executor;
use crate::scheduler::SchedulerConfig;
use crate::stats::EngineStats;

pub(crate) fn spawn(
    _executor: Box<dyn Executor>,
    _config: SchedulerConfig,
    _clock: Arc<dyn Clock>,
    _stats: Arc<EngineStats>,
    _inbox: SyncSender<Message>,
    _outbox: Receiver<Message>,
) -> std::io::Result<JoinHandle<()>> {
    base::spawn("scheduler", || ())
}
