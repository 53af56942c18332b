//! Speed of ops that go over rows once, and of draws: both are floors of bytes.

use base::SplitMix;
use kernels::cuda::CudaOptions;
use kernels::cuda::driver::{DevicePtr, Driver};
use kernels::cuda::params::sample::{
    SCRATCH_BYTES, SampleEdit, SampleOut, SampleParams, SampleRowParams, prepare,
};
use kernels::{
    Backend, History, KvShape, KvType, Precision, RopeStore, RopeTable, SampleRow, SamplingParams, StepLimits,
};

use crate::bench::{
    Device, begin_decodes, begin_rows, filled, limits, normal, plain_pool, pool, repeated, vector,
};
use crate::report::Report;
use crate::sizes::{self, Sizes};
use crate::speed::{Ceilings, copies, micros};
use crate::timing;

const PAGE: usize = 64;

pub fn rows(device: &Device, ceilings: Ceilings, report: &mut Report) {
    report.attempt("ops of rows", |report| norm_and_act(device, ceilings, report));
    report.attempt("rope + store", |report| rope(device, KvType::Bf16, ceilings, report));
    report.attempt("rope + store, fp8", |report| rope(device, KvType::E4m3, ceilings, report));
}

fn norm_and_act(device: &Device, ceilings: Ceilings, report: &mut Report) {
    let Sizes { rows, hidden, inner, .. } = *sizes::of(device);
    let mut b = device.backend(CudaOptions::default());
    let rng = &mut SplitMix::new(5);
    plain_pool(&mut b, rng, rows);
    let ones = normal(rng, hidden);
    let norm = vector(&mut b, &ones);
    // Whole sets of operands rotate; one set is larger than the L2 already.
    let x = [0; 2].map(|_| filled(&mut b, rng, rows, hidden, Precision::Full));
    let delta = [0; 2].map(|_| filled(&mut b, rng, rows, hidden, Precision::Half));
    let normed = [0; 2].map(|_| b.buffer(rows, hidden, Precision::Half).expect("device memory"));
    let gate_up = filled(&mut b, rng, rows, 2 * inner, Precision::Half);
    let act = b.buffer(rows, inner, Precision::Half).expect("device memory");
    begin_rows(&mut b, rows);
    let floor = |bytes: usize| Some(ceilings.floor((rows * bytes) as f64, 0.0));
    let time = timing::recorded(device, 8, &mut |i| {
        b.add_rmsnorm(x[i % 2], delta[i % 2], norm, 1e-5, normed[i % 2]);
    });
    report.row(&micros(format!("add + rmsnorm {rows} x {hidden}"), time, floor(hidden * 12), "80 %"));
    let time = timing::recorded(device, 8, &mut |i| b.rmsnorm(x[i % 2], norm, 1e-5, normed[i % 2]));
    report.row(&micros(format!("rmsnorm {rows} x {hidden}"), time, floor(hidden * 6), "80 %"));
    let time = timing::recorded(device, 8, &mut |_| b.silu_mul(gate_up, act));
    report.row(&micros(format!("silu·mul {rows} x {inner}"), time, floor(inner * 6), "80 %"));
}

fn rope(device: &Device, kind: KvType, ceilings: Ceilings, report: &mut Report) {
    const LAYERS: usize = 4;
    let Sizes { rows, shape, .. } = *sizes::of(device);
    let mut b = device.backend(CudaOptions::default());
    let rng = &mut SplitMix::new(9);
    limits(&mut b, StepLimits { rows, seqs: 1, positions: rows, heads: shape.heads });
    let inv_freq = (0..64).map(|i| 5e5f64.powf(-f64::from(i) / 64.0)).collect();
    let table = RopeTable { inv_freq, magnitude: 1.0, positions: rows };
    let rope = Some(b.rope_table(&table).expect("device memory"));
    let (pages, kv_heads, head_dim) = (rows.div_ceil(PAGE), shape.kv_heads, shape.head_dim);
    let kv = KvShape { pages, page_tokens: PAGE, layers: LAYERS, kv_heads, head_dim, kind };
    pool(&mut b, rng, kv);
    let qkv = [0; 3].map(|_| filled(&mut b, rng, rows, shape.qkv_cols(), Precision::Half));
    begin_rows(&mut b, rows);
    let spec = RopeStore { shape, rope, q_norm: None, k_norm: None, eps: 1e-5 };
    let time = timing::recorded(device, 12, &mut |i| b.rope_store(qkv[i % 3], i % LAYERS, &spec));
    // q, k, v are read; q is written in place, k and v go to their pages.
    let stored = 2 * kv_heads * kv.block_bytes() / PAGE;
    let bytes = rows * (2 * (shape.qkv_cols() + shape.q_cols()) + stored);
    let floor = Some(ceilings.floor(bytes as f64, 0.0));
    let (held, target) = if kind == KvType::E4m3 { (", fp8", "-") } else { ("", "80 %") };
    report.row(&micros(format!("rope + store {rows}{held}"), time, floor, target));
}

