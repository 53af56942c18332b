//! A real device: the driver API behind [`Driver`], opened at run time.
//!
//! The binary links nothing of CUDA. libcuda is looked for when a device is asked for; NVRTC when a kernel
//! is neither embedded nor in the cache; cuBLASLt when the first product is asked for. Each may be missing:
//! without libcuda there is [`GpuError::NoDriver`], without NVRTC an unknown architecture is refused by
//! name, without cuBLASLt the own kernels do the products.
//!
//! ```text
//! upload ─▶ ring of pinned memory ─▶ stream ─▶ kernels, products, recorded steps ─▶ stream ─▶ download
//! ```
//!
//! Pages go to and from pinned host memory in a stream of their own (`streams`). Limits: one device; peers are not
//! used.

mod cache;
mod compile;
mod graph;
mod library;
mod modules;
mod staging;
mod streams;

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int, c_void};
use std::path::PathBuf;

use cudarc::driver::sys as cu;

use self::graph::Graphs;
use self::library::CublasLt;
use self::modules::Modules;
use self::staging::Staging;
use self::streams::Streams;
use super::driver::{
    ALIGN, Arch, DeviceInfo, DevicePtr, Driver, Event, Gemm, GraphId, Launch, Memory, Stream, Swizzle,
    TensorMap, TensorMapSpec,
};
use crate::{DeviceLost, KernelError};

pub use self::cache::CubinCache;
pub use self::modules::Origin;

/// Why there is no device to run on.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("no CUDA driver on this machine (libcuda.so.1 was not found)")]
    NoDriver,
    #[error("device {index} was asked for, the driver sees {count}")]
    NoDevice { index: u32, count: u32 },
    #[error("{device} has architecture {target}; the kernels need sm_80 or later")]
    TooOld { device: String, target: String },
    #[error("{call} failed: {why}")]
    Call { call: &'static str, why: String },
    #[error(
        "{device} has architecture {target}, for which this binary carries no kernels, and they cannot be \
         compiled here: {why}"
    )]
    NoKernels { device: String, target: String, why: String },
    #[error("{file} was built from other kernel sources than this binary's, which wants {wanted}")]
    OtherSources { file: PathBuf, wanted: String },
    #[error("cannot read the folder of kernels {folder}: {why}")]
    Folder { folder: PathBuf, why: std::io::Error },
    #[error("the kernels of {unit} do not compile for {target}:\n{log}")]
    Compile { unit: &'static str, target: String, log: String },
}

impl GpuError {
    pub fn kind(&self) -> &'static str {
        match self {
            GpuError::NoDriver => "no_driver",
            GpuError::NoDevice { .. } => "no_device",
            GpuError::TooOld { .. } => "too_old",
            GpuError::Call { .. } => "call",
            GpuError::NoKernels { .. } => "no_kernels",
            GpuError::OtherSources { .. } => "other_sources",
            GpuError::Folder { .. } => "folder",
            GpuError::Compile { .. } => "compile",
        }
    }
}

/// bf16 on tensor cores and asynchronous copies begin here.
const ARCH_MIN: Arch = Arch(80);

/// Which device, and what it may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuOptions {
    pub index: u32,
    /// Where compiled kernels are kept; `None` = nowhere.
    pub cache: Option<PathBuf>,
    /// A folder of kernels that were compiled beforehand, `UNIT.sm_XX.HASH.cubin`.
    pub cubins: Option<PathBuf>,
    /// Load also what no server on this device launches.
    pub with_checks: bool,
}

/// True if libcuda is there. Does not start it.
pub fn has_driver() -> bool {
    // SAFETY: opens and closes the library; its initialisers are the driver's own.
    unsafe { cu::is_culib_present() }
}

/// An open device.
pub struct Gpu {
    info: DeviceInfo,
    device: cu::CUdevice,
    context: cu::CUcontext,
    streams: Streams,
    /// That of steps.
    stream: cu::CUstream,
    modules: Modules,
    staging: RefCell<Staging>,
    graphs: RefCell<Graphs>,
    library: RefCell<Option<CublasLt>>,
    pinned: RefCell<Vec<(usize, usize)>>,
    /// What is left of the reserved piece.
    reserved: Cell<Option<(DevicePtr, u64)>>,
}

// SAFETY: the handles belong to the driver, which takes calls from any thread; each call makes the context
// current first, and `&self` methods are not shared between threads (`Gpu` is not `Sync`).
unsafe impl Send for Gpu {}

