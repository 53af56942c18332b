//! What attention means, for every backend.
//!
//! KV is cut into tiles at absolute multiples of [`ATTENTION_TILE`]. Inside a tile the order is fixed;
//! a tile closes into `(m, l, o)` per query row (running maximum, sum of exponentials, weighted sum of
//! values, all f32) and tiles merge in order with [`merge`]'s formula. Prefill, decode, split KV and a
//! cache hit then differ only in *who computes which tile when*, so they give the same bits.

/// Tokens of one attention tile; a multiple of every page size.
pub const ATTENTION_TILE: usize = 256;

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
