//! What the router promises, through its public face.

mod client;
mod events;
mod mock;
mod proxy;
mod source;
