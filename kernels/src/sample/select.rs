//! Picking the likeliest tokens of a large vocabulary without sorting it.
//!
//! The idea is one array of block maxima: the `k`-th largest block maximum bounds the `k`-th largest logit
//! from below, because that many blocks hold at least one such value. So a selection scans only the few
//! blocks that reach the bound and orders only what passes it. Order means likelier first, ties by smaller
//! id: a total order, so every answer is unique. Worst case (flat rows, huge `k`) is linear.

use std::cmp::Ordering;

use base::TokenId;

const BLOCK: usize = 64;
/// Blocks whose maxima bound the first guess of a top-p set.
const FIRST_GUESS: usize = 64;

/// Likelier first, ties by smaller id; there are no NaNs here.
pub(super) fn likelier(a: &(TokenId, f32), b: &(TokenId, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// The maximum of each block of 64 logits.
pub(super) struct BlockMax {
    maxima: Vec<f32>,
}

impl BlockMax {
    pub(super) fn of(logits: &[f32]) -> Self {
        Self { maxima: logits.chunks(BLOCK).map(super::max_of).collect() }
    }

    /// The `k` likeliest tokens, in no order; tokens at −∞ are never among them.
    pub(super) fn top(&self, logits: &[f32], k: usize) -> Vec<(TokenId, f32)> {
        let bound = self.bound(k);
        let mut found = self.matching(logits, |x| x >= bound);
        if found.len() > k {
            found.select_nth_unstable_by(k - 1, likelier);
            found.truncate(k);
        }
        found
    }

    /// The shortest run of likeliest tokens whose mass reaches `target`, at least one token; in no order.
    pub(super) fn heaviest(
        &self,
        logits: &[f32],
        mass: impl Fn(f32) -> f64 + Copy,
        target: f64,
    ) -> Vec<(TokenId, f32)> {
        let mut k = FIRST_GUESS;
        loop {
            let bound = self.bound(k);
            let mut found = self.matching(logits, |x| x >= bound);
            let sum: f64 = found.iter().map(|&(_, x)| mass(x)).sum();
            if sum >= target || bound == f32::NEG_INFINITY {
                keep_mass(&mut found, mass, target);
                return found;
            }
            k *= 8;
        }
    }

    /// All tokens above −∞ that satisfy a predicate which holds for every likelier one as well.
    pub(super) fn matching(&self, logits: &[f32], passes: impl Fn(f32) -> bool) -> Vec<(TokenId, f32)> {
        let mut found = Vec::new();
        for (i, (block, &max)) in logits.chunks(BLOCK).zip(&self.maxima).enumerate() {
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

/// Keeps the shortest run of likeliest tokens whose mass reaches `target`, at least one token.
///
/// Halving by rank instead of sorting: linear, and exact because masses add up without rounding.
pub(super) fn keep_mass(tokens: &mut Vec<(TokenId, f32)>, mass: impl Fn(f32) -> f64, target: f64) {
    let (mut from, mut to) = (0, tokens.len()); // tokens[..from] are kept, tokens[to..] are not needed
    let mut missing = target;
    while to - from > 1 {
        let half = (to - from) / 2;
        tokens[from..to].select_nth_unstable_by(half, likelier);
        let upper: f64 = tokens[from..from + half].iter().map(|&(_, x)| mass(x)).sum();
        if upper >= missing {
            to = from + half;
        } else {
            missing -= upper;
            from += half;
        }
    }
    tokens.truncate(to.max(1));
}
