//! The CPU backend.

pub mod arena;
pub mod cores;
pub mod isa;
pub mod pool;
