//! One piece of attention: query rows of one block against one KV head, tile after tile.

use super::form::{Bf16, F32, Form};
use super::inner::{Groups, ROWS_MAX, TILE_GROUPS, Values, Visible, score, softmax, weigh_all};
use super::plan::Piece;
use super::{AttendInput, padded, partial_stride};
use crate::attention::TileSum;
use crate::cpu::arena::RowsMut;
use crate::cpu::lanes::{Kernel, LANES, Lanes};
use crate::cpu::pages::GROUP_TOKENS;
use crate::{ATTENTION_TILE, AttentionShape, KvType};

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
            KvType::E4m3 => unreachable!("refused when the pages were made"),
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
        unsafe { score::<L, F, R>(lanes, query, units, (&view.keys, &view.values), groups, scores) };
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
