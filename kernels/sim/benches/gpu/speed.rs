//! Speed: every op at the sizes of Llama-3.1-8B, beside the least time that this device allows it.
//!
//! Ceilings come first and from the same run: reading (the scan of zeroed pages), writing and copying pages, and
//! products of 8192³. A floor is bytes over the reading rate or operations over the rate of products. Layers
//! rotate, so that nothing is read twice out of L2.

use base::SplitMix;
use kernels::cuda::CudaOptions;
use kernels::{
    AttentionShape, Backend, Batch, History, KvShape, KvType, Precision, RopeStore, RopeTable, SampleRow,
    SamplingParams, SeqSpan, StepLimits,
};

use crate::bench::{Device, filled, limits, normal, pool, seconds, strict, vector, weight};
use crate::report::{Report, Row};

const PAGE: usize = 64;
const LAYERS: usize = 4;
const SHAPE: AttentionShape =
    AttentionShape { heads: 32, kv_heads: 8, head_dim: 128, scale: 0.088_388_35, window: None };
/// Bytes of keys and values of a token in one layer.
const TOKEN: f64 = 2.0 * 8.0 * 128.0 * 2.0;

/// What the device does at best, as found in this run.
#[derive(Clone, Copy)]
struct Ceilings {
    /// Bytes a second.
    read: f64,
    /// Operations a second.
    products: f64,
}

pub fn run(device: &Device, report: &mut Report) {
    let ceilings = ceilings(device, report);
    for (seqs, tokens) in [(32, 4096), (64, 4096), (1, 32768)] {
        let bytes = f64::from(seqs) * f64::from(tokens) * TOKEN;
        let us = attend(device, &decode(seqs, tokens, 0), CudaOptions::default());
        report.row(Row {
            case: format!("decode attention {seqs} x {tokens}"),
            unit: "us",
            value: us,
            floor: Some(bytes / ceilings.read * 1e6),
            target: "90 %",
        });
    }
    for tokens in [2048u32, 8192, 32768] {
        let flops = 4.0 * 128.0 * 32.0 * f64::from(tokens) * f64::from(tokens) / 2.0;
        let us = attend(device, &[(0, tokens, 0)], CudaOptions::default());
        report.row(Row {
            case: format!("causal prefill {tokens}"),
            unit: "us",
            value: us,
            floor: Some(flops / ceilings.products * 1e6),
            target: "60 %",
        });
    }
    cascade(device, report, ceilings, 256, 32768, 256, "20x");
    cascade(device, report, ceilings, 64, 8192, 512, "8x");
    linears(device, report, ceilings);
    rows(device, report, ceilings);
    sampling(device, report, ceilings);
}

/// A sequence of the step: tokens before it, tokens in it, tokens that it shares with all others.
type Run = (u32, u32, u32);

fn decode(seqs: u32, tokens: u32, shared: u32) -> Vec<Run> {
    (0..seqs).map(|_| (tokens - 1, 1, shared)).collect()
}

fn ceilings(device: &Device, report: &mut Report) -> Ceilings {
    let mut b = device.backend(CudaOptions::default());
    let rng = &mut SplitMix::new(1);
    let shape = KvShape {
        pages: 4096,
        page_tokens: PAGE,
        layers: 10,
        kv_heads: 8,
        head_dim: 128,
        kind: KvType::Bf16,
    };
    let probe = filled(&mut b, rng, 1, 8, Precision::Full);
    let (n, rows) = (8192, 8192);
    let w = weight(&mut b, rng, n, n);
    let x = filled(&mut b, rng, rows, n, Precision::Half);
    let y = b.buffer(rows, n, Precision::Half).expect("device memory");
    limits(&mut b, StepLimits { rows, seqs: 1, positions: rows, heads: 32 });
    pool(&mut b, rng, shape);
    let bytes = (shape.pages * shape.page_bytes()) as f64;
    let all: Vec<u32> = (0..shape.pages as u32).collect();
    let half: Vec<(u32, u32)> =
        (0..shape.pages as u32 / 2).map(|p| (p, p + shape.pages as u32 / 2)).collect();
    let b = std::cell::RefCell::new(b);
    let wait = || drop(b.borrow().read(probe));
    let zero = seconds(3, |_| b.borrow_mut().page_zero(&all), wait);
    let scan = seconds(3, |_| assert!(b.borrow().page_unclean(&all).is_empty()), wait);
    let copy = seconds(3, |_| b.borrow_mut().page_copy(&half), wait);
    let tokens = vec![0u32; rows];
    let table: Vec<u32> = (0..rows as u32 / PAGE as u32).collect();
    let spans = [SeqSpan { row: 0, rows: rows as u32, start: 0, table: 0 }];
    b.borrow_mut().begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
    let gemm = seconds(10, |_| b.borrow_mut().linear(x, w, None, y), wait);
    let found = Ceilings { read: bytes / scan, products: 2.0 * (n as f64).powi(3) / gemm };
    let rate = |case: &str, unit, value, target| Row { case: case.into(), unit, value, floor: None, target };
    report.row(rate("read (scan of pages)", "GB/s", found.read / 1e9, "80 % of 4,800"));
    report.row(rate("write (zeroed pages)", "GB/s", bytes / zero / 1e9, "80 % of 4,800"));
    report.row(rate("copy of pages, read + write", "GB/s", bytes / copy / 1e9, "80 % of 4,300"));
    report.row(rate("product 8192^3, library if present", "TFLOP/s", found.products / 1e12, "-"));
    found
}

