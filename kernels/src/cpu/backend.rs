//! [`CpuBackend`]: the trait's ops over this module's kernels.
//!
//! It owns what the ops share (pool, instruction set, weights, buffers, pages, the step) and does no
//! arithmetic itself: each op finds its operands, sets how many rows the output holds, and calls a kernel.
//! The trait is called from one thread; parallelism is inside the ops.

use super::arena::{Buffer, RowsMut, Slab, StepRows};
use super::attend::{AttendInput, Attention};
use super::cores;
use super::isa::Isa;
use super::linear::{Form, Linear, Machine, Scratch, linear};
use super::pages::{self, KvPages};
use super::pool::{Pool, share};
use super::rope::{HeadPass, RopeAngles, rope_store};
use super::{act, norm};
use crate::{
    AttentionShape, Backend, BackendInfo, Batch, BufferId, HostTensor, KernelError, KvShape, KvType,
    LinearId, Precision, RopeId, RopeStore, RopeTable, SampleRow, Sampled, VectorId, WeightForm, sample,
};

/// How to run on this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuOptions {
    /// Workers, the calling thread included.
    pub threads: usize,
    /// Use this instruction set instead of the best one.
    pub isa: Option<Isa>,
}

impl Default for CpuOptions {
    /// One worker per physical core, the best instructions.
    fn default() -> Self {
        Self { threads: cores::physical(), isa: None }
    }
}

/// The CPU backend.
pub struct CpuBackend {
    pool: Pool,
    isa: Isa,
    slab: Slab,
    linears: Vec<Linear>,
    vectors: Vec<Vec<f32>>,
    ropes: Vec<RopeAngles>,
    buffers: Vec<Buffer>,
    pages: Option<KvPages>,
    step: StepRows,
    scratch: Scratch,
    attention: Attention,
}

impl CpuBackend {
    pub fn new(options: CpuOptions) -> Result<Self, KernelError> {
        Ok(Self {
            isa: Isa::choose(options.isa)?,
            pool: Pool::new(options.threads)?,
            slab: Slab::default(),
            linears: Vec::new(),
            vectors: Vec::new(),
            ropes: Vec::new(),
            buffers: Vec::new(),
            pages: None,
            step: StepRows::default(),
            scratch: Scratch::new()?,
            attention: Attention::new(),
        })
    }

    fn pages(&self) -> &KvPages {
        self.pages.as_ref().expect("kv_pool comes before ops that touch pages")
    }
    fn pages_mut(&mut self) -> &mut KvPages {
        self.pages.as_mut().expect("kv_pool comes before ops that touch pages")
    }
}

/// An input and another buffer as output.
fn two(buffers: &mut [Buffer], x: BufferId, out: BufferId) -> (&Buffer, &mut Buffer) {
    let [x, out] = buffers.get_disjoint_mut([x.0, out.0]).expect("input and output are two buffers");
    (x, out)
}

/// Runs `work(row)` for all rows, on the pool if they are worth a fork.
fn each_row(pool: &Pool, rows: usize, work: &(dyn Fn(usize) + Sync)) {
    if rows == 1 {
        return work(0);
    }
    pool.run(&|worker, workers| share(rows, 1, worker, workers).for_each(work));
}

