//! The trait of coarse fused ops.
//!
//! Two phases. *Load*: weights are handed over once and come back as ids; buffers and the KV pool are
//! made once. *Step*: `begin(batch)`, ops, reads. A buffer remembers how many rows it holds: `embed`
//! sets the batch's rows, `gather` the rows it picked, every other op passes on its input's.
//!
//! Activations between ops are f32 rows on the CPU; what a backend rounds inside an op (bf16 inputs of
//! a dot product, int8 activations of a quantized linear) is a function of the row alone.

use crate::{
    AttentionShape, Batch, DeviceLost, DevicePlan, HostTensor, KernelError, KvShape, KvType, MemoryNeeds,
    SampleRow, Sampled, WeightForm,
};

/// A packed linear weight (`[out, in]`, possibly several stacked), also usable as embedding table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinearId(pub(crate) usize);
/// A vector held as f32: norm weight or bias.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VectorId(pub(crate) usize);
/// A table of rotary frequencies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RopeId(pub(crate) usize);
/// A matrix of activations in the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferId(pub(crate) usize);

/// What runs the ops, for the log, `quire doctor` and bench results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// `reference`, `cpu` or `cuda`.
    pub name: &'static str,
    /// `f64`, `avx512-bf16-vnni`, `avx2-fma`, `portable`, …
    pub isa: &'static str,
    pub threads: usize,
}

/// How exactly a buffer must hold its values; a backend may hold [`Precision::Half`] in bf16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Precision {
    /// f32 everywhere: the residual stream, logits.
    Full,
    /// What goes into and comes out of a linear op.
    Half,
}

/// The largest step that will come, told once before anything is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepLimits {
    pub rows: usize,
    pub seqs: usize,
    pub positions: usize,
    /// Query heads of a layer, at most.
    pub heads: usize,
}

/// Whether the ops of a step have to be issued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    /// Issue them.
    Run,
    /// Issue them, then say [`Backend::recorded`]: the next step like this one is replayed.
    Record,
    /// They have run.
    Done,
}

/// Rotary frequencies: dimension pair `i` of `0..inv_freq.len()` turns by `position * inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// One per rotated pair; fewer than `head_dim / 2` means partial rotary.
    pub inv_freq: Vec<f64>,
    /// Multiplies cos and sin (yarn and longrope's attention factor), else 1.
    pub magnitude: f64,
    /// Positions to tabulate.
    pub positions: usize,
}

impl RopeTable {
    /// Cosine and sine of each pair at `position`.
    pub(crate) fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((c, s), freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
            let (sine, cosine) = (position as f64 * freq).sin_cos();
            *c = (cosine * self.magnitude) as f32;
            *s = (sine * self.magnitude) as f32;
        }
    }
}

/// Copies that arrive together; later ones are larger.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CopyBatch(pub(crate) u64);

/// What was copied, and how long that took by the device's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub bytes: u64,
    pub took_ns: u64,
}

/// Parameters of [`Backend::rope_store`].
#[derive(Clone, Copy, Debug)]
pub struct RopeStore {
    pub shape: AttentionShape,
    /// `None` for layers without positions (SmolLM3's NoPE layers).
    pub rope: Option<RopeId>,
    /// Per-head rmsnorm of q and k before rotation (Qwen3).
    pub q_norm: Option<VectorId>,
    pub k_norm: Option<VectorId>,
    pub eps: f32,
}

/// The ops of a decoder-only transformer, fused as far as their data allows.
pub trait Backend: Send {
    fn info(&self) -> BackendInfo;

    // ---- load

