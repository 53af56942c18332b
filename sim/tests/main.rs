//! What the simulator promises: one seed, one run; and what the fleet promises in every one of them.

mod replays;
mod scenarios;
mod seeds;
