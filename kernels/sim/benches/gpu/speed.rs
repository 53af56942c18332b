//! Speed of attention and products at the sizes of Llama-3.1-8B, beside the least time that this device allows.
//!
//! Ceilings come first: reading (the scan of zeroed pages), copying pages, and a product of 8192³. A floor is bytes
//! over the memory's rate or operations over the rate of products. Layers and weights rotate, so that nothing is
//! read twice out of L2.

use base::SplitMix;
use kernels::cuda::sharing::SharingRule;
use kernels::cuda::{CudaOptions, Determinism};
use kernels::{Backend, Batch, KvShape, KvType, Precision, SeqSpan, StepLimits, WeightForm};

use crate::bench::{Device, begin_rows, filled, limits, normal, plain_pool, pool, strict, weight};
use crate::report::{Report, Row};
use crate::sizes::{self, Cascade, Sizes};
use crate::timing::{self, Timing};

const PAGE: usize = 64;
const LAYERS: usize = 4;
/// Tokens of each sequence behind a shared prefix.
const OWN: u32 = 300;

/// What the device does at best: as measured in this run, or an H200 as measured before.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Bytes a second.
    pub bytes: f64,
    /// Operations a second.
    pub products: f64,
}

impl Default for Ceilings {
    fn default() -> Self {
        Self { bytes: 4.3e12, products: 7.8e14 }
    }
}

impl Ceilings {
    pub fn parse(text: &str) -> Option<Self> {
        let (bytes, products) = text.split_once(',')?;
        Some(Self { bytes: bytes.parse().ok()?, products: products.parse().ok()? })
    }

    /// Microseconds.
    pub fn floor(&self, bytes: f64, operations: f64) -> f64 {
        (bytes / self.bytes).max(operations / self.products) * 1e6
    }
}

/// A row of microseconds.
pub fn micros(case: String, time: Timing, floor: Option<f64>, target: &'static str) -> Row {
    Row { case, unit: "us", value: time.median * 1e6, best: time.best * 1e6, floor, target }
}

/// What an H200's data sheet says: bytes of memory and dense bf16 operations a second.
const SHEET: Ceilings = Ceilings { bytes: 4.8e12, products: 9.89e14 };

/// A row of a rate, beside the data sheet's.
fn rate(case: &str, unit: &'static str, amount: f64, time: Timing, target: &'static str) -> Row {
    let (value, best) = (amount / time.median, amount / time.best);
    let sheet = if unit == "GB/s" { SHEET.bytes / 1e9 } else { SHEET.products / 1e12 };
    Row { case: case.into(), unit, value, best, floor: Some(sheet), target }
}

/// Copies of an operand that together are four times the L2.
pub fn copies(device: &Device, bytes: usize) -> usize {
    (4 * device.info().l2_bytes as usize).div_ceil(bytes).clamp(2, 64)
}

pub fn ceilings(device: &Device, found: &mut Ceilings, report: &mut Report) {
    let sizes = sizes::of(device);
    report.attempt("ceiling of memory", |report| found.bytes = memory(device, sizes, report));
    report.attempt("ceiling of products", |report| {
        let n = sizes.square;
        let operations = 2.0 * (n as f64).powi(3);
        for determinism in [Determinism::Fast, Determinism::Strict] {
            let time = product(device, determinism, WeightForm::Bf16, &[n], n, n)[0];
            let by = if determinism == Determinism::Fast { "fast" } else { "own" };
            report.row(&rate(&format!("product {n}^3, {by}"), "TFLOP/s", operations / 1e12, time, "-"));
            // Without a library our own rate would be its own ceiling.
            found.products = found.products.max(operations / time.median);
        }
    });
}

fn memory(device: &Device, sizes: &Sizes, report: &mut Report) -> f64 {
    let mut b = device.backend(CudaOptions::default());
    let Sizes { pages, layers, .. } = *sizes;
    limits(&mut b, StepLimits { rows: 64, seqs: 1, positions: 64, heads: 32 });
    let kind = KvType::Bf16;
    let shape = KvShape { pages, page_tokens: PAGE, layers, kv_heads: 8, head_dim: 128, kind };
    pool(&mut b, &mut SplitMix::new(1), shape);
    let giga = (pages * shape.page_bytes()) as f64 / 1e9;
    let all: Vec<u32> = (0..pages as u32).collect();
    let half: Vec<(u32, u32)> = (0..pages as u32 / 2).map(|p| (p, p + pages as u32 / 2)).collect();
    let copy = timing::launched(device, 1, &mut |_| b.page_copy(&half));
    let zero = timing::launched(device, 1, &mut |_| b.page_zero(&all));
    let scan = timing::launched(device, 1, &mut |_| assert!(b.page_unclean(&all).is_empty()));
    report.row(&rate("read (scan of zeroed pages)", "GB/s", giga, scan, "80 %"));
    report.row(&rate("write (zeroing pages)", "GB/s", giga, zero, "80 %"));
    report.row(&rate("copy of pages, read + write", "GB/s", giga, copy, "80 %"));
    // Slow kernels of our own must not lower what others are held to.
    (1e9 * giga / scan.median.min(copy.median)).max(Ceilings::default().bytes)
}

