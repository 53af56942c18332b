//! `kernels/cu/rows.cu`: rows by index.
//!
//! One block a row; grids may be larger than the live count, so a recorded step serves any smaller batch.

use bytemuck::{Pod, Zeroable};

use super::row_block;
use crate::cuda::driver::{DevicePtr, Launch};

/// `out[r] = table[tokens[r]]`, bf16 to f32.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct EmbedParams {
    /// bf16 `[vocab][cols]`.
    pub table: DevicePtr,
    pub tokens: DevicePtr,
    pub rows_live: DevicePtr,
    /// f32 `[rows][cols]`.
    pub out: DevicePtr,
    /// A multiple of 8.
    pub cols: u32,
    pub pad: u32,
}

impl EmbedParams {
    pub fn launch(&self, rows_max: u32) -> Launch<'_> {
        super::launch("quire_embed", [rows_max, 1, 1], row_block(self.cols / 8), self)
    }
}

/// `out[i] = x[rows[i]]`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct GatherParams {
    pub x: DevicePtr,
    pub rows: DevicePtr,
    /// The word that counts the wanted rows.
    pub rows_live: DevicePtr,
    pub out: DevicePtr,
    /// A multiple of 4 (f32) or 8 (bf16).
    pub cols: u32,
    pub pad: u32,
}

impl GatherParams {
    pub fn launch_f32(&self, rows_max: u32) -> Launch<'_> {
        super::launch("quire_gather_f32", [rows_max, 1, 1], row_block(self.cols / 4), self)
    }

    pub fn launch_bf16(&self, rows_max: u32) -> Launch<'_> {
        super::launch("quire_gather_bf16", [rows_max, 1, 1], row_block(self.cols / 8), self)
    }
}
