//! [`CudaBackend`]: the trait's ops as launches.
//!
//! An op finds its operands, says how many rows the output holds and launches one kernel (attention and draws:
//! two or three). Rows are counted on the device as well, so that the launches of a decode step can be
//! recorded once per bucket and replayed (see `replay`).
//!
//! Products go to cuBLASLt under [`Determinism::Fast`], where it is present; the own kernels compute every
//! output element in one chain along k whatever the number of rows, which is what makes a cache hit and a
//! miss equal bit for bit.

use std::cell::RefCell;
use std::collections::HashSet;

use super::attention::{Attention, Extent};
use super::copies::Copies;
use super::driver::{DevicePtr, Driver, Gemm, Launch, OutType, Swizzle, TensorMapSpec};
use super::ledger;
use super::linear_plan::{self, LinearBoxes, LinearFamily};
use super::memory::Buffer;
use super::pages::{self, DevicePages};
use super::params::act::SiluMulParams;
use super::params::linear::{LinearOutput, LinearParams, LinearSm90Params};
use super::params::norm::{AddRmsNormParams, RmsNormParams};
use super::params::rope_store::{self, RopeStoreParams};
use super::params::rows::{EmbedParams, GatherParams};
use super::prefix_groups::SharingRule;
use super::replay::{Course, ROWS_MAX, Recordings, bucket};
use super::rope::Angles;
use super::sampling::Sampler;
use super::step::{Live, StepArrays};
use super::weights::{self, Linear, Vector};
use crate::{
    AttentionShape, Backend, BackendInfo, Batch, BufferId, Copied, CopyBatch, DeviceLost, DevicePlan,
    HostTensor, KernelError, KvShape, KvType, LinearId, MemoryNeeds, Precision, Replay, RopeId, RopeStore,
    RopeTable, SampleRow, Sampled, StepLimits, VectorId, WeightForm,
};

/// What products may depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Determinism {
    /// Fastest algorithm per shape: a row's bits may depend on how many rows are beside it.
    #[default]
    Fast,
    /// A row's bits depend on the row alone.
    Strict,
}

/// How to run on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    pub determinism: Determinism,
    /// Record decode steps and replay them.
    pub graphs: bool,
    /// Which shared prefixes attention reads once for several sequences (cascade); `None` = none. The bits
    /// are the same either way.
    pub sharing: Option<SharingRule>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { determinism: Determinism::Fast, graphs: true, sharing: Some(SharingRule::default()) }
    }
}

/// The CUDA backend.
pub struct CudaBackend {
    driver: Box<dyn Driver>,
    options: CudaOptions,
    limits: Option<StepLimits>,
    linears: Vec<Linear>,
    vectors: Vec<Vector>,
    ropes: Vec<Angles>,
    buffers: Vec<(Buffer, Live)>,
    pages: Option<DevicePages>,
    step: Option<StepArrays>,
    attention: Option<Attention>,
    sampler: Option<Sampler>,
    recordings: Recordings,
    copies: RefCell<Copies>,
    /// Where pages are copied from and to without a step's waiting.
    pinned: Vec<(usize, usize)>,
    /// By weights.
    allocated: u64,
}

impl CudaBackend {
    pub fn new(driver: Box<dyn Driver>, options: CudaOptions) -> Self {
        let copies = RefCell::new(Copies::new(&*driver));
        Self {
            driver,
            options,
            limits: None,
            linears: Vec::new(),
            vectors: Vec::new(),
            ropes: Vec::new(),
            buffers: Vec::new(),
            pages: None,
            step: None,
            attention: None,
            sampler: None,
            recordings: Recordings::new(),
            copies,
            pinned: Vec::new(),
            allocated: 0,
        }
    }

    fn pages(&self) -> &DevicePages {
        self.pages.as_ref().expect("kv_pool comes before ops that touch pages")
    }

    fn step(&self) -> &StepArrays {
        self.step.as_ref().expect("kv_pool comes before a step")
    }

    /// Rows to launch for, where `rows` are live.
    fn grid_rows(&self, rows: usize) -> u32 {
        self.recordings.present().unwrap_or(rows) as u32
    }

    fn launch(&self, launch: &Launch<'_>) {
        if !launch.grid.contains(&0) {
            self.driver.launch(launch); // a grid of nothing is an error to the driver
        }
    }