/// Microseconds of attention of one layer.
fn attend(device: &Device, runs: &[Run], options: CudaOptions) -> f64 {
    let mut b = device.backend(options);
    let rng = &mut SplitMix::new(2);
    let rows: u32 = runs.iter().map(|r| r.1).sum();
    let longest = runs.iter().map(|r| r.0 + r.1).max().unwrap_or(1) as usize;
    limits(&mut b, StepLimits { rows: rows as usize, seqs: runs.len(), positions: longest, heads: 32 });
    let probe = filled(&mut b, rng, 1, 8, Precision::Full);
    let qkv = filled(&mut b, rng, rows as usize, SHAPE.qkv_cols(), Precision::Half);
    let out = b.buffer(rows as usize, SHAPE.q_cols(), Precision::Half).expect("device memory");
    let (mut spans, mut table, mut row, mut next) = (Vec::new(), Vec::new(), 0, 0u32);
    let shared = runs[0].2 / PAGE as u32;
    next += shared;
    for &(start, run, _) in runs {
        let pages = (start + run).div_ceil(PAGE as u32);
        spans.push(SeqSpan { row, rows: run, start, table: table.len() as u32 });
        table.extend(0..shared);
        table.extend(next..next + pages - shared);
        next += pages - shared;
        row += run;
    }
    let kv = KvShape {
        pages: next as usize,
        page_tokens: PAGE,
        layers: LAYERS,
        kv_heads: 8,
        head_dim: 128,
        kind: KvType::Bf16,
    };
    pool(&mut b, rng, kv);
    let tokens = vec![0; rows as usize];
    b.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
    let b = std::cell::RefCell::new(b);
    let layer = |round: usize| b.borrow_mut().attend(qkv, round % LAYERS, &SHAPE, out);
    1e6 * seconds(4 * LAYERS, layer, || drop(b.borrow().read(probe)))
}

fn cascade(
    device: &Device,
    report: &mut Report,
    ceilings: Ceilings,
    seqs: u32,
    shared: u32,
    own: u32,
    target: &'static str,
) {
    let runs = decode(seqs, shared + own, shared);
    let together = attend(device, &runs, CudaOptions::default());
    let flat = attend(device, &runs, CudaOptions { sharing: None, ..CudaOptions::default() });
    let bytes = f64::from(shared + seqs * own) * TOKEN;
    let case = format!("cascade {seqs} x ({shared} shared + {own})");
    report.row(Row {
        case: case.clone(),
        unit: "us",
        value: together,
        floor: Some(bytes / ceilings.read * 1e6),
        target: "-",
    });
    report.row(Row { case: format!("{case}, flat"), unit: "us", value: flat, floor: None, target: "-" });
    report.row(Row { case: format!("{case}, gain"), unit: "x", value: flat / together, floor: None, target });
}

