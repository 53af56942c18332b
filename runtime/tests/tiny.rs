//! Tiny random models of every family, and a bench to run them on without a scheduler.
//!
//! Weights come from the formula of [`quire_runtime::model::Dummy`], which `scripts/oracle` computes too.

use std::path::Path;

use kernels::cpu::{CpuBackend, CpuOptions};
use kernels::{Backend, Batch, HostType, SeqSpan, WeightForm};
use quire_runtime::files::ModelFiles;
use quire_runtime::model::{
    Config, Description, Dummy, KvChoice, LoadOptions, Loaded, PoolSize, WeightChoice, expected, families,
    load_from,
};
use serde::Deserialize;
use serde_json::Value;

/// One model shape with a prompt.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    pub name: String,
    pub seed: u64,
    pub tokens: usize,
    pub config: Value,
    pub positions_max: Option<u32>,
}

impl Case {
    pub fn all() -> Vec<Case> {
        serde_json::from_str(include_str!("fixtures/cases.json")).expect("cases.json is well-formed")
    }

    pub fn named(name: &str) -> Case {
        Self::all().into_iter().find(|c| c.name == name).expect("a case of that name")
    }

    pub fn describe(&self) -> Description {
        let config = Config::parse(self.config.to_string().as_bytes()).expect("a JSON object");
        families::describe(&config).expect("a supported config")
    }

    pub fn source(&self, kind: HostType) -> Dummy {
        Dummy { seed: self.seed, kind }
    }

    pub fn vocab(&self) -> usize {
        self.config["vocab_size"].as_u64().expect("a vocabulary") as usize
    }

    /// The prompt that the fixtures were made with.
    pub fn prompt(&self) -> Vec<u32> {
        let prompt = quire_runtime::model::Expected { name: "prompt".into(), shape: vec![self.tokens] };
        let vocab = self.vocab() as u64;
        self.source(HostType::F32).hashes(&prompt).map(|z| (z % vocab) as u32).collect()
    }

    /// Loads it from the formula into `backend`.
    pub fn load(
        &self,
        kind: HostType,
        form: WeightForm,
        page_tokens: u32,
        backend: Box<dyn Backend>,
    ) -> Loaded {
        self.load_with_kv(kind, form, KvChoice::Auto, page_tokens, backend)
    }

