//! Cutting a step's attention into pieces for the workers.
//!
//! The cut never changes a bit, so it may follow cost alone: blocks of query rows first, and where those
//! are too few or too uneven for the workers (a few long sequences), runs of tiles as well.

use crate::cpu::arena::StepRows;
use crate::{ATTENTION_TILE, AttentionShape};

/// Query rows of a block: enough to use a tile that sits in the second-level cache several times.
const BLOCK_ROWS: usize = 48;
/// With this many pieces per worker the tickets balance by themselves.
const PIECES_ENOUGH: usize = 8;
/// Sequences shorter than this many tiles are not worth a second pass.
const TILES_TO_CUT: u32 = 4;

/// Some query positions of one sequence, against one KV head, over a run of tiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub span: u32,
    pub kv_head: u32,
    /// First row in the batch.
    pub row: u32,
    /// Positions in the block; each has the heads of the group as query rows.
    pub rows: u32,
    pub tile_from: u32,
    pub tile_to: u32,
    /// Where tile results go, if the tiles of this block are spread over several pieces.
    pub partial: Option<Partial>,
}

/// A cut block's place in scratch: `[tile][query row][result]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Partial {
    pub offset: usize,
    pub first_tile: u32,
    /// True for the one piece of the block that stands for it in the second pass.
    pub first: bool,
}

impl Piece {
    /// Batch row and head of query row `index`.
    pub fn query(&self, shape: &AttentionShape, index: usize) -> (usize, usize) {
        let group = shape.group();
        (self.row as usize + index / group, self.kv_head as usize * group + index % group)
    }

    fn cost(&self, shape: &AttentionShape) -> u64 {
        // A few query rows cost what reading the tile costs.
        u64::from(self.tile_to - self.tile_from) * (self.rows as usize * shape.group()).max(8) as u64
    }
}

/// Tiles in which a query at `position` sees a token.
pub(super) fn visible_tiles(shape: &AttentionShape, position: usize) -> std::ops::RangeInclusive<usize> {
    shape.first_visible(position) / ATTENTION_TILE..=position / ATTENTION_TILE
}

/// Fills `pieces`, costly ones first; returns the floats of scratch that they need.
pub(super) fn cut(
    step: &StepRows,
    shape: &AttentionShape,
    workers: usize,
    stride: usize,
    pieces: &mut Vec<Piece>,
) -> usize {
    pieces.clear();
    blocks(step, shape, pieces);
    pieces.sort_unstable_by_key(|p| (std::cmp::Reverse(p.cost(shape)), p.row, p.kv_head));
    if workers == 1 || pieces.len() >= PIECES_ENOUGH * workers || balanced(pieces, shape, workers) {
        return 0;
    }
    let total: u64 = pieces.iter().map(|p| p.cost(shape)).sum();
    let share = total.div_ceil(workers as u64 * 4).max(1);
    let mut floats = 0;
    for i in 0..pieces.len() {
        let whole = pieces[i];
        let tiles = whole.tile_to - whole.tile_from;
        let parts = (whole.cost(shape).div_ceil(share) as u32).min(tiles);
        if tiles < TILES_TO_CUT || parts < 2 {
            continue;
        }
        let first = Partial { offset: floats, first_tile: whole.tile_from, first: true };
        floats += tiles as usize * whole.rows as usize * shape.group() * stride;
        for part in 0..parts {
            let at = |part: u32| whole.tile_from + tiles * part / parts;
            let partial = Some(Partial { first: part == 0, ..first });
            let piece = Piece { tile_from: at(part), tile_to: at(part + 1), partial, ..whole };
            if part == 0 { pieces[i] = piece } else { pieces.push(piece) }
        }
    }
    floats
}

