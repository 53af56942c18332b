//! What attention means, for every backend.
//!
//! KV is cut into tiles at absolute multiples of [`ATTENTION_TILE`]. Inside a tile the order is fixed;
//! a tile closes into `(m, l, o)` per query row (maximum, sum of exponentials, weighted sum of values, all
//! f32) and tiles merge in ascending order with [`TileSum::merge`]. Tiles without a visible token are
//! skipped, which depends on the query's position only. Prefill, decode, split KV and a cache hit then
//! differ only in *who computes which tile when*, so they give the same bits.

use crate::exp::exp2;

/// Tokens of one attention tile; a multiple of every page size.
pub const ATTENTION_TILE: usize = 256;

/// The softmax of one query row over the tiles merged so far: maximum and sum of exponentials.
///
/// Scores are in base 2 (`score * scale * log2 e`), so the weight of a score is `2^(score - max)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TileSum {
    pub max: f32,
    pub sum: f32,
}

impl TileSum {
    /// No tile yet.
    pub const EMPTY: TileSum = TileSum { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Merges the next tile in; the outputs merge as `o = o * keep + o_tile * add`, with the factors
    /// `(keep, add)` returned. No multiply-add is fused, so the formula is the same everywhere.
    #[inline(always)]
    pub fn merge(&mut self, tile: TileSum) -> (f32, f32) {
        let (keep, add, max) = if self.max >= tile.max {
            (1.0, exp2(tile.max - self.max), self.max)
        } else {
            (exp2(self.max - tile.max), 1.0, tile.max)
        };
        *self = TileSum { max, sum: self.sum * keep + tile.sum * add };
        (keep, add)
    }
}

/// Geometry and masking of one attention layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AttentionShape {
    pub heads: usize,
    /// Divides `heads`; a group of `heads / kv_heads` query heads shares one KV head.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Multiplies the scores, usually `head_dim^-0.5`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it; `None` sees all.
    pub window: Option<u32>,
}

impl AttentionShape {
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    pub fn q_cols(&self) -> usize {
        self.heads * self.head_dim
    }
    pub fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Columns of a fused `[q | k | v]` row.
    pub fn qkv_cols(&self) -> usize {
        self.q_cols() + 2 * self.kv_cols()
    }
    /// First visible position for a query at `position`.
    pub fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_weighs_tiles_by_their_maxima() {
        let mut state = TileSum::EMPTY;
        assert_eq!(state.merge(TileSum { max: 3.0, sum: 2.0 }), (0.0, 1.0));
        assert_eq!(state.merge(TileSum { max: 1.0, sum: 8.0 }), (1.0, 0.25));
        assert_eq!(state, TileSum { max: 3.0, sum: 4.0 });
        assert_eq!(state.merge(TileSum { max: 4.0, sum: 1.0 }), (0.5, 1.0));
        assert_eq!(state, TileSum { max: 4.0, sum: 3.0 });
    }

    #[test]
    fn a_window_counts_the_token_itself() {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, scale: 1.0, window: Some(3) };
        assert_eq!([0, 2, 3, 10].map(|p| shape.first_visible(p)), [0, 0, 1, 8]);
        assert_eq!((shape.q_cols(), shape.kv_cols(), shape.qkv_cols()), (32, 16, 64));
    }
}
