//! The forward pass of every family, written once over the backend's ops.
//!
//! ```text
//! embed ─ norm ─┬─ qkv ─ rope+store ─ attend ─ o ─ add+norm ─ gate|up ─ silu·mul ─ down ─ add+norm ─┬─ head
//!               └──────────────────────────── per layer ──────────────────────────────────────────┘
//! ```
//!
//! Only rows whose logits are wanted pay for the end of the last layer: once its keys and values are
//! stored, the other rows have left all that anybody will read. A prefill chunk that is not the last
//! stops there. A row's bits do not depend on its neighbours, so leaving rows out changes nothing.

use std::ops::Range;

use kernels::{
    Backend, Batch, BufferId, BufferNeed, KernelError, LinearId, Precision, Replay, RopeStore, VectorId,
};

use super::description::Description;

/// A linear layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WithBias {
    pub weight: LinearId,
    pub bias: Option<VectorId>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerIds {
    pub input_norm: VectorId,
    pub qkv: WithBias,
    pub rope_store: RopeStore,
    pub o: WithBias,
    pub mlp_norm: VectorId,
    pub gate_up: WithBias,
    pub down: WithBias,
}

/// A model whose weights live in a backend.
#[derive(Debug)]
pub struct Model {
    pub description: Description,
    /// Longest sequence served.
    pub positions: usize,
    pub(crate) embedding: LinearId,
    pub(crate) layers: Vec<LayerIds>,
    pub(crate) norm: VectorId,
    pub(crate) head: LinearId,
    pub(crate) buffers: Buffers,
}

/// The activations of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    rows_max: usize,
    /// Rows of logits that exist at once; more are done in slices.
    logit_rows: usize,
    residual: BufferId,
    normed: BufferId,
    qkv: BufferId,
    attn: BufferId,
    delta: BufferId,
    gate_up: BufferId,
    act: BufferId,
    /// The wanted rows of `residual` and `attn` in the last layer.
    residual_wanted: BufferId,
    attn_wanted: BufferId,
    /// One slice of rows for the head, and its logits.
    picked: BufferId,
    logits: BufferId,
    bytes: u64,
}

impl Buffers {
    pub(crate) fn new(d: &Description, rows: usize, backend: &mut dyn Backend) -> Result<Self, KernelError> {
        let logit_rows = backend.logit_rows().min(rows);
        let needs = Self::needs(d, rows, logit_rows);
        let bytes = needs.iter().map(|need| (need.rows * need.cols * size_of::<f32>()) as u64).sum();
        let mut ids = [None; NEEDS];
        for (id, need) in ids.iter_mut().zip(&needs) {
            *id = Some(backend.buffer(need.rows, need.cols, need.precision)?);
        }
        let [residual, normed, qkv, attn, delta, gate_up, act, residual_wanted, attn_wanted, picked, logits] =
            ids.map(|id| id.expect("each was made"));
        Ok(Self {
            rows_max: rows,
            logit_rows,
            residual,
            normed,
            qkv,
            attn,
            delta,
            gate_up,
            act,
            residual_wanted,
            attn_wanted,
            picked,
            logits,
            bytes,
        })
    }

    /// The buffers of steps of `rows` rows, in the order of the fields.
    pub(crate) fn needs(d: &Description, rows: usize, logit_rows: usize) -> [BufferNeed; NEEDS] {
        use Precision::{Full, Half};
        let q_cols = d.heads * d.head_dim;
        let qkv_cols = q_cols + 2 * d.kv_heads * d.head_dim;
        let need = |rows, cols, precision| BufferNeed { rows, cols, precision };
        [
            need(rows, d.hidden, Full),
            need(rows, d.hidden, Half),
            need(rows, qkv_cols, Half),
            need(rows, q_cols, Half),
            need(rows, d.hidden, Half),
            need(rows, 2 * d.intermediate, Half),
            need(rows, d.intermediate, Half),
            need(rows, d.hidden, Full),
            need(rows, q_cols, Half),
            need(logit_rows, d.hidden, Half),
            need(logit_rows, d.vocab, Full),
        ]
    }
}

/// Buffers of a model.
const NEEDS: usize = 11;

