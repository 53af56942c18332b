//! Sampling against the CPU's `draw`: the same tokens, ranks and alternatives for every row.

use base::{SplitMix, TokenId};
use kernels::cuda::params::sample::{SCRATCH_BYTES, SampleEdit, SampleOut, SampleParams, SampleRowParams};
use kernels::cuda::params::sample::{prepare, sampled, supports};
use kernels::sample::draw;
use kernels::{History, SampleRow, Sampled, SamplingParams};

use crate::elementwise::{device, start};
use crate::support::{Guarded, SEEDS, cases};

/// One row and what is asked of it.
struct Ask {
    logits: Vec<f32>,
    params: SamplingParams,
    history: History,
    position: u64,
    forced: Option<TokenId>,
}

impl Ask {
    fn row(&self) -> SampleRow<'_> {
        SampleRow {
            params: &self.params,
            history: &self.history,
            position: self.position,
            forced: self.forced,
        }
    }

    fn on_cpu(&self) -> Sampled {
        draw(&mut self.logits.clone(), &self.row())
    }
}

fn pick<T: Copy>(rng: &mut SplitMix, values: &[T]) -> T {
    values[rng.below(values.len() as u64) as usize]
}

/// Logits of one of several tempers: smooth, tied, odd, constant.
fn logits(rng: &mut SplitMix, vocab: usize) -> Vec<f32> {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 0.0, 1e-40];
    let spread = pick(rng, &[0.01, 0.3, 1.0, 3.0, 8.0]);
    match rng.below(8) {
        0..3 => (0..vocab).map(|_| (rng.normal() * spread) as f32).collect(),
        3 => (0..vocab).map(|_| ((rng.normal() * spread) as f32 * 8.0).round() / 8.0).collect(),
        4 => (0..vocab).map(|_| rng.below(4) as f32 - 2.0).collect(),
        5 => {
            let often = pick(rng, &[2, 5, 40]);
            let value = |rng: &mut SplitMix| {
                if rng.below(often) == 0 { pick(rng, &odd) } else { (rng.normal() * spread) as f32 }
            };
            (0..vocab).map(|_| value(rng)).collect()
        }
        6 => vec![pick(rng, &odd); vocab],
        _ => {
            let mut row = vec![f32::NEG_INFINITY; vocab];
            for _ in 0..1 + rng.below(5) {
                row[rng.below(vocab as u64) as usize] = rng.normal() as f32;
            }
            row
        }
    }
}

