//! One piece of attention: query rows of one block against one KV head, tile after tile.

use super::form::{Bf16, F32, Form};
use super::plan::Piece;
use super::{AttendInput, padded, partial_stride};
use crate::attention::TileSum;
use crate::cpu::arena::RowsMut;
use crate::cpu::lanes::{Kernel, LANES, Lanes};
use crate::cpu::pages::{GROUP_TOKENS};
use crate::{ATTENTION_TILE, AttentionShape, KvType};

/// Query rows in registers at once, at most; [`Lanes::ROWS`] is what suits an instruction set.
const ROWS_MAX: usize = 8;
const TILE_GROUPS: usize = ATTENTION_TILE / GROUP_TOKENS;

/// Starts of a tile's key or value groups.
type Groups = [*const u8; TILE_GROUPS];

/// A worker's memory.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Packed query rows.
    query: Vec<u32>,
    /// Output of each query row over the tiles merged so far.
    out: Vec<f32>,
    sums: Vec<TileSum>,
    /// Scores, then weights: `[row][token of the tile]`.
    scores: Vec<f32>,
    /// Output of the rows in registers over one tile.
    tile_out: Vec<f32>,
}

pub(super) struct RunPiece<'a> {
    pub input: &'a AttendInput<'a>,
    pub piece: &'a Piece,
    pub scratch: &'a mut Scratch,
    pub out: RowsMut<'a>,
    /// One row: the scratch of cut pieces.
    pub partial: RowsMut<'a>,
}

impl Kernel for RunPiece<'_> {
    type Out = ();
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.input.pages.shape().kind {
            KvType::F32 => self.over::<L, F32>(lanes),
            KvType::Bf16 => self.over::<L, Bf16>(lanes),
        }
    }
}

/// A tile as one piece sees it.
struct Tile {
    index: u32,
    /// Position of its first token.
    start: usize,
    /// Query rows (of the piece) that see a token of it.
    from: usize,
    to: usize,
    /// Key and value groups; those outside the visible range are null.
    keys: Groups,
    values: Groups,
}

/// Visible tokens of one query row in a tile, relative to its start.
#[derive(Clone, Copy)]
struct Visible {
    from: usize,
    to: usize,
}

impl<'a> RunPiece<'a> {
    #[inline(always)]
    fn over<L: Lanes, F: Form<L>>(mut self, lanes: L) {
        let shape = self.input.shape;
        let rows = self.piece.rows as usize * shape.group();
        let stride = padded(shape.head_dim);
        let words = shape.head_dim / F::UNIT * F::WORDS;
        self.scratch.prepare(rows, stride, words);
        for index in 0..rows {
            let (row, head) = self.piece.query(&shape, index);
            let q = &self.input.qkv.row(row)[head * shape.head_dim..(head + 1) * shape.head_dim];
            // SAFETY: `prepare` made room for `rows` times `words`.
            unsafe { F::pack(lanes, q, self.scratch.query.as_mut_ptr().add(index * words)) };
        }
        let mut next = self.view(self.piece.tile_from);
        for tile in self.piece.tile_from..self.piece.tile_to {
            let view = next;
            next = self.view(tile + 1);
            let (count, most) = (view.to - view.from, L::ROWS.min(ROWS_MAX));
            let blocks = count.div_ceil(most);
            for b in 0..blocks {
                let (from, to) = (view.from + count * b / blocks, view.from + count * (b + 1) / blocks);
                // The first rows to read the tile ask for what comes after it; for the others it is there.
                let ahead = if b == 0 { &next.keys } else { &view.values };
                self.block::<L, F>(lanes, &view, ahead, from, to);
            }
        }
        if self.piece.partial.is_none() {
            self.finish(rows, stride);
        }
    }

