//! The reference backend: every op in f64 with the plainest loop that states it.
//!
//! It is the oracle of the other backends, so it shares nothing with them but the trait and the
//! definition of a draw: no tiles, no threads, no lanes, no fused anything. What is *meaning* rather
//! than rounding is kept: weights are quantized by the same rule and widened again, and keys and values
//! are rounded to the pool's element type when they are stored. Limits: it holds eight bytes a weight
//! and is about a thousand times slower than the CPU backend.

mod attend;
mod pool;
mod weight;

use crate::{
    AttentionShape, Backend, BackendInfo, Batch, BufferId, HostTensor, KernelError, KvShape, LinearId,
    Precision, RopeId, RopeStore, RopeTable, SampleRow, Sampled, VectorId, WeightForm, sample,
};
use pool::Pool;
use weight::Weight;

/// A row-major matrix of activations and how many of its rows are live.
#[derive(Debug)]
struct Buffer {
    rows_max: usize,
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Buffer {
    fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }
    fn row_mut(&mut self, r: usize) -> &mut [f64] {
        &mut self.data[r * self.cols..(r + 1) * self.cols]
    }
}

/// Where one row of the step stands: its position and its sequence's page table.
#[derive(Clone, Copy, Debug)]
struct Place {
    position: usize,
    table: usize,
}

/// The oracle backend.
#[derive(Debug, Default)]
pub struct ReferenceBackend {
    weights: Vec<Weight>,
    vectors: Vec<Vec<f64>>,
    ropes: Vec<RopeTable>,
    buffers: Vec<Buffer>,
    pool: Option<Pool>,
    tokens: Vec<u32>,
    places: Vec<Place>,
    page_table: Vec<u32>,
}

impl ReferenceBackend {
    pub fn new() -> Self {
        Self::default()
    }

    fn pool(&self) -> &Pool {
        self.pool.as_ref().expect("kv_pool comes before ops that touch pages")
    }
    fn pool_mut(&mut self) -> &mut Pool {
        self.pool.as_mut().expect("kv_pool comes before ops that touch pages")
    }

    /// Runs `f(input row, output row)` over the rows of `x`, which `out` then holds as well.
    fn map_rows(&mut self, x: BufferId, out: BufferId, f: impl Fn(&[f64], &mut [f64])) {
        let rows = self.buffers[x.0].rows;
        self.set_rows(out, rows);
        for r in 0..rows {
            let input = self.buffers[x.0].row(r).to_vec();
            f(&input, self.buffers[out.0].row_mut(r));
        }
    }

    fn set_rows(&mut self, buffer: BufferId, rows: usize) {
        let b = &mut self.buffers[buffer.0];
        assert!(rows <= b.rows_max, "{rows} rows in a buffer of {}", b.rows_max);
        b.rows = rows;
    }
}

/// `x * rsqrt(mean(x²) + eps) * weight`.
fn rmsnorm(x: &[f64], weight: &[f64], eps: f32, out: &mut [f64]) {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
        *o = v * scale * w;
    }
}

/// Turns pair `(i, i + pairs)` of one head by `position * inv_freq[i]`.
fn rotate(head: &mut [f64], table: &RopeTable, position: usize) {
    let pairs = table.inv_freq.len();
    for (i, freq) in table.inv_freq.iter().enumerate() {
        let (sin, cos) = (position as f64 * freq).sin_cos();
        let (a, b) = (head[i], head[i + pairs]);
        head[i] = (a * cos - b * sin) * table.magnitude;
        head[i + pairs] = (b * cos + a * sin) * table.magnitude;
    }
}

impl Backend for ReferenceBackend {
    fn info(&self) -> BackendInfo {
        BackendInfo { name: "reference", isa: "f64", threads: 1 }
    }

