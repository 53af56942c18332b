//! `kernels/cu/act.cu`: the gated activation.

use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::{DevicePtr, Launch};

/// Columns of one block: 256 threads of eight.
const BLOCK_COLS: u32 = 2048;

/// `out = silu(gate) * up` on rows `[gate | up]`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct SiluMulParams {
    /// bf16 `[rows][2 * cols]`.
    pub gate_up: DevicePtr,
    /// bf16 `[rows][cols]`.
    pub out: DevicePtr,
    pub rows_live: DevicePtr,
    /// A multiple of 8.
    pub cols: u32,
    pub pad: u32,
}

impl SiluMulParams {
    pub fn launch(&self, rows_max: u32) -> Launch<'_> {
        super::launch("quire_silu_mul", [rows_max, self.cols.div_ceil(BLOCK_COLS), 1], 256, self)
    }
}
