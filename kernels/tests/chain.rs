//! A small transformer from tokens to logits: what a cache hit computes equals what a miss computes.

use base::SplitMix;
use proptest::prelude::*;
use quire_kernels::cpu::Isa;
use quire_kernels::{
    AttentionShape, Backend, Batch, BufferId, KvShape, KvType, LinearId, Precision, RopeId, RopeStore,
    RopeTable, SeqSpan, VectorId, WeightForm,
};

use crate::support::*;

const VOCAB: usize = 97;
const HIDDEN: usize = 128;
const INNER: usize = 192;
const LAYERS: usize = 2;
const SHAPE: AttentionShape =
    AttentionShape { heads: 6, kv_heads: 2, head_dim: 32, scale: 0.176_776_7, window: None };
const ROWS_MAX: usize = 400;
const PAGES: usize = 128;

struct Layer {
    qkv: LinearId,
    out: LinearId,
    gate_up: LinearId,
    down: LinearId,
    norms: [VectorId; 2],
}

struct Model {
    backend: Box<dyn Backend>,
    embed: LinearId,
    head: LinearId,
    norm: VectorId,
    layers: Vec<Layer>,
    rope: RopeId,
    /// residual, normed, qkv, attention, delta, gate_up, inner, logits
    buffers: [BufferId; 8],
}

/// A run of tokens: the prompt up to its end, from `start`, in `pages`.
struct Run<'a> {
    prompt: &'a [u32],
    start: usize,
    pages: &'a [u32],
}

impl Model {
    fn new(maker: Maker, form: WeightForm, page_tokens: usize, kind: KvType) -> Self {
        let mut backend = maker.make();
        let b = &mut *backend;
        let mut rng = SplitMix::new(42);
        let mut linear = |b: &mut dyn Backend, out: usize, cols: usize, form| {
            let w: Vec<f32> = normal(&mut rng, out * cols).iter().map(|v| v / (cols as f32).sqrt()).collect();
            load(b, &w, out, form)
        };
        let embed = linear(b, VOCAB, HIDDEN, WeightForm::Bf16);
        let layers = (0..LAYERS)
            .map(|_| Layer {
                qkv: linear(b, SHAPE.qkv_cols(), HIDDEN, form),
                out: linear(b, HIDDEN, SHAPE.q_cols(), form),
                gate_up: linear(b, 2 * INNER, HIDDEN, form),
                down: linear(b, HIDDEN, INNER, form),
                norms: [(); 2].map(|()| load_vector(b, &[1.0; HIDDEN])),
            })
            .collect();
        let head = linear(b, VOCAB, HIDDEN, form);
        let norm = load_vector(b, &[1.0; HIDDEN]);
        let inv_freq = (0..16).map(|i| 10_000f64.powf(-f64::from(i) / 16.0)).collect();
        let rope = b.rope_table(&RopeTable { inv_freq, magnitude: 1.0, positions: 2048 }).unwrap();
        let (kv_heads, head_dim) = (SHAPE.kv_heads, SHAPE.head_dim);
        b.kv_pool(KvShape { pages: PAGES, page_tokens, layers: LAYERS, kv_heads, head_dim, kind }).unwrap();
        let cols = [HIDDEN, HIDDEN, SHAPE.qkv_cols(), SHAPE.q_cols(), HIDDEN, 2 * INNER, INNER, VOCAB];
        let buffers = cols.map(|c| b.buffer(ROWS_MAX, c, Precision::Full).unwrap());
        Self { backend, embed, head, norm, layers, rope, buffers }
    }