    fn linear_weight(&mut self, parts: &[HostTensor<'_>], form: WeightForm) -> Result<LinearId, KernelError> {
        self.weights.push(Weight::stack(parts, form)?);
        Ok(LinearId(self.weights.len() - 1))
    }

    fn vector(&mut self, parts: &[HostTensor<'_>]) -> Result<VectorId, KernelError> {
        let rows: Vec<f64> = parts.iter().flat_map(weight::widened_rows).flatten().map(f64::from).collect();
        self.vectors.push(rows);
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn rope_table(&mut self, table: &RopeTable) -> Result<RopeId, KernelError> {
        self.ropes.push(table.clone());
        Ok(RopeId(self.ropes.len() - 1))
    }

    fn buffer(
        &mut self,
        rows_max: usize,
        cols: usize,
        _precision: Precision,
    ) -> Result<BufferId, KernelError> {
        self.buffers.push(Buffer { rows_max, rows: 0, cols, data: vec![0.0; rows_max * cols] });
        Ok(BufferId(self.buffers.len() - 1))
    }

    fn kv_pool(&mut self, shape: KvShape) -> Result<(), KernelError> {
        assert!(self.pool.is_none(), "the pool is made once");
        self.pool = Some(Pool::new(shape));
        Ok(())
    }

    fn weight_bytes(&self) -> u64 {
        let weights: usize = self.weights.iter().map(Weight::len).sum();
        let vectors: usize = self.vectors.iter().map(Vec::len).sum();
        8 * (weights + vectors) as u64
    }

    fn begin(&mut self, batch: &Batch<'_>) {
        if let Some(pool) = &self.pool {
            batch.check(pool.shape().page_tokens, pool.shape().pages, usize::MAX);
        }
        self.tokens = batch.tokens.to_vec();
        self.page_table = batch.page_table.to_vec();
        self.places = (batch.spans.iter())
            .flat_map(|s| (s.start..s.start + s.rows).map(|p| (p, s.table)))
            .map(|(position, table)| Place { position: position as usize, table: table as usize })
            .collect();
    }

    fn embed(&mut self, table: LinearId, out: BufferId) {
        self.set_rows(out, self.tokens.len());
        for (r, &token) in self.tokens.iter().enumerate() {
            self.buffers[out.0].row_mut(r).copy_from_slice(self.weights[table.0].row(token as usize));
        }
    }

    fn rmsnorm(&mut self, x: BufferId, weight: VectorId, eps: f32, out: BufferId) {
        let w = self.vectors[weight.0].clone();
        self.map_rows(x, out, |x, out| rmsnorm(x, &w, eps, out));
    }

    fn add_rmsnorm(
        &mut self,
        residual: BufferId,
        delta: BufferId,
        weight: VectorId,
        eps: f32,
        out: BufferId,
    ) {
        self.map_rows(delta, residual, |delta, residual| {
            residual.iter_mut().zip(delta).for_each(|(r, d)| *r += d);
        });
        self.rmsnorm(residual, weight, eps, out);
    }

    fn linear(&mut self, x: BufferId, weight: LinearId, bias: Option<VectorId>, out: BufferId) {
        let w = std::mem::take(&mut self.weights[weight.0]);
        let bias = bias.map(|b| self.vectors[b.0].clone());
        self.map_rows(x, out, |x, out| {
            for (o, y) in out.iter_mut().enumerate() {
                let dot: f64 = x.iter().zip(w.row(o)).map(|(a, b)| a * b).sum();
                *y = dot + bias.as_ref().map_or(0.0, |b| b[o]);
            }
        });
        self.weights[weight.0] = w;
    }

    fn rope_store(&mut self, qkv: BufferId, layer: usize, spec: &RopeStore) {
        let shape = spec.shape;
        let pool = self.pool.as_mut().expect("kv_pool comes before rope_store");
        for (r, place) in self.places.iter().enumerate() {
            let row = self.buffers[qkv.0].row_mut(r);
            for (h, head) in row.chunks_exact_mut(shape.head_dim).enumerate() {
                let norm = match h {
                    h if h < shape.heads => spec.q_norm,
                    h if h < shape.heads + shape.kv_heads => spec.k_norm,
                    _ => break,
                };
                if let Some(norm) = norm {
                    let raw = head.to_vec();
                    rmsnorm(&raw, &self.vectors[norm.0], spec.eps, head);
                }
                if let Some(rope) = spec.rope {
                    rotate(head, &self.ropes[rope.0], place.position);
                }
            }
            let page_tokens = pool.shape().page_tokens;
            let page = self.page_table[place.table + place.position / page_tokens] as usize;
            let (k, v) = row[shape.q_cols()..shape.qkv_cols()].split_at(shape.kv_cols());
            pool.store(page, layer, place.position % page_tokens, k, v);
        }
    }

    fn attend(&mut self, qkv: BufferId, layer: usize, shape: &AttentionShape, out: BufferId) {
        self.set_rows(out, self.places.len());
        for (r, place) in self.places.iter().enumerate() {
            let q = self.buffers[qkv.0].row(r)[..shape.q_cols()].to_vec();
            let pages = &self.page_table[place.table..];
            let row = attend::row(&q, place.position, pages, self.pool(), layer, shape);
            self.buffers[out.0].row_mut(r).copy_from_slice(&row);
        }
    }

    fn silu_mul(&mut self, gate_up: BufferId, out: BufferId) {
        self.map_rows(gate_up, out, |x, out| {
            let (gate, up) = x.split_at(out.len());
            for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
                *o = g / (1.0 + (-g).exp()) * u;
            }
        });
    }

    fn gather(&mut self, x: BufferId, rows: &[u32], out: BufferId) {
        self.set_rows(out, rows.len());
        for (i, &r) in rows.iter().enumerate() {
            let row = self.buffers[x.0].row(r as usize).to_vec();
            self.buffers[out.0].row_mut(i).copy_from_slice(&row);
        }
    }

    fn sample(&mut self, logits: BufferId, rows: &[SampleRow<'_>]) -> Vec<Sampled> {
        let cols = self.buffers[logits.0].cols;
        let mut values = self.read(logits);
        assert_eq!(values.len(), rows.len() * cols, "one SampleRow per row of logits");
        values.chunks_exact_mut(cols).zip(rows).map(|(l, row)| sample::draw(l, row)).collect()
    }

    fn end(&mut self) {}

    fn read(&self, buffer: BufferId) -> Vec<f32> {
        let b = &self.buffers[buffer.0];
        b.data[..b.rows * b.cols].iter().map(|&v| v as f32).collect()
    }

    fn write(&mut self, buffer: BufferId, rows: usize, data: &[f32]) {
        self.set_rows(buffer, rows);
        let b = &mut self.buffers[buffer.0];
        assert_eq!(data.len(), rows * b.cols, "data fills the rows");
        b.data.iter_mut().zip(data).for_each(|(o, &v)| *o = f64::from(v));
    }

    fn page_copy(&mut self, pairs: &[(u32, u32)]) {
        pairs.iter().for_each(|&(from, to)| self.pool_mut().copy(from as usize, to as usize));
    }
    fn page_zero(&mut self, pages: &[u32]) {
        pages.iter().for_each(|&p| self.pool_mut().page_mut(p as usize).fill(0.0));
    }
    fn page_unclean(&self, pages: &[u32]) -> Vec<u32> {
        let is_zero = |page: u32| self.pool().page(page as usize).iter().all(|v| v.to_bits() == 0);
        pages.iter().copied().filter(|&page| !is_zero(page)).collect()
    }
    fn page_read(&self, page: u32) -> Vec<u8> {
        bytemuck::cast_slice(self.pool().page(page as usize)).to_vec()
    }
    fn page_read_into(&self, page: u32, out: &mut [u8]) {
        out.copy_from_slice(bytemuck::cast_slice(self.pool().page(page as usize)));
    }
    fn page_write(&mut self, page: u32, bytes: &[u8]) {
        let page = self.pool_mut().page_mut(page as usize);
        assert_eq!(bytes.len(), size_of_val(page), "the bytes of one page");
        bytemuck::cast_slice_mut(page).copy_from_slice(bytes);
    }
}
