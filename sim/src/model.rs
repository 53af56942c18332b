//! How long a step takes, and where the numbers of that come from.
//!
//! ```text
//! step = fixed + prefill tokens · a + (token, context) pairs · b + decode sequences · c + resident tokens · d
//! ```
//!
//! Linear, because that is what the hardware does in the two regimes that matter (arithmetic-bound prefill,
//! bandwidth-bound decode), because five numbers can be fitted from a log of steps without a tuner, and
//! because a router that plans in milliseconds should not be tested against a world that it cannot learn. No
//! term for the overlap of both kinds in one step: a fit puts it into `fixed`.
//!
//! The profiles below are computed from data sheets and a stated efficiency; they are measured nowhere. Use
//! [`StepModel::fit`] on a replica's own steps for figures that one wants to promise.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a step consists of, as far as its time depends on it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepWork {
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// For each of them the tokens before it, summed: what attention reads.
    pub prefill_pairs: u64,
    /// Sequences that draw one token.
    pub decode_seqs: u64,
    /// Tokens that those sequences read.
    pub resident_tokens: u64,
}

/// A step that was measured; one line of a step log.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct StepRecord {
    #[serde(flatten)]
    pub work: StepWork,
    pub took_ns: f64,
}

/// Nanoseconds for each part of a step.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepModel {
    pub fixed_ns: f64,
    pub prefill_token_ns: f64,
    pub prefill_pair_ns: f64,
    pub decode_seq_ns: f64,
    pub resident_token_ns: f64,
}

/// Why no model came of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FitError {
    #[error("{steps} steps are too few to fit {unknowns} numbers")]
    TooFew { steps: usize, unknowns: usize },
    #[error("the steps are too alike: they do not tell {what} from the rest")]
    TooAlike { what: &'static str },
}

const UNKNOWNS: usize = 5;
const NAMES: [&str; UNKNOWNS] =
    ["a step's fixed time", "prefill", "attention of prefill", "decode sequences", "resident tokens"];

impl StepModel {
    /// Names that [`StepModel::profile`] knows.
    pub const PROFILES: [&str; 3] = ["h200-8b", "h200-70b-tp4", "cpu-tiny"];

    /// A model by name.
    ///
    /// `h200-8b`: 8 billion bf16 weights (16 GB at 4.8 TB/s, 85 % reached, plus 0.4 ms of launch and planning),
    /// 2 flops a weight and token at 600 Tflop/s, 128 KiB of KV a token (8 heads of 128, 32 layers).
    /// `h200-70b-tp4`: 70 billion over four of them with two all-reduces a layer. `cpu-tiny`: two million
    /// weights on two cores, for tests beside a real process.
    pub fn profile(name: &str) -> Option<StepModel> {
        let [fixed_ns, prefill_token_ns, prefill_pair_ns, decode_seq_ns, resident_token_ns] = match name {
            "h200-8b" => [4.3e6, 26_700.0, 0.9, 9_000.0, 32.0],
            "h200-70b-tp4" => [10.5e6, 66_000.0, 0.55, 14_000.0, 20.0],
            "cpu-tiny" => [0.2e6, 40_000.0, 4.0, 60_000.0, 25.0],
            _ => return None,
        };
        Some(StepModel { fixed_ns, prefill_token_ns, prefill_pair_ns, decode_seq_ns, resident_token_ns })
    }

    pub fn step(&self, work: &StepWork) -> Duration {
        let ns: f64 = self.weights().iter().zip(features(work)).map(|(weight, amount)| weight * amount).sum();
        Duration::from_nanos(ns.max(1.0) as u64)
    }

    fn weights(&self) -> [f64; UNKNOWNS] {
        [
            self.fixed_ns,
            self.prefill_token_ns,
            self.prefill_pair_ns,
            self.decode_seq_ns,
            self.resident_token_ns,
        ]
    }

    /// The model that comes closest to measured steps, in least squares of the relative error: a 2 ms step
    /// counts as much as a 200 ms one. A part that would come out negative is taken as zero.
    pub fn fit(steps: &[StepRecord]) -> Result<StepModel, FitError> {
        if steps.len() < 2 * UNKNOWNS {
            return Err(FitError::TooFew { steps: steps.len(), unknowns: UNKNOWNS });
        }
        let mut used = [true; UNKNOWNS];
        loop {
            let found = solve(steps, &used)?;
            match (0..UNKNOWNS)
                .filter(|&i| used[i] && found[i] < 0.0)
                .min_by(|&a, &b| found[a].total_cmp(&found[b]))
            {
                Some(negative) => used[negative] = false,
                None => {
                    let [fixed_ns, prefill_token_ns, prefill_pair_ns, decode_seq_ns, resident_token_ns] =
                        found;
                    return Ok(StepModel {
                        fixed_ns,
                        prefill_token_ns,
                        prefill_pair_ns,
                        decode_seq_ns,
                        resident_token_ns,
                    });
                }
            }
        }
    }

