//! One binary for all integration tests of the crate.

mod conversations;
mod demo;
mod parity;
mod trained;
