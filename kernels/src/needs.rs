//! What a model asks of a device's memory, known before any of it is taken.
//!
//! A device with memory of its own refuses an allocation when it is full, minutes into a load. So the model says
//! beforehand what it will make, and the backend answers with what that takes: see [`crate::Backend::plan`].

use crate::{KvShape, Precision, StepLimits, WeightForm};

/// One tensor of a linear weight; parts that are stacked are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearNeed {
    pub rows: usize,
    pub cols: usize,
    pub form: WeightForm,
}

/// A buffer of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferNeed {
    pub rows: usize,
    pub cols: usize,
    pub precision: Precision,
}

/// Everything that is made at load but the pages, whose number follows from what is left.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryNeeds {
    pub linears: Vec<LinearNeed>,
    /// Lengths of norms and biases.
    pub vectors: Vec<usize>,
    /// Positions and pairs of each rotary table.
    pub ropes: Vec<(usize, usize)>,
    pub buffers: Vec<BufferNeed>,
    pub limits: StepLimits,
    /// The shape of pages; their number is not looked at.
    pub kv: KvShape,
}

/// What the needs take of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// Nobody has taken it yet.
    pub free: u64,
    pub weights: u64,
    /// Activations, rotary tables, lists, states of attention, drawing.
    pub buffers: u64,
    /// Left to what the driver and the library take while they run: recordings, their own kernels.
    pub reserve: u64,
}

impl DevicePlan {
    /// All but the pages.
    pub fn fixed(&self) -> u64 {
        self.weights + self.buffers + self.reserve
    }

    /// What is left for pages, and for headroom.
    pub fn left(&self) -> u64 {
        self.free.saturating_sub(self.fixed())
    }
}
