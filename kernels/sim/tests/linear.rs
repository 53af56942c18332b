//! Linear layers: every kernel of every family against f64, and the law that a row has one value whatever the
//! number of rows, the kernel and the schedule.

use base::SplitMix;
use cusim::{Swizzle, TensorMapSpec};
use kernels::cuda::driver::{DevicePtr, TensorMap};
use kernels::cuda::linear_fp8::Fp8Weights;
use kernels::cuda::linear_plan::{LinearFamily, LinearPlan, all_plans, plan};
use kernels::cuda::params::linear::{LinearOutput, LinearParams, LinearSm90Params};
use kernels::e4m3;

use crate::support::*;

const FAMILIES: [LinearFamily; 3] = [LinearFamily::Mma, LinearFamily::Wgmma, LinearFamily::Fp8];
const SMS: u32 = 3; // few, so that a persistent block walks several tiles

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    Bf16,
    F32,
}

/// A product to compute. `bucket` rows have memory and a grid, `rows` of them count, the others hold NaN.
#[derive(Clone, Debug)]
struct Problem {
    rows: usize,
    bucket: usize,
    n: usize,
    k: usize,
    stride: usize,
    out: Out,
    x: Vec<u16>,
    w: Vec<u16>,
    /// What is multiplied instead of `w`.
    fp8: Option<Fp8Weights>,
    bias: Option<Vec<f32>>,
}

const NAN: u16 = 0x7FC1;

impl Problem {
    fn new(rng: &mut SplitMix, rows: usize, n: usize, k: usize, out: Out) -> Self {
        let (x, w) = (normal_bf16(rng, rows * k), normal_bf16(rng, n * k));
        Self { rows, bucket: rows, n, k, stride: n, out, x, w, fp8: None, bias: None }
    }

    fn biased(mut self, rng: &mut SplitMix) -> Self {
        self.bias = Some(normal(rng, self.n));
        self
    }

    /// More rows than count, and a gap behind each output row.
    fn roomy(mut self, dead: usize, gap: usize) -> Self {
        self.bucket = self.rows + dead;
        self.x.resize(self.bucket * self.k, NAN);
        self.stride = self.n + gap;
        self
    }

    /// The same product of one row alone.
    fn only(&self, row: usize) -> Self {
        let x = self.x[row * self.k..][..self.k].to_vec();
        Self { rows: 1, bucket: 1, x, ..self.clone() }
    }

    /// With its weights in the form that the family takes.
    fn of(&self, family: LinearFamily) -> Self {
        let fp8 = (family == LinearFamily::Fp8).then(|| Fp8Weights::quantize(&bf16_values(&self.w), self.k));
        Self { fp8, ..self.clone() }
    }

    fn plans(&self, family: LinearFamily) -> Vec<LinearPlan> {
        all_plans(family, self.bucket as u32, self.n as u32, SMS)
    }

    /// Every kernel of every family, each with the problem in its form.
    fn everywhere(&self) -> impl Iterator<Item = (Self, LinearPlan)> {
        FAMILIES.into_iter().flat_map(|family| {
            let p = self.of(family);
            self.plans(family).into_iter().map(move |plan| (p.clone(), plan))
        })
    }

    /// The weights as they are multiplied.
    fn weights(&self) -> Vec<f64> {
        let w = bf16_values(&self.w);
        let Some(fp8) = &self.fp8 else { return w.into_iter().map(f64::from).collect() };
        let scale = |i: usize| fp8.scales[i / self.k];
        w.iter()
            .enumerate()
            .map(|(i, w)| f64::from(e4m3::value(e4m3::nearest(w / scale(i)))) * f64::from(scale(i)))
            .collect()
    }

    /// The bits of every live output as u32; panics on a fault and on a write to anything else.
    fn run(&self, plan: &LinearPlan, seed: u64) -> Vec<u32> {
        let halves = if self.out == Out::F32 { 2 } else { 1 };
        let mut out = Guarded::<u16>::new(self.bucket * self.stride * halves);
        let mut x = Guarded::from(&self.x);
        let mut w = match &self.fp8 {
            None => Guarded::from(bytemuck::cast_slice::<u16, u8>(&self.w)),
            Some(fp8) => Guarded::from(&fp8.bytes[..]),
        };
        let mut scale = self.fp8.as_ref().map(|fp8| Guarded::from(&fp8.scales[..]));
        let mut bias = self.bias.as_ref().map(|b| Guarded::from(b));
        let mut live = Guarded::from(&[self.rows as u32]);
        let output = LinearOutput {
            data: DevicePtr(out.address()),
            bias: DevicePtr(bias.as_mut().map_or(0, |b| b.address())),
            n: self.n as u32,
            stride: self.stride as u32,
            is_f32: u32::from(self.out == Out::F32),
            padding: 0,
        };
        let (x, w, rows_live) = (x.address(), w.address(), DevicePtr(live.address()));
        let k = self.k as u32;
        let block = [plan.block, 1, 1];
        match plan.boxes {
            None => {
                let scale = DevicePtr(scale.as_mut().map_or(0, |s| s.address()));
                let (x, w) = (DevicePtr(x), DevicePtr(w));
                let params = LinearParams { x, w, scale, rows_live, out: output, k, padding: 0 };
                run(plan.kernel, plan.grid, block, plan.smem, &params, seed);
            }
            Some(boxes) => {
                let x = self.map(x, self.bucket, boxes.x_rows);
                let w = self.map(w, self.n, boxes.w_rows);
                let params = LinearSm90Params { x, w, rows_live, out: output, k, padding: [0; 5] };
                run(plan.kernel, plan.grid, block, plan.smem, &params, seed);
            }
        }
        self.live(&out.take(plan.kernel), plan)
    }

