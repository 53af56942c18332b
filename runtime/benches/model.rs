//! Prefill and decode speed of a model directory, and where the time goes.
//!
//! ```text
//! cargo bench -p quire-runtime --bench model -- MODEL_DIR [bf16|q8|q4 …] [--threads N] [--ops]
//! ```
//!
//! No scheduler and no HTTP: this is what the executor's thread can reach, and `--ops` splits it by op, so
//! that what a profile of the server shows beyond it is overhead. It explains; claims come from
//! `scripts/bench-peers`, which measures a peer in the same run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::{Clock, Nanos, SystemClock};
use kernels::cpu::{CpuBackend, CpuOptions};
use kernels::{
    AttentionShape, Backend, BackendInfo, Batch, BufferId, History, HostTensor, KernelError, KvShape,
    LinearId, Precision, RopeId, RopeStore, RopeTable, SampleRow, Sampled, SamplingParams, SeqSpan, VectorId,
    WeightForm,
};
use quire_runtime::files::ModelFiles;
use quire_runtime::model::{LoadOptions, Loaded, PoolSize, WeightChoice, load};

const PROMPT: usize = 512;

fn main() {
    let args = Args::parse();
    let Some(dir) = &args.dir else {
        println!("model bench: no model directory given, nothing measured");
        return;
    };
    println!("{}", dir.display());
    for form in args.forms.clone() {
        // A backend pins the thread that steps it: each gets a fresh one, as in an executor.
        let (dir, args) = (dir.clone(), args.clone());
        let run = base::spawn("bench", move || measure(&dir, form, &args));
        run.expect("a thread").join().expect("the bench panicked");
    }
}

fn measure(dir: &Path, form: WeightForm, args: &Args) {
    let mut bench = Bench::load(dir, form, args);
    let prefill = bench.prefill();
    bench.print_ops("prefill 512", args.ops);
    let (one, drawn) = bench.decode(1, 64);
    bench.print_ops("decode x1", args.ops);
    let (many, _) = bench.decode(16, 24);
    bench.print_ops("decode x16", args.ops);
    println!(
        "{form:?}: prefill {prefill:.0} tok/s, decode {one:.1} tok/s alone, {many:.1} tok/s for 16 ({:.2}x)",
        many / one
    );
    // What was computed, so that two runs that claim the same work can be held against each other.
    println!("  greedy tokens {:?}… of {:016x}", &drawn[..8], fingerprint(&drawn));
}

fn fingerprint(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0xCBF2_9CE4_8422_2325, |h, &t| (h ^ u64::from(t)).wrapping_mul(0x0100_0000_01B3))
}

#[derive(Clone)]
struct Args {
    dir: Option<PathBuf>,
    forms: Vec<WeightForm>,
    threads: Option<usize>,
    ops: bool,
}

impl Args {
    fn parse() -> Self {
        let mut args = Args { dir: None, forms: vec![], threads: None, ops: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "f32" => args.forms.push(WeightForm::F32),
                "f16" => args.forms.push(WeightForm::F16),
                "bf16" => args.forms.push(WeightForm::Bf16),
                "q8" => args.forms.push(WeightForm::Q8),
                "q4" => args.forms.push(WeightForm::Q4),
                "--ops" => args.ops = true,
                "--threads" => args.threads = words.next().and_then(|n| n.parse().ok()),
                // What `cargo bench` and `cargo test --benches` add.
                flag if flag.starts_with("--") => {}
                dir => args.dir = Some(dir.into()),
            }
        }
        if args.forms.is_empty() {
            args.forms = vec![WeightForm::Bf16, WeightForm::Q8, WeightForm::Q4];
        }
        args
    }
}

struct Bench {
    loaded: Loaded,
    clock: Arc<SystemClock>,
    ops: Arc<Mutex<Ops>>,
}

/// A sequence in pages of its own.
struct Seq {
    pages: Vec<u32>,
    len: u32,
    last: u32,
    history: History,
}

