//! `kernels/cu/rope_store.cu`: norm and rotation of q and k, store of k and v into pages.

use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::{DevicePtr, Launch};

/// Heads that a thread has a part in.
const ITEMS: u32 = 2;
const BLOCK: u32 = 256;

/// On fused bf16 rows `[q | k | v]`. Strides count values.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RopeStoreParams {
    /// bf16 `[rows][(heads + 2 * kv_heads) * head_dim]`; q is updated, k and v are left.
    pub qkv: DevicePtr,
    pub rows_live: DevicePtr,
    /// Absolute position of each row.
    pub positions: DevicePtr,
    /// Page of the pool that holds each row's token.
    pub row_pages: DevicePtr,
    /// f32 `[position][cos of each pair | sin of each pair]`; null: no rotation.
    pub angles: DevicePtr,
    /// f32 `[head_dim]` or null.
    pub q_norm: DevicePtr,
    pub k_norm: DevicePtr,
    /// K of page 0 in this layer; bf16 or e4m3, as the kernel says.
    pub kv: DevicePtr,
    pub page_stride: u64,
    /// From K to V.
    pub v_offset: u64,
    pub head_stride: u64,
    pub heads: u32,
    pub kv_heads: u32,
    /// A multiple of 8, at most 256.
    pub head_dim: u32,
    /// Dimensions `i` and `i + pairs` turn together.
    pub pairs: u32,
    pub page_tokens: u32,
    /// Of a warp, for one head: [`lanes`].
    pub lanes: u32,
    pub eps: f32,
    pub pad: u32,
}

/// Lanes of a warp that share a head, eight values each.
pub fn lanes(head_dim: u32) -> u32 {
    assert!(head_dim > 0 && head_dim <= 256 && head_dim.is_multiple_of(8), "heads of {head_dim} dimensions");
    (head_dim / 8).next_power_of_two()
}

impl RopeStoreParams {
    /// Into pages of bf16.
    pub fn launch(&self, rows_max: u32) -> Launch<'_> {
        let heads = self.heads + 2 * self.kv_heads;
        let block_heads = ITEMS * BLOCK / self.lanes;
        super::launch("quire_rope_store", [rows_max, heads.div_ceil(block_heads), 1], BLOCK, self)
    }

    /// Into pages of e4m3: heads have a multiple of 16 dimensions, and strides count bytes.
    pub fn launch_e4m3(&self, rows_max: u32) -> Launch<'_> {
        Launch { kernel: "quire_rope_store_e4m3", ..self.launch(rows_max) }
    }
}
