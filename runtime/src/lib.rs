//! A replica: models, scheduler, executors, text and the OpenAI-compatible API.
//!
//! ```text
//!  HTTP task ── Request ──▶ Engine (inbox, bounded) ──▶ scheduler thread ── StepPlan ──▶ Executor
//!      ▲                                                     │   ▲                          │
//!      └────────────── Event (token, end) ───────────────────┘   └────── StepResult ────────┘
//! ```
//!
//! The scheduler thread owns every piece of engine state and takes no lock; what crosses a thread is a
//! message. `StepPlan` holds no device types, so a plan can be logged, replayed and simulated.

pub mod api;
pub mod engine;
pub mod events;
pub mod executor;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod purge;
pub mod request;
pub mod rpc;
pub mod scheduler;
pub mod stats;
pub mod storage;

pub use text;
pub use text::files;