    /// Which rows see the tile, and where its groups are; nothing beyond the piece's tiles.
    #[inline(always)]
    fn view(&self, tile: u32) -> Tile {
        let (shape, group) = (&self.input.shape, self.input.shape.group());
        let start = tile as usize * ATTENTION_TILE;
        let first = self.input.step.positions[self.piece.row as usize] as usize;
        let from = start.saturating_sub(first);
        let mut to = if tile < self.piece.tile_to { self.piece.rows as usize } else { 0 };
        while to > from && shape.first_visible(first + to - 1) >= start + ATTENTION_TILE {
            to -= 1;
        }
        let mut view = Tile {
            index: tile,
            start,
            from: from.min(to) * group,
            to: to * group,
            keys: [std::ptr::null(); TILE_GROUPS],
            values: [std::ptr::null(); TILE_GROUPS],
        };
        if from < to {
            let low = visible(shape, first + from, start).from / GROUP_TOKENS;
            let high = visible(shape, first + to - 1, start).to.div_ceil(GROUP_TOKENS);
            let blocks = self.input.pages.blocks(self.input.layer, self.piece.kv_head as usize);
            let table =
                &self.input.step.page_table[self.input.step.spans[self.piece.span as usize].table as usize..];
            for g in low..high {
                (view.keys[g], view.values[g]) = blocks.groups(table, start + g * GROUP_TOKENS);
            }
        }
        view
    }

    /// Query rows `from..to` against one tile, with as many rows in registers.
    #[inline(always)]
    fn block<L: Lanes, F: Form<L>>(&mut self, lanes: L, view: &Tile, ahead: &Groups, from: usize, to: usize) {
        // Guards are constants, so that each instruction set keeps the sizes it uses.
        match to - from {
            1 => self.block_of::<L, F, 1>(lanes, view, ahead, from),
            2 => self.block_of::<L, F, 2>(lanes, view, ahead, from),
            3 if L::ROWS >= 3 => self.block_of::<L, F, 3>(lanes, view, ahead, from),
            4 if L::ROWS >= 4 => self.block_of::<L, F, 4>(lanes, view, ahead, from),
            5 if L::ROWS >= 5 => self.block_of::<L, F, 5>(lanes, view, ahead, from),
            6 if L::ROWS >= 6 => self.block_of::<L, F, 6>(lanes, view, ahead, from),
            7 if L::ROWS >= 7 => self.block_of::<L, F, 7>(lanes, view, ahead, from),
            8 if L::ROWS >= 8 => self.block_of::<L, F, 8>(lanes, view, ahead, from),
            rows => unreachable!("{rows} rows in registers"),
        }
    }

    #[inline(always)]
    fn block_of<L: Lanes, F: Form<L>, const R: usize>(
        &mut self,
        lanes: L,
        view: &Tile,
        ahead: &Groups,
        from: usize,
    ) {
        let shape = &self.input.shape;
        let (dim, stride) = (shape.head_dim, padded(shape.head_dim));
        let units = dim / F::UNIT;
        let mut seen = [Visible { from: 0, to: 0 }; R];
        for (r, seen) in seen.iter_mut().enumerate() {
            let row = self.piece.query(shape, from + r).0;
            *seen = visible(shape, self.input.step.positions[row] as usize, view.start);
        }
        let groups = seen[0].from / GROUP_TOKENS..seen[R - 1].to.div_ceil(GROUP_TOKENS);
        let query = self.scratch.query[from * units * F::WORDS..].as_ptr();
        let scores = self.scratch.scores.as_mut_ptr();
        // SAFETY: `view` holds all groups that any row of the piece sees; packed queries and scores have
        // room for the rows.
        unsafe { score::<L, F, R>(lanes, query, units, view, groups, scores) };
        let mut sums = [TileSum::EMPTY; R];
        let scale = (f64::from(shape.scale) * std::f64::consts::LOG2_E) as f32;
        for r in 0..R {
            // SAFETY: a row of scores; the groups that it sees have been written.
            sums[r] = unsafe { softmax(lanes, scores.add(r * ATTENTION_TILE), seen[r], scale) };
        }
        let tile_out = self.scratch.tile_out.as_mut_ptr();
        let values = Values { groups: &view.values, ahead, dim };
        // SAFETY: weights of all visible tokens are written, `tile_out` has `R` rows of `stride`.
        unsafe { weigh_all::<L, F, R>(lanes, scores, &seen, values, tile_out) };
        self.close::<L, R>(lanes, view.index, from, stride, &sums);
    }

