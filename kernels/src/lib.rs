//! One trait of coarse fused ops ([`Backend`]) and the backends behind it.
//!
//! Model code is written once over the trait; a backend decides layout, threads and instructions.
//! Ops are coarse (about ten a layer) because on a GPU each is a launch and on a CPU each is a
//! barrier. Buffers come from an arena that is planned at load, so pointers are stable (CUDA graphs
//! later) and nothing is allocated after `ready`.
//!
//! **The law of this crate:** the bits of a row depend on that row's tokens and their positions only,
//! never on the batch around it, on chunking, on thread count, or on where its KV came from. Every
//! reduction therefore has a fixed order: linear ops run along k in one order whatever the number of
//! rows, attention runs in tiles cut at absolute positions ([`ATTENTION_TILE`]) that merge in order.

pub mod attention;
pub mod backend;
pub mod batch;
pub mod cpu;
pub mod cuda;
pub mod e4m3;
mod error;
mod exp;
pub mod mapped;
pub mod needs;
pub mod reference;
pub mod sample;
pub mod tensor;

pub use attention::{ATTENTION_TILE, AttentionShape};
pub use backend::{
    Backend, BackendInfo, BufferId, Copied, CopyBatch, LinearId, Precision, Replay, RopeId, RopeStore,
    RopeTable, StepLimits, VectorId,
};
pub use batch::{Batch, SeqSpan};
pub use error::{DeviceLost, KernelError};
pub use needs::{BufferNeed, DevicePlan, LinearNeed, MemoryNeeds};
pub use sample::{History, SampleRow, Sampled, SamplingParams};
pub use tensor::{HostTensor, HostType, KvShape, KvType, WeightForm};
