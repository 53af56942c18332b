//! The gRPC server over the simulated executor: who may call, what is followed, what is refused, how it ends.

mod access;
mod calls;
mod client;
mod events;
mod follower;
#[path = "../../../router/tests/source/held.rs"]
mod held;
mod naming;

mod server;
mod sources;
