//! `kernels/cu/attend_mma.cuh` and `attend_sm90.cuh`: attention over a work list; what a launch of each needs.

use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::{DevicePtr, Launch, TensorMap};

/// Some rows times one run of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AttendItem {
    /// First entry of the row list.
    pub row_list: u32,
    /// Tokens; with the heads of a group each, at most what the kernel holds.
    pub rows: u32,
    /// First entry of the page table.
    pub table: u32,
    /// No key before it is read.
    pub key_from: u32,
    /// No key at or beyond it is read.
    pub key_end: u32,
    /// First partial state, or [`AttendItem::DIRECT`].
    pub slot: u32,
    /// [`AttendItem::FOLD`] or 0.
    pub flags: u32,
    pub pad: u32,
}

impl AttendItem {
    /// As `slot`: the item sees all that its rows see, and writes the output itself.
    pub const DIRECT: u32 = u32::MAX;
    /// One state for the whole run, which starts at its rows' first visible tile; else one for each tile.
    pub const FOLD: u32 = 1;
}

/// What both kernels take.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct AttendArgs {
    /// bf16 rows whose first columns are q.
    pub q: DevicePtr,
    /// bf16.
    pub out: DevicePtr,
    /// f32 `[state][head][dim]`.
    pub part_o: DevicePtr,
    /// f32 `[state][head][2]`: maximum and sum.
    pub part_ml: DevicePtr,
    pub items: DevicePtr,
    pub row_list: DevicePtr,
    pub positions: DevicePtr,
    pub page_table: DevicePtr,
    /// The word that counts the items.
    pub items_live: DevicePtr,
    /// In elements, as `out_stride`.
    pub q_stride: u32,
    pub out_stride: u32,
    pub heads: u32,
    /// Query heads of a KV head.
    pub group: u32,
    pub head_dim: u32,
    /// 0: none.
    pub window: u32,
    /// log2 of the tokens of a page.
    pub page_shift: u32,
    /// The scores' scale times log2(e); positive.
    pub scale_log2: f32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct AttendMmaParams {
    pub args: AttendArgs,
    /// K of this layer in page 0, head 0, bf16 or e4m3; strides in elements, a token is `head_dim` of them.
    pub kv: DevicePtr,
    pub page_stride: u64,
    /// From K to V.
    pub value_offset: u64,
    pub head_stride: u64,
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct AttendSm90Params {
    /// The whole pool as (dim, token of a page, (layer, K/V, head), page); box (64, tokens of a page, 1, 1).
    pub map: TensorMap,
    pub args: AttendArgs,
    /// Third coordinate of K of head 0 in this layer: `layer * 2 * kv_heads`.
    pub block_base: u32,
    pub kv_heads: u32,
    /// Of the pool.
    pub pages: u32,
    /// To a multiple of the map's alignment.
    pub pad: [u32; 3],
}

/// Over pages of e4m3.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct AttendSm90E4m3Params {
    /// Its map is of bytes in pairs, dimension and box `head_dim / 2` wide, without a swizzle.
    pub at: AttendSm90Params,
    /// Of page 0, layer 0, K, head 0: behind the values of the block.
    pub exponents: DevicePtr,
    pub page_bytes: u64,
    /// Of a head's keys or values of one page and layer.
    pub block_bytes: u64,
    pub pad: [u64; 5],
}

/// One of the kernels, as it must be launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttendKernel {
    pub name: &'static str,
    pub block: u32,
    /// Dynamic shared memory in bytes.
    pub smem: u32,
    /// Packed rows (tokens times heads of a group) that an item may have; both kernels of a width and family
    /// give the same bits.
    pub rows_max: u32,
}

/// How many packed rows an item may hold on sm_90.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttendWidth {
    /// 64: two blocks share a multiprocessor. For batches of decodes.
    Narrow,
    /// 128: for steps with prefill or large prefix groups.
    Wide,
}