/// One piece per block of positions and KV head.
fn blocks(step: &StepRows, shape: &AttentionShape, pieces: &mut Vec<Piece>) {
    let positions = (BLOCK_ROWS / shape.group()).max(1) as u32;
    for (index, span) in step.spans.iter().enumerate() {
        for from in (0..span.rows).step_by(positions as usize) {
            let rows = positions.min(span.rows - from);
            let first = (span.start + from) as usize;
            let tile_from = *visible_tiles(shape, first).start() as u32;
            let tile_to = *visible_tiles(shape, first + rows as usize - 1).end() as u32 + 1;
            pieces.extend((0..shape.kv_heads as u32).map(|kv_head| Piece {
                span: index as u32,
                kv_head,
                row: span.row + from,
                rows,
                tile_from,
                tile_to,
                partial: None,
            }));
        }
    }
}

/// True if handing out the pieces (costly ones first) keeps all workers busy nearly to the end.
fn balanced(pieces: &[Piece], shape: &AttentionShape, workers: usize) -> bool {
    let mut load = vec![0u64; workers];
    for piece in pieces {
        let least = load.iter_mut().min().expect("at least one worker");
        *least += piece.cost(shape);
    }
    let (most, total) = (load.iter().max().copied().unwrap_or(0), load.iter().sum::<u64>());
    most * workers as u64 * 8 <= total * 9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, SeqSpan};

    fn shape(heads: usize, kv_heads: usize, window: Option<u32>) -> AttentionShape {
        AttentionShape { heads, kv_heads, head_dim: 8, scale: 1.0, window }
    }

    fn step(runs: &[(u32, u32)]) -> StepRows {
        let mut spans = Vec::new();
        let (mut row, mut tokens) = (0, Vec::new());
        for &(start, rows) in runs {
            spans.push(SeqSpan { row, rows, start, table: 0 });
            row += rows;
            tokens.extend((0..rows).map(|_| 0));
        }
        let mut step = StepRows::default();
        step.fill(&Batch { tokens: &tokens, spans: &spans, page_table: &[0; 4096] });
        step
    }

    /// Every (row, kv head, visible tile) is in exactly one piece.
    fn check(runs: &[(u32, u32)], shape: &AttentionShape, workers: usize) -> usize {
        let step = step(runs);
        let mut pieces = Vec::new();
        let floats = cut(&step, shape, workers, 24, &mut pieces);
        let mut seen = std::collections::HashMap::new();
        for p in &pieces {
            for row in p.row..p.row + p.rows {
                for tile in p.tile_from..p.tile_to {
                    *seen.entry((row, p.kv_head, tile as usize)).or_insert(0) += 1;
                }
            }
            if let Some(part) = p.partial {
                let rows = p.rows as usize * shape.group();
                let end = part.offset + (p.tile_to - part.first_tile) as usize * rows * 24;
                assert!(end <= floats, "scratch overrun");
            }
        }
        assert!(seen.values().all(|&n| n == 1));
        for (row, &position) in step.positions.iter().enumerate() {
            for tile in visible_tiles(shape, position as usize) {
                assert!((0..shape.kv_heads as u32).all(|h| seen.contains_key(&(row as u32, h, tile))));
            }
        }
        pieces.iter().filter(|p| p.partial.is_some()).count()
    }

    #[test]
    fn pieces_cover_every_visible_tile_once() {
        for workers in [1, 2, 5] {
            for window in [None, Some(1), Some(100), Some(700)] {
                for (heads, kv_heads) in [(6, 1), (6, 3), (6, 6), (64, 1)] {
                    let shape = shape(heads, kv_heads, window);
                    check(&[(0, 1)], &shape, workers);
                    check(&[(0, 700), (3000, 1), (250, 20), (9, 1)], &shape, workers);
                    check(&[(20_000, 1)], &shape, workers);
                }
            }
        }
    }

    #[test]
    fn only_uneven_work_is_cut_along_tiles() {
        let even = shape(6, 2, None);
        assert_eq!(check(&[(20_000, 1)], &even, 2), 0, "two heads keep two workers busy");
        assert!(check(&[(20_000, 1)], &shape(6, 3, None), 2) > 3);
        assert!(check(&[(20_000, 1)], &even, 8) > 8);
        assert_eq!(check(&[(0, 2000)], &even, 2), 0);
        assert_eq!(check(&[(500, 1)], &shape(6, 3, None), 2), 0, "too short to cut");
    }
}
