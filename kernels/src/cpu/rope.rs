//! Rotary positions, per-head norms of q and k, and the store of k and v into their pages: one pass over
//! a fused `[q | k | v]` row, cut by (row, head).
//!
//! Angles are computed in f64 and kept as f32 cosines and sines. The table is reserved for all positions
//! but filled only as far as a step needs it: reserving is free, and 131,072 positions would cost a second
//! at start.

use super::arena::{Region, RowsMut, StepRows};
use super::each::each;
use super::isa::Isa;
use super::lanes::{Kernel, Lanes, dispatch};
use super::norm::norm_in_place;
use super::pages::{PageWriter, Side};
use super::pool::Pool;
use crate::{AttentionShape, KernelError, RopeTable};

/// Positions that are tabulated at a time.
const FILL: usize = 256;

/// Cosines and sines by position: `[position][cos of each pair | sin of each pair]`.
pub struct RopeAngles {
    table: RopeTable,
    memory: Region,
    filled: usize,
}

impl RopeAngles {
    pub fn new(table: &RopeTable) -> Result<Self, KernelError> {
        let floats = table.positions.saturating_mul(2 * table.inv_freq.len());
        let memory = Region::new(floats.saturating_mul(4), "rope table")?;
        Ok(Self { table: table.clone(), memory, filled: 0 })
    }

    /// Pairs that turn.
    pub fn pairs(&self) -> usize {
        self.table.inv_freq.len()
    }

    /// Makes positions up to `last` available.
    pub fn fill_to(&mut self, last: usize) {
        assert!(last < self.table.positions, "position {last} of {} tabulated", self.table.positions);
        let end = ((last / FILL + 1) * FILL).min(self.table.positions);
        let pairs = self.pairs();
        let rows = self.memory.as_mut_slice::<f32>();
        for position in self.filled..end {
            let (cos, sin) = rows[position * 2 * pairs..][..2 * pairs].split_at_mut(pairs);
            self.table.angles(position, cos, sin);
        }
        self.filled = self.filled.max(end);
    }

    /// Cosines and sines of a position that [`Self::fill_to`] has covered.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        assert!(position < self.filled);
        let pairs = self.pairs();
        self.memory.as_slice()[position * 2 * pairs..][..2 * pairs].split_at(pairs)
    }
}

/// What happens to q and k heads before they are used.
#[derive(Clone, Copy)]
pub struct HeadPass<'a> {
    pub shape: AttentionShape,
    pub angles: Option<&'a RopeAngles>,
    pub q_norm: Option<&'a [f32]>,
    pub k_norm: Option<&'a [f32]>,
    pub eps: f32,
}

/// Norms and rotates q and k of every row in place and writes k and v into the pages of `layer`.
pub fn rope_store(
    pool: &Pool,
    isa: Isa,
    step: &StepRows,
    pages: PageWriter<'_>,
    layer: usize,
    pass: &HeadPass<'_>,
    qkv: RowsMut<'_>,
) {
    let shape = &pass.shape;
    assert!(qkv.cols == shape.qkv_cols() && qkv.rows == step.rows());
    let heads = shape.heads + 2 * shape.kv_heads;
    each(pool, qkv.rows * heads, qkv.rows * qkv.cols, &|item| {
        let (row, index) = (item / heads, item % heads);
        let cols = index * shape.head_dim..(index + 1) * shape.head_dim;
        // SAFETY: each head of a row belongs to one worker.
        let head = unsafe { qkv.part(row, cols) };
        let position = step.positions[row] as usize;
        if let Some((side, kv_head)) = dispatch(isa, OneHead { pass, index, position, head }) {
            let slot = step.slot(step.span_of[row] as usize, position, pages.page_tokens());
            // SAFETY: one worker per (row, head), and rows of a step are distinct tokens.
            unsafe { pages.put(slot, layer, side, kv_head, head) };
        }
    });
}

/// Norm and rotation of head `index` of a row; says where its values are stored, if they are.
struct OneHead<'a> {
    pass: &'a HeadPass<'a>,
    index: usize,
    position: usize,
    head: &'a mut [f32],
}

impl Kernel for OneHead<'_> {
    type Out = Option<(Side, usize)>;
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Self::Out {
        let (heads, kv_heads) = (self.pass.shape.heads, self.pass.shape.kv_heads);
        let (norm, stored) = match self.index.checked_sub(heads) {
            None => (self.pass.q_norm, None),
            Some(k) if k < kv_heads => (self.pass.k_norm, Some((Side::K, k))),
            Some(v) => return Some((Side::V, v - kv_heads)),
        };
        if let Some(weight) = norm {
            norm_in_place(lanes, self.head, weight, self.pass.eps);
        }
        if let Some(angles) = self.pass.angles {
            rotate(self.head, angles.at(self.position));
        }
        stored
    }
}

/// Turns pair `(i, i + pairs)`; what lies beyond the pairs stays.
#[inline(always)]
fn rotate(head: &mut [f32], (cos, sin): (&[f32], &[f32])) {
    let (first, rest) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}