impl Bench {
    fn load(dir: &Path, form: WeightForm, args: &Args) -> Self {
        let clock = Arc::new(SystemClock::new());
        let ops = Arc::new(Mutex::new(Ops::default()));
        let mut options = CpuOptions::default();
        if let Some(threads) = args.threads {
            options.threads = threads;
        }
        let cpu = CpuBackend::new(options).expect("worker threads");
        let timed = Timed { inner: cpu, clock: Arc::clone(&clock), ops: Arc::clone(&ops), linears: vec![] };
        let options = LoadOptions {
            weights: WeightChoice::As(form),
            positions_max: Some(2048),
            pool: PoolSize::Pages(1024),
            ..LoadOptions::default()
        };
        let files = ModelFiles::open(dir).unwrap_or_else(|e| panic!("{e}"));
        let started = clock.now();
        let loaded =
            load(&files, &options, Box::new(timed), &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
        let took = clock.now().since(started).as_secs_f64();
        let info = loaded.backend.info();
        println!("{form:?}: loaded {} in {took:.1} s, {} x{}", loaded.memory.weights, info.isa, info.threads);
        Self { loaded, clock, ops }
    }

    /// One step that appends `tokens` to each sequence and draws.
    fn step(&mut self, seqs: &mut [Seq], tokens: &[Vec<u32>]) -> Duration {
        let started = self.clock.now();
        let (mut flat, mut spans, mut table, mut wanted) = (vec![], vec![], vec![], vec![]);
        for (seq, tokens) in seqs.iter_mut().zip(tokens) {
            let row = flat.len() as u32;
            spans.push(SeqSpan { row, rows: tokens.len() as u32, start: seq.len, table: table.len() as u32 });
            flat.extend(tokens);
            table.extend(&seq.pages);
            seq.len += tokens.len() as u32;
            wanted.push(flat.len() as u32 - 1);
        }
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let batch = Batch { tokens: &flat, spans: &spans, page_table: &table };
        let Loaded { model, backend, .. } = &mut self.loaded;
        let mut drawn = Vec::new();
        model.step(&mut **backend, &batch, &wanted, &mut |backend, logits, slice| {
            let row = |i: usize| SampleRow {
                params: &params,
                history: &seqs[i].history,
                position: u64::from(seqs[i].len),
                forced: None,
            };
            drawn.extend(backend.sample(logits, &slice.map(row).collect::<Vec<_>>()));
        });
        seqs.iter_mut().zip(drawn).for_each(|(seq, s)| seq.last = s.token);
        self.clock.now().since(started)
    }

    fn seqs(&self, n: usize) -> Vec<Seq> {
        let per = 1024 / n.max(16);
        let pages = |i: usize| (i * per..(i + 1) * per).map(|p| p as u32).collect();
        (0..n).map(|i| Seq { pages: pages(i), len: 0, last: 1, history: History::default() }).collect()
    }

    /// Tokens a second of one prompt; the best of five.
    fn prefill(&mut self) -> f64 {
        let vocab = self.loaded.model.description.vocab as u32;
        let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..5 {
            let mut seqs = self.seqs(1);
            times.push(self.step(&mut seqs, std::slice::from_ref(&prompt)));
        }
        PROMPT as f64 / times.iter().min().expect("five times").as_secs_f64()
    }

    /// Tokens a second of `n` sequences together, from an empty context; and what the first one drew.
    fn decode(&mut self, n: usize, steps: usize) -> (f64, Vec<u32>) {
        let mut seqs = self.seqs(n);
        let mut drawn = Vec::new();
        let mut total = Duration::ZERO;
        for step in 0..steps + 4 {
            let tokens: Vec<Vec<u32>> = seqs
                .iter()
                .enumerate()
                .map(|(i, s)| vec![if s.len == 0 { i as u32 + 1 } else { s.last }])
                .collect();
            let took = self.step(&mut seqs, &tokens);
            drawn.push(seqs[0].last);
            if step == 3 {
                self.ops.lock().expect("one thread").clear();
            }
            if step >= 4 {
                total += took;
            }
        }
        ((n * steps) as f64 / total.as_secs_f64(), drawn)
    }

    fn print_ops(&self, title: &str, ops: bool) {
        let mut spent = self.ops.lock().expect("one thread");
        if ops {
            spent.print(title);
        }
        spent.clear();
    }
}

/// Time by op.
#[derive(Default)]
struct Ops {
    spent: BTreeMap<&'static str, (u64, Duration)>,
}

impl Ops {
    fn add(&mut self, op: &'static str, took: Duration) {
        let (calls, spent) = self.spent.entry(op).or_default();
        *calls += 1;
        *spent += took;
    }
    fn clear(&mut self) {
        self.spent.clear();
    }
    fn print(&self, title: &str) {
        let total: Duration = self.spent.values().map(|(_, t)| *t).sum();
        println!("  {title}: {:.1} ms in ops", total.as_secs_f64() * 1e3);
        let mut rows: Vec<_> = self.spent.iter().collect();
        rows.sort_by_key(|(_, (_, t))| std::cmp::Reverse(*t));
        for (op, (calls, took)) in rows {
            let share = took.as_secs_f64() / total.as_secs_f64() * 100.0;
            let each = took.as_secs_f64() * 1e6 / *calls as f64;
            println!("    {op:<12} {share:5.1} %  {calls:6} calls of {each:9.1} µs");
        }
    }
}

/// The CPU backend with a stopwatch at every op.
struct Timed {
    inner: CpuBackend,
    clock: Arc<SystemClock>,
    ops: Arc<Mutex<Ops>>,
    linears: Vec<LinearId>,
}

impl Timed {
    fn time<T>(&mut self, op: &'static str, run: impl FnOnce(&mut CpuBackend) -> T) -> T {
        let started: Nanos = self.clock.now();
        let out = run(&mut self.inner);
        let took = self.clock.now().since(started);
        self.ops.lock().expect("one thread").add(op, took);
        out
    }