pub fn sampling(device: &Device, ceilings: Ceilings, report: &mut Report) {
    let filtered = SamplingParams { top_k: 50, top_p: 0.9, temperature: 0.8, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let (rows, vocab) = sizes::of(device).draws;
    let floor = Some(ceilings.floor((rows * vocab * 4) as f64, 0.0));
    for (name, params) in
        [("greedy", &greedy), ("temperature", &SamplingParams::default()), ("top-k, top-p", &filtered)]
    {
        let case = format!("draw {rows} x {vocab}, {name}");
        report.attempt(&case, |report| {
            let time = Draws::new(device, params).time(device);
            report.row(&micros(case.clone(), time, floor, "25 us"));
        });
    }
    let case = format!("draw {rows} x {vocab}, top-k, top-p, with the host");
    report.attempt(&case, |report| {
        let mut b = device.backend(CudaOptions::default());
        let rng = &mut SplitMix::new(6);
        plain_pool(&mut b, rng, rows);
        let logits = filled(&mut b, rng, rows, vocab, Precision::Full);
        begin_decodes(&mut b, rows);
        let history = History::default();
        let row = SampleRow { params: &filtered, history: &history, position: 1, forced: None };
        let asked = vec![row; rows];
        let time = timing::launched(device, 1, &mut |_| drop(b.sample(logits, &asked)));
        report.row(&micros(case.clone(), time, floor, "-"));
    });
}

/// The kernels of a draw alone, over rotating logits.
struct Draws {
    driver: Box<dyn Driver>,
    params: Vec<SampleParams>,
    rows: u32,
}

impl Draws {
    fn new(device: &Device, asked: &SamplingParams) -> Self {
        let (rows, vocab) = sizes::of(device).draws;
        let driver = device.driver();
        let alloc = |bytes: usize| driver.alloc(bytes, "draws").expect("device memory");
        let put = |bytes: &[u8]| {
            let at = alloc(bytes.len());
            driver.upload(at, bytes);
            at
        };
        let rng = &mut SplitMix::new(6);
        let some = normal(rng, rows * vocab);
        let history = History::default();
        let want = |i: usize, edits: &mut Vec<SampleEdit>| {
            let row = SampleRow { params: asked, history: &history, position: i as u64, forced: None };
            prepare(&row, vocab, edits)
        };
        let mut edits = Vec::new();
        let wants: Vec<SampleRowParams> = (0..rows).map(|i| want(i, &mut edits)).collect();
        let (wants, live) = (put(bytemuck::cast_slice(&wants)), put(&(rows as u32).to_le_bytes()));
        let scratch = alloc(rows * SCRATCH_BYTES);
        let out = alloc(rows * size_of::<SampleOut>());
        let params = |i: usize| {
            let values = repeated(&some[i * 1000 % some.len()..], rows * vocab);
            SampleParams {
                logits: put(bytemuck::cast_slice(&values)),
                rows: wants,
                edits: DevicePtr::NULL,
                undo: DevicePtr::NULL,
                scratch,
                out,
                rows_live: live,
                vocab: vocab as u32,
                stride: vocab as u32,
            }
        };
        let params = (0..copies(device, rows * vocab * 4).min(8)).map(params).collect();
        Self { driver, params, rows: rows as u32 }
    }

    fn time(&self, device: &Device) -> timing::Timing {
        timing::recorded(device, self.params.len(), &mut |i| {
            let params = &self.params[i % self.params.len()];
            params.launches(self.rows).iter().for_each(|launch| self.driver.launch(launch));
        })
    }
}