pub fn attention(device: &Device, ceilings: Ceilings, report: &mut Report) {
    let sizes = sizes::of(device);
    for &(seqs, tokens) in sizes.decodes {
        let case = format!("decode attention {seqs} x {tokens}");
        report.attempt(&case.clone(), |report| {
            let bytes = f64::from(seqs) * f64::from(tokens) * token_bytes(sizes);
            let runs = decode(seqs, tokens, 0);
            let time = attend(device, &runs, KvType::Bf16, CudaOptions::default());
            report.row(&micros(case.clone(), time, Some(ceilings.floor(bytes, 0.0)), "90 %"));
            let bytes = bytes / token_bytes(sizes) * narrow_token_bytes(sizes);
            let time = attend(device, &runs, KvType::E4m3, CudaOptions::default());
            report.row(&micros(format!("{case}, fp8"), time, Some(ceilings.floor(bytes, 0.0)), "-"));
        });
    }
    for &tokens in sizes.prefills {
        let case = format!("causal prefill {tokens}");
        report.attempt(&case.clone(), |report| {
            let pairs = f64::from(tokens) * f64::from(tokens) / 2.0;
            let flops = 4.0 * (sizes.shape.head_dim * sizes.shape.heads) as f64 * pairs;
            let one = |kind| attend(device, &[(0, tokens, 0)], kind, CudaOptions::default());
            let floor = Some(ceilings.floor(0.0, flops));
            report.row(&micros(case.clone(), one(KvType::Bf16), floor, "60 %"));
            report.row(&micros(format!("{case}, fp8"), one(KvType::E4m3), floor, "-"));
        });
    }
}

/// Bytes of keys and values of a token in one layer.
fn token_bytes(sizes: &Sizes) -> f64 {
    (2 * sizes.shape.kv_heads * sizes.shape.head_dim * 2) as f64
}

/// The same in e4m3, exponents among them.
fn narrow_token_bytes(sizes: &Sizes) -> f64 {
    (2 * sizes.shape.kv_heads * (sizes.shape.head_dim + 1)) as f64
}

/// A sequence of the step: tokens before it, tokens in it, tokens that it shares with all others.
type Run = (u32, u32, u32);

fn decode(seqs: u32, tokens: u32, shared: u32) -> Vec<Run> {
    (0..seqs).map(|_| (tokens - 1, 1, shared)).collect()
}

/// Attention of one layer.
fn attend(device: &Device, runs: &[Run], kind: KvType, options: CudaOptions) -> Timing {
    let shape = sizes::of(device).shape;
    let mut b = device.backend(options);
    let rng = &mut SplitMix::new(2);
    let rows: u32 = runs.iter().map(|r| r.1).sum();
    let longest = runs.iter().map(|r| r.0 + r.1).max().unwrap_or(1) as usize;
    limits(
        &mut b,
        StepLimits { rows: rows as usize, seqs: runs.len(), positions: longest, heads: shape.heads },
    );
    let qkv = filled(&mut b, rng, rows as usize, shape.qkv_cols(), Precision::Half);
    let out = b.buffer(rows as usize, shape.q_cols(), Precision::Half).expect("device memory");
    let (spans, table) = spread(runs, rng);
    let pages = table.iter().max().map_or(0, |&last| last as usize + 1);
    let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
    pool(&mut b, rng, KvShape { pages, page_tokens: PAGE, layers: LAYERS, kv_heads, head_dim, kind });
    let tokens = vec![0; rows as usize];
    b.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
    timing::recorded(device, 4 * LAYERS, &mut |round| b.attend(qkv, round % LAYERS, &shape, out))
}

/// Sequences over pages in no order, as a cache that has served for a while hands them out.
fn spread(runs: &[Run], rng: &mut SplitMix) -> (Vec<SeqSpan>, Vec<u32>) {
    let shared = runs[0].2 / PAGE as u32;
    let pages = |run: &Run| (run.0 + run.1).div_ceil(PAGE as u32);
    let own: u32 = runs.iter().map(|run| pages(run) - shared).sum();
    let mut free: Vec<u32> = (0..shared + own).collect();
    for i in (1..free.len()).rev() {
        free.swap(i, rng.below(i as u64 + 1) as usize);
    }
    let prefix = free.split_off(own as usize);
    let (mut spans, mut table, mut row) = (Vec::new(), Vec::new(), 0);
    for run in runs {
        spans.push(SeqSpan { row, rows: run.1, start: run.0, table: table.len() as u32 });
        table.extend_from_slice(&prefix);
        table.extend(free.drain(..(pages(run) - shared) as usize));
        row += run.1;
    }
    (spans, table)
}

