//! `kernels/cu/sample.cu` and `sample_draw.cu`: sampling, four launches for the rows of a step.
//!
//! The host says what a row wants ([`prepare`]) and which of its logits are edited; nothing about a request
//! lives on the device. What the kernels cannot do to the bit is refused by [`supports`] and is drawn on the
//! host from the downloaded row.

use base::TokenId;
use bytemuck::{Pod, Zeroable};

use crate::cuda::driver::{DevicePtr, Launch};
use crate::sample::{SampleRow, Sampled, SamplingParams};

/// Alternatives that a row can report.
pub const TOP_MAX: usize = 20;
/// Vocabularies are smaller: sums of masses are then exact.
pub const VOCAB_END: usize = 1 << 18;
/// Bytes of scratch for each row; 8-byte aligned, contents of no matter.
pub const SCRATCH_BYTES: usize = 4 * 512 * 8 + 1024 * 8 + 4096 * 8 + 2 * 8 + 1024 * 4 + 4 * 4;

/// Logits of one block.
const SLICE: u32 = 8192;
const BLOCK: u32 = 256;

const REPORT: u32 = 1;
const FORCED: u32 = 2;
const BANNED: u32 = 1;
const BIASED: u32 = 2;
const SEEN: u32 = 4;

/// The parameters of all four kernels.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct SampleParams {
    /// f32 `[rows][stride]`; edited in place.
    pub logits: DevicePtr,
    /// [`SampleRowParams`] `[rows]`.
    pub rows: DevicePtr,
    /// [`SampleEdit`], each row's together.
    pub edits: DevicePtr,
    /// f32, one per edit.
    pub undo: DevicePtr,
    /// [`SCRATCH_BYTES`] for each row.
    pub scratch: DevicePtr,
    /// [`SampleOut`] `[rows]`.
    pub out: DevicePtr,
    pub rows_live: DevicePtr,
    pub vocab: u32,
    /// A multiple of 4, at least `vocab`.
    pub stride: u32,
}

impl SampleParams {
    /// To be run in this order.
    pub fn launches(&self, rows_max: u32) -> [Launch<'_>; 4] {
        let slices = [self.vocab.div_ceil(SLICE), rows_max, 1];
        [
            super::launch("quire_sample_scan", slices, BLOCK, self),
            super::launch("quire_sample_mass", slices, BLOCK, self),
            super::launch("quire_sample_split", slices, BLOCK, self),
            super::launch("quire_sample_draw", [rows_max, 1, 1], BLOCK, self),
        ]
    }
}

/// What one row wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SampleRowParams {
    pub seed: u64,
    pub position: u64,
    pub repetition_inverse: f64,
    pub temperature: f32,
    pub temperature_inverse: f32,
    pub top_p: f32,
    /// The depth below the likeliest that min-p allows.
    pub floor: f32,
    pub repetition: f32,
    pub frequency: f32,
    pub presence: f32,
    pub top_k: u32,
    pub edits_from: u32,
    pub edits: u32,
    pub forced: u32,
    pub top: u32,
    pub flags: u32,
    pub pad: u32,
}

/// What happens to one logit of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SampleEdit {
    pub token: u32,
    pub flags: u32,
    pub bias: f32,
    pub in_output: u32,
}

/// What the device says of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SampleOut {
    pub token: u32,
    pub rank: u32,
    pub logprob: f32,
    pub top: u32,
    pub top_tokens: [u32; TOP_MAX],
    pub top_logprobs: [f32; TOP_MAX],
}

/// Whether the kernels draw for these parameters; else the row is downloaded and drawn on the host.
pub fn supports(params: &SamplingParams) -> bool {
    // Quotients are made of products with the inverse, which is exact in a range that nobody leaves.
    let moderate = |x: f32| (1e-6..=1e6).contains(&x);
    let greedy = params.temperature.is_nan() || params.temperature <= 0.0;
    let repetition = params.repetition_penalty == 1.0 || moderate(params.repetition_penalty);
    let mut biased: Vec<TokenId> = params.logit_bias.iter().map(|(token, _)| *token).collect();
    biased.sort_unstable();
    let each_once = biased.windows(2).all(|pair| pair[0] != pair[1]);
    let reported = params.logprobs.is_none_or(|k| k as usize <= TOP_MAX);
    (greedy || moderate(params.temperature)) && repetition && each_once && reported
}

