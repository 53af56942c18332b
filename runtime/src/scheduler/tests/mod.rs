//! The scheduler against the simulated device, which fails a step that reads a wrong page.

mod claims;
mod harness;
mod pressure;
mod restart;
mod soak;
mod telling;
mod tiers;
