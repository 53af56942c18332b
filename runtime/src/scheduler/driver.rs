//! The thread around the scheduler: messages in, plans out.
//!
//! It sleeps on one channel that carries requests, aborts and step results alike, so an idle engine
//! costs nothing and a busy one never polls.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use base::Clock;

use super::{Scheduler, SchedulerConfig};
use crate::engine::{Health, Message};
use crate::executor::{Executor, StepError};
use crate::request::Refusal;
use crate::stats::EngineStats;

/// How often a silent engine looks at deadlines and at steps that do not come back.
const TICK: Duration = Duration::from_millis(250);

pub(crate) fn spawn(
    mut executor: Box<dyn Executor>,
    config: SchedulerConfig,
    clock: Arc<dyn Clock>,
    stats: Arc<EngineStats>,
    results: SyncSender<Message>,
    inbox: Receiver<Message>,
) -> std::io::Result<JoinHandle<()>> {
    executor.connect(Box::new(move |outcome| {
        let _ = results.send(Message::Step(outcome));
    }));
    base::spawn("scheduler", move || {
        let scheduler = Scheduler::new(config, executor.shape(), Arc::clone(&stats));
        Driver { scheduler, executor, clock, stats, inbox, is_draining: false }.run();
    })
}

struct Driver {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    clock: Arc<dyn Clock>,
    stats: Arc<EngineStats>,
    inbox: Receiver<Message>,
    is_draining: bool,
}

impl Driver {
    fn run(mut self) {
        while self.listen().is_continue() {
            self.submit_steps();
            self.scheduler.publish_stats();
            debug_assert!(self.scheduler.check().is_ok(), "{:?}", self.scheduler.check());
        }
        self.scheduler.publish_stats();
    }

    /// Waits for a message, then takes all that are there.
    fn listen(&mut self) -> ControlFlow<()> {
        let first = if self.scheduler.is_idle() {
            self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            self.inbox.recv_timeout(TICK)
        };
        match first {
            Ok(message) => self.handle(message)?,
            Err(RecvTimeoutError::Timeout) => self.watch_progress(),
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.handle(message)?;
        }
        ControlFlow::Continue(())
    }

    fn handle(&mut self, message: Message) -> ControlFlow<()> {
        match message {
            Message::Submit(submission) => self.scheduler.submit(*submission),
            Message::Abort(id) => self.scheduler.abort(id),
            Message::Step(Ok(result)) => {
                self.scheduler.apply(result);
                self.report_health();
            }
            Message::Step(Err(error)) => self.recover(&error),
            Message::ClearCache(answer) => {
                let _ = answer.send(self.scheduler.clear_cache());
            }
            Message::Drain => {
                self.is_draining = true;
                self.report_health();
            }
            Message::Stop => {
                self.stats.set_health(Health::Draining);
                self.scheduler.fail_all(&Refusal::Draining);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn submit_steps(&mut self) {
        while self.scheduler.in_flight() < self.executor.depth() {
            let Some(plan) = self.scheduler.plan(self.clock.now()) else { break };
            self.executor.submit(plan);
        }
    }

    fn recover(&mut self, error: &StepError) {
        if !self.scheduler.fail_step(error) {
            return;
        }
        tracing::error!(%error, "step failed; restarting the executor");
        self.stats.set_health(Health::Unhealthy);
        match self.executor.restart() {
            Ok(()) => self.report_health(),
            Err(error) => {
                tracing::error!(%error, "executor is lost");
                self.scheduler.fail_all(&Refusal::Engine(error.to_string()));
            }
        }
    }

    fn watch_progress(&self) {
        if self.scheduler.is_stalled(self.clock.now()) {
            tracing::error!("a step makes no progress");
            self.stats.set_health(Health::Unhealthy);
        }
    }

    fn report_health(&self) {
        let health = if self.is_draining { Health::Draining } else { Health::Ready };
        self.stats.set_health(health);
    }
}
