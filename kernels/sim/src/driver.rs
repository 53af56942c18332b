//! The emulator as a device: what the CUDA backend's host code drives where there is no GPU.
//!
//! Device memory is boxes of host memory that start as NaN; every copy is checked against them, so a host that
//! writes beyond an allocation is heard. What is asked for runs later (see `streams`), so that an order which only a GPU
//! would get wrong is wrong here too. A recorded step is a list of launches; copies while recording, which
//! a GPU would refuse, panic here as well. Slow on purpose: it proves, it does not serve.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kernels::cuda::driver::{
    self, ALIGN, Arch, DeviceInfo, DevicePtr, Driver, Event, Gemm, GraphId, Launch, Memory, Stream,
    TensorMap, TensorMapSpec,
};
use kernels::cuda::source::UNITS;
use kernels::{DeviceLost, KernelError};

use crate::streams::Streams;
use crate::{Options, Swizzle, launch};
/// Which file each kernel is in.
const BUDGET: &str = include_str!("../../cu/budget.txt");
/// The words of a device that died.
const DEAD: &str = "an illegal memory access was encountered (emulated)";

/// What a fresh allocation holds: NaN in every float type.
const POISON: u8 = 0xff;

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Line([u8; 256]);

/// A launch that was noted.
struct Noted {
    kernel: &'static str,
    grid: [u32; 3],
    block: u32,
    smem: u32,
    params: Vec<u8>,
}

/// Host memory of an allocation or of a caller.
#[derive(Clone, Copy)]
struct Place(usize);

/// What a stream was given.
enum Asked {
    Launch(Noted),
    Replay(Arc<Vec<Noted>>),
    Put { place: Place, bytes: Vec<u8> },
    Zero { place: Place, bytes: usize },
    Copy { from: Place, to: Place, bytes: usize },
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Asked::Launch(noted) => f.write_str(noted.kernel),
            Asked::Replay(_) => f.write_str("a recorded step"),
            Asked::Put { .. } | Asked::Zero { .. } | Asked::Copy { .. } => f.write_str("a copy"),
        }
    }
}

/// How the device's memory stands.
#[derive(Debug)]
pub struct Room {
    pub free: AtomicU64,
    /// What is left of the reserved piece.
    pub reserved: AtomicU64,
}

/// An emulated device.
pub struct SimDriver {
    info: DeviceInfo,
    options: Options,
    memory: RefCell<Vec<Box<[Line]>>>,
    room: Arc<Room>,
    recording: RefCell<Option<Vec<Noted>>>,
    graphs: RefCell<Vec<Arc<Vec<Noted>>>>,
    streams: Streams<Asked>,
    replays: Arc<AtomicU64>,
    dead: Arc<AtomicBool>,
    /// Kernels of files that no server loads on such a device.
    absent: HashSet<&'static str>,
}

impl SimDriver {
    /// A device of this architecture with a few multiprocessors, so that work is cut where a GPU's would be.
    pub fn new(arch: Arch, options: Options) -> Self {
        let memory_bytes = 1 << 30;
        let info = DeviceInfo {
            name: "emulated device".into(),
            arch,
            sms: 4,
            l2_bytes: 1 << 20,
            memory_bytes,
            smem_max: 227 << 10,
            driver: format!("seed {}", options.seed),
        };
        Self {
            info,
            options,
            memory: RefCell::default(),
            room: Arc::new(Room { free: memory_bytes.into(), reserved: 0.into() }),
            recording: RefCell::default(),
            graphs: RefCell::default(),
            streams: Streams::new(options.seed),
            replays: Arc::default(),
            dead: Arc::default(),
            absent: absent(arch),
        }
    }

    /// Kernels that no server launches on such a device can be launched as well.
    pub fn with_every_kernel(mut self) -> Self {
        self.absent.clear();
        self
    }