    /// Merges the tile's results into the rows' state, or leaves them in scratch for the second pass.
    #[inline(always)]
    fn close<L: Lanes, const R: usize>(
        &mut self,
        lanes: L,
        tile: u32,
        from: usize,
        stride: usize,
        sums: &[TileSum; R],
    ) {
        let rows = self.piece.rows as usize * self.input.shape.group();
        for (r, sum) in sums.iter().enumerate() {
            let index = from + r;
            let tile_out = &self.scratch.tile_out[r * stride..(r + 1) * stride];
            if let Some(part) = self.piece.partial {
                let size = partial_stride(&self.input.shape);
                let at = part.offset + ((tile - part.first_tile) as usize * rows + index) * size;
                // SAFETY: one piece per (tile, query row) of a cut block.
                let to = unsafe { self.partial.part(0, at..at + size) };
                to[..stride].copy_from_slice(tile_out);
                (to[stride], to[stride + 1]) = (sum.max, sum.sum);
                continue;
            }
            let (keep, add) = self.scratch.sums[index].merge(*sum);
            let (keep, add) = (lanes.splat(keep), lanes.splat(add));
            let out = &mut self.scratch.out[index * stride..(index + 1) * stride];
            for (o, t) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(tile_out.as_chunks::<LANES>().0) {
                // SAFETY: arrays of sixteen.
                let (old, new) = unsafe { (lanes.load(o.as_ptr()), lanes.load(t.as_ptr())) };
                let merged = lanes.add(lanes.mul(old, keep), lanes.mul(new, add));
                // SAFETY: as above.
                unsafe { lanes.store(o.as_mut_ptr(), merged) };
            }
        }
    }

    /// Divides by the sums and writes the rows out.
    #[inline(always)]
    fn finish(&mut self, rows: usize, stride: usize) {
        let shape = &self.input.shape;
        for index in 0..rows {
            let (row, head) = self.piece.query(shape, index);
            let cols = head * shape.head_dim..(head + 1) * shape.head_dim;
            // SAFETY: one uncut piece per (row, head).
            let to = unsafe { self.out.part(row, cols) };
            let inverse = 1.0 / self.scratch.sums[index].sum;
            for (to, o) in to.iter_mut().zip(&self.scratch.out[index * stride..]) {
                *to = o * inverse;
            }
        }
    }
}

impl Scratch {
    /// Room for `rows` query rows, their state emptied.
    fn prepare(&mut self, rows: usize, stride: usize, words: usize) {
        self.query.resize(self.query.len().max(rows * words), 0);
        self.scores.resize(ROWS_MAX * ATTENTION_TILE, 0.0);
        self.tile_out.resize(self.tile_out.len().max(ROWS_MAX * stride), 0.0);
        self.out.clear();
        self.out.resize(rows * stride, 0.0);
        self.sums.clear();
        self.sums.resize(rows, TileSum::EMPTY);
    }
}

/// What a query at `position` sees of the tile that starts at `start`; empty ranges do not occur here.
#[inline(always)]
fn visible(shape: &AttentionShape, position: usize, start: usize) -> Visible {
    let from = shape.first_visible(position).saturating_sub(start);
    Visible { from, to: (position + 1 - start).min(ATTENTION_TILE) }
}

/// Raw scores of `R` rows with the tokens of `groups`, into `scores[row][token]`.
///
/// # Safety
/// The groups are valid key groups of `units` units, `query` holds `R` packed rows, `scores` `R` tiles.
#[inline(always)]
unsafe fn score<L: Lanes, F: Form<L>, const R: usize>(
    lanes: L,
    query: *const u32,
    units: usize,
    view: &Tile,
    groups: std::ops::Range<usize>,
    scores: *mut f32,
) {
    let mut g = groups.start;
    while L::WIDE && R <= 4 && g + 4 <= groups.end {
        let keys = [view.keys[g], view.keys[g + 1], view.keys[g + 2], view.keys[g + 3]];
        let ahead = [view.values[g], view.values[g + 1], view.values[g + 2], view.values[g + 3]];
        // SAFETY: passed on; group `g` starts at token 16 g.
        unsafe { score_groups::<L, F, R, 4>(lanes, query, units, keys, ahead, scores.add(g * GROUP_TOKENS)) };
        g += 4;
    }
    while L::WIDE && g + 2 <= groups.end {
        let keys = [view.keys[g], view.keys[g + 1]];
        let ahead = [view.values[g], view.values[g + 1]];
        // SAFETY: as above.
        unsafe { score_groups::<L, F, R, 2>(lanes, query, units, keys, ahead, scores.add(g * GROUP_TOKENS)) };
        g += 2;
    }
    while g < groups.end {
        let (keys, ahead) = ([view.keys[g]], [view.values[g]]);
        // SAFETY: as above.
        unsafe { score_groups::<L, F, R, 1>(lanes, query, units, keys, ahead, scores.add(g * GROUP_TOKENS)) };
        g += 1;
    }
}