    /// Input and output of an op that keeps the rows: the output now holds as many.
    fn pass(&mut self, x: BufferId, out: BufferId) -> (usize, Live) {
        let (rows, live) = (self.buffers[x.0].0.rows, self.buffers[x.0].1);
        let (buffer, of) = &mut self.buffers[out.0];
        buffer.resize(rows);
        *of = live;
        (rows, live)
    }

    /// A step that failed while it was recorded left the stream recording: nothing would run any more.
    fn end_recording(&mut self) {
        if self.recordings.abandon() {
            self.driver.abandon();
        }
    }

    fn buffer_of(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0].0
    }

    /// True if a step like the present one may be recorded: each row is the next token of its sequence, and
    /// all want their logits, so that no list of rows is uploaded halfway.
    fn is_recordable(&self, wanted: usize) -> bool {
        let rows = self.step().rows();
        let decodes = self.step().spans.iter().all(|span| span.rows == 1);
        self.options.graphs && decodes && wanted == rows && rows <= ROWS_MAX.min(self.logit_rows())
    }

    /// Pages that work reads or writes outside of a step.
    fn guard_pages(&self, pages: &[u32]) {
        self.copies.borrow_mut().guard_pages(&*self.driver, pages);
    }

    /// The step waits for copies of the pages that it reads, and of those that it writes.
    fn guard_step(&self, batch: &Batch<'_>) {
        let mut copies = self.copies.borrow_mut();
        if copies.is_idle() {
            return;
        }
        let page_tokens = self.pages().shape().page_tokens;
        let (mut read, mut written) = (HashSet::<u32>::new(), HashSet::<u32>::new());
        for span in batch.spans {
            let of = |token: u32| span.table as usize + token as usize / page_tokens;
            let (first, last) = (of(span.start), of(span.start + span.rows - 1));
            read.extend(&batch.page_table[span.table as usize..first]);
            written.extend(&batch.page_table[first..=last]);
        }
        copies.guard(&*self.driver, |page| read.contains(&page), |page| written.contains(&page));
    }

    /// The bytes of a page in memory that stays mapped: what a copy may use after the call.
    fn is_lasting(&self, bytes: &[u8]) -> bool {
        let (from, to) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
        self.pinned.iter().any(|&(start, end)| start <= from && to <= end)
    }

    /// A product by the library; false if it has to be done here.
    fn library(&self, x: BufferId, weight: &Linear, bias: Option<Vector>, out: BufferId, rows: u32) -> bool {
        let out = self.buffer_of(out);
        // The library multiplies e4m3 by e4m3 only, and activations of 8 bits show in the logits.
        self.options.determinism == Determinism::Fast
            && !weight.is_e4m3()
            && self.driver.gemm(&Gemm {
                x: self.buffer_of(x).at,
                w: weight.at,
                bias: bias.map_or(DevicePtr::NULL, |b| b.narrow),
                out: out.at,
                // Buffers have room for whole buckets; one algorithm serves each, chosen when it first runs.
                rows: bucket(rows as usize) as u32,
                n: weight.n as u32,
                k: weight.k as u32,
                out_type: match out.precision {
                    Precision::Full => OutType::F32,
                    Precision::Half => OutType::Bf16,
                },
            })
    }

    /// A product by our kernels. One family for all row counts of a device: that is what keeps the bits.
    fn product(&self, x: &Buffer, weight: &Linear, out: LinearOutput, rows_live: DevicePtr, rows: u32) {
        let device = self.driver.device();
        let family = match (weight.is_e4m3(), device.arch.is_hopper()) {
            (true, _) => LinearFamily::Fp8,
            (false, true) => LinearFamily::Wgmma,
            (false, false) => LinearFamily::Mma,
        };
        let plan = linear_plan::plan(family, rows, out.n, weight.k as u32, device.sms);
        let launch = |params: &[u8]| {
            let (kernel, grid, block, smem) = (plan.kernel, plan.grid, plan.block, plan.smem);
            self.launch(&Launch { kernel, grid, block, smem, params });
        };
        let (at, k) = (x.expect(Precision::Half), weight.k as u32);
        match plan.boxes {
            None => launch(bytemuck::bytes_of(&LinearParams {
                x: at,
                w: weight.at,
                scale: weight.scales,
                rows_live,
                out,
                k,
                padding: 0,
            })),
            Some(LinearBoxes { x_rows, w_rows }) => {
                let map = |base, rows, tile| self.driver.tensor_map(&matrix(base, rows, weight.k, tile));
                let (x, w) = (map(at, x.rows_max, x_rows), map(weight.at, weight.n, w_rows));
                launch(bytemuck::bytes_of(&LinearSm90Params { x, w, rows_live, out, k, padding: [0; 5] }));
            }
        }
    }
}