    /// Once set, the device is dead: as after a fault in a kernel, every call fails and none brings it back.
    pub fn killer(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.dead)
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Counts recorded steps that were run; outlives the driver's move into a backend.
    pub fn replays(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.replays)
    }

    /// As [`SimDriver::new`], with `memory_bytes` of device memory.
    pub fn with_memory(arch: Arch, options: Options, memory_bytes: u64) -> Self {
        let mut made = Self::new(arch, options);
        made.info.memory_bytes = memory_bytes;
        made.room.free.store(memory_bytes, Ordering::Relaxed);
        made
    }

    /// Counts against the device's memory.
    fn take(&self, bytes: u64, what: &'static str) -> Result<(), KernelError> {
        let left = self.room.free.load(Ordering::Relaxed).checked_sub(bytes);
        let left = left.ok_or(KernelError::Memory(base::Bytes(bytes), what))?;
        self.room.free.store(left, Ordering::Relaxed);
        Ok(())
    }

    /// Fresh memory, all NaN.
    fn lines(&self, bytes: usize) -> DevicePtr {
        let lines = vec![Line([POISON; 256]); bytes.div_ceil(256).max(1)].into_boxed_slice();
        let at = DevicePtr(lines.as_ptr() as u64);
        self.memory.borrow_mut().push(lines);
        at
    }

    /// How its memory stands; outlives the driver's move into a backend.
    pub fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room)
    }

    /// Where `bytes` bytes at `at` lie in host memory; panics unless one allocation holds them all.
    fn place(&self, at: DevicePtr, bytes: usize) -> Place {
        assert!(!self.is_dead(), "a copy failed: {DEAD}");
        self.refuse_recording();
        let mut memory = self.memory.borrow_mut();
        let inside = |lines: &&mut Box<[Line]>| {
            let start = lines.as_ptr() as u64;
            start <= at.0 && at.0 + bytes as u64 <= start + (lines.len() * size_of::<Line>()) as u64
        };
        let lines = memory.iter_mut().find(inside);
        let lines = lines.unwrap_or_else(|| panic!("{bytes} bytes at {:#x} are in no allocation", at.0));
        let offset = (at.0 - lines.as_ptr() as u64) as usize;
        // SAFETY: the offset was found to lie inside the allocation.
        Place(unsafe { lines.as_mut_ptr().cast::<u8>().add(offset) } as usize)
    }

    fn give(&self, stream: Stream, asked: Asked) {
        self.streams.give(stream, asked, &mut |asked| self.run(asked));
    }

    fn run(&self, asked: Asked) {
        assert!(!self.is_dead(), "{asked} failed: {DEAD}");
        match asked {
            Asked::Launch(noted) => self.launch_now(&noted),
            Asked::Replay(launches) => launches.iter().for_each(|noted| self.launch_now(noted)),
            // SAFETY: `place` looked up an allocation with room for them.
            Asked::Put { place, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.0 as *mut u8, bytes.len());
            },
            // SAFETY: as above.
            Asked::Zero { place, bytes } => unsafe { std::ptr::write_bytes(place.0 as *mut u8, 0, bytes) },
            // SAFETY: one side is an allocation with room, the other memory that the caller of `send` or `fetch`
            // promised to keep.
            Asked::Copy { from, to, bytes } => unsafe {
                std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, bytes);
            },
        }
    }

    fn launch_now(&self, noted: &Noted) {
        let block = [noted.block, 1, 1];
        let ran = launch(noted.kernel, noted.grid, block, noted.smem, &noted.params, &self.options);
        if let Err(fault) = ran {
            panic!("{fault}");
        }
    }

    fn refuse_recording(&self) {
        assert!(self.recording.borrow().is_none(), "a copy or an event while a step is recorded");
    }
}

/// Kernels of the files that a server does not load on a device of this architecture.
fn absent(arch: Arch) -> HashSet<&'static str> {
    let idle = UNITS.iter().filter(|unit| !unit.serves_on(arch.is_hopper()));
    let files: HashSet<String> = idle.map(|unit| format!("{}.cu", unit.name)).collect();
    let rows = BUDGET.lines().filter(|line| !line.starts_with('#'));
    let kernels = rows.filter_map(|row| row.split_once(' ')).filter(|(file, _)| files.contains(*file));
    kernels.filter_map(|(_, rest)| rest.split(' ').next()).collect()
}

impl Memory for SimDriver {
    fn alloc(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, KernelError> {
        let wanted = bytes.max(1).next_multiple_of(ALIGN) as u64;
        let reserved = &self.room.reserved;
        match reserved.load(Ordering::Relaxed).checked_sub(wanted) {
            Some(left) => reserved.store(left, Ordering::Relaxed),
            None => self.take(wanted, what)?,
        }
        // Each allocation is memory of its own also where a reserved piece would hold them side by side: what
        // reaches beyond one is seen.
        Ok(self.lines(bytes))
    }
}

impl Driver for SimDriver {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn check(&self) -> Result<(), DeviceLost> {
        match self.is_dead() {
            true => Err(DeviceLost(DEAD.into())),
            false => {
                for stream in [Stream::Work, Stream::Copies] {
                    self.streams.drain(stream, &mut |asked| self.run(asked));
                }
                Ok(())
            }
        }
    }