pub fn cascades(device: &Device, ceilings: Ceilings, report: &mut Report) {
    for case in sizes::of(device).cascades {
        let (seqs, shared, own, _) = *case;
        let name = format!("cascade {seqs} x ({shared} shared + {own})");
        report.attempt(&name, |report| cascade(device, ceilings, case, &name, report));
    }
}

/// What sharing costs and spares where it is least clear: small groups, short prefixes.
pub fn shared(device: &Device, report: &mut Report) {
    for &(seqs, tokens) in sizes::of(device).shared {
        report.attempt(&format!("sharing {seqs} x {tokens}"), |report| {
            let runs = decode(seqs, tokens + OWN, tokens);
            let always = SharingRule::Thresholds { tokens_min: 0, rows_min: 0 };
            let options = |sharing| CudaOptions { sharing, ..CudaOptions::default() };
            let by = |sharing| attend(device, &runs, KvType::Bf16, options(sharing));
            let [together, flat] = [by(Some(always)), by(None)].map(|time| time.median * 1e6);
            let shape = sizes::of(device).shape;
            let spared = f64::from(seqs - 1) * f64::from(tokens) * token_bytes(sizes::of(device));
            report.sharing(seqs * shape.heads as u32, spared, together, flat);
        });
    }
}

fn cascade(device: &Device, ceilings: Ceilings, case: &Cascade, name: &str, report: &mut Report) {
    let (seqs, shared, own, target) = *case;
    let sizes = sizes::of(device);
    let runs = decode(seqs, shared + own, shared);
    let together = attend(device, &runs, KvType::Bf16, CudaOptions::default());
    let bytes = f64::from(shared + seqs * own) * token_bytes(sizes);
    // The shared stretch is one long product of all queries, which may outlast its bytes.
    let width = (sizes.shape.heads * sizes.shape.head_dim) as f64;
    let flops = 4.0 * f64::from(seqs) * f64::from(shared + own) * width;
    report.row(&micros(name.into(), together, Some(ceilings.floor(bytes, flops)), "-"));
    let flat = attend(device, &runs, KvType::Bf16, CudaOptions { sharing: None, ..CudaOptions::default() });
    let bytes = f64::from(seqs) * f64::from(shared + own) * token_bytes(sizes);
    report.row(&micros(format!("{name}, flat"), flat, Some(ceilings.floor(bytes, 0.0)), "-"));
    let (value, best) = (flat.median / together.median, flat.best / together.best);
    report.row(&Row { case: format!("{name}, gain"), unit: "x", value, best, floor: None, target });
}

pub fn linears(device: &Device, ceilings: Ceilings, report: &mut Report) {
    let sizes = sizes::of(device);
    for &(name, n, k) in sizes.products {
        let is_served = |rows: &&usize| name != "head" || **rows <= sizes.head_rows_max;
        let rows: Vec<usize> = sizes.product_rows.iter().filter(is_served).copied().collect();
        for (kind, determinism, form, target) in [
            ("own", Determinism::Strict, WeightForm::Bf16, "90 %"),
            ("fast", Determinism::Fast, WeightForm::Bf16, "90 %"),
            ("fp8", Determinism::Strict, WeightForm::E4m3, "-"),
        ] {
            report.attempt(&format!("{name}, {kind}"), |report| {
                let times = product(device, determinism, form, &rows, n, k);
                for (&rows, time) in rows.iter().zip(times) {
                    let weights = n * k * if form == WeightForm::E4m3 { 1 } else { 2 };
                    let bytes = (weights + 2 * rows * (n + k)) as f64;
                    let floor = ceilings.floor(bytes, 2.0 * (rows * n * k) as f64);
                    report.row(&micros(format!("{name} {rows} rows, {kind}"), time, Some(floor), target));
                }
            });
        }
    }
}

/// Products of each number of rows; weights rotate past the L2.
fn product(
    device: &Device,
    determinism: Determinism,
    form: WeightForm,
    rows: &[usize],
    n: usize,
    k: usize,
) -> Vec<Timing> {
    let mut b = device.backend(CudaOptions { determinism, ..strict() });
    let rng = &mut SplitMix::new(4);
    let rows_max = rows.iter().copied().max().unwrap_or(1);
    plain_pool(&mut b, rng, rows_max);
    let weights: Vec<_> = (0..copies(device, n * k * 2)).map(|_| weight(&mut b, rng, form, n, k)).collect();
    let x = b.buffer(rows_max, k, Precision::Half).expect("device memory");
    let y = b.buffer(rows_max, n, Precision::Half).expect("device memory");
    let rounds = weights.len().next_multiple_of(8);
    let one = |&rows: &usize| {
        b.write(x, rows, &normal(rng, rows * k));
        begin_rows(&mut b, rows);
        timing::recorded(device, rounds, &mut |i| b.linear(x, weights[i % weights.len()], None, y))
    };
    rows.iter().map(one).collect()
}