fn linears(device: &Device, report: &mut Report, ceilings: Ceilings) {
    let shapes = [("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336)];
    for rows in [1usize, 16, 64, 256, 2048, 8192] {
        for (name, n, k) in shapes {
            let bytes = (n * k + rows * (n + k)) as f64 * 2.0;
            let flops = 2.0 * (rows * n * k) as f64;
            let floor = (bytes / ceilings.read).max(flops / ceilings.products) * 1e6;
            for (kind, options) in [("own", strict()), ("library", CudaOptions::default())] {
                let us = product(device, options, rows, n, k);
                let case = format!("{name} {rows} rows, {kind}");
                report.row(Row { case, unit: "us", value: us, floor: Some(floor), target: "90 %" });
            }
        }
    }
}

/// Microseconds of one product; weights rotate past the L2.
fn product(device: &Device, options: CudaOptions, rows: usize, n: usize, k: usize) -> f64 {
    let mut b = device.backend(options);
    let rng = &mut SplitMix::new(4);
    limits(&mut b, StepLimits { rows, seqs: 1, positions: rows, heads: 8 });
    let probe = filled(&mut b, rng, 1, 8, Precision::Full);
    let copies = (200_000_000 / (n * k * 2)).clamp(1, 6);
    let weights: Vec<_> = (0..copies).map(|_| weight(&mut b, rng, n, k)).collect();
    let x = filled(&mut b, rng, rows, k, Precision::Half);
    let y = b.buffer(rows, n, Precision::Half).expect("device memory");
    let pages = rows.div_ceil(PAGE);
    let shape =
        KvShape { pages, page_tokens: PAGE, layers: 1, kv_heads: 1, head_dim: 64, kind: KvType::Bf16 };
    pool(&mut b, rng, shape);
    let (tokens, table) = (vec![0; rows], (0..pages as u32).collect::<Vec<_>>());
    let spans = [SeqSpan { row: 0, rows: rows as u32, start: 0, table: 0 }];
    b.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
    let b = std::cell::RefCell::new(b);
    let round = |i: usize| b.borrow_mut().linear(x, weights[i % copies], None, y);
    1e6 * seconds(20, round, || drop(b.borrow().read(probe)))
}

fn rows(device: &Device, report: &mut Report, ceilings: Ceilings) {
    const ROWS: usize = 8192;
    let mut b = device.backend(CudaOptions::default());
    let rng = &mut SplitMix::new(5);
    limits(&mut b, StepLimits { rows: ROWS, seqs: 1, positions: ROWS, heads: 32 });
    let probe = filled(&mut b, rng, 1, 8, Precision::Full);
    let norm = normal(rng, 4096);
    let norm = vector(&mut b, &norm);
    let rope = RopeTable {
        inv_freq: (0..64).map(|i| 5e5f64.powf(-f64::from(i) / 64.0)).collect(),
        magnitude: 1.0,
        positions: ROWS,
    };
    let rope = b.rope_table(&rope).expect("device memory");
    let x = filled(&mut b, rng, ROWS, 4096, Precision::Full);
    let delta = filled(&mut b, rng, ROWS, 4096, Precision::Half);
    let normed = b.buffer(ROWS, 4096, Precision::Half).expect("device memory");
    let qkv = filled(&mut b, rng, ROWS, 6144, Precision::Half);
    let gate_up = filled(&mut b, rng, ROWS, 28672, Precision::Half);
    let act = b.buffer(ROWS, 14336, Precision::Half).expect("device memory");
    let kv = KvShape {
        pages: ROWS / PAGE,
        page_tokens: PAGE,
        layers: 1,
        kv_heads: 8,
        head_dim: 128,
        kind: KvType::Bf16,
    };
    pool(&mut b, rng, kv);
    let (tokens, table) = (vec![0; ROWS], (0..(ROWS / PAGE) as u32).collect::<Vec<_>>());
    let spans = [SeqSpan { row: 0, rows: ROWS as u32, start: 0, table: 0 }];
    b.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
    let b = std::cell::RefCell::new(b);
    let wait = || drop(b.borrow().read(probe));
    let spec = RopeStore { shape: SHAPE, rope: Some(rope), q_norm: None, k_norm: None, eps: 1e-5 };
    let mut row = |case: &str, bytes: f64, us: f64| {
        let floor = Some(ROWS as f64 * bytes / ceilings.read * 1e6);
        report.row(Row { case: case.into(), unit: "us", value: us, floor, target: "80 %" });
    };
    let us = 1e6 * seconds(20, |_| b.borrow_mut().add_rmsnorm(x, delta, norm, 1e-5, normed), wait);
    row("add + rmsnorm 8192 x 4096", 4096.0 * 12.0, us);
    let us = 1e6 * seconds(20, |_| b.borrow_mut().rope_store(qkv, 0, &spec), wait);
    row("rope + store 8192", 6144.0 * 2.0 + 4096.0 * 2.0 + 2048.0 * 2.0, us);
    let us = 1e6 * seconds(20, |_| b.borrow_mut().silu_mul(gate_up, act), wait);
    row("silu·mul 8192 x 14336", 14336.0 * 6.0, us);
}

fn sampling(device: &Device, report: &mut Report, ceilings: Ceilings) {
    const ROWS: usize = 64;
    const VOCAB: usize = 128_256;
    let mut b = device.backend(CudaOptions::default());
    let rng = &mut SplitMix::new(6);
    limits(&mut b, StepLimits { rows: ROWS, seqs: ROWS, positions: PAGE, heads: 8 });
    let logits = filled(&mut b, rng, ROWS, VOCAB, Precision::Full);
    let kv =
        KvShape { pages: ROWS, page_tokens: PAGE, layers: 1, kv_heads: 1, head_dim: 64, kind: KvType::Bf16 };
    pool(&mut b, rng, kv);
    let spans: Vec<SeqSpan> =
        (0..ROWS as u32).map(|row| SeqSpan { row, rows: 1, start: 0, table: row }).collect();
    let (tokens, table) = (vec![0; ROWS], (0..ROWS as u32).collect::<Vec<_>>());
    b.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
    let history = History::default();
    let filtered = SamplingParams { top_k: 50, top_p: 0.9, temperature: 0.8, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    for (case, params) in
        [("greedy", greedy), ("temperature", SamplingParams::default()), ("top-k, top-p", filtered)]
    {
        let row = SampleRow { params: &params, history: &history, position: 1, forced: None };
        let asked = vec![row; ROWS];
        let us = 1e6 * seconds(10, |_| drop(b.sample(logits, &asked)), || ());
        report.row(Row {
            case: format!("draw 64 x 128k, {case}, with the way back"),
            unit: "us",
            value: us,
            floor: Some((ROWS * VOCAB * 4) as f64 / ceilings.read * 1e6),
            target: "25 us on the device",
        });
    }
}
