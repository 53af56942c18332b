//! Backends to test, random data, and comparison relative to scale.

use base::SplitMix;
use quire_kernels::cpu::{CpuBackend, CpuOptions, Isa};
use quire_kernels::reference::ReferenceBackend;
use quire_kernels::{
    Backend, Batch, BufferId, HostTensor, HostType, LinearId, Precision, SeqSpan, VectorId, WeightForm,
};

/// A way to make a backend.
#[derive(Clone, Copy, Debug)]
pub enum Maker {
    Reference,
    Cpu(Isa, usize),
}

impl Maker {
    pub fn make(self) -> Box<dyn Backend> {
        match self {
            Maker::Reference => Box::new(ReferenceBackend::new()),
            Maker::Cpu(isa, threads) => {
                Box::new(CpuBackend::new(CpuOptions { threads, isa: Some(isa) }).expect("an available isa"))
            }
        }
    }
}

/// Instruction sets of this machine.
pub fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

/// The CPU backend in every form: each instruction set with one, two and three threads.
pub fn cpus() -> Vec<Maker> {
    isas().flat_map(|isa| [1, 2, 3].map(|threads| Maker::Cpu(isa, threads))).collect()
}

/// Every backend.
pub fn all() -> Vec<Maker> {
    std::iter::once(Maker::Reference).chain(cpus()).collect()
}

/// Standard normal values.
pub fn normal(rng: &mut SplitMix, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Standard normal values with a few that are hundreds of times larger, as activations of real models have.
pub fn with_outliers(rng: &mut SplitMix, n: usize) -> Vec<f32> {
    let mut values = normal(rng, n);
    for _ in 0..n.div_ceil(200) {
        let at = rng.below(n as u64) as usize;
        values[at] *= 300.0;
    }
    values
}

/// Panics unless every value is within `tolerance` of the largest magnitude.
pub fn assert_near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let error = relative_error(got, want);
    assert!(error <= tolerance, "{what}: {error:e} of scale, allowed {tolerance:e}");
}

/// The largest difference over the largest magnitude.
pub fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    let scale = want.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| if g == w { 0.0 } else { (g - w).abs() });
    worst.fold(0.0, |m: f32, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }) / scale
}

/// Panics at the first value whose bits differ.
pub fn assert_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits(), "{what}: value {i} is {g:e}, not {w:e}");
    }
}

/// Loads f32 values as a weight of another form (rounded or quantized by the backend).
pub fn load(backend: &mut dyn Backend, values: &[f32], rows: usize, form: WeightForm) -> LinearId {
    let bytes = bytemuck::cast_slice(values);
    let tensor = HostTensor::new(HostType::F32, rows, values.len() / rows, bytes).expect("size");
    backend.linear_weight(&[tensor], form).expect("weight")
}

pub fn load_vector(backend: &mut dyn Backend, values: &[f32]) -> VectorId {
    let tensor = HostTensor::new(HostType::F32, 1, values.len(), bytemuck::cast_slice(values)).expect("size");
    backend.vector(&[tensor]).expect("vector")
}

/// A buffer that holds `rows` rows of `values`.
pub fn filled(backend: &mut dyn Backend, values: &[f32], rows: usize) -> BufferId {
    let id = backend.buffer(rows, values.len() / rows, Precision::Full).expect("buffer");
    backend.write(id, rows, values);
    id
}

/// Runs `ops` as a step of `rows` tokens without sequences that matter.
pub fn step<R>(backend: &mut dyn Backend, rows: usize, ops: impl FnOnce(&mut dyn Backend) -> R) -> R {
    let span = SeqSpan { row: 0, rows: rows as u32, start: 0, table: 0 };
    backend.begin(&Batch { tokens: &vec![0; rows], spans: &[span], page_table: &[0] });
    let result = ops(backend);
    backend.end();
    result
}