    fn map(&self, base: u64, rows: usize, tile_rows: u32) -> TensorMap {
        let spec = TensorMapSpec {
            base,
            element_bytes: 2,
            dims: vec![self.k as u64, rows as u64],
            strides: vec![self.k as u64 * 2],
            tile: vec![64, tile_rows],
            swizzle: Swizzle::Bytes128,
        };
        TensorMap(spec.encode().expect("a map that the driver would take"))
    }

    fn live(&self, raw: &[u16], plan: &LinearPlan) -> Vec<u32> {
        let words: Vec<u32> = match self.out {
            Out::Bf16 => raw.iter().map(|b| u32::from(*b)).collect(),
            Out::F32 => raw.chunks(2).map(|c| u32::from(c[0]) | u32::from(c[1]) << 16).collect(),
        };
        let untouched = if self.out == Out::F32 { u32::MAX } else { 0xFFFF };
        let mut out = Vec::with_capacity(self.rows * self.n);
        for (r, row) in words.chunks(self.stride).enumerate() {
            let (inside, gap) = row.split_at(if r < self.rows { self.n } else { 0 });
            out.extend_from_slice(inside);
            assert!(gap.iter().all(|v| *v == untouched), "{}: wrote outside of row {r}", plan.kernel);
        }
        out
    }

    fn values(&self, bits: &[u32]) -> Vec<f32> {
        bits.iter()
            .map(|b| match self.out {
                Out::Bf16 => f32_of(*b as u16),
                Out::F32 => f32::from_bits(*b),
            })
            .collect()
    }

    /// Every output in f64, and the sum of its terms' sizes.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let x: Vec<f64> = self.x.iter().map(|b| f64::from(f32_of(*b))).collect();
        let w = self.weights();
        let mut sums = Vec::with_capacity(self.rows * self.n);
        let mut sizes = Vec::with_capacity(self.rows * self.n);
        for x in x.chunks(self.k).take(self.rows) {
            for (c, w) in w.chunks(self.k).enumerate() {
                let bias = self.bias.as_ref().map_or(0.0, |b| f64::from(b[c]));
                let terms = x.iter().zip(w).map(|(a, b)| a * b);
                let (sum, size) = terms.fold((bias, bias.abs()), |(s, z), t| (s + t, z + t.abs()));
                sums.push(sum);
                sizes.push(size);
            }
        }
        (sums, sizes)
    }

    /// All together within the suite's bound, and no single output further off than its rounding explains.
    fn assert_right(&self, bits: &[u32], what: &str) {
        let (sums, sizes) = self.reference();
        let got = self.values(bits);
        let (limit, step) = if self.out == Out::F32 { (1e-5, 0.0) } else { (5e-3, 1.0 / 256.0) };
        assert_close(&got, &sums, limit, what);
        for (i, (got, (sum, size))) in got.iter().zip(sums.iter().zip(&sizes)).enumerate() {
            let allowed = step * sum.abs() + 1e-5 * size;
            let (r, c) = (i / self.n, i % self.n);
            assert!(
                (f64::from(*got) - sum).abs() <= allowed,
                "{what}: row {r} channel {c}: {got}, not {sum}"
            );
        }
    }
}

fn pick(rng: &mut SplitMix, from: &[usize]) -> usize {
    from[rng.below(from.len() as u64) as usize]
}

/// Edges of every tile and pipeline: k of 1 to 18 stages (the deepest ring has 16), odd channels, few and many rows.
fn random(rng: &mut SplitMix, k_step: usize) -> Problem {
    let rows = pick(rng, &[1, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129]);
    let n = pick(rng, &[1, 2, 7, 8, 24, 31, 32, 33, 63, 64, 65, 96, 127, 130, 257]);
    let stages = 1 + rng.below(if rows * n > 2048 { 5 } else { 18 }) as usize;
    let k = stages * 64 - pick(rng, &[0, 0, 8, 24, 32, 56]) / k_step * k_step;
    let out = if rng.below(3) == 0 { Out::F32 } else { Out::Bf16 };
    let p = Problem::new(rng, rows, n, k, out);
    let p = if rng.below(2) == 0 { p.biased(rng) } else { p };
    p.roomy(pick(rng, &[0, 0, 1, 5, 70]), pick(rng, &[0, 0, 1, 8, 64]))
}

