//! The gRPC server over the simulated executor: who may call, what is followed, what is refused, how it ends.

mod access;
mod calls;
mod client;
mod events;
mod follower;
mod server;
