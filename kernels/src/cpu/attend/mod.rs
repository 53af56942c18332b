//! Attention over pages on the CPU: tiles at absolute positions, sixteen scores a register.
//!
//! The bits of a query row depend on its position, its query and the KV content only. That holds by
//! construction, not by testing alone:
//! * a score is one sequential chain over the dimensions (lanes are tokens), so it does not know how many
//!   rows or tokens were computed beside it;
//! * an output is one sequential chain over the visible tokens of a tile (lanes are dimensions);
//! * the sum of exponentials runs in sixteen lanes over the tile, masked lanes adding an exact 0;
//! * tiles merge in ascending order with [`TileSum::merge`], from registers or from scratch memory alike.
//!
//! ```text
//! pieces    (sequence run, kv head, block of query rows [, run of tiles])   cut so that workers end together
//!   tile    256 tokens = 16 groups of keys and of values, wherever their pages are
//!     rows  up to 8 query rows (positions × heads of the group) × 2 groups (4 × 4) in registers
//! ```
//!
//! A few long sequences are cut along tiles as well; their tile results go to scratch and a second pass
//! merges them. Limits: scratch grows with `tiles × query rows` of the sequences that are cut.

mod form;
mod inner;
mod piece;
mod plan;

use super::arena::{Rows, RowsMut, StepRows};
use super::isa::Isa;
use super::lanes::{LANES, dispatch};
use super::pages::KvPages;
use super::pool::{Pool, Tickets};
use crate::{AttentionShape, attention::TileSum};
use piece::{RunPiece, Scratch};
use plan::Piece;

/// Attention with its reusable memory.
#[derive(Debug, Default)]
pub struct Attention {
    pieces: Vec<Piece>,
    /// One per worker.
    scratch: Vec<Scratch>,
    /// Results of tiles that the second pass merges.
    partial: Vec<f32>,
}

/// One call's inputs.
#[derive(Clone, Copy)]
pub struct AttendInput<'a> {
    pub step: &'a StepRows,
    pub pages: &'a KvPages,
    pub layer: usize,
    pub shape: AttentionShape,
    /// Fused rows; the q part is read.
    pub qkv: Rows<'a>,
}

impl Attention {
    pub fn new() -> Self {
        Self::default()
    }

    /// Attention of every row of the step into `out` (`q_cols` wide).
    pub fn run(&mut self, pool: &Pool, isa: Isa, input: &AttendInput<'_>, out: RowsMut<'_>) {
        let shape = &input.shape;
        assert!(shape.heads.is_multiple_of(shape.kv_heads), "heads come in whole groups");
        assert!(input.qkv.cols == shape.qkv_cols() && out.cols == shape.q_cols());
        assert!(input.qkv.rows == input.step.rows() && out.rows == input.qkv.rows);
        assert!(shape.scale > 0.0, "scores are scaled by {}", shape.scale);
        let kv = input.pages.shape();
        assert!(kv.head_dim == shape.head_dim && kv.kv_heads == shape.kv_heads);

        let floats = plan::cut(input.step, shape, pool.workers(), partial_stride(shape), &mut self.pieces);
        self.scratch.resize_with(pool.workers(), Scratch::default);
        if self.partial.len() < floats {
            self.partial.resize(floats, 0.0);
        }
        let pieces = &self.pieces;
        let scratch = RowsMut::new(&mut self.scratch, pool.workers(), 1);
        let partial = RowsMut::new(&mut self.partial, 1, floats);
        let tickets = Tickets::new(pieces.len(), 1);
        pool.run(&|worker, _| {
            // SAFETY: one scratch per worker.
            let scratch = unsafe { &mut scratch.row(worker)[0] };
            while let Some(range) = tickets.take() {
                let piece = &pieces[range.start];
                dispatch(isa, RunPiece { input, piece, scratch, out, partial });
            }
        });
        if floats > 0 {
            self.merge(pool, input, out, floats);
        }
    }

    /// Second pass: merges the tiles of rows that were cut, in order.
    fn merge(&mut self, pool: &Pool, input: &AttendInput<'_>, out: RowsMut<'_>, floats: usize) {
        let shape = &input.shape;
        let partial = &self.partial[..floats];
        let firsts = || self.pieces.iter().filter(|p| p.partial.is_some_and(|part| part.first));
        let rows = |p: &Piece| p.rows as usize * shape.group();
        let total: usize = firsts().map(rows).sum();
        let tickets = Tickets::new(total, 1);
        pool.run(&|_, _| {
            while let Some(range) = tickets.take() {
                let mut index = range.start;
                for piece in firsts() {
                    if index < rows(piece) {
                        merge_row(piece, index, partial, input, out);
                        break;
                    }
                    index -= rows(piece);
                }
            }
        });
    }
}

/// Floats that one row's result of one tile takes in scratch: output, maximum, sum.
fn partial_stride(shape: &AttentionShape) -> usize {
    padded(shape.head_dim) + LANES
}

/// Dimensions rounded up to whole vectors.
fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Merges the tiles of query row `index` of a piece that starts a cut.
fn merge_row(piece: &Piece, index: usize, partial: &[f32], input: &AttendInput<'_>, out: RowsMut<'_>) {
    let shape = &input.shape;
    let part = piece.partial.expect("cut pieces have a place in scratch");
    let (stride, rows) = (partial_stride(shape), piece.rows as usize * shape.group());
    let (row, head) = piece.query(shape, index);
    let cols = head * shape.head_dim..(head + 1) * shape.head_dim;
    // SAFETY: one merge per (row, head).
    let out = unsafe { out.part(row, cols) };
    out.fill(0.0);
    let position = input.step.positions[row] as usize;
    let mut state = TileSum::EMPTY;
    for tile in plan::visible_tiles(shape, position) {
        let at = part.offset + ((tile - part.first_tile as usize) * rows + index) * stride;
        let (o, sums) = partial[at..at + stride].split_at(padded(shape.head_dim));
        let (keep, add) = state.merge(TileSum { max: sums[0], sum: sums[1] });
        for (out, o) in out.iter_mut().zip(o) {
            *out = *out * keep + o * add;
        }
    }
    let inverse = 1.0 / state.sum;
    out.iter_mut().for_each(|o| *o *= inverse);
}