/// What `row` wants of logits over `vocab` tokens; its edits are appended.
pub fn prepare(row: &SampleRow<'_>, vocab: usize, edits: &mut Vec<SampleEdit>) -> SampleRowParams {
    debug_assert!(supports(row.params) && vocab > 0 && vocab < VOCAB_END);
    let params = row.params;
    let from = edits.len();
    if row.forced.is_none() {
        collect_edits(row, vocab, edits);
    }
    let greedy = params.temperature.is_nan() || params.temperature <= 0.0;
    let report = params.logprobs.is_some() || row.forced.is_some();
    SampleRowParams {
        seed: params.seed,
        position: row.position,
        repetition_inverse: 1.0 / f64::from(params.repetition_penalty),
        temperature: if greedy { 0.0 } else { params.temperature },
        temperature_inverse: if greedy { 0.0 } else { 1.0 / params.temperature },
        top_p: params.top_p,
        floor: if params.min_p > 0.0 { -params.min_p.min(1.0).ln() } else { f32::INFINITY },
        repetition: params.repetition_penalty,
        frequency: params.frequency_penalty,
        presence: params.presence_penalty,
        top_k: params.top_k,
        edits_from: from as u32,
        edits: (edits.len() - from) as u32,
        forced: row.forced.unwrap_or(0),
        top: params.logprobs.unwrap_or(0),
        flags: if report { REPORT } else { 0 } | if row.forced.is_some() { FORCED } else { 0 },
        pad: 0,
    }
}

/// The edits of a row by ascending token, one a token.
fn collect_edits(row: &SampleRow<'_>, vocab: usize, edits: &mut Vec<SampleEdit>) {
    let (params, from) = (row.params, edits.len());
    if row.history.generated() < params.min_tokens {
        let banned = params.stop_ids.iter();
        edits.extend(banned.map(|&token| SampleEdit { token, flags: BANNED, ..SampleEdit::default() }));
    }
    let biased = params.logit_bias.iter();
    edits.extend(biased.map(|&(token, bias)| SampleEdit { token, flags: BIASED, bias, in_output: 0 }));
    let neutral =
        params.repetition_penalty == 1.0 && params.frequency_penalty == 0.0 && params.presence_penalty == 0.0;
    if !neutral {
        let seen = row.history.seen();
        edits.extend(seen.map(|(token, in_output)| SampleEdit { token, flags: SEEN, bias: 0.0, in_output }));
    }
    edits[from..].sort_unstable_by_key(|edit| edit.token);
    let mut kept = from;
    for i in from..edits.len() {
        let edit = edits[i];
        if edit.token as usize >= vocab {
            break; // and all that follow
        }
        if kept > from && edits[kept - 1].token == edit.token {
            let one = &mut edits[kept - 1];
            one.flags |= edit.flags;
            // Only one of a token's edits carries either.
            one.bias += edit.bias;
            one.in_output += edit.in_output;
        } else {
            edits[kept] = edit;
            kept += 1;
        }
    }
    edits.truncate(kept);
}

/// The outcome of a row as every backend reports it.
pub fn sampled(out: &SampleOut, row: &SampleRow<'_>) -> Sampled {
    if row.params.logprobs.is_none() && row.forced.is_none() {
        return Sampled { token: out.token, ..Sampled::default() };
    }
    let top = out.top_tokens.iter().zip(&out.top_logprobs).take(out.top as usize);
    Sampled {
        token: out.token,
        logprob: Some(out.logprob),
        rank: out.rank,
        top: top.map(|(token, logprob)| (*token, *logprob)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two corrections of a product with the inverse round as a division does: sample.cuh relies on it.
    #[test]
    fn a_corrected_product_is_the_quotient() {
        let mut rng = base::SplitMix::new(5);
        for _ in 0..300_000 {
            let t = 2f32.powf((rng.unit() * 40.0 - 20.0) as f32).clamp(1e-6, 1e6);
            let a = 2f32.powf((rng.unit() * 60.0 - 40.0) as f32);
            let inverse = 1.0 / t;
            let mut q = a * inverse;
            for _ in 0..2 {
                q = (-q).mul_add(t, a).mul_add(inverse, q);
            }
            assert_eq!(q, a / t, "{a} / {t}");
            assert_eq!((f64::from(a) * (1.0 / f64::from(t))) as f32, a / t, "{a} / {t} in double");
        }
    }

    #[test]
    fn a_bias_of_minus_infinity_stays_one() {
        let params = SamplingParams {
            logit_bias: vec![(3, f32::NEG_INFINITY), (9, 1.0)],
            stop_ids: vec![9, 9, 3],
            min_tokens: 1,
            ..SamplingParams::default()
        };
        let history = crate::History::default();
        let row = SampleRow { params: &params, history: &history, position: 0, forced: None };
        let mut edits = vec![SampleEdit::default()];
        let wants = prepare(&row, 9, &mut edits);
        assert_eq!((wants.edits_from, wants.edits, edits.len()), (1, 1, 2));
        assert_eq!((edits[1].token, edits[1].flags, edits[1].bias), (3, BANNED | BIASED, f32::NEG_INFINITY));
    }

    #[test]
    fn what_rounds_otherwise_is_refused() {
        let of = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            supports(&params)
        };
        assert!(of(|_| ()) && of(|p| p.temperature = f32::NAN) && of(|p| p.logprobs = Some(20)));
        assert!(!of(|p| p.temperature = f32::INFINITY) && !of(|p| p.temperature = 1e-30));
        assert!(!of(|p| p.logprobs = Some(21)) && !of(|p| p.logit_bias = vec![(1, 1.0), (1, 2.0)]));
        assert!(!of(|p| p.repetition_penalty = 0.0));
    }
}
