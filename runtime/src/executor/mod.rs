//! The executor contract: plans in, results out, asynchronously and in order.
//!
//! `submit` returns at once; the result arrives through [`Sink`]. The scheduler keeps at most
//! [`Executor::depth`] steps in flight, so planning overlaps with execution. Both executors are a thread around a
//! [`threaded::StepModel`]: `model` runs a loaded model on whatever backend it was loaded into, `sim` is a function
//! of the tokens.

pub mod model;
mod moves;
pub mod sim;
pub mod threaded;
mod traffic;

use std::sync::Arc;

use base::StepId;
use transfer::HostArena;

use crate::plan::{StepPlan, StepResult};

/// Why a step gave no result. The step's sequences fail; the executor is restarted.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StepError {
    #[error("step {step} panicked: {message}")]
    Panic { step: StepId, message: String },
    /// An earlier step failed, so this one did not run.
    #[error("step {step} did not run: an earlier step failed")]
    Gone { step: StepId },
}

impl StepError {
    pub fn step(&self) -> StepId {
        match self {
            StepError::Panic { step, .. } | StepError::Gone { step } => *step,
        }
    }
}

/// The executor could not come back after a failed step, and will not: a dead device stays dead for the process.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the executor cannot restart: {0}")]
pub struct RestartError(pub String);

/// Where results go; called from the executor's thread.
pub type Sink = Box<dyn Fn(Result<StepResult, StepError>) + Send>;

/// What the scheduler must know to plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorShape {
    /// Pages of the device pool.
    pub pages: u32,
    pub page_tokens: u32,
    /// Most tokens (rows) of one step; buffers are planned for it.
    pub step_tokens_max: u32,
    /// Most sequences of one step.
    pub step_seqs_max: u32,
    pub vocab: u32,
    /// Longest sequence, prompt and output together.
    pub positions_max: u32,
    /// Identifies the arithmetic (weights, config, layout) in page names.
    pub model: base::ModelDigest,
    pub layout: [u8; 32],
    /// Bytes of one page, as it is copied to other tiers.
    pub page_bytes: usize,
    pub restores: Restores,
}

/// When a plan's restores are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restores {
    /// Before its work begins, which waits for them.
    #[default]
    First,
    /// Some steps later: only work that reads their pages waits.
    Beside,
}

/// Runs steps.
pub trait Executor: Send {
    fn shape(&self) -> ExecutorShape;
    /// Where results go from now on; called once before the first `submit`.
    fn connect(&mut self, sink: Sink);
    /// Where moves between device and host go; called before the first plan that has any.
    fn attach_host(&mut self, host: Arc<HostArena>);
    /// Steps that may be in flight at once (1 = no overlap, 2 = plan while executing).
    fn depth(&self) -> usize;
    /// Queues a step. Never blocks; steps run in order. After an error on a step, every later step
    /// fails with [`StepError::Gone`] until [`Executor::restart`].
    fn submit(&mut self, plan: StepPlan);
    /// After a failed step: drops per-sequence state and comes back with a KV pool of zeros.
    fn restart(&mut self) -> Result<(), RestartError>;
}