/// Called with each slice of logits: the buffer, and which of the wanted rows it holds.
pub type TakeLogits<'a> = dyn FnMut(&mut dyn Backend, BufferId, Range<usize>) + 'a;

impl Model {
    /// Most tokens of one step.
    pub fn rows_max(&self) -> usize {
        self.buffers.rows_max
    }

    /// Bytes of activations and rotary tables.
    pub fn activation_bytes(&self) -> u64 {
        let rope = self.positions * self.description.rope.dims * size_of::<f32>();
        self.buffers.bytes + rope as u64
    }

    /// Runs one step. `wanted` names rows of the batch, ascending; `take` sees their logits in order.
    pub fn step(
        &self,
        backend: &mut dyn Backend,
        batch: &Batch<'_>,
        wanted: &[u32],
        take: &mut TakeLogits<'_>,
    ) {
        debug_assert!(wanted.is_sorted_by(|a, b| a < b), "wanted rows ascend");
        backend.begin(batch);
        let replay = backend.replay(wanted.len());
        if replay != Replay::Done {
            self.issue(backend, batch.tokens.len(), wanted);
        }
        if replay == Replay::Record && !backend.recorded() {
            self.issue(backend, batch.tokens.len(), wanted);
        }
        if self.fits(wanted) {
            take(backend, self.buffers.logits, 0..wanted.len());
        } else {
            self.sliced_logits(backend, wanted.len(), take);
        }
        backend.end();
    }

    /// Everything up to the logits, if they exist at once.
    fn issue(&self, backend: &mut dyn Backend, rows: usize, wanted: &[u32]) {
        self.layers(backend, rows, wanted);
        if self.fits(wanted) {
            backend.linear(self.buffers.normed, self.head, None, self.buffers.logits);
        }
    }

    /// True if the logits of all wanted rows exist at once.
    fn fits(&self, wanted: &[u32]) -> bool {
        (1..=self.buffers.logit_rows).contains(&wanted.len())
    }

    /// All layers; leaves the final norm of the wanted rows in `normed`.
    fn layers(&self, backend: &mut dyn Backend, rows: usize, wanted: &[u32]) {
        let b = &self.buffers;
        let eps = self.description.norm_eps;
        backend.embed(self.embedding, b.residual);
        backend.rmsnorm(b.residual, self.layers[0].input_norm, eps, b.normed);
        for (i, layer) in self.layers.iter().enumerate() {
            backend.linear(b.normed, layer.qkv.weight, layer.qkv.bias, b.qkv);
            backend.rope_store(b.qkv, i, &layer.rope_store);
            let (mut residual, mut attn, mut next_norm) = (b.residual, b.attn, self.norm);
            if let Some(next) = self.layers.get(i + 1) {
                next_norm = next.input_norm;
            } else if wanted.is_empty() {
                return;
            }
            backend.attend(b.qkv, i, &layer.rope_store.shape, attn);
            if i + 1 == self.layers.len() && wanted.len() < rows {
                backend.gather(b.residual, wanted, b.residual_wanted);
                backend.gather(b.attn, wanted, b.attn_wanted);
                (residual, attn) = (b.residual_wanted, b.attn_wanted);
            }
            backend.linear(attn, layer.o.weight, layer.o.bias, b.delta);
            backend.add_rmsnorm(residual, b.delta, layer.mlp_norm, eps, b.normed);
            backend.linear(b.normed, layer.gate_up.weight, layer.gate_up.bias, b.gate_up);
            backend.silu_mul(b.gate_up, b.act);
            backend.linear(b.act, layer.down.weight, layer.down.bias, b.delta);
            backend.add_rmsnorm(residual, b.delta, next_norm, eps, b.normed);
        }
    }

    fn sliced_logits(&self, backend: &mut dyn Backend, rows: usize, take: &mut TakeLogits<'_>) {
        let b = &self.buffers;
        for start in (0..rows).step_by(b.logit_rows) {
            let slice = start..(start + b.logit_rows).min(rows);
            let picks: Vec<u32> = slice.clone().map(|r| r as u32).collect();
            backend.gather(b.normed, &picks, b.picked);
            backend.linear(b.picked, self.head, None, b.logits);
            take(backend, b.logits, slice);
        }
    }
}
