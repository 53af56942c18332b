//! What the cache promises, from outside: the field's known failures by name, the cache against a
//! naive model, and what it shows of itself.

mod common;
mod events;
mod failures;
mod hitrate;
mod keys;
mod model;
mod naive;
mod show;
mod soak;
mod tiers;
mod workload;
mod world;
