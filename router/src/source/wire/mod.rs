//! The wire of foreign engines: batches of KV events as vLLM and SGLang write them.

mod batch;
mod msgpack;

pub use batch::{Batch, Event, Extra, Group, Scratch, Stored, decode};
pub use msgpack::WireError;