    /// Refuses a form of weights that this backend has no kernels for, before any are read.
    fn check_form(&self, _form: WeightForm) -> Result<(), KernelError> {
        Ok(())
    }
    /// The same for the type of keys and values of heads of `head_dim`.
    fn check_kv(&self, _kind: KvType, _head_dim: usize) -> Result<(), KernelError> {
        Ok(())
    }
    /// Packs `parts` stacked along their rows (q|k|v, gate|up) into one linear weight.
    fn linear_weight(&mut self, parts: &[HostTensor<'_>], form: WeightForm) -> Result<LinearId, KernelError>;
    /// Stacks `parts` (each one row) into one f32 vector.
    fn vector(&mut self, parts: &[HostTensor<'_>]) -> Result<VectorId, KernelError>;
    fn rope_table(&mut self, table: &RopeTable) -> Result<RopeId, KernelError>;
    /// Before anything is made; a backend that plans nothing ahead ignores it.
    fn limits(&mut self, _limits: StepLimits) -> Result<(), KernelError> {
        Ok(())
    }
    /// A buffer of at most `rows_max` rows of `cols` values.
    fn buffer(&mut self, rows_max: usize, cols: usize, precision: Precision)
    -> Result<BufferId, KernelError>;
    /// Allocates the page pool; once.
    fn kv_pool(&mut self, shape: KvShape) -> Result<(), KernelError>;
    /// Bytes held by weights so far.
    fn weight_bytes(&self) -> u64;
    /// What `needs` take of a device with memory of its own, before any of it is taken; `None` = it is the
    /// host's, which is touched page by page.
    fn plan(&self, _needs: &MemoryNeeds) -> Result<Option<DevicePlan>, KernelError> {
        Ok(None)
    }
    /// Takes what a plan says, but for the pages and the reserve.
    fn reserve(&mut self, _plan: &DevicePlan) -> Result<(), KernelError> {
        Ok(())
    }
    /// Whether weights and pages can be held in f32.
    fn holds_f32(&self) -> bool {
        true
    }
    /// Rows of logits that are computed at once: reading the head's weights again costs more than the memory
    /// where there is much of it.
    fn logit_rows(&self) -> usize {
        64
    }
    /// Pages will be copied from and to these `bytes`, which stay mapped as long as the backend lives. False: the
    /// device will not reach them directly, and copies are slower.
    fn pin_host(&mut self, _start: *const u8, _bytes: usize) -> bool {
        true
    }

    // ---- step

    /// Starts a step. The batch is copied; workers wake.
    fn begin(&mut self, batch: &Batch<'_>);
    /// Whether the ops up to the logits of `wanted` rows were recorded in a step like this one.
    fn replay(&mut self, _wanted: usize) -> Replay {
        Replay::Run
    }
    /// All ops of a step that answered [`Replay::Record`] have been issued; now they run. False: they could
    /// not be recorded and have to be issued again.
    fn recorded(&mut self) -> bool {
        true
    }
    /// `out[r] = table[token_r]`.
    fn embed(&mut self, table: LinearId, out: BufferId);
    /// `out = rmsnorm(x) * weight`.
    fn rmsnorm(&mut self, x: BufferId, weight: VectorId, eps: f32, out: BufferId);
    /// `residual += delta; out = rmsnorm(residual) * weight`.
    fn add_rmsnorm(&mut self, residual: BufferId, delta: BufferId, weight: VectorId, eps: f32, out: BufferId);
    /// `out = x · weightᵀ (+ bias)`.
    fn linear(&mut self, x: BufferId, weight: LinearId, bias: Option<VectorId>, out: BufferId);
    /// On fused `[q | k | v]` rows: norm and rotate q and k by position, in place; write k and v into
    /// their pages of `layer`.
    fn rope_store(&mut self, qkv: BufferId, layer: usize, spec: &RopeStore);
    /// Attention of the q part of `qkv` over the pages of `layer`, causal, into `out` (`q_cols` wide).
    fn attend(&mut self, qkv: BufferId, layer: usize, shape: &AttentionShape, out: BufferId);
    /// On fused `[gate | up]` rows: `out = silu(gate) * up`.
    fn silu_mul(&mut self, gate_up: BufferId, out: BufferId);
    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, x: BufferId, rows: &[u32], out: BufferId);
    /// Draws one token per row of `logits`; `rows[i]` speaks of row `i`.
    fn sample(&mut self, logits: BufferId, rows: &[SampleRow<'_>]) -> Vec<Sampled>;
    /// Ends a step; workers go to sleep.
    fn end(&mut self);

    // ---- outside the hot path

    /// Whether the device still answers: asked after a failed step. What is lost stays lost for this process.
    fn check_device(&self) -> Result<(), DeviceLost> {
        Ok(())
    }

    /// The rows that `buffer` holds now.
    fn read(&self, buffer: BufferId) -> Vec<f32>;
    /// Overwrites the live rows of `buffer` (tests).
    fn write(&mut self, buffer: BufferId, rows: usize, data: &[f32]);
    /// Copies whole pages inside the pool.
    fn page_copy(&mut self, pairs: &[(u32, u32)]);
    /// Overwrites whole pages with zeros.
    fn page_zero(&mut self, pages: &[u32]);
    /// Those of `pages` that hold a byte other than zero.
    fn page_unclean(&self, pages: &[u32]) -> Vec<u32>;
    /// The raw bytes of one page, for tiers and tests.
    fn page_read(&self, page: u32) -> Vec<u8>;
    /// As [`Backend::page_read`], into `out`, which is as long as a page.
    fn page_read_into(&self, page: u32, out: &mut [u8]);
    fn page_write(&mut self, page: u32, bytes: &[u8]);

    // ---- pages beside the steps
    //
    // A backend whose device copies by itself begins these copies and returns; each step waits on the device for
    // those that it needs. The host's memory belongs to a copy until its batch has arrived.

    /// Whether copies run beside the steps.
    fn copies_beside(&self) -> bool {
        false
    }
    /// Copies a page to `out`, a page's bytes in memory that was given to [`Backend::pin_host`].
    fn page_save(&mut self, page: u32, out: &mut [u8]) {
        self.page_read_into(page, out);
    }
    /// Copies `bytes`, in memory that was given to [`Backend::pin_host`], to a page.
    fn page_restore(&mut self, page: u32, bytes: &[u8]) {
        self.page_write(page, bytes);
    }
    /// Ends a batch of saves and restores; `None`: all of it has arrived.
    fn end_batch(&mut self) -> Option<CopyBatch> {
        None
    }
    /// Whether a batch has arrived, and with it all before it.
    fn has_arrived(&mut self, _batch: CopyBatch) -> bool {
        true
    }
    /// Waits until a batch has arrived.
    fn wait_for(&mut self, _batch: CopyBatch) {}
    /// What arrived since the last call, of copies that run beside the steps.
    fn take_copied(&mut self) -> Copied {
        Copied::default()
    }
}
