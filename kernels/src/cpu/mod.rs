//! The CPU backend: packed weights, an own worker pool, three instruction sets chosen at run time.
//!
//! ```text
//! backend     the trait's ops over:
//! linear/     weights × activations: packing, quantization, tiles
//! attend/     attention over pages; rope: rotate and store; norm, act: the small row ops
//! pages       the page pool          arena   regions, buffers, the step
//! pool        fork and join          cores   pinning          isa, lanes   instruction sets
//! ```
//!
//! Not a general tensor library: the ops are those of a decoder-only transformer, so each can be laid out
//! for the one access pattern that it has. Decode is bound by reading weights once at full bandwidth,
//! prefill by keeping the dot-product units fed; the same tiles do both, in the same order along k.

pub mod act;
pub mod arena;
pub mod attend;
mod backend;
pub mod cores;
mod each;
pub mod isa;
mod lanes;
pub mod linear;
pub mod norm;
pub mod pages;
pub mod pool;
pub mod rope;

pub use backend::{CpuBackend, CpuOptions};
pub use isa::Isa;
