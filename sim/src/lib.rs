//! The same contracts under simulated time: fleets of replicas, networks and faults, one seed a run; and the
//! player of traces behind `quire replay`.

pub mod fleet;
pub mod histogram;
pub mod journal;
pub mod model;
pub mod queue;
pub mod replay;
pub mod replica;
pub mod report;
pub mod sweep;
pub mod trace;

pub use replay::{Replay, ReplayError, replay};
pub use report::Report;