/// The inner product loop: `R × G` chains over the dimensions. A unit is a cache line, and so the values
/// of the same tokens, which take as many lines, are asked for line by line.
///
/// # Safety
/// As [`score`].
#[inline(always)]
unsafe fn score_groups<L: Lanes, F: Form<L>, const R: usize, const G: usize>(
    lanes: L,
    query: *const u32,
    units: usize,
    keys: [*const u8; G],
    ahead: [*const u8; G],
    scores: *mut f32,
) {
    let mut acc = [[lanes.splat(0.0); G]; R];
    for unit in 0..units {
        // SAFETY: `unit < units`, for all loads of this step.
        unsafe {
            let mut key = [F::load_key(lanes, keys[0], unit); G];
            for g in 1..G {
                key[g] = F::load_key(lanes, keys[g], unit);
            }
            for ahead in ahead {
                lanes.prefetch(ahead.wrapping_add(unit * 64));
            }
            for r in 0..R {
                let q = query.add((r * units + unit) * F::WORDS);
                for g in 0..G {
                    acc[r][g] = F::dot(lanes, acc[r][g], key[g], q);
                }
            }
        }
    }
    for r in 0..R {
        for g in 0..G {
            // SAFETY: `R` rows of a tile.
            unsafe { lanes.store(scores.add(r * ATTENTION_TILE + g * LANES), acc[r][g]) };
        }
    }
}

/// Turns one row's scores into weights `2^(s * scale - max)`, 0 where the row does not see.
///
/// # Safety
/// `scores` is a row of a tile whose visible groups hold scores.
#[inline(always)]
unsafe fn softmax<L: Lanes>(lanes: L, scores: *mut f32, seen: Visible, scale: f32) -> TileSum {
    let groups = seen.from / LANES..seen.to.div_ceil(LANES);
    let nothing = lanes.splat(f32::NEG_INFINITY);
    let mut max = nothing;
    for g in groups.clone() {
        // SAFETY: inside the row.
        let at = unsafe { scores.add(g * LANES) };
        // SAFETY: as above.
        let mut s = unsafe { lanes.load(at) };
        let (from, to) = (seen.from.saturating_sub(g * LANES), (seen.to - g * LANES).min(LANES));
        if from > 0 || to < LANES {
            // Selected, not multiplied: a dead slot may hold NaN.
            s = lanes.keep(s, from, to, nothing);
            // SAFETY: as above.
            unsafe { lanes.store(at, s) };
        }
        max = lanes.max(max, s);
    }
    let max = lanes.largest(max) * scale;
    let (scale, shift) = (lanes.splat(scale), lanes.splat(-max));
    let mut sum = lanes.splat(0.0);
    for g in groups {
        // SAFETY: inside the row.
        unsafe {
            let at = scores.add(g * LANES);
            let p = lanes.exp2(lanes.mul_add(lanes.load(at), scale, shift));
            lanes.store(at, p);
            sum = lanes.add(sum, p);
        }
    }
    TileSum { max, sum: lanes.sum(sum) }
}

/// A tile's values, and what to ask for while they are read.
#[derive(Clone, Copy)]
struct Values<'a> {
    groups: &'a Groups,
    ahead: &'a Groups,
    dim: usize,
}