    /// Linear weights are packed in a fixed order: table, four a layer, head.
    fn label(&self, weight: LinearId) -> &'static str {
        let at = self.linears.iter().position(|l| *l == weight).expect("packed before");
        let last = self.linears.len() - 1;
        match (at, at.wrapping_sub(1) % 4) {
            (0, _) => "head",
            (n, 0) if n == last => "head",
            (_, 0) => "qkv",
            (_, 1) => "o",
            (_, 2) => "gate|up",
            _ => "down",
        }
    }
}

impl Backend for Timed {
    fn info(&self) -> BackendInfo {
        self.inner.info()
    }
    fn linear_weight(&mut self, parts: &[HostTensor<'_>], form: WeightForm) -> Result<LinearId, KernelError> {
        let id = self.inner.linear_weight(parts, form)?;
        self.linears.push(id);
        Ok(id)
    }
    fn vector(&mut self, parts: &[HostTensor<'_>]) -> Result<VectorId, KernelError> {
        self.inner.vector(parts)
    }
    fn rope_table(&mut self, table: &RopeTable) -> Result<RopeId, KernelError> {
        self.inner.rope_table(table)
    }
    fn buffer(
        &mut self,
        rows_max: usize,
        cols: usize,
        precision: Precision,
    ) -> Result<BufferId, KernelError> {
        self.inner.buffer(rows_max, cols, precision)
    }
    fn kv_pool(&mut self, shape: KvShape) -> Result<(), KernelError> {
        self.inner.kv_pool(shape)
    }
    fn weight_bytes(&self) -> u64 {
        self.inner.weight_bytes()
    }
    fn begin(&mut self, batch: &Batch<'_>) {
        self.time("begin", |b| b.begin(batch));
    }
    fn embed(&mut self, table: LinearId, out: BufferId) {
        self.time("embed", |b| b.embed(table, out));
    }
    fn rmsnorm(&mut self, x: BufferId, weight: VectorId, eps: f32, out: BufferId) {
        self.time("rmsnorm", |b| b.rmsnorm(x, weight, eps, out));
    }
    fn add_rmsnorm(
        &mut self,
        residual: BufferId,
        delta: BufferId,
        weight: VectorId,
        eps: f32,
        out: BufferId,
    ) {
        self.time("add_rmsnorm", |b| b.add_rmsnorm(residual, delta, weight, eps, out));
    }
    fn linear(&mut self, x: BufferId, weight: LinearId, bias: Option<VectorId>, out: BufferId) {
        self.time(self.label(weight), |b| b.linear(x, weight, bias, out));
    }
    fn rope_store(&mut self, qkv: BufferId, layer: usize, spec: &RopeStore) {
        self.time("rope_store", |b| b.rope_store(qkv, layer, spec));
    }
    fn attend(&mut self, qkv: BufferId, layer: usize, shape: &AttentionShape, out: BufferId) {
        self.time("attend", |b| b.attend(qkv, layer, shape, out));
    }
    fn silu_mul(&mut self, gate_up: BufferId, out: BufferId) {
        self.time("silu_mul", |b| b.silu_mul(gate_up, out));
    }
    fn gather(&mut self, x: BufferId, rows: &[u32], out: BufferId) {
        self.time("gather", |b| b.gather(x, rows, out));
    }
    fn sample(&mut self, logits: BufferId, rows: &[SampleRow<'_>]) -> Vec<Sampled> {
        self.time("sample", |b| b.sample(logits, rows))
    }
    fn end(&mut self) {
        self.time("end", CpuBackend::end);
    }
    fn read(&self, buffer: BufferId) -> Vec<f32> {
        self.inner.read(buffer)
    }
    fn write(&mut self, buffer: BufferId, rows: usize, data: &[f32]) {
        self.inner.write(buffer, rows, data);
    }
    fn page_copy(&mut self, pairs: &[(u32, u32)]) {
        self.inner.page_copy(pairs);
    }
    fn page_zero(&mut self, pages: &[u32]) {
        self.inner.page_zero(pages);
    }
    fn page_unclean(&self, pages: &[u32]) -> Vec<u32> {
        self.inner.page_unclean(pages)
    }
    fn page_read(&self, page: u32) -> Vec<u8> {
        self.inner.page_read(page)
    }
    fn page_read_into(&self, page: u32, out: &mut [u8]) {
        self.inner.page_read_into(page, out);
    }
    fn page_write(&mut self, page: u32, bytes: &[u8]) {
        self.inner.page_write(page, bytes);
    }
}
