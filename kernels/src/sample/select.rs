//! Picking the likeliest tokens of a large vocabulary without sorting it.
//!
//! The idea is one array of block maxima: the `k`-th largest block maximum bounds the `k`-th largest logit
//! from below, because that many blocks hold at least one such value. So a selection scans only the few
//! blocks that reach the bound and orders only what passes it. Order means likelier first, ties by smaller
//! id: a total order, so every answer is unique. A top-p set too flat for that is found by binning masses
//! by depth below the maximum and ordering the one bin in which the set ends: two passes, whatever the row.

use std::cmp::Ordering;

use base::TokenId;

use super::vector::{self, BINS, BLOCK, CHUNK_BINS};

/// Block maxima that bound the first guess of a top-p set.
const FIRST_GUESS: usize = 48;

/// Logits with their maximum and temperature.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub logits: &'a [f32],
    pub max: f32,
    pub temperature: f32,
}

impl Row<'_> {
    pub(super) fn mass(&self, x: f32) -> f64 {
        vector::mass(vector::weight(x, self.max, self.temperature))
    }
    pub(super) fn depth(&self, x: f32) -> f32 {
        vector::depth(x, self.max, self.temperature)
    }
    /// Mass of all these tokens.
    pub(super) fn masses(&self, tokens: &[(TokenId, f32)]) -> f64 {
        tokens.iter().map(|&(_, x)| self.mass(x)).sum()
    }
    /// Mass of each of these tokens.
    pub(super) fn mass_list(&self, tokens: &[(TokenId, f32)]) -> Vec<f64> {
        let logits: Vec<f32> = tokens.iter().map(|t| t.1).collect();
        let mut masses = vec![0.0; logits.len()];
        vector::masses(&logits, self.max, self.temperature, &mut masses);
        masses
    }
}

/// Likelier first, ties by smaller id; there are no NaNs here.
pub(super) fn likelier(a: &(TokenId, f32), b: &(TokenId, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// The maximum of each block of logits.
pub(super) struct BlockMax<'a> {
    logits: &'a [f32],
    maxima: Vec<f32>,
}

impl<'a> BlockMax<'a> {
    pub(super) fn of(logits: &'a [f32]) -> Self {
        let mut maxima = Vec::with_capacity(logits.len().div_ceil(BLOCK));
        vector::block_maxima(logits, &mut maxima);
        Self { logits, maxima }
    }

    /// The `k` likeliest tokens, in no order; tokens at −∞ are never among them.
    pub(super) fn top(&self, k: usize) -> Vec<(TokenId, f32)> {
        let bound = self.bound(k);
        let mut found = self.matching(|x| x >= bound);
        if found.len() > k {
            found.select_nth_unstable_by(k - 1, likelier);
            found.truncate(k);
        }
        found
    }

    /// All tokens above −∞ that satisfy a predicate which holds for every likelier one as well; by id.
    pub(super) fn matching(&self, passes: impl Fn(f32) -> bool) -> Vec<(TokenId, f32)> {
        let mut found = Vec::new();
        for (i, (block, &max)) in self.logits.chunks(BLOCK).zip(&self.maxima).enumerate() {
            if max > f32::NEG_INFINITY && passes(max) {
                let tokens = block.iter().enumerate().map(|(j, &x)| ((i * BLOCK + j) as TokenId, x));
                found.extend(tokens.filter(|&(_, x)| x > f32::NEG_INFINITY && passes(x)));
            }
        }
        found
    }

    /// At least `k` logits are at or above this (or it is −∞).
    fn bound(&self, k: usize) -> f32 {
        if k > self.maxima.len() {
            return f32::NEG_INFINITY;
        }
        let mut maxima = self.maxima.clone();
        *maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }
}

/// The shortest run of likeliest tokens whose mass reaches `target`, at least one token; in no order.
pub(super) fn heaviest(row: Row<'_>, target: f64) -> Vec<(TokenId, f32)> {
    let blocks = BlockMax::of(row.logits);
    let bound = blocks.bound(FIRST_GUESS);
    let mut found = blocks.matching(|x| x >= bound);
    if row.masses(&found) < target {
        return heaviest_by_bins(row, target);
    }
    keep_mass(&mut found, row, target);
    found
}

/// The same for flat rows.
fn heaviest_by_bins(row: Row<'_>, target: f64) -> Vec<(TokenId, f32)> {
    let (mut masses, mut bins) = ([0.0; CHUNK_BINS], [0; CHUNK_BINS]);
    let mut sums = vec![0.0f64; BINS];
    let mut of_token = Vec::with_capacity(row.logits.len());
    for chunk in row.logits.chunks(CHUNK_BINS) {
        vector::bins(chunk, row.max, row.temperature, &mut masses, &mut bins);
        for (mass, &bin) in masses.iter().zip(&bins).take(chunk.len()) {
            sums[usize::from(bin)] += mass;
        }
        of_token.extend_from_slice(&bins[..chunk.len()]);
    }
    let mut missing = target;
    let mut last = 0; // the bin in which the set ends
    while last + 1 < BINS && sums[last] < missing {
        missing -= sums[last];
        last += 1;
    }
    let (mut kept, mut border) = (Vec::new(), Vec::new());
    for ((token, &x), &bin) in (0..).zip(row.logits).zip(&of_token) {
        match usize::from(bin).cmp(&last) {
            Ordering::Less => kept.push((token, x)),
            Ordering::Equal if x > f32::NEG_INFINITY => border.push((token, x)),
            _ => {}
        }
    }
    if !border.is_empty() {
        keep_mass(&mut border, row, missing);
    }
    kept.extend(border);
    kept
}

/// Keeps the shortest run of likeliest tokens whose mass reaches `target`, at least one token.
///
/// Halving by rank instead of sorting: linear, and exact because masses add up without rounding.
pub(super) fn keep_mass(tokens: &mut Vec<(TokenId, f32)>, row: Row<'_>, target: f64) {
    let (mut from, mut to) = (0, tokens.len()); // tokens[..from] are kept, tokens[to..] are not needed
    let mut missing = target;
    while to - from > 1 {
        let half = (to - from) / 2;
        tokens[from..to].select_nth_unstable_by(half, likelier);
        let upper = row.masses(&tokens[from..from + half]);
        if upper >= missing {
            to = from + half;
        } else {
            missing -= upper;
            from += half;
        }
    }
    tokens.truncate(to.max(1));
}
