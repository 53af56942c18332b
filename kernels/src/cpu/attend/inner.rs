//! The inner loops of attention: scores, their softmax, and the weighted sum of values, for a few query rows
//! over one tile.
//!
//! Rows, key groups and dimensions that go through registers together are independent chains, so their
//! number is free to follow the register file.
#![expect(clippy::needless_range_loop, reason = "indices run over several register arrays at once")]

use super::form::Form;
use super::padded;
use crate::ATTENTION_TILE;
use crate::attention::TileSum;
use crate::cpu::lanes::{LANES, Lanes};
use crate::cpu::pages::GROUP_TOKENS;

/// Query rows in registers at once, at most; [`Lanes::ROWS`] is what suits an instruction set.
pub(super) const ROWS_MAX: usize = 8;
pub(super) const TILE_GROUPS: usize = ATTENTION_TILE / GROUP_TOKENS;

/// Starts of a tile's key or value groups.
pub(super) type Groups = [*const u8; TILE_GROUPS];

/// Visible tokens of one query row in a tile, relative to its start.
#[derive(Clone, Copy)]
pub(super) struct Visible {
    pub from: usize,
    pub to: usize,
}

/// A tile's values, and what to ask for while they are read.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub groups: &'a Groups,
    pub ahead: &'a Groups,
    pub dim: usize,
}

/// Raw scores of `R` rows with the tokens of `groups`, into `scores[row][token]`; `ahead` is asked for
/// meanwhile.
///
/// # Safety
/// The groups `keys[groups]` are valid key groups of `units` units, `query` holds `R` packed rows, `scores` `R` tiles.
#[inline(always)]
pub(super) unsafe fn score<L: Lanes, F: Form<L>, const R: usize>(
    lanes: L,
    query: *const u32,
    units: usize,
    (keys, ahead): (&Groups, &Groups),
    groups: std::ops::Range<usize>,
    scores: *mut f32,
) {
    let mut g = groups.start;
    while L::WIDE && R <= 4 && g + 4 <= groups.end {
        let four = [keys[g], keys[g + 1], keys[g + 2], keys[g + 3]];
        let next = [ahead[g], ahead[g + 1], ahead[g + 2], ahead[g + 3]];
        // SAFETY: passed on; group `g` starts at token 16 g.
        unsafe { score_groups::<L, F, R, 4>(lanes, query, units, four, next, scores.add(g * GROUP_TOKENS)) };
        g += 4;
    }
    while L::WIDE && g + 2 <= groups.end {
        let (two, next) = ([keys[g], keys[g + 1]], [ahead[g], ahead[g + 1]]);
        // SAFETY: as above.
        unsafe { score_groups::<L, F, R, 2>(lanes, query, units, two, next, scores.add(g * GROUP_TOKENS)) };
        g += 2;
    }
    while g < groups.end {
        let (one, next) = ([keys[g]], [ahead[g]]);
        // SAFETY: as above.
        unsafe { score_groups::<L, F, R, 1>(lanes, query, units, one, next, scores.add(g * GROUP_TOKENS)) };
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
pub(super) unsafe fn softmax<L: Lanes>(lanes: L, scores: *mut f32, seen: Visible, scale: f32) -> TileSum {
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

/// `out[row] = Σ weight × value` over each row's visible tokens, in order.
///
/// Tokens that all rows see go through registers together; what only some see goes row by row, so that no
/// row ever multiplies a value that it does not see.
///
/// # Safety
/// Weights and value groups of all visible tokens are there; `out` has `R` rows of padded `dim`.
#[inline(always)]
pub(super) unsafe fn weigh_all<L: Lanes, F: Form<L>, const R: usize>(
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
