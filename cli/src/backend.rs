//! Which backend a model runs on: the GPU where there is one, else the CPU.
//!
//! `auto` falls back only where there is no GPU to speak of (no driver, no device, one before sm_80). A GPU
//! that is there and cannot be used is an error: a server that quietly ran on the CPU beside an idle GPU
//! would be worse.

use std::path::PathBuf;

use kernels::Backend;
use kernels::cpu::{CpuBackend, CpuOptions};
use kernels::cuda::gpu::{Gpu, GpuError, GpuOptions as DeviceOptions, Origin};
use kernels::cuda::prefix_groups::SharingRule;
use kernels::cuda::{CudaBackend, CudaOptions, Determinism, Driver};

use crate::failure::{Exit, Failure};
use crate::flags::{self, Cascade, Engine, GpuOptions, Graphs};

/// A backend, and what to say of it.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    /// `12 threads, avx512`; `NVIDIA H200, 132 SMs, sm_90a, …`.
    pub what: String,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Cpu,
    Cuda,
}

/// Opens what `engine` asks for.
pub fn open(engine: Engine, threads: Option<usize>, gpu: &GpuOptions) -> Result<Opened, Failure> {
    match engine {
        Engine::Cpu | Engine::Sim => cpu(threads),
        Engine::Cuda => cuda(gpu).map_err(|e| refused(&e)),
        Engine::Auto => match cuda(gpu) {
            Err(GpuError::NoDriver) => cpu(threads),
            Err(GpuError::NoDevice { count: 0, .. } | GpuError::TooOld { .. }) => cpu(threads),
            opened => opened.map_err(|e| refused(&e)),
        },
    }
}

fn cpu(threads: Option<usize>) -> Result<Opened, Failure> {
    let best = CpuOptions::default();
    let options = CpuOptions { threads: threads.unwrap_or(best.threads), ..best };
    let backend = CpuBackend::new(options).map_err(|e| Failure::new(Exit::Model, e.to_string()))?;
    let info = backend.info();
    let what = format!("{} threads, {}", info.threads, info.isa);
    Ok(Opened { backend: Box::new(backend), what, kind: Kind::Cpu })
}

fn cuda(options: &GpuOptions) -> Result<Opened, GpuError> {
    let gpu = Gpu::open(&DeviceOptions {
        index: options.device,
        cache: kernel_cache(),
        cubins: options.kernels.clone(),
        with_checks: false,
    })?;
    let determinism = match options.determinism {
        flags::Determinism::Fast => Determinism::Fast,
        flags::Determinism::Strict => Determinism::Strict,
    };
    let products = match determinism {
        Determinism::Strict => "own products (strict)".to_owned(),
        Determinism::Fast => match gpu.use_library() {
            Some(version) => format!("cuBLASLt {version}"),
            None => "own products (no cuBLASLt found)".to_owned(),
        },
    };
    let device = gpu.device();
    let compiled = gpu.origins().iter().filter(|(_, origin)| *origin == Origin::Compiled).count();
    let fresh = if compiled > 0 { format!(", {compiled} kernel files compiled") } else { String::new() };
    let what = format!(
        "{}, {} SMs, {}, driver {}, {products}{fresh}",
        device.name,
        device.sms,
        device.arch.target(),
        device.driver,
    );
    let sharing = (options.cascade == Cascade::On).then(|| SharingRule::of_device(&device.name));
    let options = CudaOptions { determinism, graphs: options.graphs == Graphs::On, sharing };
    Ok(Opened { backend: Box::new(CudaBackend::new(Box::new(gpu), options)), what, kind: Kind::Cuda })
}

/// Where compiled kernels are kept: the user's cache folder, as other programs find it.
fn kernel_cache() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")))?;
    Some(base.join("quire").join("kernels"))
}

fn refused(error: &GpuError) -> Failure {
    let failure = Failure::new(Exit::Model, error.to_string());
    match error {
        GpuError::NoDriver => {
            failure.hint("install the NVIDIA driver, or use --executor cpu; `quire doctor` looks closer")
        }
        GpuError::NoDevice { count: 0, .. } | GpuError::TooOld { .. } => failure.hint("use --executor cpu"),
        GpuError::NoDevice { .. } => failure.hint("--device counts from 0"),
        GpuError::NoKernels { .. } => failure.hint(
            "install NVRTC (libnvrtc.so.13), name a folder of kernels with --cuda-kernels, or use --executor cpu",
        ),
        GpuError::OtherSources { .. } | GpuError::Folder { .. } => failure.hint(
            "--cuda-kernels names a folder that `scripts/cuda-check --out` made of the sources of this version",
        ),
        GpuError::Compile { .. } | GpuError::Call { .. } => failure.hint("--executor cpu works without a GPU"),
    }
}
