//! Drawing a token from a row of logits: one pure function that every backend shares or must equal.
//!
//! A draw depends on (logits, parameters, history, seed, position) only, never on the batch, so the
//! same request gives the same tokens after a preemption and beside any neighbours. The order of steps is
//! vLLM's: raw logprobs → banned stops → bias → penalties → temperature → min-p → top-k → top-p → draw.
//!
//! Two choices make the outcome a definition instead of an accident of summation order. *Masses* (weights
//! relative to the likeliest token) are rounded to multiples of 2⁻³⁴, so their sums are exact in any order.
//! *Ties* go to the smaller id, everywhere. A row may hold anything: NaN counts as −∞, +∞ as the largest
//! float, and a row of nothing but −∞ gives token 0.

mod select;
mod vector;

use std::collections::HashMap;

use base::{CounterRng, TokenId};

use select::{BlockMax, Row};

/// What a request asked for. Neutral values switch a filter off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 = greedy.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: u32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off: keep tokens at least this fraction of the likeliest one's probability.
    pub min_p: f32,
    /// 1 = off; divides positive and multiplies negative logits of tokens seen in prompt or output.
    pub repetition_penalty: f32,
    /// 0 = off; subtracts per occurrence in the output.
    pub frequency_penalty: f32,
    /// 0 = off; subtracts once if the token is in the output.
    pub presence_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    pub seed: u64,
    /// Until this many tokens are generated, `stop_ids` cannot be drawn.
    pub min_tokens: u32,
    /// Tokens that end a sequence (EOS and `stop_token_ids`).
    pub stop_ids: Vec<TokenId>,
    /// `Some(k)`: report the drawn token's logprob and the `k` likeliest alternatives.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            min_tokens: 0,
            stop_ids: Vec::new(),
            logprobs: None,
        }
    }
}

/// One row to draw for.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    pub params: &'a SamplingParams,
    pub history: &'a History,
    /// Position of the token to be drawn: the counter of the draw.
    pub position: u64,
    /// `Some(token)`: do not draw, report this token's logprob (prompt logprobs, echo).
    pub forced: Option<TokenId>,
}

/// The outcome for one row. Logprobs are of the raw distribution, before temperature and filters.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Sampled {
    pub token: TokenId,
    /// Present if asked for.
    pub logprob: Option<f32>,
    /// Rank of the token in the raw distribution, 1 = likeliest; present with `logprob`.
    pub rank: u32,
    /// The likeliest tokens, best first; ties by smaller id.
    pub top: Vec<(TokenId, f32)>,
}

/// Tokens seen so far, counted.
#[derive(Clone, Debug, Default)]
pub struct History {
    seen: HashMap<TokenId, Seen>,
    generated: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// How often the token is in the output; 0 = in the prompt only.
    in_output: u32,
}

impl History {
    pub fn from_prompt(prompt: &[TokenId]) -> Self {
        let seen = prompt.iter().map(|&token| (token, Seen::default())).collect();
        Self { seen, generated: 0 }
    }

    /// Counts a generated token.
    pub fn push(&mut self, token: TokenId) {
        self.seen.entry(token).or_default().in_output += 1;
        self.generated += 1;
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// Each token seen with how often it is in the output, in no order.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (TokenId, u32)> + '_ {
        self.seen.iter().map(|(&token, seen)| (token, seen.in_output))
    }
}

/// Draws (or, if forced, looks up) the token of one row. Leaves `logits` in an unspecified state.
pub fn draw(logits: &mut [f32], row: &SampleRow<'_>) -> Sampled {
    let mut max = sanitized_max(logits);
    let params = row.params;
    let report = (params.logprobs.is_some() || row.forced.is_some()).then(|| Report::of(logits, max, params));
    if let (Some(token), Some(report)) = (row.forced, &report) {
        return report.with(logits, token);
    }
    let mut edits = Edits::new(logits);
    edits.apply(params, row.history);
    if !edits.undo.is_empty() {
        max = vector::max(edits.logits).0;
    }
    let token = if params.temperature > 0.0 {
        pick(Row { logits: edits.logits, max, temperature: params.temperature }, row)
    } else {
        vector::find(edits.logits, max).unwrap_or(0) as TokenId
    };
    match report {
        Some(report) => report.with(edits.restore(), token),
        None => Sampled { token, ..Sampled::default() },
    }
}

/// What is reported of the raw distribution.
struct Report {
    /// Logarithm of the sum of exponentials: `logprob = logit - lse`.
    lse: f32,
    top: Vec<(TokenId, f32)>,
}

impl Report {
    fn of(logits: &[f32], max: f32, params: &SamplingParams) -> Self {
        let sum = vector::exp_sum(logits, max);
        let lse = if max == f32::NEG_INFINITY { 0.0 } else { (f64::from(max) + sum.ln()) as f32 };
        let k = params.logprobs.unwrap_or(0) as usize;
        let mut top = if k == 0 { Vec::new() } else { BlockMax::of(logits).top(k) };
        top.sort_unstable_by(select::likelier);
        top.iter_mut().for_each(|(_, x)| *x -= lse);
        Self { lse, top }
    }

    fn with(&self, logits: &[f32], token: TokenId) -> Sampled {
        let x = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let before = &logits[..logits.len().min(token as usize)];
        let likelier = logits.iter().filter(|&&y| y > x).count() + before.iter().filter(|&&y| y == x).count();
        Sampled { token, logprob: Some(x - self.lse), rank: likelier as u32 + 1, top: self.top.clone() }
    }
}

