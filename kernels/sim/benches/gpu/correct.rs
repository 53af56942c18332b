//! Chains of ops on the device: against the same chain on the emulator, and against themselves cut otherwise.

use base::SplitMix;
use kernels::cuda::CudaOptions;
use kernels::{
    AttentionShape, Backend, Batch, KvShape, KvType, Precision, RopeStore, RopeTable, SeqSpan, StepLimits,
};

use crate::bench::{Device, filled, limits, normal, pool, strict, vector, weight};
use crate::report::Report;

const HIDDEN: usize = 256;
const VOCAB: usize = 512;

/// A layer's shape and the sequences of a step.
#[derive(Clone, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page_tokens: usize,
    window: Option<u32>,
    /// Of each sequence: tokens before the step, tokens in it.
    runs: Vec<(u32, u32)>,
}

pub fn run(device: &Device, report: &mut Report) {
    let mut rng = SplitMix::new(11);
    let count = if device.is_emulated() { 3 } else { 12 };
    for n in 0..count {
        let case = random(&mut rng, n);
        let seed = rng.next_u64();
        let ours = chain(&mut device.backend(strict()), &case, seed);
        let twin = chain(&mut device.twin(), &case, seed);
        let error = relative(&ours, &twin);
        let same = ours.iter().zip(&twin).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        let found = format!("{error:.2e} from the emulator, {same} of {} words equal; {case:?}", ours.len());
        report.check("a layer", found, error < 2e-2);
        let again = chain(&mut device.backend(strict()), &case, seed);
        report.check("a layer twice", "the same bits", bits(&again) == bits(&ours));
        let flat = CudaOptions { sharing: None, ..strict() };
        let flat = chain(&mut device.backend(flat), &case, seed);
        report.check("cascade off", "the same bits", bits(&flat) == bits(&ours));
    }
    pages(device, report);
}

fn random(rng: &mut SplitMix, n: usize) -> Case {
    let pick = |rng: &mut SplitMix, of: &[usize]| of[rng.below(of.len() as u64) as usize];
    let kv_heads = pick(rng, &[1, 2]);
    let runs = (0..pick(rng, &[1, 3, 5]))
        .map(|_| match rng.below(3) {
            0 => (0, 1 + rng.below(90) as u32),
            1 => (rng.below(700) as u32, 1),
            _ => (rng.below(300) as u32, 1 + rng.below(40) as u32),
        })
        .collect();
    Case {
        heads: kv_heads * pick(rng, &[1, 4, 7]),
        kv_heads,
        head_dim: [128, 64, 80][n % 3],
        page_tokens: pick(rng, &[16, 32, 64]),
        window: (n % 4 == 3).then_some(100),
        runs,
    }
}

/// embed → norm → qkv → rope and store → attend → o → add and norm → gate·up → down → logits.
fn chain(b: &mut dyn Backend, case: &Case, seed: u64) -> Vec<f32> {
    let rng = &mut SplitMix::new(seed);
    let rows: usize = case.runs.iter().map(|r| r.1 as usize).sum();
    let positions = 1024;
    limits(b, StepLimits { rows, seqs: case.runs.len(), positions, heads: case.heads });
    let shape = AttentionShape {
        heads: case.heads,
        kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        scale: (case.head_dim as f32).powf(-0.5),
        window: case.window,
    };
    let table = weight(b, rng, VOCAB, HIDDEN);
    let qkv_w = weight(b, rng, shape.qkv_cols(), HIDDEN);
    let o_w = weight(b, rng, HIDDEN, shape.q_cols());
    let (gate_up_w, down_w) = (weight(b, rng, 1024, HIDDEN), weight(b, rng, HIDDEN, 512));
    let ones: Vec<f32> = normal(rng, HIDDEN).iter().map(|x| 1.0 + 0.1 * x).collect();
    let norm = vector(b, &ones);
    let bias_values = normal(rng, shape.qkv_cols());
    let bias = vector(b, &bias_values);
    let inv_freq =
        (0..case.head_dim / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / case.head_dim as f64)).collect();
    let rope = b.rope_table(&RopeTable { inv_freq, magnitude: 1.0, positions }).expect("device memory");
    use Precision::{Full, Half};
    let mut buffer = |cols: usize, p: Precision| b.buffer(rows, cols, p).expect("device memory");
    let (x, normed, qkv) = (buffer(HIDDEN, Full), buffer(HIDDEN, Half), buffer(shape.qkv_cols(), Half));
    let (attn, delta) = (buffer(shape.q_cols(), Half), buffer(HIDDEN, Half));
    let (gate_up, act, logits) = (buffer(1024, Half), buffer(512, Half), buffer(VOCAB, Full));
    let kv = KvShape {
        pages: 256,
        page_tokens: case.page_tokens,
        layers: 2,
        kv_heads: case.kv_heads,
        head_dim: case.head_dim,
        kind: KvType::Bf16,
    };
    pool(b, rng, kv);
    let (mut spans, mut page_table, mut row) = (Vec::new(), Vec::new(), 0);
    for &(start, run) in &case.runs {
        let pages = (start + run).div_ceil(case.page_tokens as u32);
        spans.push(SeqSpan { row, rows: run, start, table: page_table.len() as u32 });
        page_table.extend((0..pages).map(|_| rng.below(256) as u32));
        row += run;
    }
    // Pages written by this step belong to one sequence each.
    for (i, span) in spans.iter().enumerate() {
        let first = span.start as usize / case.page_tokens;
        let last = (span.start + span.rows - 1) as usize / case.page_tokens;
        for (n, at) in (first..=last).enumerate() {
            page_table[span.table as usize + at] = (i * 8 + n % 8) as u32;
        }
    }
    let tokens: Vec<u32> = (0..rows).map(|_| rng.below(VOCAB as u64) as u32).collect();
    b.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &page_table });
    b.embed(table, x);
    b.rmsnorm(x, norm, 1e-5, normed);
    b.linear(normed, qkv_w, Some(bias), qkv);
    b.rope_store(qkv, 1, &RopeStore { shape, rope: Some(rope), q_norm: None, k_norm: None, eps: 1e-5 });
    b.attend(qkv, 1, &shape, attn);
    b.linear(attn, o_w, None, delta);
    b.add_rmsnorm(x, delta, norm, 1e-5, normed);
    b.linear(normed, gate_up_w, None, gate_up);
    b.silu_mul(gate_up, act);
    b.linear(act, down_w, None, delta);
    b.add_rmsnorm(x, delta, norm, 1e-5, normed);
    b.linear(normed, table, None, logits);
    b.end();
    b.read(logits)
}

/// Zeroing and looking: a planted byte is found, and only there.
fn pages(device: &Device, report: &mut Report) {
    let mut b = device.backend(strict());
    let kv = KvShape { pages: 40, page_tokens: 16, layers: 3, kv_heads: 2, head_dim: 64, kind: KvType::Bf16 };
    let rng = &mut SplitMix::new(3);
    let _ = filled(&mut b, rng, 1, 8, Precision::Full);
    pool(&mut b, rng, kv);
    let all: Vec<u32> = (0..40).collect();
    report.check("pages", "full pages are seen", b.page_unclean(&all) == all);
    b.page_zero(&all);
    report.check("pages", "zeroed pages are clean", b.page_unclean(&all).is_empty());
    for (page, at) in [(7u32, 0), (23, kv.page_bytes() - 1), (39, 12345)] {
        let mut bytes = b.page_read(page);
        bytes[at] = 1;
        b.page_write(page, &bytes);
    }
    report.check("pages", "planted bytes are found", b.page_unclean(&all) == [7, 23, 39]);
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