    /// Mean of |predicted / measured − 1|.
    pub fn error(&self, steps: &[StepRecord]) -> f64 {
        let off = |step: &StepRecord| (self.step(&step.work).as_nanos() as f64 / step.took_ns - 1.0).abs();
        steps.iter().map(off).sum::<f64>() / steps.len().max(1) as f64
    }
}

fn features(work: &StepWork) -> [f64; UNKNOWNS] {
    [
        1.0,
        work.prefill_tokens as f64,
        work.prefill_pairs as f64,
        work.decode_seqs as f64,
        work.resident_tokens as f64,
    ]
}

/// Normal equations, scaled to the size of each feature, by elimination with pivots.
#[expect(clippy::needless_range_loop, reason = "rows and columns of one matrix are read by index")]
fn solve(steps: &[StepRecord], used: &[bool; UNKNOWNS]) -> Result<[f64; UNKNOWNS], FitError> {
    let mut scale = [0.0_f64; UNKNOWNS];
    for step in steps {
        features(&step.work).iter().zip(&mut scale).for_each(|(amount, most)| *most = most.max(*amount));
    }
    let mut rows = [[0.0; UNKNOWNS + 1]; UNKNOWNS];
    for step in steps {
        let of = features(&step.work);
        for i in (0..UNKNOWNS).filter(|&i| used[i] && scale[i] > 0.0) {
            let left = of[i] / scale[i] / step.took_ns;
            for j in (0..UNKNOWNS).filter(|&j| used[j] && scale[j] > 0.0) {
                rows[i][j] += left * of[j] / scale[j] / step.took_ns;
            }
            rows[i][UNKNOWNS] += left;
        }
    }
    let live: Vec<usize> = (0..UNKNOWNS).filter(|&i| used[i] && scale[i] > 0.0).collect();
    for (done, &column) in live.iter().enumerate() {
        let whole = rows[column][column];
        let rest = &live[done + 1..];
        if whole.abs() < 1e-30 {
            return Err(FitError::TooAlike { what: NAMES[column] });
        }
        for &row in rest {
            let times = rows[row][column] / whole;
            for j in 0..=UNKNOWNS {
                rows[row][j] -= times * rows[column][j];
            }
            // What is left of a feature that the ones before explain is rounding.
            if row == rest[0] && rows[row][row].abs() < 1e-12 * whole.abs() {
                return Err(FitError::TooAlike { what: NAMES[row] });
            }
        }
    }
    let mut found = [0.0; UNKNOWNS];
    for &row in live.iter().rev() {
        let known: f64 = live.iter().filter(|&&j| j > row).map(|&j| rows[row][j] * found[j]).sum();
        found[row] = (rows[row][UNKNOWNS] - known) / rows[row][row];
    }
    Ok(std::array::from_fn(|i| if scale[i] > 0.0 { found[i] / scale[i] } else { 0.0 }))
}

#[cfg(test)]
mod tests {
    use base::SplitMix;

    use super::*;

    fn steps(model: &StepModel, noise: f64) -> Vec<StepRecord> {
        let mut rng = SplitMix::new(7);
        (0..400)
            .map(|i| {
                let prefill_tokens = if i % 3 == 0 { rng.below(2048) } else { 0 };
                let work = StepWork {
                    prefill_tokens,
                    prefill_pairs: prefill_tokens * rng.below(8000),
                    decode_seqs: rng.below(200),
                    resident_tokens: rng.below(400_000),
                };
                let took_ns = model.step(&work).as_nanos() as f64 * (1.0 + noise * rng.normal());
                StepRecord { work, took_ns }
            })
            .collect()
    }

    #[test]
    fn a_fit_finds_the_model_behind_noisy_steps() {
        for name in StepModel::PROFILES {
            let truth = StepModel::profile(name).unwrap();
            let found = StepModel::fit(&steps(&truth, 0.03)).unwrap();
            let clean = steps(&truth, 0.0);
            assert!(found.error(&clean) < 0.02, "{name}: {found:?} is off by {}", found.error(&clean));
        }
    }

    #[test]
    fn steps_that_never_vary_are_refused() {
        let work = StepWork { decode_seqs: 8, resident_tokens: 800, ..StepWork::default() };
        let same = vec![StepRecord { work, took_ns: 5e6 }; 50];
        assert!(matches!(StepModel::fit(&same), Err(FitError::TooAlike { .. })));
        assert!(matches!(StepModel::fit(&same[..3]), Err(FitError::TooFew { .. })));
    }

    #[test]
    fn what_a_log_never_shows_costs_nothing() {
        let truth = StepModel::profile("h200-8b").unwrap();
        let mut log = steps(&truth, 0.0);
        log.iter_mut().for_each(|step| {
            step.work.prefill_tokens = 0;
            step.work.prefill_pairs = 0;
            step.took_ns = truth.step(&step.work).as_nanos() as f64;
        });
        let found = StepModel::fit(&log).unwrap();
        assert_eq!(found.prefill_token_ns, 0.0);
        assert!((found.fixed_ns / truth.fixed_ns - 1.0).abs() < 0.01);
    }
}
