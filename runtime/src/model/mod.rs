//! Models: how one is described, where its weights come from, and the forward pass.
//!
//! ```text
//! config.json ─┐                       ┌─ names ── expected tensors ─┐
//!              ├─ families ─ Description                             ├─ load ─ Model (ids in a backend)
//! GGUF meta  ──┘                       └─ weights ── bytes ──────────┘
//! ```
//!
//! **Invariant:** a family is data. No code outside `families` asks which family a model is.

mod config;
mod description;
pub mod digest;
mod error;
pub mod families;
mod forward;
mod load;
mod memory;
mod names;
mod rope;
mod weights;

pub use config::Config;
pub use description::{Biases, Description, Fused, Layer, Positions};
pub use error::ModelError;
pub use forward::{Model, TakeLogits};
pub use load::{
    KvChoice, LoadFormat, LoadOptions, Loaded, PoolSize, WeightChoice, describe, load, load_from,
};
pub use memory::{MemoryPlan, available};
pub use names::{Expected, expected};
pub use rope::{Rope, RopeScaling, YarnRamp};
pub use weights::{Depth, Dummy, Progress, Tensor, TensorInfo, TensorSource};