impl Backend for CpuBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo { name: "cpu", isa: self.isa.name(), threads: self.pool.workers() }
    }

    fn check_form(&self, form: WeightForm) -> Result<(), KernelError> {
        Form::try_from(form).map(drop)
    }

    fn check_kv(&self, kind: KvType, _head_dim: usize) -> Result<(), KernelError> {
        pages::check_kind(kind)
    }

    fn linear_weight(&mut self, parts: &[HostTensor<'_>], form: WeightForm) -> Result<LinearId, KernelError> {
        let form = Form::try_from(form)?;
        self.linears.push(Linear::load(parts, form, self.isa, &self.pool, &mut self.slab)?);
        Ok(LinearId(self.linears.len() - 1))
    }

    fn vector(&mut self, parts: &[HostTensor<'_>]) -> Result<VectorId, KernelError> {
        let mut vector = vec![0.0; parts.iter().map(|p| p.rows() * p.cols()).sum()];
        let mut rest = vector.as_mut_slice();
        for (part, row) in parts.iter().flat_map(|p| (0..p.rows()).map(move |row| (p, row))) {
            let (out, after) = rest.split_at_mut(part.cols());
            part.read_row(row, out);
            rest = after;
        }
        self.vectors.push(vector);
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn rope_table(&mut self, table: &RopeTable) -> Result<RopeId, KernelError> {
        self.ropes.push(RopeAngles::new(table)?);
        Ok(RopeId(self.ropes.len() - 1))
    }

    fn buffer(
        &mut self,
        rows_max: usize,
        cols: usize,
        _precision: Precision,
    ) -> Result<BufferId, KernelError> {
        self.buffers.push(Buffer::new(rows_max, cols)?);
        self.scratch.reserve(rows_max, cols, self.pool.workers())?;
        Ok(BufferId(self.buffers.len() - 1))
    }

    fn kv_pool(&mut self, shape: KvShape) -> Result<(), KernelError> {
        assert!(self.pages.is_none(), "the pool is made once");
        self.pages = Some(KvPages::new(shape)?);
        Ok(())
    }

    fn weight_bytes(&self) -> u64 {
        let linears: usize = self.linears.iter().map(Linear::bytes).sum();
        let vectors: usize = self.vectors.iter().map(|v| v.len() * 4).sum();
        (linears + vectors) as u64
    }

    fn begin(&mut self, batch: &Batch<'_>) {
        if let Some(pages) = &self.pages {
            // The vocabulary is the table's, and `embed` checks against it.
            batch.check(pages.shape().page_tokens, pages.shape().pages, usize::MAX);
        }
        self.step.fill(batch);
        let last = self.step.positions.iter().max().map_or(0, |&p| p as usize);
        if !self.step.positions.is_empty() {
            self.ropes.iter_mut().for_each(|rope| rope.fill_to(last));
        }
        self.pool.begin();
    }

    fn embed(&mut self, table: LinearId, out: BufferId) {
        let (tokens, table, slab) = (&self.step.tokens, &self.linears[table.0], &self.slab);
        let out = self.buffers[out.0].resize(tokens.len());
        each_row(&self.pool, tokens.len(), &|row| {
            // SAFETY: each row belongs to one worker.
            table.read_row(slab, tokens[row] as usize, unsafe { out.row(row) });
        });
    }

    fn rmsnorm(&mut self, x: BufferId, weight: VectorId, eps: f32, out: BufferId) {
        let (x, out) = two(&mut self.buffers, x, out);
        let out = out.resize(x.rows);
        norm::rmsnorm(&self.pool, self.isa, x.view(), &self.vectors[weight.0], eps, out);
    }

    fn add_rmsnorm(
        &mut self,
        residual: BufferId,
        delta: BufferId,
        weight: VectorId,
        eps: f32,
        out: BufferId,
    ) {
        let ids = [residual.0, delta.0, out.0];
        let [residual, delta, out] = self.buffers.get_disjoint_mut(ids).expect("three buffers");
        let rows = residual.rows;
        let (residual, out) = (residual.resize(rows), out.resize(rows));
        let weight = &self.vectors[weight.0];
        norm::add_rmsnorm(&self.pool, self.isa, residual, delta.view(), weight, eps, out);
    }

    fn linear(&mut self, x: BufferId, weight: LinearId, bias: Option<VectorId>, out: BufferId) {
        let (x, out) = two(&mut self.buffers, x, out);
        let out = out.resize(x.rows);
        let machine = Machine { pool: &self.pool, isa: self.isa };
        let (weight, bias) = (&self.linears[weight.0], bias.map(|b| self.vectors[b.0].as_slice()));
        linear(machine, weight, &self.slab, &x.view(), bias, &out, &mut self.scratch);
    }

    fn rope_store(&mut self, qkv: BufferId, layer: usize, spec: &RopeStore) {
        let vector = |id: Option<VectorId>| id.map(|v| self.vectors[v.0].as_slice());
        let pass = HeadPass {
            shape: spec.shape,
            angles: spec.rope.map(|r| &self.ropes[r.0]),
            q_norm: vector(spec.q_norm),
            k_norm: vector(spec.k_norm),
            eps: spec.eps,
        };
        let pages = self.pages.as_mut().expect("kv_pool comes before rope_store").writer();
        let buffer = &mut self.buffers[qkv.0];
        let rows = buffer.resize(buffer.rows);
        rope_store(&self.pool, self.isa, &self.step, pages, layer, &pass, rows);
    }

    fn attend(&mut self, qkv: BufferId, layer: usize, shape: &AttentionShape, out: BufferId) {
        let (qkv, out) = two(&mut self.buffers, qkv, out);
        let out = out.resize(qkv.rows);
        let pages = self.pages.as_ref().expect("kv_pool comes before attend");
        let input = AttendInput { step: &self.step, pages, layer, shape: *shape, qkv: qkv.view() };
        self.attention.run(&self.pool, self.isa, &input, out);
    }

    fn silu_mul(&mut self, gate_up: BufferId, out: BufferId) {
        let (gate_up, out) = two(&mut self.buffers, gate_up, out);
        let out = out.resize(gate_up.rows);
        act::silu_mul(&self.pool, self.isa, gate_up.view(), out);
    }

    fn gather(&mut self, x: BufferId, rows: &[u32], out: BufferId) {
        let (x, out) = two(&mut self.buffers, x, out);
        let (x, out) = (x.view(), out.resize(rows.len()));
        for (i, &row) in rows.iter().enumerate() {
            // SAFETY: `out` is not shared.
            unsafe { out.row(i) }.copy_from_slice(x.row(row as usize));
        }
    }

    fn sample(&mut self, logits: BufferId, rows: &[SampleRow<'_>]) -> Vec<Sampled> {
        let buffer = &mut self.buffers[logits.0];
        assert_eq!(buffer.rows, rows.len(), "one SampleRow per row of logits");
        let logits = buffer.resize(rows.len());
        let mut drawn = vec![Sampled::default(); rows.len()];
        let results = RowsMut::new(&mut drawn, rows.len(), 1);
        each_row(&self.pool, rows.len(), &|row| {
            // SAFETY: each row belongs to one worker.
            let (logits, result) = unsafe { (logits.row(row), results.row(row)) };
            result[0] = sample::draw(logits, &rows[row]);
        });
        drawn
    }

    fn end(&mut self) {
        self.pool.end();
    }

    fn read(&self, buffer: BufferId) -> Vec<f32> {
        let view = self.buffers[buffer.0].view();
        view.data[..view.rows * view.cols].to_vec()
    }

    fn write(&mut self, buffer: BufferId, rows: usize, data: &[f32]) {
        let out = self.buffers[buffer.0].resize(rows);
        // SAFETY: `out` is not shared.
        unsafe { out.row_range(0..rows) }.copy_from_slice(data);
    }

    fn page_copy(&mut self, pairs: &[(u32, u32)]) {
        self.pages_mut().copy(pairs);
    }
    fn page_zero(&mut self, pages: &[u32]) {
        self.pages_mut().zero(pages);
    }
    fn page_unclean(&self, pages: &[u32]) -> Vec<u32> {
        pages.iter().copied().filter(|&page| !self.pages().is_zero(page)).collect()
    }
    fn page_read(&self, page: u32) -> Vec<u8> {
        self.pages().page(page).to_vec()
    }
    fn page_read_into(&self, page: u32, out: &mut [u8]) {
        out.copy_from_slice(self.pages().page(page));
    }
    fn page_write(&mut self, page: u32, bytes: &[u8]) {
        self.pages_mut().page_mut(page).copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HostType;

    fn tensor<'a>(values: &'a [f32], rows: usize, cols: usize) -> HostTensor<'a> {
        HostTensor::new(HostType::F32, rows, cols, bytemuck::cast_slice(values)).unwrap()
    }

    #[test]
    fn a_backend_says_what_it_runs_on() {
        let backend = CpuBackend::new(CpuOptions { threads: 2, isa: Some(Isa::Portable) }).unwrap();
        let info = backend.info();
        assert_eq!((info.name, info.isa, info.threads), ("cpu", "portable", 2));
    }

    #[test]
    fn tied_weights_serve_as_table_and_as_output_layer() {
        let mut backend = CpuBackend::new(CpuOptions { threads: 2, isa: None }).unwrap();
        let table: Vec<f32> = (0..40 * 32).map(|i| ((i * 13) % 31) as f32 - 15.0).collect();
        let id = backend.linear_weight(&[tensor(&table, 40, 32)], WeightForm::Bf16).unwrap();
        assert_eq!(backend.weight_bytes(), 64 * 32 * 2);
        let (hidden, logits) = (
            backend.buffer(4, 32, Precision::Full).unwrap(),
            backend.buffer(4, 40, Precision::Full).unwrap(),
        );
        backend.begin(&Batch { tokens: &[7, 39, 0], spans: &[], page_table: &[] });
        backend.embed(id, hidden);
        backend.linear(hidden, id, None, logits);
        backend.end();
        let (rows, dots) = (backend.read(hidden), backend.read(logits));
        for (r, token) in [7, 39, 0].into_iter().enumerate() {
            assert_eq!(rows[r * 32..][..32], table[token * 32..][..32]);
            for (o, want) in table.chunks(32).enumerate() {
                let want: f32 = want.iter().zip(&table[token * 32..]).map(|(a, b)| a * b).sum();
                assert_eq!(dots[r * 40 + o], want); // small integers: exact in any order
            }
        }
    }

    #[test]
    fn gather_sets_the_rows_it_picked() {
        let mut backend = CpuBackend::new(CpuOptions { threads: 1, isa: None }).unwrap();
        let (x, out) =
            (backend.buffer(8, 2, Precision::Full).unwrap(), backend.buffer(8, 2, Precision::Full).unwrap());
        backend.write(x, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        backend.gather(x, &[2, 0], out);
        assert_eq!(backend.read(out), [5.0, 6.0, 1.0, 2.0]);
    }

    #[test]
    fn vectors_stack_their_parts() {
        let mut backend = CpuBackend::new(CpuOptions { threads: 1, isa: None }).unwrap();
        let id = backend.vector(&[tensor(&[1.0, 2.0], 1, 2), tensor(&[3.0], 1, 1)]).unwrap();
        assert_eq!(backend.vectors[id.0], [1.0, 2.0, 3.0]);
    }
}