/// Boxes of `tile` rows by 64 columns of a bf16 matrix.
fn matrix(base: DevicePtr, rows: usize, cols: usize, tile: u32) -> TensorMapSpec {
    TensorMapSpec {
        base,
        dims: [cols as u64, rows as u64, 1, 1],
        strides: [cols as u64 * 2, 0, 0],
        boxes: [64, tile, 1, 1],
        rank: 2,
        swizzle: Swizzle::Bytes128,
    }
}

impl Backend for CudaBackend {
    fn info(&self) -> BackendInfo {
        let device = self.driver.device();
        let isa = match (device.arch.is_hopper(), self.options.determinism) {
            (true, Determinism::Fast) => "sm_90a",
            (true, Determinism::Strict) => "sm_90a strict",
            (false, Determinism::Fast) => "mma",
            (false, Determinism::Strict) => "mma strict",
        };
        BackendInfo { name: "cuda", isa, threads: device.sms as usize }
    }

    fn check_form(&self, form: WeightForm) -> Result<(), KernelError> {
        weights::check_form(form)
    }

    fn check_kv(&self, kind: KvType, head_dim: usize) -> Result<(), KernelError> {
        pages::check_kind(kind, head_dim)
    }

    fn linear_weight(&mut self, parts: &[HostTensor<'_>], form: WeightForm) -> Result<LinearId, KernelError> {
        let linear = Linear::load(&*self.driver, parts, form)?;
        self.allocated += linear.bytes() as u64;
        self.linears.push(linear);
        Ok(LinearId(self.linears.len() - 1))
    }

    fn vector(&mut self, parts: &[HostTensor<'_>]) -> Result<VectorId, KernelError> {
        let vector = Vector::load(&*self.driver, parts)?;
        self.allocated += 6 * vector.len as u64;
        self.vectors.push(vector);
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn rope_table(&mut self, table: &RopeTable) -> Result<RopeId, KernelError> {
        self.ropes.push(Angles::new(&*self.driver, table)?);
        Ok(RopeId(self.ropes.len() - 1))
    }

    fn limits(&mut self, limits: StepLimits) -> Result<(), KernelError> {
        self.limits = Some(limits);
        Ok(())
    }

    fn buffer(
        &mut self,
        rows_max: usize,
        cols: usize,
        precision: Precision,
    ) -> Result<BufferId, KernelError> {
        self.buffers.push((Buffer::new(&*self.driver, rows_max, cols, precision)?, Live::Rows));
        Ok(BufferId(self.buffers.len() - 1))
    }

    fn kv_pool(&mut self, shape: KvShape) -> Result<(), KernelError> {
        assert!(self.pages.is_none(), "the pool is made once");
        let limits = self.limits.unwrap_or(StepLimits {
            rows: self.buffers.iter().map(|(b, _)| b.rows_max).max().unwrap_or(1),
            seqs: 64,
            positions: shape.pages * shape.page_tokens,
            heads: 64 * shape.kv_heads,
        });
        self.step = Some(StepArrays::new(&*self.driver, limits, shape.page_tokens)?);
        let sms = self.driver.device().sms;
        self.attention = Some(Attention::new(&*self.driver, sms, limits, &shape, self.options.sharing)?);
        self.sampler = Some(Sampler::new(&*self.driver, limits.rows.min(self.logit_rows()))?);
        self.pages = Some(DevicePages::new(&*self.driver, shape)?);
        Ok(())
    }

    fn weight_bytes(&self) -> u64 {
        self.allocated
    }

    fn plan(&self, needs: &MemoryNeeds) -> Result<Option<DevicePlan>, KernelError> {
        let (device, free) = (self.driver.device(), self.driver.free_bytes());
        ledger::plan(device, free, self.logit_rows(), needs).map(Some)
    }

    fn reserve(&mut self, plan: &DevicePlan) -> Result<(), KernelError> {
        self.driver.reserve(plan.weights + plan.buffers)
    }

    fn holds_f32(&self) -> bool {
        false
    }

    fn logit_rows(&self) -> usize {
        256
    }

    fn pin_host(&mut self, start: *const u8, bytes: usize) -> bool {
        self.pinned.push((start as usize, start as usize + bytes));
        self.driver.pin(start, bytes)
    }

    fn begin(&mut self, batch: &Batch<'_>) {
        self.end_recording();
        let shape = *self.pages().shape();
        batch.check(shape.page_tokens, shape.pages, usize::MAX);
        let step = self.step.as_mut().expect("kv_pool comes before a step");
        step.fill(&*self.driver, batch, shape.page_tokens);
        if let Some(&last) = step.host_positions.iter().max() {
            self.ropes.iter_mut().for_each(|rope| rope.fill_to(&*self.driver, last as usize));
        }
        let attention = self.attention.as_mut().expect("kv_pool makes it");
        attention.begin(&*self.driver, step, shape.page_tokens);
        self.guard_step(batch);
    }

    fn replay(&mut self, wanted: usize) -> Replay {
        if !self.is_recordable(wanted) {
            return Replay::Run;
        }
        let rows = self.step().rows();
        let attention = self.attention.as_ref().expect("kv_pool makes it");
        if !attention.fits(&*self.driver, bucket(rows)) {
            return Replay::Run;
        }
        let merges = attention.merges();
        match self.recordings.course(rows, merges) {
            Course::Run => Replay::Run,
            Course::Record => {
                self.driver.record();
                Replay::Record
            }
            Course::Replay(graph) => {
                self.driver.replay(graph);
                for (buffer, live) in &mut self.buffers {
                    buffer.rows = rows.min(buffer.rows_max);
                    *live = Live::Rows;
                }
                Replay::Done
            }
        }
    }

    fn recorded(&mut self) -> bool {
        let graph = self.driver.recorded();
        self.recordings.keep(graph);
        graph.inspect(|&graph| self.driver.replay(graph)).is_some()
    }

    fn embed(&mut self, table: LinearId, out: BufferId) {
        let rows = self.step().rows();
        let (buffer, live) = &mut self.buffers[out.0];
        buffer.resize(rows);
        *live = Live::Rows;
        let (table, out) = (&self.linears[table.0], self.buffer_of(out));
        assert!(table.k == out.cols && !table.is_e4m3(), "a table is bf16 rows of the buffer's width");
        let params = EmbedParams {
            table: table.at,
            tokens: self.step().tokens.at(),
            rows_live: self.step().live(Live::Rows),
            out: out.expect(Precision::Full),
            cols: out.cols as u32,
            pad: 0,
        };
        self.launch(&params.launch(self.grid_rows(rows)));
    }

    fn rmsnorm(&mut self, x: BufferId, weight: VectorId, eps: f32, out: BufferId) {
        let (rows, live) = self.pass(x, out);
        let (x, out) = (self.buffer_of(x), self.buffer_of(out));
        assert!(x.cols == out.cols && self.vectors[weight.0].len == x.cols);
        let params = RmsNormParams {
            x: x.expect(Precision::Full),
            weight: self.vectors[weight.0].at,
            out: out.expect(Precision::Half),
            rows_live: self.step().live(live),
            eps,
            cols: x.cols as u32,
        };
        self.launch(&params.launch(self.grid_rows(rows)));
    }

    fn add_rmsnorm(
        &mut self,
        residual: BufferId,
        delta: BufferId,
        weight: VectorId,
        eps: f32,
        out: BufferId,
    ) {
        let (rows, live) = self.pass(residual, out);
        let [residual, delta, out] = [residual, delta, out].map(|id| self.buffer_of(id));
        assert!(delta.rows == rows && residual.cols == delta.cols && residual.cols == out.cols);
        let params = AddRmsNormParams {
            residual: residual.expect(Precision::Full),
            delta: delta.expect(Precision::Half),
            weight: self.vectors[weight.0].at,
            out: out.expect(Precision::Half),
            rows_live: self.step().live(live),
            eps,
            cols: residual.cols as u32,
        };
        self.launch(&params.launch(self.grid_rows(rows)));
    }

    fn linear(&mut self, x: BufferId, weight: LinearId, bias: Option<VectorId>, out: BufferId) {
        let (rows, live) = self.pass(x, out);
        let weight = self.linears[weight.0];
        let bias = bias.map(|b| self.vectors[b.0]);
        assert!(self.buffer_of(x).cols == weight.k && self.buffer_of(out).cols == weight.n);
        let rows = self.grid_rows(rows);
        if rows == 0 || self.library(x, &weight, bias, out, rows) {
            return;
        }
        let (x, out) = (self.buffer_of(x), self.buffer_of(out));
        let output = LinearOutput {
            data: out.at,
            bias: bias.map_or(DevicePtr::NULL, |b| b.at),
            n: weight.n as u32,
            stride: weight.n as u32,
            is_f32: u32::from(out.precision == Precision::Full),
            padding: 0,
        };
        self.product(x, &weight, output, self.step().live(live), rows);
    }

    fn rope_store(&mut self, qkv: BufferId, layer: usize, spec: &RopeStore) {
        let buffer = self.buffer_of(qkv);
        let shape = &spec.shape;
        assert_eq!(buffer.cols, shape.qkv_cols());
        let angles = spec.rope.map(|r| &self.ropes[r.0]);
        let norm = |id: Option<VectorId>| id.map_or(DevicePtr::NULL, |v| self.vectors[v.0].at);
        let (page_stride, v_offset, head_stride) = self.pages().strides();
        let params = RopeStoreParams {
            qkv: buffer.expect(Precision::Half),
            rows_live: self.step().live(Live::Rows),
            positions: self.step().positions.at(),
            row_pages: self.step().row_pages.at(),
            angles: angles.map_or(DevicePtr::NULL, Angles::at),
            q_norm: norm(spec.q_norm),
            k_norm: norm(spec.k_norm),
            kv: self.pages().layer(layer),
            page_stride,
            v_offset,
            head_stride,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            pairs: angles.map_or(0, |a| a.pairs() as u32),
            page_tokens: self.pages().shape().page_tokens as u32,
            lanes: rope_store::lanes(shape.head_dim as u32),
            eps: spec.eps,
            pad: 0,
        };
        let rows = self.grid_rows(buffer.rows);
        match self.pages().shape().kind {
            KvType::E4m3 => self.launch(&params.launch_e4m3(rows)),
            _ => self.launch(&params.launch(rows)),
        }
    }

    fn attend(&mut self, qkv: BufferId, layer: usize, shape: &AttentionShape, out: BufferId) {
        let (_, live) = self.pass(qkv, out);
        assert_eq!(live, Live::Rows, "attention is of all rows of the step");
        let recorded = self.recordings.present().is_some();
        let extent = Extent { rows: self.grid_rows(self.buffer_of(qkv).rows) as usize, recorded };
        let Self { driver, attention, step, pages, buffers, .. } = self;
        let made = "kv_pool makes it";
        let (step, pages) = (step.as_ref().expect(made), pages.as_ref().expect(made));
        let operands = (&buffers[qkv.0].0, &buffers[out.0].0);
        attention.as_mut().expect(made).run(&**driver, step, pages, layer, shape, extent, operands);
    }

    fn silu_mul(&mut self, gate_up: BufferId, out: BufferId) {
        let (rows, live) = self.pass(gate_up, out);
        let (gate_up, out) = (self.buffer_of(gate_up), self.buffer_of(out));
        assert_eq!(gate_up.cols, 2 * out.cols);
        let params = SiluMulParams {
            gate_up: gate_up.expect(Precision::Half),
            out: out.expect(Precision::Half),
            rows_live: self.step().live(live),
            cols: out.cols as u32,
            pad: 0,
        };
        self.launch(&params.launch(self.grid_rows(rows)));
    }

    fn gather(&mut self, x: BufferId, rows: &[u32], out: BufferId) {
        assert!(self.recordings.present().is_none(), "a recorded step picks no rows");
        let (buffer, live) = &mut self.buffers[out.0];
        buffer.resize(rows.len());
        *live = Live::Wanted;
        let picks = self.step().pick(&*self.driver, rows);
        let (x, out) = (self.buffer_of(x), self.buffer_of(out));
        assert!(x.cols == out.cols && x.precision == out.precision);
        let params = GatherParams {
            x: x.at,
            rows: picks,
            rows_live: self.step().live(Live::Wanted),
            out: out.at,
            cols: x.cols as u32,
            pad: 0,
        };
        let rows = rows.len() as u32;
        match x.precision {
            Precision::Full => self.launch(&params.launch_f32(rows)),
            Precision::Half => self.launch(&params.launch_bf16(rows)),
        }
    }

    fn sample(&mut self, logits: BufferId, rows: &[SampleRow<'_>]) -> Vec<Sampled> {
        let (logits, live) = &self.buffers[logits.0];
        assert_eq!(logits.rows, rows.len(), "one SampleRow per row of logits");
        let sampler = self.sampler.as_mut().expect("kv_pool makes it");
        let live = self.step.as_ref().expect("a step").live(*live);
        sampler.draw(&*self.driver, logits, live, rows)
    }

    fn end(&mut self) {}

    fn check_device(&self) -> Result<(), DeviceLost> {
        self.driver.check()
    }

    fn read(&self, buffer: BufferId) -> Vec<f32> {
        self.buffer_of(buffer).read(&*self.driver)
    }
    fn write(&mut self, buffer: BufferId, rows: usize, data: &[f32]) {
        self.buffers[buffer.0].0.write(&*self.driver, rows, data);
        self.buffers[buffer.0].1 = Live::Rows;
    }
    fn page_copy(&mut self, pairs: &[(u32, u32)]) {
        self.guard_pages(&pairs.iter().flat_map(|&(from, to)| [from, to]).collect::<Vec<u32>>());
        self.pages().copy(&*self.driver, pairs);
    }
    fn page_zero(&mut self, pages: &[u32]) {
        self.end_recording(); // a restart begins here
        self.guard_pages(pages);
        self.pages().zero(&*self.driver, pages);
    }
    fn page_unclean(&self, pages: &[u32]) -> Vec<u32> {
        self.guard_pages(pages);
        self.pages().unclean(&*self.driver, pages)
    }
    fn page_read(&self, page: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.pages().shape().page_bytes()];
        self.page_read_into(page, &mut bytes);
        bytes
    }
    fn page_read_into(&self, page: u32, out: &mut [u8]) {
        self.guard_pages(&[page]);
        self.pages().read(&*self.driver, page, out);
    }
    fn page_write(&mut self, page: u32, bytes: &[u8]) {
        self.guard_pages(&[page]);
        self.pages().write(&*self.driver, page, bytes);
    }

    fn copies_beside(&self) -> bool {
        true
    }

    fn page_save(&mut self, page: u32, out: &mut [u8]) {
        assert_eq!(out.len(), self.pages().shape().page_bytes());
        if !self.is_lasting(out) {
            return self.page_read_into(page, out);
        }
        self.copies.get_mut().save(&*self.driver, page, out.len());
        let from = self.pages().page(page);
        // SAFETY: whoever gave the memory to `pin_host` keeps it mapped, and nobody else is in it until the batch has
        // arrived.
        unsafe { self.driver.fetch(from, out) };
    }

    fn page_restore(&mut self, page: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.pages().shape().page_bytes());
        if !self.is_lasting(bytes) {
            return self.page_write(page, bytes);
        }
        self.copies.get_mut().restore(&*self.driver, page, bytes.len());
        let to = self.pages().page(page);
        // SAFETY: whoever gave the memory to `pin_host` keeps it mapped.
        unsafe { self.driver.send(to, bytes) };
    }

    fn end_batch(&mut self) -> Option<CopyBatch> {
        self.copies.get_mut().end_batch(&*self.driver)
    }
    fn has_arrived(&mut self, batch: CopyBatch) -> bool {
        self.copies.get_mut().has_arrived(&*self.driver, batch)
    }
    fn wait_for(&mut self, batch: CopyBatch) {
        self.copies.get_mut().wait(&*self.driver, batch);
    }
    fn take_copied(&mut self) -> Copied {
        self.copies.get_mut().take_copied()
    }
}
