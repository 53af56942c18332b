//! What the CUDA backend asks of a device: memory, copies, launches, recorded steps.
//!
//! Two implementations: [`super::gpu::Gpu`] over the driver API, and the emulator of `quire-cusim`, which
//! runs the same kernels on the CPU. Everything above this trait (which kernel, which grid, which bytes of
//! parameters, what is uploaded when) is therefore the same code in CI and on a card.
//!
//! Work goes to one stream, in order; pages on their way from and to the host go to another, and the two wait for each
//! other by events only. Allocation happens at load only. What fails after load is a bug
//! or a dead device: it panics with the driver's words, which fails the step behind the executor's fence; which of
//! the two it was, [`Driver::check`] says.

use crate::{DeviceLost, KernelError};

/// An address in device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    pub fn plus(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// Compute capability, `major * 10 + minor`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Arch(pub u32);

impl Arch {
    /// Has TMA and wgmma, which later generations dropped.
    pub fn is_hopper(self) -> bool {
        self.0 / 10 == 9
    }

    /// What the compilers call it, with the suffix that unlocks the generation's own instructions.
    pub fn target(self) -> String {
        match self.0 {
            90 => "sm_90a".into(),
            100 | 103 => format!("sm_{}f", self.0),
            n => format!("sm_{n}"),
        }
    }
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub name: String,
    pub arch: Arch,
    /// Streaming multiprocessors.
    pub sms: u32,
    pub l2_bytes: u64,
    pub memory_bytes: u64,
    /// Most dynamic shared memory that one block can have.
    pub smem_max: u32,
    /// Version of the driver, as `13.0`; of the emulator, its seed.
    pub driver: String,
}

/// One kernel launch. The parameter is one struct, passed by value.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: u32,
    pub smem: u32,
    pub params: &'a [u8],
}

/// How the lines of a box lie in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Swizzle {
    /// One after the other.
    None,
    /// Lines of 128 bytes, their 16-byte parts permuted by the line: what wgmma reads.
    Bytes128,
}

/// A tensor map for bulk tensor copies: bf16, zero fill outside.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapSpec {
    pub base: DevicePtr,
    /// Innermost first; unused dimensions are 1.
    pub dims: [u64; 4],
    /// In bytes, of dimensions 1 to 3.
    pub strides: [u64; 3],
    pub boxes: [u32; 4],
    pub rank: u32,
    pub swizzle: Swizzle,
}

/// The opaque descriptor, as the hardware reads it.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// `out[rows][n] = x[rows][k] · w[n][k]ᵀ (+ bias)`, bf16 in, f32 accumulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    pub x: DevicePtr,
    pub w: DevicePtr,
    /// bf16, one per output; or null.
    pub bias: DevicePtr,
    pub out: DevicePtr,
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub out_type: OutType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutType {
    Bf16,
    F32,
}

/// A step that was recorded and can be run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub u32);

/// Where device memory comes from. Apart from [`Driver`], so that a plan of the memory can run the same
/// constructors over a ledger.
pub trait Memory {
    /// Memory that stays until the driver goes; 256-byte aligned, contents unknown.
    fn alloc(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, KernelError>;
}

/// What allocations are rounded up to.
pub const ALIGN: usize = 256;

/// An order of work. The two run side by side unless one is told to follow an event of the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Steps, and everything that has no stream in its name.
    Work,
    /// Pages between device and host.
    Copies,
}

/// A point in a stream, once it was marked; each mark moves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Event(pub u32);

/// A device and its two streams.
pub trait Driver: Memory + Send {
    fn device(&self) -> &DeviceInfo;
    /// Waits for all work; an error that sticks to the device shows here, and in every call from now on.
    fn check(&self) -> Result<(), DeviceLost>;
    /// Bytes that can still be allocated.
    fn free_bytes(&self) -> u64;
    /// Takes one piece of `bytes`, out of which the allocations that follow are cut as long as it lasts: the
    /// driver would round each of a model's hundreds up to its own granule.
    fn reserve(&self, bytes: u64) -> Result<(), KernelError>;
    /// As [`Memory::alloc`], in a piece of its own.
    fn alloc_pool(&self, bytes: usize) -> Result<DevicePtr, KernelError>;
    /// Copies to the device; `bytes` may change once this returns.
    fn upload(&self, to: DevicePtr, bytes: &[u8]);
    /// Waits for the stream, then copies from the device.
    fn download(&self, from: DevicePtr, out: &mut [u8]);
    fn zero(&self, at: DevicePtr, bytes: usize);
    fn launch(&self, launch: &Launch<'_>);
    /// True if a library did it; false: there is none, use a kernel.
    fn gemm(&self, gemm: &Gemm) -> bool;
    fn tensor_map(&self, spec: &TensorMapSpec) -> TensorMap;

    /// From here to [`Driver::recorded`] launches are noted instead of run, and nothing is copied.
    fn record(&self);
    /// Ends the recording; `None` if the device cannot run it.
    fn recorded(&self) -> Option<GraphId>;
    /// Forgets what was noted since [`Driver::record`].
    fn abandon(&self);
    fn replay(&self, graph: GraphId);

    /// Makes copies from and to this memory direct; false if the driver will not. It must stay mapped as long as the
    /// driver lives.
    fn pin(&self, start: *const u8, bytes: usize) -> bool;

    /// A new event; a few at load.
    fn event(&self) -> Event;
    /// The event is now: it passes when all that `stream` was given so far has run.
    fn mark(&self, event: Event, stream: Stream);
    /// What `stream` is given from now on runs after the event, as it was last marked.
    fn follow(&self, stream: Stream, event: Event);
    fn has_passed(&self, event: Event) -> bool;
    /// Waits until it has.
    fn pass(&self, event: Event);
    /// Nanoseconds on the device between two events that have passed; 0 if it keeps no time.
    fn between_ns(&self, from: Event, to: Event) -> u64;
    /// Copies to the device in [`Stream::Copies`] and returns at once.
    ///
    /// # Safety
    /// `bytes` stay mapped until an event has passed that was marked behind this copy.
    unsafe fn send(&self, to: DevicePtr, bytes: &[u8]);
    /// Copies from the device in [`Stream::Copies`] and returns at once.
    ///
    /// # Safety
    /// As [`Driver::send`], and nobody looks at `out` until then.
    unsafe fn fetch(&self, from: DevicePtr, out: &mut [u8]);
}
