//! `kernels/cu/merge.cu`: partial states of attention, in order, into the output.

use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::{DevicePtr, Launch};

/// A batch row with its states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct MergeRow {
    pub row: u32,
    /// First entry of the slot list.
    pub first: u32,
    pub count: u32,
    pub pad: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct MergeParams {
    pub part_o: DevicePtr,
    pub part_ml: DevicePtr,
    pub rows: DevicePtr,
    /// States of each row, ascending by tile.
    pub slots: DevicePtr,
    pub out: DevicePtr,
    /// The word that counts the merge rows.
    pub rows_live: DevicePtr,
    pub heads: u32,
    pub head_dim: u32,
    /// In elements.
    pub out_stride: u32,
    pub pad: u32,
}

impl MergeParams {
    pub fn launch(&self, rows_max: u32) -> Launch<'_> {
        let block = self.head_dim.next_multiple_of(32);
        super::launch("quire_merge", [rows_max, self.heads, 1], block, self)
    }
}
