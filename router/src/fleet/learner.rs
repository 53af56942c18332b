//! Learns [`Rates`] from what requests took.
//!
//! Least squares over sums that age, with the prior as samples that age too: a pool that was never asked has
//! the prior's rates, one that changed its speed is known after [`MEMORY`] samples, and nothing is kept per
//! sample. Two things plain least squares gets wrong here, and what stands against them. An **outlier** (a
//! stalled network, a process stopped for a minute) would move every coefficient: a sample counts at most
//! [`CLIP`] times what was predicted, and half of them have to be that slow to be believed. A **negative** rate
//! would make a longer prompt look cheaper: the solution is the best of those whose every coefficient is at
//! least zero.

use base::Tier;

use super::Rates;
use crate::book::{DecodeSpan, PrefillSpan};

/// Samples after which an old one counts 1/e.
const MEMORY: f64 = 256.0;
/// A sample counts at most this many times what was predicted, and at least the same part of it.
const CLIP: f64 = 3.0;
/// Samples that the prior stands for.
const PRIOR: f64 = 4.0;

/// What is known of how fast requests are served.
#[derive(Clone, Debug)]
pub struct Learner {
    rates: Rates,
    prefill: Fit,
    decode: Fit,
    restore: [Mean; Tier::ALL.len()],
    transfer: Mean,
    adapter_load: Mean,
}

impl Default for Learner {
    fn default() -> Self {
        Self::new(Rates::default())
    }
}

impl Learner {
    /// Starts from `prior`, which holds until samples say otherwise.
    pub fn new(prior: Rates) -> Self {
        let prefill =
            [prior.prefill_fixed_ms, prior.prefill_ms_per_token, prior.prefill_ms_per_token_context];
        let decode =
            [prior.decode_fixed_ms, prior.decode_ms_per_sequence, prior.decode_ms_per_resident_token];
        Self {
            rates: prior,
            prefill: Fit::new(prefill, [prefill_row(512.0), prefill_row(4096.0), prefill_row(32768.0)]),
            decode: Fit::new(decode, [[1.0, 1.0, 2048.0], [1.0, 32.0, 32768.0], [1.0, 32.0, 262_144.0]]),
            restore: prior.restore_ms_per_block.map(Mean::new),
            transfer: Mean::new(prior.transfer_ms_per_block),
            adapter_load: Mean::new(prior.adapter_load_ms),
        }
    }

    pub fn rates(&self) -> Rates {
        self.rates
    }

    /// Prefills that had the replica to themselves.
    pub fn prefill_span(&mut self, span: &PrefillSpan) {
        let row = prefill_span_row(span);
        if span.tokens == 0 || span.requests == 0 || !usable(span.ms) || !sizes(row) {
            return;
        }
        let [fixed, token, context] = self.prefill.learn(row, span.ms);
        self.rates.prefill_fixed_ms = fixed;
        self.rates.prefill_ms_per_token = token;
        self.rates.prefill_ms_per_token_context = context;
    }

    /// What such prefills should take.
    pub fn predict_prefill(&self, span: &PrefillSpan) -> f64 {
        self.prefill.predict(prefill_span_row(span))
    }

    /// How long one token took beside others.
    pub fn decode_span(&mut self, span: &DecodeSpan) {
        self.decode(span.sequences, span.resident_tokens, span.step_ms);
    }

    /// A step that gave one token to each of `sequences`.
    pub fn decode(&mut self, sequences: f64, resident_tokens: f64, ms: f64) {
        let row = [1.0, sequences, resident_tokens];
        if sequences <= 0.0 || !usable(ms) || !sizes(row) {
            return;
        }
        let [fixed, sequence, resident] = self.decode.learn(row, ms);
        self.rates.decode_fixed_ms = fixed;
        self.rates.decode_ms_per_sequence = sequence;
        self.rates.decode_ms_per_resident_token = resident;
    }

    /// `blocks` were brought from a tier.
    pub fn restore(&mut self, tier: Tier, blocks: u32, ms: f64) {
        if tier == Tier::Device || blocks == 0 || !usable(ms) {
            return;
        }
        let at = tier.index();
        self.rates.restore_ms_per_block[at] = self.restore[at].learn(ms / f64::from(blocks));
    }

    /// `blocks` came from another replica's device.
    pub fn transfer(&mut self, blocks: u32, ms: f64) {
        if blocks > 0 && usable(ms) {
            self.rates.transfer_ms_per_block = self.transfer.learn(ms / f64::from(blocks));
        }
    }

    pub fn adapter_load(&mut self, ms: f64) {
        if usable(ms) {
            self.rates.adapter_load_ms = self.adapter_load.learn(ms);
        }
    }
}

fn usable(ms: f64) -> bool {
    ms.is_finite() && ms > 0.0 && ms < 3.6e6
}

/// Counts of tokens and sequences, and none that only an error can be.
fn sizes(row: [f64; 3]) -> bool {
    row.iter().all(|v| v.is_finite() && (0.0..1e15).contains(v))
}

