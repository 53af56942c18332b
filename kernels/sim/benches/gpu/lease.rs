//! One device for all cases of a process: opened once, its memory lent to one case after another.
//!
//! A backend owns its driver and nothing frees device memory, so that a driver a case would be a context a case.
//! A [`Lease`] is a driver that owns nothing: the device is a thread-local of the one thread that this program has,
//! and memory is cut from one region that is whole again when the last lease ends. Recordings are never freed;
//! none is replayed after its case. Under a memory checker each allocation is the driver's own instead, so that
//! an access beyond it is seen.

use std::cell::{OnceCell, RefCell};

use kernels::cuda::Driver;
use kernels::cuda::driver::{
    DeviceInfo, DevicePtr, Event, Gemm, GraphId, Launch, Memory, Stream, TensorMap, TensorMapSpec,
};
use kernels::cuda::gpu::Gpu;
use kernels::{DeviceLost, KernelError};

/// Most that the cases of a process hold at once.
const REGION: u64 = 48 << 30;
/// Allocations up to here start as NaN; filling larger ones would take longer than the case.
const POISONED: usize = 64 << 20;
const ALIGNMENT: usize = 512;

thread_local! {
    static GPU: OnceCell<Gpu> = const { OnceCell::new() };
    static REGION_OF_GPU: RefCell<Region> = const { RefCell::new(Region::new()) };
}

/// Where allocations come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocations {
    /// All from one region.
    Shared,
    /// Each by the driver, never freed: for memory checkers.
    Single,
}

struct Region {
    base: DevicePtr,
    bytes: usize,
    used: usize,
    leases: usize,
}

impl Region {
    const fn new() -> Self {
        Self { base: DevicePtr::NULL, bytes: 0, used: 0, leases: 0 }
    }

    fn cut(&mut self, gpu: &Gpu, bytes: usize, what: &'static str) -> Result<DevicePtr, KernelError> {
        if self.bytes == 0 {
            self.bytes = REGION.min(gpu.free_bytes() / 10 * 8) as usize;
            self.base = gpu.alloc(self.bytes, "the region of all cases")?;
        }
        let wanted = bytes.max(1).next_multiple_of(ALIGNMENT);
        if wanted > self.bytes - self.used {
            return Err(KernelError::Memory(base::Bytes(bytes as u64), what));
        }
        let at = self.base.plus(self.used);
        self.used += wanted;
        Ok(at)
    }
}

/// Makes `gpu` the device of this process; the version of its library, if it found one.
pub fn share(gpu: Gpu) -> Option<String> {
    let library = gpu.use_library();
    GPU.with(|cell| assert!(cell.set(gpu).is_ok(), "one device a process"));
    library
}

/// Runs `work` on the device itself.
pub fn with<T>(work: impl FnOnce(&Gpu) -> T) -> T {
    GPU.with(|gpu| work(gpu.get().expect("a device was shared")))
}

/// A driver of the shared device.
pub struct Lease {
    info: DeviceInfo,
    allocations: Allocations,
}

impl Lease {
    pub fn new(allocations: Allocations) -> Self {
        REGION_OF_GPU.with_borrow_mut(|region| region.leases += 1);
        Self { info: with(|gpu| gpu.device().clone()), allocations }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        REGION_OF_GPU.with_borrow_mut(|region| {
            region.leases -= 1;
            if region.leases == 0 {
                region.used = 0;
            }
        });
    }
}

impl Memory for Lease {
    fn alloc(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, KernelError> {
        let at = with(|gpu| match self.allocations {
            Allocations::Single => gpu.alloc(bytes, what),
            Allocations::Shared => REGION_OF_GPU.with_borrow_mut(|region| region.cut(gpu, bytes, what)),
        })?;
        if bytes <= POISONED {
            self.upload(at, &vec![0xff; bytes]);
        }
        Ok(at)
    }
}

impl Driver for Lease {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }
    fn check(&self) -> Result<(), DeviceLost> {
        with(Gpu::check)
    }
    fn free_bytes(&self) -> u64 {
        let left = REGION_OF_GPU.with_borrow(|region| (region.bytes - region.used) as u64);
        if left == 0 { with(Gpu::free_bytes) } else { left }
    }
    fn reserve(&self, _bytes: u64) -> Result<(), KernelError> {
        Ok(()) // the region is reserved
    }
    fn alloc_pool(&self, bytes: usize) -> Result<DevicePtr, KernelError> {
        self.alloc(bytes, "kv pages")
    }
    fn upload(&self, to: DevicePtr, bytes: &[u8]) {
        with(|gpu| gpu.upload(to, bytes));
    }
    fn download(&self, from: DevicePtr, out: &mut [u8]) {
        with(|gpu| gpu.download(from, out));
    }
    fn zero(&self, at: DevicePtr, bytes: usize) {
        with(|gpu| gpu.zero(at, bytes));
    }
    fn launch(&self, launch: &Launch<'_>) {
        with(|gpu| gpu.launch(launch));
    }
    fn gemm(&self, gemm: &Gemm) -> bool {
        with(|gpu| gpu.gemm(gemm))
    }
    fn tensor_map(&self, spec: &TensorMapSpec) -> TensorMap {
        with(|gpu| gpu.tensor_map(spec))
    }
    fn record(&self) {
        with(Gpu::record);
    }
    fn recorded(&self) -> Option<GraphId> {
        with(Gpu::recorded)
    }
    fn abandon(&self) {
        with(Gpu::abandon);
    }
    fn replay(&self, graph: GraphId) {
        with(|gpu| gpu.replay(graph));
    }
    fn pin(&self, start: *const u8, bytes: usize) -> bool {
        with(|gpu| gpu.pin(start, bytes))
    }
    fn event(&self) -> Event {
        with(Gpu::event)
    }
    fn mark(&self, event: Event, stream: Stream) {
        with(|gpu| gpu.mark(event, stream));
    }
    fn follow(&self, stream: Stream, event: Event) {
        with(|gpu| gpu.follow(stream, event));
    }
    fn has_passed(&self, event: Event) -> bool {
        with(|gpu| gpu.has_passed(event))
    }
    fn pass(&self, event: Event) {
        with(|gpu| gpu.pass(event));
    }
    fn between_ns(&self, from: Event, to: Event) -> u64 {
        with(|gpu| gpu.between_ns(from, to))
    }
    unsafe fn send(&self, to: DevicePtr, bytes: &[u8]) {
        // SAFETY: the caller's promise is passed on.
        with(|gpu| unsafe { gpu.send(to, bytes) });
    }
    unsafe fn fetch(&self, from: DevicePtr, out: &mut [u8]) {
        // SAFETY: the caller's promise is passed on.
        with(|gpu| unsafe { gpu.fetch(from, out) });
    }
}