/// `out[row] = Σ weight × value` over each row's visible tokens, in order.
///
/// Tokens that all rows see go through registers together; what only some see goes row by row, so that no
/// row ever multiplies a value that it does not see.
///
/// # Safety
/// Weights and value groups of all visible tokens are there; `out` has `R` rows of padded `dim`.
#[inline(always)]
unsafe fn weigh_all<L: Lanes, F: Form<L>, const R: usize>(
    lanes: L,
    weights: *const f32,
    seen: &[Visible; R],
    values: Values<'_>,
    out: *mut f32,
) {
    let stride = padded(values.dim);
    // Rows are in order of position, so both bounds rise.
    let common = Visible { from: seen[R - 1].from, to: seen[0].to };
    // SAFETY: `out` has `R` rows.
    unsafe { std::ptr::write_bytes(out, 0, R * stride) };
    for (r, seen) in seen.iter().enumerate() {
        let before = Visible { from: seen.from, to: common.from.min(seen.to) };
        // SAFETY: one row, its visible tokens.
        unsafe {
            weigh::<L, F, 1>(lanes, weights.add(r * ATTENTION_TILE), before, values, out.add(r * stride))
        };
    }
    if common.from < common.to {
        // SAFETY: tokens that every row sees.
        unsafe { weigh::<L, F, R>(lanes, weights, common, values, out) };
    }
    for (r, seen) in seen.iter().enumerate() {
        let after = Visible { from: common.to.max(common.from).max(seen.from), to: seen.to };
        // SAFETY: one row, its visible tokens.
        unsafe {
            weigh::<L, F, 1>(lanes, weights.add(r * ATTENTION_TILE), after, values, out.add(r * stride))
        };
    }
}

/// Adds `Σ weight × value` over `tokens` to `R` rows.
///
/// # Safety
/// As [`weigh_all`].
#[inline(always)]
unsafe fn weigh<L: Lanes, F: Form<L>, const R: usize>(
    lanes: L,
    weights: *const f32,
    tokens: Visible,
    values: Values<'_>,
    out: *mut f32,
) {
    if tokens.from >= tokens.to {
        return;
    }
    let (mut at, dim) = (0, values.dim);
    // SAFETY: passed on; `at` stays below `dim`.
    unsafe {
        while L::WIDE && R <= 4 && at + 4 * LANES <= dim {
            weigh_dims::<L, F, R, 4>(lanes, weights, tokens, values, at, out);
            at += 4 * LANES;
        }
        while L::WIDE && at + 2 * LANES <= dim {
            weigh_dims::<L, F, R, 2>(lanes, weights, tokens, values, at, out);
            at += 2 * LANES;
        }
        while at < dim {
            weigh_dims::<L, F, R, 1>(lanes, weights, tokens, values, at, out);
            at += LANES;
        }
    }
}

/// The inner loop: `R × D` chains over the tokens, for `D` vectors of dimensions from `at`.
///
/// # Safety
/// As [`weigh_all`]; with `D` = 1 the vector may reach past `dim`.
#[inline(always)]
unsafe fn weigh_dims<L: Lanes, F: Form<L>, const R: usize, const D: usize>(
    lanes: L,
    weights: *const f32,
    tokens: Visible,
    values: Values<'_>,
    at: usize,
    out: *mut f32,
) {
    let dim = values.dim;
    let stride = padded(dim);
    let whole = at + D * LANES <= dim;
    let mut acc = [[lanes.splat(0.0); D]; R];
    for r in 0..R {
        for d in 0..D {
            // SAFETY: inside row `r` of `out`.
            acc[r][d] = unsafe { lanes.load(out.add(r * stride + at + d * LANES)) };
        }
    }
    let mut token = tokens.from;
    while token < tokens.to {
        let group = values.groups[token / GROUP_TOKENS];
        let ahead = values.ahead[token / GROUP_TOKENS];
        let end = (token / GROUP_TOKENS + 1) * GROUP_TOKENS;
        for token in token..end.min(tokens.to) {
            let first = token % GROUP_TOKENS * dim + at;
            // SAFETY: a visible token's values, and its weight in each row.
            unsafe {
                let mut value = [lanes.splat(0.0); D];
                if D == 1 && !whole {
                    value[0] = F::load_value_part(lanes, group, first, dim - at);
                } else {
                    for d in 0..D {
                        value[d] = F::load_value(lanes, group, first + d * LANES);
                    }
                }
                for line in 0..(D * LANES * F::BYTES).div_ceil(64) {
                    lanes.prefetch(ahead.wrapping_add(first * F::BYTES + line * 64));
                }
                for r in 0..R {
                    let weight = lanes.splat(weights.add(r * ATTENTION_TILE + token).read());
                    for d in 0..D {
                        acc[r][d] = lanes.mul_add(weight, value[d], acc[r][d]);
                    }
                }
            }
        }
        token = end;
    }
    for r in 0..R {
        for d in 0..D {
            // SAFETY: as above.
            unsafe { lanes.store(out.add(r * stride + at + d * LANES), acc[r][d]) };
        }
    }
}
