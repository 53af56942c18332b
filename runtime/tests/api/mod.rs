//! The HTTP server over the simulated executor: bodies, streams, refusals, aborts, drain.

mod bad_input;
mod bodies;
mod lifecycle;
mod server;
mod streams;
