//! `kernels/cu/norm.cu`: norms of the residual stream.
//!
//! The block's width is a function of the columns and decides the order of the sum, so it is computed here
//! and nowhere else.

use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::{DevicePtr, Launch};

/// Most columns of a row: 1024 threads of sixteen values.
pub const COLS_MAX: u32 = 16384;

/// Threads of a row's block: sixteen values each.
pub fn threads(cols: u32) -> u32 {
    assert!(cols > 0 && cols <= COLS_MAX && cols.is_multiple_of(8), "a norm over {cols} columns");
    cols.div_ceil(16).next_multiple_of(32)
}

/// `out = rmsnorm(x) * weight`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RmsNormParams {
    /// f32 `[rows][cols]`.
    pub x: DevicePtr,
    /// f32 `[cols]`.
    pub weight: DevicePtr,
    /// bf16 `[rows][cols]`.
    pub out: DevicePtr,
    pub rows_live: DevicePtr,
    pub eps: f32,
    pub cols: u32,
}

impl RmsNormParams {
    pub fn launch(&self, rows_max: u32) -> Launch<'_> {
        super::launch("quire_rmsnorm", [rows_max, 1, 1], threads(self.cols), self)
    }
}

/// `residual += delta; out = rmsnorm(residual) * weight`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct AddRmsNormParams {
    /// f32 `[rows][cols]`, updated.
    pub residual: DevicePtr,
    /// bf16 `[rows][cols]`.
    pub delta: DevicePtr,
    /// f32 `[cols]`.
    pub weight: DevicePtr,
    /// bf16 `[rows][cols]`.
    pub out: DevicePtr,
    pub rows_live: DevicePtr,
    pub eps: f32,
    pub cols: u32,
}

impl AddRmsNormParams {
    pub fn launch(&self, rows_max: u32) -> Launch<'_> {
        super::launch("quire_add_rmsnorm", [rows_max, 1, 1], threads(self.cols), self)
    }
}
