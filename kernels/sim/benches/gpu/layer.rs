//! A layer of a small model with random weights: every op of a step once, as correctness cases run it.

use std::cell::Cell;

use base::SplitMix;
use kernels::{
    AttentionShape, Backend, Batch, BufferId, KvShape, KvType, LinearId, Precision, Replay, RopeId,
    RopeStore, RopeTable, SeqSpan, StepLimits, VectorId, WeightForm,
};

use crate::bench::{limits, normal, pool, vector, weight};

const HIDDEN: usize = 256;
const VOCAB: usize = 512;
/// Of the pool.
pub const PAGES: usize = 256;
/// Of a sequence, at most.
const POSITIONS: usize = 1100;

/// What varies between layers.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_tokens: usize,
    pub window: Option<u32>,
    /// How weights, keys and values are held.
    pub form: WeightForm,
    pub kind: KvType,
}

/// A batch that owns its arrays.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub tokens: Vec<u32>,
    pub spans: Vec<SeqSpan>,
    pub page_table: Vec<u32>,
}

impl Step {
    /// Adds a sequence: `run` tokens behind `start` others, whose pages are `pages`.
    pub fn push(&mut self, start: u32, run: u32, pages: &[u32]) {
        let (row, table) = (self.tokens.len() as u32, self.page_table.len() as u32);
        self.spans.push(SeqSpan { row, rows: run, start, table });
        self.page_table.extend_from_slice(pages);
        // A token is a function of its position, so that cuts of a sequence hold the same tokens.
        self.tokens.extend((start..start + run).map(|at| (at * 31 + pages[0] * 7) % VOCAB as u32));
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch { tokens: &self.tokens, spans: &self.spans, page_table: &self.page_table }
    }
}

/// A loaded layer.
pub struct Layer {
    shape: AttentionShape,
    embedding: LinearId,
    qkv_w: LinearId,
    o_w: LinearId,
    gate_up_w: LinearId,
    down_w: LinearId,
    norm: VectorId,
    bias: VectorId,
    rope: RopeId,
    buffers: Buffers,
    replays: Cell<usize>,
}

struct Buffers {
    x: BufferId,
    normed: BufferId,
    qkv: BufferId,
    attn: BufferId,
    delta: BufferId,
    gate_up: BufferId,
    act: BufferId,
    logits: BufferId,
}

impl Layer {
    /// For steps of at most `rows` rows and `seqs` sequences.
    pub fn load(b: &mut dyn Backend, case: &Case, rows: usize, seqs: usize, seed: u64) -> Self {
        let rng = &mut SplitMix::new(seed);
        limits(b, StepLimits { rows, seqs, positions: POSITIONS, heads: case.heads });
        let shape = AttentionShape {
            heads: case.heads,
            kv_heads: case.kv_heads,
            head_dim: case.head_dim,
            scale: (case.head_dim as f32).powf(-0.5),
            window: case.window,
        };
        let near_one: Vec<f32> = normal(rng, HIDDEN).iter().map(|x| 1.0 + 0.1 * x).collect();
        let bias = normal(rng, shape.qkv_cols());
        let pair = |i: usize| 1e4f64.powf(-2.0 * i as f64 / case.head_dim as f64);
        let inv_freq = (0..case.head_dim / 2).map(pair).collect();
        let table = RopeTable { inv_freq, magnitude: 1.0, positions: POSITIONS };
        let layer = Self {
            shape,
            embedding: weight(b, rng, WeightForm::Bf16, VOCAB, HIDDEN),
            qkv_w: weight(b, rng, case.form, shape.qkv_cols(), HIDDEN),
            o_w: weight(b, rng, case.form, HIDDEN, shape.q_cols()),
            gate_up_w: weight(b, rng, case.form, 1024, HIDDEN),
            down_w: weight(b, rng, case.form, HIDDEN, 512),
            norm: vector(b, &near_one),
            bias: vector(b, &bias),
            rope: b.rope_table(&table).expect("device memory"),
            buffers: Buffers::new(b, rows, &shape),
            replays: Cell::new(0),
        };
        let (page_tokens, kv_heads, head_dim) = (case.page_tokens, case.kv_heads, case.head_dim);
        let kind = case.kind;
        pool(b, rng, KvShape { pages: PAGES, page_tokens, layers: 2, kv_heads, head_dim, kind });
        layer
    }

    /// Logits of every row of the step, recorded or replayed if the backend says so.
    pub fn run(&self, b: &mut dyn Backend, step: &Step) -> Vec<f32> {
        b.begin(&step.batch());
        match b.replay(step.rows()) {
            Replay::Run => self.ops(b),
            Replay::Record => {
                self.ops(b);
                b.recorded();
            }
            Replay::Done => self.replays.set(self.replays.get() + 1),
        }
        b.end();
        b.read(self.buffers.logits)
    }

    /// Steps that ran from a recording of an earlier one.
    pub fn replays(&self) -> usize {
        self.replays.get()
    }

    /// embed → norm → qkv → rope and store → attend → o → add and norm → gate·up → down → logits.
    fn ops(&self, b: &mut dyn Backend) {
        let Buffers { x, normed, qkv, attn, delta, gate_up, act, logits } = self.buffers;
        let (shape, rope) = (self.shape, Some(self.rope));
        b.embed(self.embedding, x);
        b.rmsnorm(x, self.norm, 1e-5, normed);
        b.linear(normed, self.qkv_w, Some(self.bias), qkv);
        b.rope_store(qkv, 1, &RopeStore { shape, rope, q_norm: None, k_norm: None, eps: 1e-5 });
        b.attend(qkv, 1, &shape, attn);
        b.linear(attn, self.o_w, None, delta);
        b.add_rmsnorm(x, delta, self.norm, 1e-5, normed);
        b.linear(normed, self.gate_up_w, None, gate_up);
        b.silu_mul(gate_up, act);
        b.linear(act, self.down_w, None, delta);
        b.add_rmsnorm(x, delta, self.norm, 1e-5, normed);
        b.linear(normed, self.embedding, None, logits);
    }
}

impl Buffers {
    fn new(b: &mut dyn Backend, rows: usize, shape: &AttentionShape) -> Self {
        use Precision::{Full, Half};
        let mut buffer = |cols: usize, p: Precision| b.buffer(rows, cols, p).expect("device memory");
        Self {
            x: buffer(HIDDEN, Full),
            normed: buffer(HIDDEN, Half),
            qkv: buffer(shape.qkv_cols(), Half),
            attn: buffer(shape.q_cols(), Half),
            delta: buffer(HIDDEN, Half),
            gate_up: buffer(1024, Half),
            act: buffer(512, Half),
            logits: buffer(VOCAB, Full),
        }
    }
}
