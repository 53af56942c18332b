//! Sources against publishers that are modelled, over channels that lose, repeat, reorder and break.

mod fields;
mod follower;
mod golden;
pub mod held;
pub mod pack;
mod replica;
mod tail;