    fn free_bytes(&self) -> u64 {
        self.room.free.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: u64) -> Result<(), KernelError> {
        self.take(bytes, "weights and buffers")?;
        self.room.reserved.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn alloc_pool(&self, bytes: usize) -> Result<DevicePtr, KernelError> {
        self.take(bytes as u64, "kv pages")?;
        Ok(self.lines(bytes))
    }

    fn upload(&self, to: DevicePtr, bytes: &[u8]) {
        let place = self.place(to, bytes.len());
        self.give(Stream::Work, Asked::Put { place, bytes: bytes.to_vec() });
    }

    fn download(&self, from: DevicePtr, out: &mut [u8]) {
        let place = self.place(from, out.len());
        self.streams.drain(Stream::Work, &mut |asked| self.run(asked));
        // SAFETY: the allocation holds as many bytes, and `out` is the caller's own memory.
        unsafe { std::ptr::copy_nonoverlapping(place.0 as *const u8, out.as_mut_ptr(), out.len()) };
    }

    fn zero(&self, at: DevicePtr, bytes: usize) {
        let place = self.place(at, bytes);
        self.give(Stream::Work, Asked::Zero { place, bytes });
    }

    fn launch(&self, launch: &Launch<'_>) {
        let Launch { kernel, grid, block, smem, params } = *launch;
        assert!(!self.absent.contains(kernel), "{kernel}: its file is not loaded on such a device");
        let noted = Noted { kernel, grid, block, smem, params: params.to_vec() };
        if let Some(recording) = self.recording.borrow_mut().as_mut() {
            return recording.push(noted);
        }
        self.give(Stream::Work, Asked::Launch(noted));
    }

    fn gemm(&self, _gemm: &Gemm) -> bool {
        false
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> TensorMap {
        let rank = spec.rank as usize;
        let encoded = crate::TensorMapSpec {
            base: spec.base.0,
            element_bytes: 2,
            dims: spec.dims[..rank].to_vec(),
            strides: spec.strides[..rank - 1].to_vec(),
            tile: spec.boxes[..rank].to_vec(),
            swizzle: match spec.swizzle {
                driver::Swizzle::None => Swizzle::None,
                driver::Swizzle::Bytes128 => Swizzle::Bytes128,
            },
        };
        TensorMap(encoded.encode().unwrap_or_else(|e| panic!("{e}: {spec:?}")))
    }

    fn record(&self) {
        let before = self.recording.borrow_mut().replace(Vec::new());
        assert!(before.is_none(), "a recording inside a recording");
    }

    fn recorded(&self) -> Option<GraphId> {
        let launches = self.recording.borrow_mut().take().expect("a recording was begun");
        let mut graphs = self.graphs.borrow_mut();
        graphs.push(Arc::new(launches));
        Some(GraphId(graphs.len() as u32 - 1))
    }

    fn abandon(&self) {
        self.recording.borrow_mut().take();
    }

    fn replay(&self, graph: GraphId) {
        self.replays.fetch_add(1, Ordering::Relaxed);
        let launches = Arc::clone(&self.graphs.borrow()[graph.0 as usize]);
        self.give(Stream::Work, Asked::Replay(launches));
    }

    fn pin(&self, _start: *const u8, _bytes: usize) -> bool {
        true
    }

    fn event(&self) -> Event {
        Event(self.streams.event())
    }

    fn mark(&self, event: Event, stream: Stream) {
        self.refuse_recording();
        self.streams.mark(event.0, stream);
    }

    fn follow(&self, stream: Stream, event: Event) {
        self.refuse_recording();
        self.streams.follow(stream, event.0);
    }

    fn has_passed(&self, event: Event) -> bool {
        self.streams.has_passed(event.0, &mut |asked| self.run(asked))
    }

    fn pass(&self, event: Event) {
        self.streams.pass(event.0, &mut |asked| self.run(asked));
    }

    fn between_ns(&self, _from: Event, _to: Event) -> u64 {
        0
    }

    unsafe fn send(&self, to: DevicePtr, bytes: &[u8]) {
        let (to, from) = (self.place(to, bytes.len()), Place(bytes.as_ptr() as usize));
        self.give(Stream::Copies, Asked::Copy { from, to, bytes: bytes.len() });
    }

    unsafe fn fetch(&self, from: DevicePtr, out: &mut [u8]) {
        let (from, to) = (self.place(from, out.len()), Place(out.as_mut_ptr() as usize));
        self.give(Stream::Copies, Asked::Copy { from, to, bytes: out.len() });
    }
}
