//! A thread around anything that can run a step: the shared half of the executors.
//!
//! Plans wait in a short queue, results leave through the sink, and a panic in a step becomes a
//! `StepError` instead of a dead process: that step fails, the ones queued behind it are refused, and
//! `restart` empties the model's state. The thread itself survives.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use base::Clock;
use transfer::HostArena;

use super::{Executor, ExecutorShape, RestartError, Sink, StepError};
use crate::plan::{Moved, StepPlan, StepResult};

/// Runs one step at a time; may panic.
pub trait StepModel: Send + 'static {
    fn shape(&self) -> ExecutorShape;
    /// Computes `plan`. `took_ns` of the result is filled in by the caller.
    fn forward(&mut self, plan: &StepPlan) -> StepResult;
    /// Where the plan's moves between device and host go.
    fn attach_host(&mut self, host: Arc<HostArena>);
    /// Carries out the plan's moves or begins to, before `forward`. What that takes is added by the caller.
    fn move_pages(&mut self, plan: &StepPlan) -> Moved;
    /// Waits for those of the plan's moves that its answer promises; after `forward`.
    fn settle_moves(&mut self, _plan: &StepPlan, _moved: &mut Moved) {}
    /// Whether the device still answers; in the driver's words if not.
    fn check_device(&self) -> Result<(), String> {
        Ok(())
    }
    /// Forgets every sequence and overwrites every page with zeros; may panic.
    fn reset(&mut self);
}

enum Command {
    Connect(Sink),
    AttachHost(Arc<HostArena>),
    Step(StepPlan),
    Reset(SyncSender<Result<(), RestartError>>),
}

/// A [`StepModel`] on a thread of its own.
pub struct ThreadedExecutor {
    shape: ExecutorShape,
    depth: usize,
    commands: SyncSender<Command>,
}

impl ThreadedExecutor {
    /// `depth` steps may be in flight: 1 without overlap, 2 to plan while executing.
    pub fn start<M: StepModel>(
        name: &str,
        model: M,
        depth: usize,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let shape = model.shape();
        let (commands, inbox) = sync_channel(depth + 2);
        base::spawn(name, move || Worker { model, clock, sink: None, is_failed: false }.run(&inbox))?;
        Ok(Self { shape, depth, commands })
    }
}

impl Executor for ThreadedExecutor {
    fn shape(&self) -> ExecutorShape {
        self.shape.clone()
    }

    fn connect(&mut self, sink: Sink) {
        // A send fails only if the thread is gone, which then shows as a step without an answer.
        let _ = self.commands.send(Command::Connect(sink));
    }

    fn attach_host(&mut self, host: Arc<HostArena>) {
        let _ = self.commands.send(Command::AttachHost(host));
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, plan: StepPlan) {
        let _ = self.commands.send(Command::Step(plan));
    }

    fn restart(&mut self) -> Result<(), RestartError> {
        let gone = || RestartError("its thread has ended".into());
        let (done, wait) = sync_channel(1);
        self.commands.send(Command::Reset(done)).map_err(|_| gone())?;
        wait.recv().map_err(|_| gone())?
    }
}

struct Worker<M> {
    model: M,
    clock: Arc<dyn Clock>,
    sink: Option<Sink>,
    is_failed: bool,
}

impl<M: StepModel> Worker<M> {
    fn run(mut self, inbox: &Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            match command {
                Command::Connect(sink) => self.sink = Some(sink),
                Command::AttachHost(host) => self.model.attach_host(host),
                Command::Step(plan) => {
                    let outcome = self.step(&plan);
                    if let Some(sink) = &self.sink {
                        sink(outcome);
                    }
                }
                Command::Reset(done) => {
                    let outcome = self.reset();
                    self.is_failed = outcome.is_err();
                    let _ = done.send(outcome);
                }
            }
        }
    }

    /// The device is asked first: on a dead one every call fails, and its own words say more than the first of them.
    fn reset(&mut self) -> Result<(), RestartError> {
        self.model.check_device().map_err(RestartError)?;
        // Unwind safety: a model whose reset failed is not used again.
        let reset = catch_unwind(AssertUnwindSafe(|| self.model.reset()));
        reset.map_err(|payload| RestartError(panic_message(&*payload)))
    }

    fn step(&mut self, plan: &StepPlan) -> Result<StepResult, StepError> {
        if self.is_failed {
            return Err(StepError::Gone { step: plan.id });
        }
        let begun = self.clock.now();
        let mut moving_ns = 0;
        // Unwind safety: after a panic nothing of the model is used until `reset` has run.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let moved = self.model.move_pages(plan);
            moving_ns = self.clock.now().since(begun).as_nanos() as u64;
            let mut result = StepResult { moved, ..self.model.forward(plan) };
            self.model.settle_moves(plan, &mut result.moved);
            result
        }));
        match outcome {
            Ok(mut result) => {
                result.moved.took_ns += moving_ns;
                result.took_ns = self.clock.now().since(begun).as_nanos() as u64 - moving_ns;
                Ok(result)
            }
            Err(payload) => {
                self.is_failed = true;
                Err(StepError::Panic { step: plan.id, message: panic_message(&*payload) })
            }
        }
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".into())
}