    /// The same with keys and values held as `kv` says.
    pub fn load_with_kv(
        &self,
        kind: HostType,
        form: WeightForm,
        kv: KvChoice,
        page_tokens: u32,
        backend: Box<dyn Backend>,
    ) -> Loaded {
        let options = LoadOptions {
            weights: WeightChoice::As(form),
            kv,
            positions_max: self.positions_max,
            page_tokens,
            pool: PoolSize::Pages(PAGES),
            step_tokens: 700,
            ..LoadOptions::default()
        };
        let done = load_from(&self.source(kind), self.describe(), &options, backend, &mut |_, _| {});
        done.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Writes it as a Hugging Face directory with one safetensors file.
    pub fn write(&self, dir: &Path, kind: HostType) -> ModelFiles {
        std::fs::write(dir.join("config.json"), self.config.to_string()).expect("a writable directory");
        let all = expected(&self.describe());
        write_safetensors(&dir.join("model.safetensors"), &self.source(kind), &all);
        ModelFiles::open(dir).expect("a model directory")
    }
}

/// Writes the tensors `all` of `source` into one file.
pub fn write_safetensors(path: &Path, source: &Dummy, all: &[quire_runtime::model::Expected]) {
    let dtype = match source.kind {
        HostType::F32 => safetensors::Dtype::F32,
        HostType::F16 => safetensors::Dtype::F16,
        HostType::Bf16 => safetensors::Dtype::BF16,
    };
    let bytes: Vec<Vec<u8>> = all.iter().map(|e| source.bytes(e)).collect();
    let views = all.iter().zip(&bytes).map(|(e, b)| {
        let view = safetensors::tensor::TensorView::new(dtype, e.shape.clone(), b).expect("bytes fit");
        (e.name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("a writable directory");
}

/// The reference backend.
pub fn reference() -> Box<dyn Backend> {
    Box::new(kernels::reference::ReferenceBackend::new())
}

/// The CPU backend with two workers and the best instructions of this machine.
pub fn cpu() -> Box<dyn Backend> {
    let options = CpuOptions { threads: 2, isa: None };
    Box::new(CpuBackend::new(options).expect("worker threads"))
}

/// Pages of a test model's pool; a power of two.
pub const PAGES: u32 = 256;

/// A loaded model and a plain way to run it: each page is handed out once.
pub struct Bench {
    pub loaded: Loaded,
    next_page: u32,
}

/// One sequence's place in the pool.
#[derive(Clone, Debug, Default)]
pub struct Seq {
    pub pages: Vec<u32>,
    pub len: u32,
}

/// A chunk to run: tokens appended to a sequence, and which of them want logits.
pub struct Chunk<'a> {
    pub seq: &'a mut Seq,
    pub tokens: &'a [u32],
    pub wanted: Vec<usize>,
}

impl Bench {
    pub fn new(loaded: Loaded) -> Self {
        Self { loaded, next_page: 0 }
    }

    /// The next page that nobody holds; in no order that a kernel could profit from.
    fn page(&mut self) -> u32 {
        let pages = self.loaded.kv.pages as u32;
        assert!(self.next_page < pages && pages.is_power_of_two(), "the test needs more pages");
        self.next_page += 1;
        (self.next_page * 77 + 5) % pages
    }

    /// Fills every page with bytes that are NaN in any type.
    pub fn poison(&mut self) {
        let bytes = vec![0xFF; self.loaded.backend.page_read(0).len()];
        (0..self.loaded.kv.pages as u32).for_each(|page| self.loaded.backend.page_write(page, &bytes));
    }

    /// Appends `chunks`, one per sequence, in one step; the wanted rows' logits in order.
    pub fn step(&mut self, chunks: &mut [Chunk<'_>]) -> Vec<Vec<f32>> {
        let page_tokens = self.loaded.kv.page_tokens as u32;
        let (mut tokens, mut spans, mut table, mut wanted) = (vec![], vec![], vec![], vec![]);
        for c in chunks {
            let row = tokens.len() as u32;
            wanted.extend(c.wanted.iter().map(|w| row + *w as u32));
            tokens.extend_from_slice(c.tokens);
            let (start, rows) = (c.seq.len, c.tokens.len() as u32);
            c.seq.len += rows;
            while (c.seq.pages.len() as u32) * page_tokens < c.seq.len {
                let page = self.page();
                c.seq.pages.push(page);
            }
            spans.push(SeqSpan { row, rows, start, table: table.len() as u32 });
            table.extend_from_slice(&c.seq.pages);
        }
        let batch = Batch { tokens: &tokens, spans: &spans, page_table: &table };
        batch.check(page_tokens as usize, self.loaded.kv.pages, self.loaded.model.description.vocab);
        let vocab = self.loaded.model.description.vocab;
        let mut out = Vec::new();
        let Loaded { model, backend, .. } = &mut self.loaded;
        model.step(&mut **backend, &batch, &wanted, &mut |backend, logits, _| {
            out.extend(backend.read(logits).chunks_exact(vocab).map(<[f32]>::to_vec));
        });
        assert_eq!(out.len(), wanted.len(), "one row of logits for each wanted row");
        out
    }

    /// Runs `tokens` as a new sequence in one step; logits at `positions`.
    pub fn logits_at(&mut self, tokens: &[u32], positions: &[usize]) -> Vec<Vec<f32>> {
        let mut seq = Seq::default();
        self.step(&mut [Chunk { seq: &mut seq, tokens, wanted: positions.to_vec() }])
    }
}

/// How two sets of logits differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference {
    /// Largest |Δ| of a logit, over the largest |logit| of the wanted set.
    pub relative_max: f32,
    /// Mean |Δ| of log-probabilities.
    pub logprob_mean: f32,
    /// How much less likely than the best our best token is, in nats, by the wanted set; the largest.
    pub regret: f32,
}

/// Compares ours with wanted, row by row.
pub fn compare(ours: &[Vec<f32>], wanted: &[Vec<f32>]) -> Difference {
    assert_eq!(ours.len(), wanted.len());
    let scale = wanted.iter().flatten().fold(0.0f32, |m, x| m.max(x.abs()));
    let mut d = Difference::default();
    let (mut sum, mut count) = (0.0f64, 0usize);
    for (a, b) in ours.iter().zip(wanted) {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().all(|x| x.is_finite()), "logits are finite");
        for (x, y) in a.iter().zip(b) {
            d.relative_max = d.relative_max.max((x - y).abs() / scale);
        }
        let (la, lb) = (log_softmax(a), log_softmax(b));
        sum += la.iter().zip(&lb).map(|(x, y)| f64::from((x - y).abs())).sum::<f64>();
        count += a.len();
        let best = lb.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        d.regret = d.regret.max(best - lb[argmax(a)]);
    }
    d.logprob_mean = (sum / count as f64) as f32;
    d
}

pub fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j])).expect("a row is not empty")
}

fn log_softmax(row: &[f32]) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
    row.iter().map(|x| x - max - sum.ln() as f32).collect()
}