fn describe(p: &Problem, plan: &LinearPlan) -> String {
    let bias = if p.bias.is_some() { " with bias" } else { "" };
    format!("{}: {} of {} rows, {} x {} {:?}{bias}", plan.kernel, p.rows, p.bucket, p.n, p.k, p.out)
}

#[test]
fn every_kernel_computes_the_product() {
    let mut rng = SplitMix::new(4);
    for case in 0..cases(300) {
        let family = FAMILIES[case % FAMILIES.len()];
        let p = random(&mut rng, if family == LinearFamily::Fp8 { 16 } else { 8 }).of(family);
        let plans = p.plans(family);
        let plan = &plans[case / FAMILIES.len() % plans.len()];
        let seed = SEEDS[rng.below(SEEDS.len() as u64) as usize];
        p.assert_right(&p.run(plan, seed), &describe(&p, plan));
    }
}

#[test]
fn every_pipeline_depth_is_right_in_every_kernel() {
    let mut rng = SplitMix::new(5);
    for stages in 1..=18 {
        let p = Problem::new(&mut rng, 3, 40, stages * 64, Out::F32);
        for (p, plan) in p.everywhere() {
            p.assert_right(&p.run(&plan, SEEDS[stages % SEEDS.len()]), &describe(&p, &plan));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_among_300_and_in_every_kernel() {
    let mut rng = SplitMix::new(6);
    let p = Problem::new(&mut rng, 300, 72, 320, Out::F32).biased(&mut rng);
    for family in FAMILIES {
        let p = p.of(family);
        let plans = p.plans(family);
        let all = p.run(&plans[0], 0);
        for plan in &plans[1..] {
            assert!(p.run(plan, 1) == all, "{} and {} differ", plan.kernel, plans[0].kernel);
        }
        for row in [0, 15, 16, 63, 64, 127, 128, 255, 299] {
            let alone = p.only(row);
            for plan in alone.plans(family) {
                let got = alone.run(&plan, 7);
                assert!(got == all[row * p.n..][..p.n], "{} alone: row {row} differs", plan.kernel);
            }
        }
    }
}

/// On the emulator. Whether silicon rounds alike is for a GPU to say; nothing relies on it.
#[test]
fn wgmma_and_mma_sync_agree_on_the_emulator() {
    let mut rng = SplitMix::new(7);
    let p = Problem::new(&mut rng, 65, 136, 200, Out::F32);
    let [mma, wgmma] = [LinearFamily::Mma, LinearFamily::Wgmma].map(|f| p.run(&p.plans(f)[0], 0));
    assert!(mma == wgmma);
}

#[test]
fn bits_do_not_depend_on_the_schedule() {
    let mut rng = SplitMix::new(8);
    for (rows, n, k) in [(1, 33, 1168), (17, 64, 336), (129, 136, 448)] {
        let p = Problem::new(&mut rng, rows, n, k, Out::Bf16).roomy(2, 8);
        for (p, plan) in p.everywhere() {
            let first = p.run(&plan, SEEDS[0]);
            for seed in &SEEDS[1..] {
                assert!(p.run(&plan, *seed) == first, "{} under seed {seed}", describe(&p, &plan));
            }
        }
    }
}

#[test]
fn a_batch_of_no_rows_writes_nothing() {
    let mut rng = SplitMix::new(9);
    let p = Problem::new(&mut rng, 0, 100, 128, Out::Bf16).roomy(40, 4);
    for (p, plan) in p.everywhere() {
        assert!(p.run(&plan, 0).is_empty());
    }
}

#[test]
fn the_planned_launch_is_right() {
    let mut rng = SplitMix::new(10);
    for (rows, n, k) in [(1, 512, 256), (20, 200, 1024), (90, 320, 128), (260, 144, 64)] {
        for family in FAMILIES {
            let p = Problem::new(&mut rng, rows, n, k, Out::Bf16).of(family);
            let plan = plan(family, rows as u32, n as u32, k as u32, 8);
            p.assert_right(&p.run(&plan, 0), &describe(&p, &plan));
        }
    }
}

/// Infinities and NaN stay in their own row and channel.
#[test]
fn a_bad_row_or_channel_does_not_touch_others() {
    let mut rng = SplitMix::new(11);
    let clean = Problem::new(&mut rng, 20, 40, 136, Out::F32);
    let mut bad = clean.clone();
    bad.x[3 * bad.k + 5] = NAN;
    bad.w[9 * bad.k + 100] = 0x7F80;
    for plan in [LinearFamily::Mma, LinearFamily::Wgmma].iter().flat_map(|f| clean.plans(*f)) {
        let (clean_bits, bad_bits) = (clean.run(&plan, 0), bad.run(&plan, 0));
        for (i, (c, b)) in clean_bits.iter().zip(&bad_bits).enumerate() {
            let spoiled = i / clean.n == 3 || i % clean.n == 9;
            assert_eq!(c != b, spoiled, "{}: row {} channel {}", plan.kernel, i / clean.n, i % clean.n);
        }
    }
}