fn params(rng: &mut SplitMix, vocab: usize) -> SamplingParams {
    let token = |rng: &mut SplitMix| rng.below(vocab as u64 * 5 / 4 + 1) as TokenId;
    let mut logit_bias: Vec<(TokenId, f32)> = Vec::new();
    for _ in 0..pick(rng, &[0, 0, 3, 30]) {
        let bias = pick(rng, &[-100.0, 100.0, 2.5, -1.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY]);
        let token = token(rng);
        if logit_bias.iter().all(|(t, _)| *t != token) {
            logit_bias.push((token, bias));
        }
    }
    let penalties =
        pick(rng, &[(1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (0.8, 0.7, -1.0), (1.0, 0.1, 0.3)]);
    SamplingParams {
        temperature: pick(rng, &[0.0, 0.3, 0.7, 1.0, 1.0, 1.7, 50.0, -1.0, f32::NAN]),
        top_k: pick(rng, &[0, 0, 1, 2, 20, 50, 300, 5000, 100_000]),
        top_p: pick(rng, &[1.0, 1.0, 0.95, 0.9, 0.5, 0.1, 0.0, 1e-30, -0.5, 2.0, f32::NAN, 0.999_999_94]),
        min_p: pick(rng, &[0.0, 0.0, 0.0, 0.05, 0.5, 1.0, 1.5, 1e-20, f32::NAN]),
        repetition_penalty: penalties.0,
        frequency_penalty: penalties.1,
        presence_penalty: penalties.2,
        logit_bias,
        seed: rng.next_u64(),
        min_tokens: rng.below(4) as u32,
        stop_ids: (0..rng.below(4)).map(|_| token(rng)).collect(),
        logprobs: pick(rng, &[None, None, Some(0), Some(1), Some(5), Some(20)]),
    }
}

fn ask(rng: &mut SplitMix, vocab: usize) -> Ask {
    let seen = |rng: &mut SplitMix, n: u64| -> Vec<TokenId> {
        (0..rng.below(n)).map(|_| rng.below(vocab as u64 * 5 / 4 + 1) as TokenId).collect()
    };
    let mut history = History::from_prompt(&seen(rng, 40));
    seen(rng, 20).into_iter().for_each(|token| history.push(token));
    let forced = (rng.below(8) == 0).then(|| rng.below(vocab as u64 + 3) as TokenId);
    let (logits, params) = (logits(rng, vocab), params(rng, vocab));
    Ask { logits, params, history, position: rng.next_u64() >> rng.below(64), forced }
}

/// Runs a step of these rows and `dead` more; gives what each row's host would get.
fn on_device(asks: &[Ask], dead: usize, seed: u64) -> (Vec<Sampled>, Vec<SampleOut>) {
    let (sampled, out, _) = step(asks, dead, seed);
    (sampled, out)
}

/// The same, and the rows' scratch.
fn step(asks: &[Ask], dead: usize, seed: u64) -> (Vec<Sampled>, Vec<SampleOut>, Vec<u64>) {
    let (vocab, all) = (asks[0].logits.len(), asks.len() + dead);
    let stride = vocab.next_multiple_of(4) + 4 * (seed as usize % 2);
    let mut logits = Guarded::<f32>::new(all * stride);
    let (mut edits, mut rows) = (Vec::new(), Vec::new());
    for (i, ask) in asks.iter().enumerate() {
        assert!(supports(&ask.params), "{:?}", ask.params);
        logits.as_mut_slice()[i * stride..][..vocab].copy_from_slice(&ask.logits);
        rows.push(prepare(&ask.row(), vocab, &mut edits));
    }
    let mut wanted = Guarded::<SampleRowParams>::new(all);
    wanted.as_mut_slice()[..rows.len()].copy_from_slice(&rows);
    let (mut undo, mut edits) = (Guarded::<f32>::new(edits.len()), Guarded::<SampleEdit>::from(&edits));
    let mut scratch = Guarded::<u64>::new(all * SCRATCH_BYTES / 8);
    let (mut out, mut live) = (Guarded::<SampleOut>::new(all), Guarded::from(&[asks.len() as u32]));
    let params = SampleParams {
        logits: device(&mut logits),
        rows: device(&mut wanted),
        edits: device(&mut edits),
        undo: device(&mut undo),
        scratch: device(&mut scratch),
        out: device(&mut out),
        rows_live: device(&mut live),
        vocab: vocab as u32,
        stride: stride as u32,
    };
    params.launches(all as u32).iter().for_each(|launch| start(launch, seed));
    let logits = logits.take("logits");
    for (i, row) in logits.chunks(stride).enumerate() {
        let unused = if i < asks.len() { &row[vocab..] } else { row };
        assert!(unused.iter().all(|x| x.to_bits() == u32::MAX), "row {i}: a logit that is none was written");
    }
    let scratch = scratch.take("scratch");
    undo.assert_guards("undo");
    let out = out.take("out");
    assert!(
        bytemuck::cast_slice::<_, u8>(&out[asks.len()..]).iter().all(|b| *b == 0xFF),
        "a dead row was drawn"
    );
    (out.iter().zip(asks).map(|(out, ask)| sampled(out, &ask.row())).collect(), out, scratch)
}

fn close(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() <= 1e-6 * a.abs().max(1.0)
}

/// How many of the logprobs are the CPU's to the bit.
#[derive(Default)]
struct Equal {
    bits: usize,
    all: usize,
}

fn compare(ask: &Ask, got: &Sampled, equal: &mut Equal, what: &str) {
    let want = ask.on_cpu();
    let asked = format!("{what}: {} logits, {:?}, forced {:?}", ask.logits.len(), ask.params, ask.forced);
    assert_eq!(got.token, want.token, "token; {asked}");
    assert_eq!(got.rank, want.rank, "rank; {asked}");
    let ids = |s: &Sampled| s.top.iter().map(|t| t.0).collect::<Vec<_>>();
    assert_eq!(ids(got), ids(&want), "alternatives; {asked}");
    assert_eq!(got.logprob.is_some(), want.logprob.is_some(), "{asked}");
    let values =
        |s: &Sampled| -> Vec<f32> { s.logprob.into_iter().chain(s.top.iter().map(|t| t.1)).collect() };
    for (g, w) in values(got).into_iter().zip(values(&want)) {
        assert!(close(g, w), "logprob {g} for {w}; {asked}");
        equal.all += 1;
        equal.bits += usize::from(g == w);
    }
}

fn check(rng: &mut SplitMix, vocab: usize, rows: usize, seed: u64, equal: &mut Equal) {
    let asks: Vec<Ask> = (0..rows).map(|_| ask(rng, vocab)).collect();
    let dead = rng.below(2) as usize;
    let (got, _) = on_device(&asks, dead, seed);
    for (i, (ask, got)) in asks.iter().zip(&got).enumerate() {
        compare(ask, got, equal, &format!("row {i} of {rows}, seed {seed}"));
    }
}

#[test]
fn draws_what_the_cpu_draws() {
    let mut rng = SplitMix::new(21);
    let mut equal = Equal::default();
    for case in 0..cases(500) {
        let vocab = match rng.below(12) {
            0 => 1 + rng.below(8),
            1 => pick(&mut rng, &[511, 512, 513, 1024, 8191, 8192, 8193]),
            2 => 2000 + rng.below(9000),
            _ => 1 + rng.below(1500),
        } as usize;
        check(&mut rng, vocab, 5, SEEDS[case % SEEDS.len()], &mut equal);
    }
    assert!(equal.bits * 1000 >= equal.all * 999, "{} of {} logprobs to the bit", equal.bits, equal.all);
}

#[test]
fn draws_from_large_vocabularies() {
    let mut rng = SplitMix::new(22);
    let mut equal = Equal::default();
    for case in 0..cases(500).div_ceil(100) {
        let vocab = [128_256, 130_000, 50_257, 151_936, 32_003][case % 5];
        check(&mut rng, vocab, 3, SEEDS[case % SEEDS.len()], &mut equal);
    }
}

/// The definition of a mass, written again: the exponential's polynomial, then whole multiples of 2^-34.
fn mass(x: f32, max: f32, temperature: f32) -> u64 {
    const ROUND: f32 = 12_582_912.0;
    let x = -((max - x) / temperature);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let factors = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let p = factors.iter().fold(1.987_569_1e-4f32, |p, c| p * r + c);
    let e = (p * (r * r) + r) + 1.0;
    let weight = if x < -87.33 { 0.0 } else { e * 2f32.powi(n as i32) };
    (f64::from(weight) * 2f64.powi(34)).round_ties_even() as u64
}

#[test]
fn masses_are_the_definitions_to_the_last_unit() {
    const SUB: usize = 512;
    let mut rng = SplitMix::new(25);
    for case in 0..cases(200) {
        let vocab = 1 + rng.below(1600) as usize;
        let spread = pick(&mut rng, &[0.1, 1.0, 5.0]);
        let logits: Vec<f32> = (0..vocab).map(|_| (rng.normal() * spread) as f32).collect();
        let temperature = 2f32.powf((rng.unit() * 8.0 - 4.0) as f32);
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        let ask = Ask { logits, params, history: History::default(), position: 0, forced: None };
        let (_, _, scratch) = step(std::slice::from_ref(&ask), 0, SEEDS[case % SEEDS.len()]);
        let max = ask.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let want: Vec<u64> =
            ask.logits.chunks(SUB).map(|c| c.iter().map(|&x| mass(x, max, temperature)).sum()).collect();
        // The third array of a row's scratch.
        assert_eq!(scratch[2 * 512..][..want.len()], want, "case {case}: {vocab} logits at {temperature}");
    }
}

/// More candidates than the list holds: equal logits, a flat row, a deep top-k.
#[test]
fn a_list_that_overflows_changes_nothing() {
    let mut rng = SplitMix::new(23);
    let mut equal = Equal::default();
    for case in 0..cases(12) {
        let vocab = 9000 + rng.below(3000) as usize;
        let logits = match case % 3 {
            0 => vec![1.5; vocab],
            1 => (0..vocab).map(|_| (rng.normal() * 1e-3) as f32).collect(),
            _ => (0..vocab).map(|i| (i % 7) as f32 * 1e-3).collect(),
        };
        let filters = [(6000, 1.0), (0, 0.7), (7500, 0.9), (5, 0.5)][case % 4];
        let params = SamplingParams {
            top_k: filters.0,
            top_p: filters.1,
            min_p: pick(&mut rng, &[0.0, 0.999]),
            seed: rng.next_u64(),
            logprobs: Some(3),
            ..SamplingParams::default()
        };
        let ask = Ask { logits, params, history: History::default(), position: case as u64, forced: None };
        let (got, _) = on_device(std::slice::from_ref(&ask), 0, 7);
        compare(&ask, &got[0], &mut equal, &format!("case {case}"));
    }
}

#[test]
fn schedules_and_neighbours_change_no_bit() {
    let mut rng = SplitMix::new(24);
    for _ in 0..cases(500).div_ceil(10) {
        let vocab = 1 + rng.below(2500) as usize;
        let asks: Vec<Ask> = (0..3).map(|_| ask(&mut rng, vocab)).collect();
        let first = bytes(&on_device(&asks, 0, SEEDS[0]).1);
        for seed in &SEEDS[1..3] {
            assert_eq!(bytes(&on_device(&asks, 0, *seed).1), first, "seed {seed}");
        }
        let alone = on_device(&asks[1..2], 1, SEEDS[2]).0;
        let together = on_device(&asks, 0, SEEDS[0]).0;
        assert_eq!(alone[0].token, together[1].token);
        assert_eq!(alone[0].rank, together[1].rank);
    }
}

/// What lies behind the alternatives is NaN, which equals nothing but its bytes.
fn bytes(out: &[SampleOut]) -> Vec<u8> {
    bytemuck::cast_slice(out).to_vec()
}