    /// One step over all runs; the logits of every row.
    fn step(&mut self, runs: &[Run<'_>]) -> Vec<Vec<f32>> {
        let (mut tokens, mut spans, mut table) = (Vec::new(), Vec::new(), Vec::new());
        for run in runs {
            let (row, at) = (tokens.len() as u32, table.len() as u32);
            let rows = (run.prompt.len() - run.start) as u32;
            spans.push(SeqSpan { row, rows, start: run.start as u32, table: at });
            tokens.extend(&run.prompt[run.start..]);
            table.extend(run.pages);
        }
        self.backend.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
        self.forward();
        self.backend.end();
        self.backend.read(self.buffers[7]).chunks(VOCAB).map(<[f32]>::to_vec).collect()
    }

    fn forward(&mut self) {
        let [residual, normed, qkv, attention, delta, gate_up, inner, logits] = self.buffers;
        let b = &mut *self.backend;
        let spec = RopeStore { shape: SHAPE, rope: Some(self.rope), q_norm: None, k_norm: None, eps: 1e-6 };
        b.embed(self.embed, residual);
        b.rmsnorm(residual, self.layers[0].norms[0], 1e-5, normed);
        for (i, layer) in self.layers.iter().enumerate() {
            b.linear(normed, layer.qkv, None, qkv);
            b.rope_store(qkv, i, &spec);
            b.attend(qkv, i, &SHAPE, attention);
            b.linear(attention, layer.out, None, delta);
            b.add_rmsnorm(residual, delta, layer.norms[1], 1e-5, normed);
            b.linear(normed, layer.gate_up, None, gate_up);
            b.silu_mul(gate_up, inner);
            b.linear(inner, layer.down, None, delta);
            let next = self.layers.get(i + 1).map_or(self.norm, |l| l.norms[0]);
            b.add_rmsnorm(residual, delta, next, 1e-5, normed);
        }
        b.linear(normed, self.head, None, logits);
    }
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = SplitMix::new(seed);
    (0..len).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

#[test]
fn the_chain_is_the_reference_chain() {
    let (tokens, pages) = (prompt(1, 300), (0..19).collect::<Vec<u32>>());
    let run = |maker, form, kind| {
        let mut model = Model::new(maker, form, 16, kind);
        model.step(&[Run { prompt: &tokens, start: 0, pages: &pages }]).concat()
    };
    for (form, kind, tolerance) in [
        (WeightForm::F32, KvType::F32, 1e-5),
        (WeightForm::Bf16, KvType::Bf16, 3e-2),
        (WeightForm::Q8, KvType::Bf16, 6e-2),
    ] {
        let want = run(Maker::Reference, form, kind);
        for maker in cpus() {
            assert_near(&run(maker, form, kind), &want, tolerance, &format!("{maker:?} {form:?}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A prompt whose beginning another sequence has computed (in its own chunks, beside others) gives the
    /// bits of a prompt that was computed whole and alone.
    #[test]
    fn a_hit_gives_the_bits_of_a_miss(
        len in 2usize..380,
        shared in 0.0f64..1.0,
        chunk in prop::sample::select(vec![1usize, 7, 16, 33, 64, 400]),
        page_tokens in prop::sample::select(vec![16usize, 32, 64]),
        form in prop::sample::select(vec![WeightForm::F32, WeightForm::F16, WeightForm::Bf16, WeightForm::Q8, WeightForm::Q4]),
        kind in prop::sample::select(vec![KvType::F32, KvType::Bf16]),
        mate in 1usize..20,
        threads in 1usize..4,
        portable in prop::bool::weighted(0.1),
        seed in any::<u64>(),
    ) {
        let isa = if portable { Isa::Portable } else { Isa::detect() };
        let tokens = prompt(seed, len);
        let pages = len.div_ceil(page_tokens);
        let table = |from: usize| (from as u32..(from + pages) as u32).collect::<Vec<u32>>();

        let mut miss = Model::new(Maker::Cpu(isa, 1), form, page_tokens, kind);
        let want = miss.step(&[Run { prompt: &tokens, start: 0, pages: &table(0) }]);

        let mut hit = Model::new(Maker::Cpu(isa, threads), form, page_tokens, kind);
        // At least one token is left to compute; the cached part is whole pages.
        let cached = ((shared * len as f64) as usize).min(len - 1) / page_tokens * page_tokens;
        let (first, mate_pages) = (table(1), [PAGES as u32 - 1, PAGES as u32 - 2]);
        let mate_tokens = prompt(seed ^ 1, mate);
        for from in (0..cached).step_by(chunk) {
            let runs = [
                Run { prompt: &mate_tokens, start: 0, pages: &mate_pages },
                Run { prompt: &tokens[..(from + chunk).min(cached)], start: from, pages: &first },
            ];
            hit.step(&runs[usize::from(chunk + mate > ROWS_MAX)..]);
        }
        // The second sequence takes the cached pages and its own for the rest.
        let mut second = table(1 + pages);
        second[..cached / page_tokens].copy_from_slice(&first[..cached / page_tokens]);
        let runs = [
            Run { prompt: &tokens, start: cached, pages: &second },
            Run { prompt: &mate_tokens, start: 0, pages: &mate_pages },
        ];
        let got = hit.step(&runs);
        for (i, want) in want[cached..].iter().enumerate() {
            assert_bits(&got[i], want, &format!("row {} after {cached} cached", cached + i));
        }
    }
}