impl AttendKernel {
    /// By mma.sync; `None` if the head dimension is not a multiple of 8 up to 256.
    pub fn mma(head_dim: usize) -> Option<AttendKernel> {
        if head_dim == 0 || !head_dim.is_multiple_of(8) {
            return None;
        }
        let (name, block, padded, slots) = match head_dim {
            1..=64 => ("quire_attend_mma_d64", 128, 64, 4),
            65..=128 => ("quire_attend_mma_d128", 128, 128, 4),
            129..=256 => ("quire_attend_mma_d256", 256, 256, 2),
            _ => return None,
        };
        Some(AttendKernel { name, block, smem: (slots + 1) * 64 * padded * 2 + 256, rows_max: 64 })
    }

    /// The same over pages of e4m3; `None` if the head dimension is not a multiple of 16 up to 256.
    pub fn mma_e4m3(head_dim: usize) -> Option<AttendKernel> {
        if !head_dim.is_multiple_of(16) {
            return None;
        }
        let of_bf16 = Self::mma(head_dim)?;
        let (name, padded, slots) = match head_dim {
            1..=64 => ("quire_attend_mma_e4m3_d64", 64, 8),
            65..=128 => ("quire_attend_mma_e4m3_d128", 128, 8),
            _ => ("quire_attend_mma_e4m3_d256", 256, 4),
        };
        // Slots of 64 keys and their exponents, and q.
        let smem = slots * 64 * (padded + 1) + 64 * padded * 2 + 256;
        Some(AttendKernel { name, smem, ..of_bf16 })
    }

    /// By TMA and wgmma; `None` for head dimensions that it has not.
    pub fn sm90(head_dim: usize, width: AttendWidth) -> Option<AttendKernel> {
        let (name, slots) = match (head_dim, width) {
            (64, AttendWidth::Narrow) => ("quire_attend_sm90_d64_x1", 12),
            (64, AttendWidth::Wide) => ("quire_attend_sm90_d64_x2", 16),
            (128, AttendWidth::Narrow) => ("quire_attend_sm90_d128_x1", 6),
            (128, AttendWidth::Wide) => ("quire_attend_sm90_d128_x2", 12),
            _ => return None,
        };
        let groups = if width == AttendWidth::Narrow { 1 } else { 2 };
        let smem = (slots + groups) * 64 * head_dim as u32 * 2 + 512;
        Some(AttendKernel { name, block: 128 * (groups + 1), smem, rows_max: 64 * groups })
    }

    /// The same over pages of e4m3.
    pub fn sm90_e4m3(head_dim: usize, width: AttendWidth) -> Option<AttendKernel> {
        let name = match (head_dim, width) {
            (64, AttendWidth::Narrow) => "quire_attend_e4m3_sm90_d64_x1",
            (64, AttendWidth::Wide) => "quire_attend_e4m3_sm90_d64_x2",
            (128, AttendWidth::Narrow) => "quire_attend_e4m3_sm90_d128_x1",
            (128, AttendWidth::Wide) => "quire_attend_e4m3_sm90_d128_x2",
            _ => return None,
        };
        // Half as many slots, and stages in the place of the others.
        Self::sm90(head_dim, width).map(|of_bf16| AttendKernel { name, ..of_bf16 })
    }

    /// True for the kernels of sm_90, which read pages through a tensor map.
    pub fn takes_map(&self) -> bool {
        self.name.contains("_sm90_")
    }

    /// `params` is [`AttendMmaParams`], [`AttendSm90Params`] or [`AttendSm90E4m3Params`], as the kernel asks; `items_max` may exceed the
    /// live items.
    pub fn launch<'a, P: Pod>(&self, items_max: u32, kv_heads: u32, params: &'a P) -> Launch<'a> {
        Launch {
            kernel: self.name,
            grid: [items_max, kv_heads, 1],
            block: self.block,
            smem: self.smem,
            params: bytemuck::bytes_of(params),
        }
    }
}
