//! Parameters of the linear kernels (`linear_row.cu`, `linear_tile.cu`, `linear_fp8.cu`; `linear_sm90.cu`).

use crate::cuda::driver::{DevicePtr, TensorMap};
use bytemuck::{Pod, Zeroable};

/// Where a product goes. `is_f32` 1: f32, 0: bf16.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct LinearOutput {
    pub data: DevicePtr,
    /// f32, one a channel; or null.
    pub bias: DevicePtr,
    /// Channels.
    pub n: u32,
    /// Elements between rows.
    pub stride: u32,
    pub is_f32: u32,
    pub padding: u32,
}

/// x is `[rows][k]` bf16, w is `[n][k]` bf16 or e4m3 (see `linear_fp8`), both aligned to 16 bytes; k is a multiple
/// of 8, with e4m3 of 16.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct LinearParams {
    pub x: DevicePtr,
    pub w: DevicePtr,
    /// e4m3: f32, one a channel; else null.
    pub scale: DevicePtr,
    /// The device word that holds the number of rows.
    pub rows_live: DevicePtr,
    pub out: LinearOutput,
    pub k: u32,
    pub padding: u32,
}

/// The same product through tensor maps, whose boxes the plan names.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct LinearSm90Params {
    pub x: TensorMap,
    pub w: TensorMap,
    pub rows_live: DevicePtr,
    pub out: LinearOutput,
    pub k: u32,
    /// To a multiple of the maps' alignment.
    pub padding: [u32; 5],
}
