//! Backends to measure: on the device or on its emulator, with random contents.

use base::SplitMix;
use cusim::{Options, SimDriver};
use kernels::cuda::driver::{Arch, DeviceInfo};
use kernels::cuda::{CudaBackend, CudaOptions, Determinism, Driver};
use kernels::{
    Backend, Batch, BufferId, HostTensor, HostType, KvShape, KvType, LinearId, Precision, SeqSpan,
    StepLimits, VectorId, WeightForm, e4m3,
};

use crate::lease::{Allocations, Lease};

/// Random values that large contents repeat: drawing billions would take longer than measuring.
/// Odd, so that rows of a matrix are not all alike.
const STRETCH: usize = (1 << 20) - 3;
const PAGE: usize = 64;

/// Where to run.
pub enum Device {
    Gpu(Allocations),
    Emulated(u32),
}

impl Device {
    pub fn is_emulated(&self) -> bool {
        matches!(self, Device::Emulated(_))
    }

    /// Where every launch takes long: emulated, or watched by a memory checker.
    pub fn is_small(&self) -> bool {
        !matches!(self, Device::Gpu(Allocations::Shared))
    }

    pub fn info(&self) -> DeviceInfo {
        self.driver().device().clone()
    }

    pub fn driver(&self) -> Box<dyn Driver> {
        match self {
            Device::Gpu(allocations) => Box::new(Lease::new(*allocations)),
            Device::Emulated(arch) => emulator(Arch(*arch), 0),
        }
    }

    pub fn backend(&self, options: CudaOptions) -> CudaBackend {
        CudaBackend::new(self.driver(), options)
    }

    /// The emulator of the same architecture, to compare with.
    pub fn twin(&self) -> CudaBackend {
        CudaBackend::new(emulator(self.info().arch, 5), strict())
    }
}

fn emulator(arch: Arch, seed: u64) -> Box<dyn Driver> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(16) as u32);
    Box::new(SimDriver::new(arch, Options { seed, threads }).with_every_kernel())
}

pub fn strict() -> CudaOptions {
    CudaOptions { determinism: Determinism::Strict, ..CudaOptions::default() }
}

/// Normal values; beyond a million they repeat.
pub fn normal(rng: &mut SplitMix, n: usize) -> Vec<f32> {
    let some: Vec<f32> = (0..n.min(STRETCH)).map(|_| rng.normal() as f32).collect();
    repeated(&some, n)
}

pub fn repeated<T: Copy>(some: &[T], n: usize) -> Vec<T> {
    let mut all = Vec::with_capacity(n);
    while all.len() < n {
        all.extend_from_slice(&some[..some.len().min(n - all.len())]);
    }
    all
}

pub fn narrow(values: &[f32]) -> Vec<half::bf16> {
    values.iter().map(|&x| half::bf16::from_f32(x)).collect()
}

/// A weight with rows of about unit length.
pub fn weight(
    backend: &mut dyn Backend,
    rng: &mut SplitMix,
    form: WeightForm,
    n: usize,
    k: usize,
) -> LinearId {
    let scale = 1.0 / (k as f32).sqrt();
    let some: Vec<f32> = normal(rng, STRETCH.min(n * k)).iter().map(|x| x * scale).collect();
    weight_of(backend, &repeated(&narrow(&some), n * k), form, n, k)
}

pub fn weight_of(
    backend: &mut dyn Backend,
    values: &[half::bf16],
    form: WeightForm,
    n: usize,
    k: usize,
) -> LinearId {
    let tensor = HostTensor::new(HostType::Bf16, n, k, bytemuck::cast_slice(values)).expect("sizes agree");
    backend.linear_weight(&[tensor], form).expect("device memory")
}

pub fn vector(backend: &mut dyn Backend, values: &[f32]) -> VectorId {
    let tensor = HostTensor::new(HostType::F32, 1, values.len(), bytemuck::cast_slice(values));
    backend.vector(&[tensor.expect("sizes agree")]).expect("device memory")
}

/// A buffer full of normal values.
pub fn filled(
    backend: &mut dyn Backend,
    rng: &mut SplitMix,
    rows: usize,
    cols: usize,
    precision: Precision,
) -> BufferId {
    let id = backend.buffer(rows, cols, precision).expect("device memory");
    backend.write(id, rows, &normal(rng, rows * cols));
    id
}

pub fn limits(backend: &mut dyn Backend, limits: StepLimits) {
    backend.limits(limits).expect("device memory");
}

/// Makes the pool and fills all its pages with normal values.
pub fn pool(backend: &mut dyn Backend, rng: &mut SplitMix, shape: KvShape) {
    backend.kv_pool(shape).expect("device memory");
    backend.page_write(0, &page(rng, &shape));
    let pairs: Vec<(u32, u32)> = (1..shape.pages as u32).map(|page| (0, page)).collect();
    backend.page_copy(&pairs);
}

/// The bytes of a page full of normal values.
fn page(rng: &mut SplitMix, shape: &KvShape) -> Vec<u8> {
    if shape.kind != KvType::E4m3 {
        return bytemuck::cast_slice(&narrow(&normal(rng, shape.page_bytes() / 2))).to_vec();
    }
    let values = shape.page_tokens * shape.head_dim;
    let mut bytes = Vec::with_capacity(shape.page_bytes());
    while bytes.len() < shape.page_bytes() {
        // Up to about 448 times 2^-7.
        bytes.extend(normal(rng, values).iter().map(|v| e4m3::nearest(v * 128.0)));
        bytes.extend(std::iter::repeat_n(247 - 7, shape.page_tokens));
    }
    bytes
}

/// Limits and a pool for steps that only have rows.
pub fn plain_pool(backend: &mut dyn Backend, rng: &mut SplitMix, rows: usize) {
    limits(backend, StepLimits { rows, seqs: rows.min(256), positions: rows.max(PAGE), heads: 8 });
    let pages = rows.div_ceil(PAGE).max(rows.min(256));
    let kind = KvType::Bf16;
    pool(backend, rng, KvShape { pages, page_tokens: PAGE, layers: 1, kv_heads: 1, head_dim: 64, kind });
}

/// Begins a step of one sequence of `rows` tokens.
pub fn begin_rows(backend: &mut dyn Backend, rows: usize) {
    let (tokens, table) = (vec![0; rows], (0..rows.div_ceil(PAGE) as u32).collect::<Vec<_>>());
    let spans = [SeqSpan { row: 0, rows: rows as u32, start: 0, table: 0 }];
    backend.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
}

/// Begins a step of `rows` sequences of one token.
pub fn begin_decodes(backend: &mut dyn Backend, rows: usize) {
    let (tokens, table) = (vec![0; rows], (0..rows as u32).collect::<Vec<_>>());
    let spans: Vec<SeqSpan> =
        (0..rows as u32).map(|row| SeqSpan { row, rows: 1, start: 0, table: row }).collect();
    backend.begin(&Batch { tokens: &tokens, spans: &spans, page_table: &table });
}

/// ‖a − b‖ / ‖b‖.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
