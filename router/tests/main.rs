//! What the router promises, through its public face.

mod events;
mod source;