/// Changes to single logits that can be taken back.
struct Edits<'a> {
    logits: &'a mut [f32],
    undo: Vec<(TokenId, f32)>,
}

impl<'a> Edits<'a> {
    fn new(logits: &'a mut [f32]) -> Self {
        Self { logits, undo: Vec::new() }
    }

    fn apply(&mut self, params: &SamplingParams, history: &History) {
        if history.generated < params.min_tokens {
            params.stop_ids.iter().for_each(|&token| self.edit(token, |_| f32::NEG_INFINITY));
        }
        params.logit_bias.iter().for_each(|&(token, bias)| self.edit(token, |x| x + bias));
        let repetition = params.repetition_penalty;
        let (frequency, presence) = (params.frequency_penalty, params.presence_penalty);
        if repetition == 1.0 && frequency == 0.0 && presence == 0.0 {
            return;
        }
        for (&token, seen) in &history.seen {
            self.edit(token, |x| {
                let x = if x > 0.0 { x / repetition } else { x * repetition };
                match seen.in_output {
                    0 => x,
                    n => x - frequency * n as f32 - presence,
                }
            });
        }
    }

    fn edit(&mut self, token: TokenId, f: impl FnOnce(f32) -> f32) {
        if let Some(x) = self.logits.get_mut(token as usize) {
            self.undo.push((token, *x));
            *x = sanitized(f(*x));
        }
    }

    /// The logits as they were.
    fn restore(self) -> &'a mut [f32] {
        self.undo.iter().rev().for_each(|&(token, x)| self.logits[token as usize] = x);
        self.logits
    }
}

fn sanitized(x: f32) -> f32 {
    if x.is_nan() { f32::NEG_INFINITY } else { x.min(f32::MAX) }
}

/// The largest logit, after replacing what is not a number or infinite upwards.
fn sanitized_max(logits: &mut [f32]) -> f32 {
    let (max, odd) = vector::max(logits);
    if !odd {
        return max;
    }
    logits.iter_mut().for_each(|x| *x = sanitized(*x));
    vector::max(logits).0
}

/// Draws from the filtered distribution.
fn pick(row: Row<'_>, asked: &SampleRow<'_>) -> TokenId {
    if row.max == f32::NEG_INFINITY {
        return 0;
    }
    let params = asked.params;
    let u = CounterRng::new(params.seed).uniform(asked.position, 0);
    let limited = params.top_k > 0 && (params.top_k as usize) < row.logits.len();
    if !limited && (params.top_p >= 1.0 || params.top_p.is_nan()) && !has_floor(params) {
        return draw_all(row, u);
    }
    let mut kept = kept(row, params, limited);
    kept.sort_by_key(|&(token, _)| token); // mostly in order already: runs are merged
    let masses = row.mass_list(&kept);
    let total: f64 = masses.iter().sum();
    inverse_cdf(kept.iter().map(|t| t.0).zip(masses), u * total).unwrap_or(0)
}

/// The survivors of min-p, top-k and top-p, in no order.
fn kept(row: Row<'_>, params: &SamplingParams, limited: bool) -> Vec<(TokenId, f32)> {
    // A fraction of the likeliest one's probability is a depth below it; depths are exactly monotone.
    let floor = if has_floor(params) { -params.min_p.min(1.0).ln() } else { f32::INFINITY };
    let top_p = f64::from(params.top_p);
    let mut kept = if limited {
        let mut kept = BlockMax::of(row.logits).top(params.top_k as usize);
        kept.retain(|&(_, x)| row.depth(x) <= floor);
        kept
    } else if has_floor(params) {
        BlockMax::of(row.logits).matching(|x| row.depth(x) <= floor)
    } else {
        let total = vector::mass_sum(row.logits, row.max, row.temperature);
        return select::heaviest(row, top_p * total);
    };
    if top_p < 1.0 {
        let total = row.masses(&kept);
        select::keep_mass(&mut kept, row, top_p * total);
    }
    kept
}

fn has_floor(params: &SamplingParams) -> bool {
    params.min_p > 0.0
}

/// Draws without filters: masses summed by block, then within the block that the draw falls into.
fn draw_all(row: Row<'_>, u: f64) -> TokenId {
    const BLOCK: usize = 512;
    let blocks = || row.logits.chunks(BLOCK);
    let sums: Vec<f64> = blocks().map(|c| vector::mass_sum(c, row.max, row.temperature)).collect();
    let mut target = u * sums.iter().sum::<f64>();
    for (i, (chunk, sum)) in blocks().zip(&sums).enumerate() {
        if target < *sum {
            let masses = (0..).zip(chunk).map(|(j, &x)| ((i * BLOCK + j) as TokenId, row.mass(x)));
            return inverse_cdf(masses, target).unwrap_or(0);
        }
        target -= sum;
    }
    let last = row.logits.iter().rposition(|&x| row.mass(x) > 0.0);
    last.unwrap_or(0) as TokenId
}

/// The token at which the running sum first exceeds `target`; the last with any mass if none does.
fn inverse_cdf(masses: impl Iterator<Item = (TokenId, f64)>, target: f64) -> Option<TokenId> {
    let mut sum = 0.0;
    let mut last = None;
    for (token, mass) in masses {
        sum += mass;
        if mass > 0.0 {
            last = Some(token);
        }
        if sum > target {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests;