impl Gpu {
    /// Opens the device and loads every kernel.
    pub fn open(options: &GpuOptions) -> Result<Self, GpuError> {
        if !has_driver() {
            return Err(GpuError::NoDriver);
        }
        // SAFETY: the library is present; the first call of every process.
        match unsafe { cu::cuInit(0) } {
            // A machine image with the driver's library and no card, or a stub of the library.
            cu::CUresult::CUDA_ERROR_NO_DEVICE | cu::CUresult::CUDA_ERROR_STUB_LIBRARY => {
                return Err(GpuError::NoDevice { index: options.index, count: 0 });
            }
            outcome => check("cuInit", outcome)?,
        }
        let device = device(options.index)?;
        let info = describe(device)?;
        if info.arch < ARCH_MIN {
            return Err(GpuError::TooOld { device: info.name, target: info.arch.target() });
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` is writable, the device exists.
        check("cuDevicePrimaryCtxRetain", unsafe { cu::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        // SAFETY: the context was just retained.
        check("cuCtxSetCurrent", unsafe { cu::cuCtxSetCurrent(context) })?;
        let streams = Streams::new()?;
        let stream = streams.of(Stream::Work);
        let modules = Modules::load(&info, options)?;
        let staging = RefCell::new(Staging::new(stream)?);
        Ok(Self {
            info,
            device,
            context,
            streams,
            stream,
            modules,
            staging,
            graphs: RefCell::default(),
            library: RefCell::new(None),
            pinned: RefCell::default(),
            reserved: Cell::new(None),
        })
    }

    /// Where each unit's kernels came from, for the log and `doctor`.
    pub fn origins(&self) -> &[(&'static str, Origin)] {
        self.modules.origins()
    }

    /// Looks for cuBLASLt; its version, or `None` if products are done by the own kernels.
    pub fn use_library(&self) -> Option<String> {
        let library = CublasLt::open(self.stream)?;
        let version = library.version();
        *self.library.borrow_mut() = Some(library);
        Some(version)
    }

    /// Milliseconds that `work` takes on the device, by events.
    pub fn time(&self, work: &mut dyn FnMut()) -> f32 {
        self.current();
        let (mut begin, mut end) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: both are writable and a context is current.
        unsafe {
            expect("cuEventCreate", cu::cuEventCreate(&mut begin, 0));
            expect("cuEventCreate", cu::cuEventCreate(&mut end, 0));
            expect("cuEventRecord", cu::cuEventRecord(begin, self.stream));
        }
        work();
        let mut ms = 0.0;
        // SAFETY: the events exist until they are destroyed below.
        unsafe {
            expect("cuEventRecord", cu::cuEventRecord(end, self.stream));
            expect("cuEventSynchronize", cu::cuEventSynchronize(end));
            expect("cuEventElapsedTime", cu::cuEventElapsedTime_v2(&mut ms, begin, end));
            expect("cuEventDestroy", cu::cuEventDestroy_v2(begin));
            expect("cuEventDestroy", cu::cuEventDestroy_v2(end));
        }
        ms
    }

    /// Waits until everything so far has run.
    pub fn synchronize(&self) {
        self.current();
        // SAFETY: the stream is ours.
        expect("cuStreamSynchronize", unsafe { cu::cuStreamSynchronize(self.stream) });
    }

    /// The context is a property of the calling thread, and a driver may move between threads.
    fn current(&self) {
        // SAFETY: the context lives as long as `self`.
        expect("cuCtxSetCurrent", unsafe { cu::cuCtxSetCurrent(self.context) });
    }

    /// A piece of the driver's own.
    fn take(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, KernelError> {
        self.current();
        let mut at = 0;
        // SAFETY: `at` is writable.
        let outcome = unsafe { cu::cuMemAlloc_v2(&mut at, bytes.max(1)) };
        match outcome {
            cu::CUresult::CUDA_SUCCESS => Ok(DevicePtr(at)),
            _ => Err(KernelError::Memory(base::Bytes(bytes as u64), what)),
        }
    }

    fn is_pinned(&self, bytes: &[u8]) -> bool {
        let (from, to) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
        self.pinned.borrow().iter().any(|&(start, end)| start <= from && to <= end)
    }
}

impl Memory for Gpu {
    fn alloc(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, KernelError> {
        let wanted = bytes.max(1).next_multiple_of(ALIGN);
        match self.reserved.get() {
            Some((at, left)) if wanted as u64 <= left => {
                self.reserved.set(Some((at.plus(wanted), left - wanted as u64)));
                Ok(at)
            }
            _ => self.take(wanted, what),
        }
    }
}

impl Driver for Gpu {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn check(&self) -> Result<(), DeviceLost> {
        // SAFETY: the context lives as long as `self`.
        let current = unsafe { cu::cuCtxSetCurrent(self.context) };
        // SAFETY: waits for the current context; answers with an error if there is none.
        let ended = unsafe { cu::cuCtxSynchronize() };
        match [current, ended].into_iter().find(|&call| call != cu::CUresult::CUDA_SUCCESS) {
            Some(failed) => Err(DeviceLost(words(failed))),
            None => Ok(()),
        }
    }

    fn free_bytes(&self) -> u64 {
        self.current();
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are writable.
        expect("cuMemGetInfo", unsafe { cu::cuMemGetInfo_v2(&mut free, &mut total) });
        free as u64
    }

    fn reserve(&self, bytes: u64) -> Result<(), KernelError> {
        let at = self.take(bytes as usize, "weights and buffers")?;
        self.reserved.set(Some((at, bytes)));
        Ok(())
    }

    fn alloc_pool(&self, bytes: usize) -> Result<DevicePtr, KernelError> {
        self.take(bytes, "kv pages")
    }

    fn upload(&self, to: DevicePtr, bytes: &[u8]) {
        self.current();
        if !self.is_pinned(bytes) {
            return self.staging.borrow_mut().upload(to, bytes);
        }
        // SAFETY: `bytes` is pinned and stays until the synchronisation below.
        let copied =
            unsafe { cu::cuMemcpyHtoDAsync_v2(to.0, bytes.as_ptr().cast(), bytes.len(), self.stream) };
        expect("cuMemcpyHtoDAsync", copied);
        self.synchronize();
    }

    fn download(&self, from: DevicePtr, out: &mut [u8]) {
        self.current();
        if self.staging.borrow_mut().download(from, out) {
            return;
        }
        // SAFETY: `out` is writable until the synchronisation below.
        let copied =
            unsafe { cu::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), from.0, out.len(), self.stream) };
        expect("cuMemcpyDtoHAsync", copied);
        self.synchronize();
    }

    fn zero(&self, at: DevicePtr, bytes: usize) {
        self.current();
        // SAFETY: the caller's range lies in one of our allocations.
        expect("cuMemsetD8Async", unsafe { cu::cuMemsetD8Async(at.0, 0, bytes, self.stream) });
    }

    fn launch(&self, launch: &Launch<'_>) {
        self.current();
        let function = self.modules.function(launch.kernel);
        // The driver reads the parameter during the call; it wants an alignment that a byte slice has not.
        let mut params = Aligned::of(launch.params);
        let mut args: [*mut c_void; 1] = [params.as_mut_ptr()];
        let [x, y, z] = launch.grid;
        // SAFETY: the kernel takes one struct of this size (held against the emulator's registry by test).
        let outcome = unsafe {
            cu::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.block,
                1,
                1,
                launch.smem,
                self.stream,
                args.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        expect(launch.kernel, outcome);
    }

    fn gemm(&self, gemm: &Gemm) -> bool {
        self.current();
        self.library.borrow_mut().as_mut().is_some_and(|library| library.run(gemm))
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> TensorMap {
        self.current();
        encode(spec)
    }

    fn record(&self) {
        self.current();
        Graphs::begin(self.stream);
    }

    fn recorded(&self) -> Option<GraphId> {
        self.current();
        self.graphs.borrow_mut().end(self.stream)
    }

    fn abandon(&self) {
        self.current();
        Graphs::abandon(self.stream);
    }

    fn replay(&self, graph: GraphId) {
        self.current();
        self.graphs.borrow().launch(graph, self.stream);
    }

    fn pin(&self, start: *const u8, bytes: usize) -> bool {
        self.current();
        // SAFETY: the caller keeps the memory mapped; registering does not touch its contents.
        let outcome = unsafe { cu::cuMemHostRegister_v2(start.cast_mut().cast(), bytes, 0) };
        let is_pinned = outcome == cu::CUresult::CUDA_SUCCESS;
        if is_pinned {
            self.pinned.borrow_mut().push((start as usize, start as usize + bytes));
        }
        is_pinned
    }

    fn event(&self) -> Event {
        self.current();
        self.streams.event()
    }

    fn mark(&self, event: Event, stream: Stream) {
        self.current();
        self.streams.mark(event, stream);
    }

    fn follow(&self, stream: Stream, event: Event) {
        self.current();
        self.streams.follow(stream, event);
    }

    fn has_passed(&self, event: Event) -> bool {
        self.current();
        self.streams.has_passed(event)
    }

    fn pass(&self, event: Event) {
        self.current();
        self.streams.pass(event);
    }

    fn between_ns(&self, from: Event, to: Event) -> u64 {
        self.current();
        self.streams.between_ns(from, to)
    }

    // Memory that the driver refused to pin is copied through its own buffers, in order all the same.
    unsafe fn send(&self, to: DevicePtr, bytes: &[u8]) {
        self.current();
        let copies = self.streams.of(Stream::Copies);
        // SAFETY: the caller keeps `bytes` until this has run.
        let sent = unsafe { cu::cuMemcpyHtoDAsync_v2(to.0, bytes.as_ptr().cast(), bytes.len(), copies) };
        expect("cuMemcpyHtoDAsync", sent);
    }

    unsafe fn fetch(&self, from: DevicePtr, out: &mut [u8]) {
        self.current();
        let copies = self.streams.of(Stream::Copies);
        // SAFETY: the caller keeps `out`, and everybody else away from it, until this has run.
        let fetched = unsafe { cu::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), from.0, out.len(), copies) };
        expect("cuMemcpyDtoHAsync", fetched);
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: nothing of the context is used after this; errors at the end change nothing.
        unsafe {
            let _ = cu::cuCtxSynchronize();
            let _ = cu::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Parameters at the alignment of the strictest kernel: a tensor map's 64 bytes.
struct Aligned {
    words: Vec<TensorMap>,
}

impl Aligned {
    fn of(bytes: &[u8]) -> Self {
        let mut words = vec![TensorMap([0; 16]); bytes.len().div_ceil(size_of::<TensorMap>())];
        bytemuck::cast_slice_mut::<_, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words }
    }
    fn as_mut_ptr(&mut self) -> *mut c_void {
        self.words.as_mut_ptr().cast()
    }
}

fn device(index: u32) -> Result<cu::CUdevice, GpuError> {
    let (mut count, mut device) = (0, 0);
    // SAFETY: `count` is writable.
    check("cuDeviceGetCount", unsafe { cu::cuDeviceGetCount(&mut count) })?;
    if index >= count as u32 {
        return Err(GpuError::NoDevice { index, count: count as u32 });
    }
    // SAFETY: `device` is writable, the index is below the count.
    check("cuDeviceGet", unsafe { cu::cuDeviceGet(&mut device, index as c_int) })?;
    Ok(device)
}

fn describe(device: cu::CUdevice) -> Result<DeviceInfo, GpuError> {
    use cu::CUdevice_attribute as A;
    let attribute = |which: A| {
        let mut value = 0;
        // SAFETY: `value` is writable.
        check("cuDeviceGetAttribute", unsafe { cu::cuDeviceGetAttribute(&mut value, which, device) })?;
        Ok::<u32, GpuError>(value as u32)
    };
    let mut name = [0; 128];
    // SAFETY: the buffer has the length given.
    check("cuDeviceGetName", unsafe { cu::cuDeviceGetName(name.as_mut_ptr(), 128, device) })?;
    let (mut memory, mut version) = (0, 0);
    // SAFETY: both are writable.
    check("cuDeviceTotalMem", unsafe { cu::cuDeviceTotalMem_v2(&mut memory, device) })?;
    // SAFETY: as above.
    check("cuDriverGetVersion", unsafe { cu::cuDriverGetVersion(&mut version) })?;
    let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(DeviceInfo {
        // SAFETY: the driver ended the name with a zero.
        name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
        arch: Arch(major * 10 + minor),
        sms: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: u64::from(attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        memory_bytes: memory as u64,
        smem_max: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver: format!("{}.{}", version / 1000, version % 1000 / 10),
    })
}

fn encode(spec: &TensorMapSpec) -> TensorMap {
    #[repr(C, align(128))]
    struct Map(cu::CUtensorMap);
    let mut map = Map(cu::CUtensorMap { opaque: [0; 16] });
    let swizzle = match spec.swizzle {
        Swizzle::None => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes128 => cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    // SAFETY: the arrays hold `rank` entries, the map is aligned and writable.
    let outcome = unsafe {
        cu::cuTensorMapEncodeTiled(
            &mut map.0,
            cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            spec.rank,
            spec.base.0 as *mut c_void,
            spec.dims.as_ptr(),
            spec.strides.as_ptr(),
            spec.boxes.as_ptr(),
            [1u32; 4].as_ptr(),
            cu::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            cu::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cu::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    expect("cuTensorMapEncodeTiled", outcome);
    TensorMap(map.0.opaque)
}

fn check(call: &'static str, result: cu::CUresult) -> Result<(), GpuError> {
    match result {
        cu::CUresult::CUDA_SUCCESS => Ok(()),
        failed => Err(GpuError::Call { call, why: words(failed) }),
    }
}

/// For calls of a step: what fails there fails the step.
fn expect(call: &str, result: cu::CUresult) {
    assert!(result == cu::CUresult::CUDA_SUCCESS, "{call} failed: {}", words(result));
}

fn words(result: cu::CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: `text` is writable; the driver's strings are static.
    let known = unsafe { cu::cuGetErrorString(result, &mut text) } == cu::CUresult::CUDA_SUCCESS;
    if !known || text.is_null() {
        return format!("{result:?}");
    }
    // SAFETY: a zero-terminated static string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
