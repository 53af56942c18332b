//! What the router promises, through its public face.

mod client;
mod mock;
mod proxy;
