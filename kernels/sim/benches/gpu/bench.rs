//! Backends to measure: on the device or on its emulator, with random contents and a clock.

use base::{Clock, SplitMix, SystemClock};
use cusim::{Options, SimDriver};
use kernels::cuda::driver::Arch;
use kernels::cuda::gpu::{Gpu, GpuOptions};
use kernels::cuda::{CudaBackend, CudaOptions, Determinism, Driver};
use kernels::{
    Backend, BufferId, HostTensor, HostType, KvShape, LinearId, Precision, StepLimits, VectorId, WeightForm,
};

/// Where to run.
pub enum Device {
    Gpu(GpuOptions),
    Emulated(u32),
}

impl Device {
    pub fn is_emulated(&self) -> bool {
        matches!(self, Device::Emulated(_))
    }

    pub fn driver(&self) -> Box<dyn Driver> {
        match self {
            Device::Gpu(options) => {
                let gpu = Gpu::open(options).expect("it opened before");
                gpu.use_library();
                Box::new(gpu)
            }
            Device::Emulated(arch) => emulator(Arch(*arch), 0),
        }
    }

    pub fn backend(&self, options: CudaOptions) -> CudaBackend {
        CudaBackend::new(self.driver(), options)
    }

    /// The emulator of the same architecture, to compare with.
    pub fn twin(&self) -> CudaBackend {
        let arch = match self {
            Device::Gpu(_) => self.driver().device().arch,
            Device::Emulated(arch) => Arch(*arch),
        };
        CudaBackend::new(emulator(arch, 5), strict())
    }
}

fn emulator(arch: Arch, seed: u64) -> Box<dyn Driver> {
    Box::new(SimDriver::new(arch, Options { seed, threads: 2 }))
}

pub fn strict() -> CudaOptions {
    CudaOptions { determinism: Determinism::Strict, ..CudaOptions::default() }
}

/// Normal values.
pub fn normal(rng: &mut SplitMix, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// A weight with rows of about unit length; large ones repeat a stretch of values.
pub fn weight(backend: &mut dyn Backend, rng: &mut SplitMix, n: usize, k: usize) -> LinearId {
    const STRETCH: usize = 1 << 20;
    let scale = 1.0 / (k as f32).sqrt();
    let some: Vec<half::bf16> =
        normal(rng, STRETCH.min(n * k)).iter().map(|x| half::bf16::from_f32(x * scale)).collect();
    let all: Vec<half::bf16> = some.iter().cycle().take(n * k).copied().collect();
    let tensor = HostTensor::new(HostType::Bf16, n, k, bytemuck::cast_slice(&all)).expect("sizes agree");
    backend.linear_weight(&[tensor], WeightForm::Bf16).expect("device memory")
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
    let bytes = shape.page_bytes();
    let values: Vec<half::bf16> = normal(rng, bytes / 2).iter().map(|&x| half::bf16::from_f32(x)).collect();
    backend.page_write(0, bytemuck::cast_slice(&values));
    let pairs: Vec<(u32, u32)> = (1..shape.pages as u32).map(|page| (0, page)).collect();
    backend.page_copy(&pairs);
}

/// Seconds that one of `rounds` calls takes: the median of five measurements, each ended by `wait`.
pub fn seconds(rounds: usize, mut work: impl FnMut(usize), mut wait: impl FnMut()) -> f64 {
    let clock = SystemClock::new();
    work(0);
    wait();
    let mut taken: Vec<f64> = (0..5)
        .map(|_| {
            let begun = clock.now();
            (0..rounds).for_each(&mut work);
            wait();
            clock.now().since(begun).as_secs_f64() / rounds as f64
        })
        .collect();
    taken.sort_by(f64::total_cmp);
    taken[2]
}