/// By the square of what was predicted: a short prompt's error counts like a long one's.
fn weight(predicted_ms: f64) -> f64 {
    1.0 / predicted_ms.max(0.1).powi(2)
}

fn prefill_span_row(span: &PrefillSpan) -> [f64; 3] {
    [f64::from(span.requests), span.tokens as f64, span.token_context]
}

fn prefill_row(tokens: f64) -> [f64; 3] {
    [1.0, tokens, tokens * tokens / 2.0]
}

/// A mean that ages.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    samples: f64,
}

impl Mean {
    fn new(prior: f64) -> Self {
        Self { value: prior, samples: PRIOR }
    }

    fn learn(&mut self, sample: f64) -> f64 {
        let sample = clip(sample, self.value);
        self.samples = (self.samples + 1.0).min(MEMORY);
        self.value += (sample - self.value) / self.samples;
        self.value
    }
}

fn clip(sample: f64, predicted: f64) -> f64 {
    if predicted <= 0.0 { sample } else { sample.clamp(predicted / CLIP, predicted * CLIP) }
}

/// Weighted least squares of three coefficients, none below zero.
#[derive(Clone, Debug)]
struct Fit {
    coefficients: [f64; 3],
    /// Sums of products of the columns, and of each column with the sample.
    products: [[f64; 3]; 3],
    targets: [f64; 3],
    /// A column's size, so that the sums of tokens and of their squares can be told apart in an `f64`.
    scale: [f64; 3],
}

impl Fit {
    fn new(prior: [f64; 3], rows: [[f64; 3]; 3]) -> Self {
        let scale = std::array::from_fn(|c| rows.iter().map(|r| r[c]).fold(1.0, f64::max));
        let mut fit = Self { coefficients: prior, products: [[0.0; 3]; 3], targets: [0.0; 3], scale };
        for row in rows {
            let ms = fit.predict(row);
            fit.add(row, ms, weight(ms) * PRIOR / 3.0);
        }
        fit
    }

    fn predict(&self, row: [f64; 3]) -> f64 {
        (0..3).map(|c| row[c] * self.coefficients[c]).sum()
    }

    fn learn(&mut self, row: [f64; 3], ms: f64) -> [f64; 3] {
        let predicted = self.predict(row);
        let keep = 1.0 - 1.0 / MEMORY;
        self.products.iter_mut().flatten().chain(&mut self.targets).for_each(|sum| *sum *= keep);
        self.add(row, clip(ms, predicted), weight(predicted));
        if let Some(found) = self.solve() {
            self.coefficients = found;
        }
        self.coefficients
    }

    fn add(&mut self, row: [f64; 3], ms: f64, weight: f64) {
        let x: [f64; 3] = std::array::from_fn(|c| row[c] / self.scale[c]);
        for a in 0..3 {
            for b in 0..3 {
                self.products[a][b] += weight * x[a] * x[b];
            }
            self.targets[a] += weight * x[a] * ms;
        }
    }

    /// The best of the solutions over each set of columns whose coefficients are all at least zero.
    fn solve(&self) -> Option<[f64; 3]> {
        let candidates = (1u8..8).filter_map(|columns| self.solve_over(columns));
        let best = candidates.min_by(|a, b| self.loss(a).total_cmp(&self.loss(b)))?;
        let unscaled: [f64; 3] = std::array::from_fn(|c| best[c] / self.scale[c]);
        unscaled.iter().all(|v| v.is_finite()).then_some(unscaled)
    }

    /// Of the squares, but for a constant.
    fn loss(&self, x: &[f64; 3]) -> f64 {
        (0..3)
            .map(|a| x[a] * ((0..3).map(|b| self.products[a][b] * x[b]).sum::<f64>() - 2.0 * self.targets[a]))
            .sum()
    }

    /// Gauss's elimination over the columns of a set; the others are zero.
    fn solve_over(&self, columns: u8) -> Option<[f64; 3]> {
        let used = |c: usize| columns >> c & 1 == 1;
        let mut m: [[f64; 4]; 3] = std::array::from_fn(|a| {
            std::array::from_fn(|b| match b {
                3 if used(a) => self.targets[a],
                3 => 0.0,
                b if used(a) && used(b) => self.products[a][b],
                b => f64::from(u8::from(a == b)),
            })
        });
        for p in 0..3 {
            // Columns that say the same cannot be told apart; a smaller set can.
            if m[p][p] <= 1e-9 * self.products[p][p].max(1e-300) {
                return None;
            }
            for a in (0..3).filter(|a| *a != p) {
                let (times, pivot) = (m[a][p] / m[p][p], m[p]);
                m[a].iter_mut().zip(pivot).skip(p).for_each(|(left, above)| *left -= times * above);
            }
        }
        let x: [f64; 3] = std::array::from_fn(|c| m[c][3] / m[c][c]);
        x.iter().all(|v| v.is_finite() && *v >= 0.0).then_some(x)
    }
}
