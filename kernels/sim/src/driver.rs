//! The emulator as a device: what the CUDA backend's host code drives where there is no GPU.
//!
//! Device memory is boxes of host memory that start as NaN; every copy is checked against them, so a host that
//! writes beyond an allocation is heard. A recorded step is a list of launches; copies while recording, which
//! a GPU would refuse, panic here as well. Slow on purpose: it proves, it does not serve.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels::KernelError;
use kernels::cuda::driver::{
    self, Arch, DeviceInfo, DevicePtr, Driver, Gemm, GraphId, Launch, TensorMap, TensorMapSpec,
};

use crate::{Options, Swizzle, launch};

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

/// An emulated device.
pub struct SimDriver {
    info: DeviceInfo,
    options: Options,
    memory: RefCell<Vec<Box<[Line]>>>,
    free: Cell<u64>,
    recording: RefCell<Option<Vec<Noted>>>,
    graphs: RefCell<Vec<Vec<Noted>>>,
    replays: Arc<AtomicU64>,
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
            free: Cell::new(memory_bytes),
            recording: RefCell::default(),
            graphs: RefCell::default(),
            replays: Arc::default(),
        }
    }

    /// Counts recorded steps that were run; outlives the driver's move into a backend.
    pub fn replays(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.replays)
    }

    /// Where `bytes` bytes at `at` lie in host memory; panics unless one allocation holds them all.
    fn place(&self, at: DevicePtr, bytes: usize) -> *mut u8 {
        assert!(self.recording.borrow().is_none(), "a copy while a step is recorded");
        let mut memory = self.memory.borrow_mut();
        let inside = |lines: &&mut Box<[Line]>| {
            let start = lines.as_ptr() as u64;
            start <= at.0 && at.0 + bytes as u64 <= start + (lines.len() * size_of::<Line>()) as u64
        };
        let lines = memory.iter_mut().find(inside);
        let lines = lines.unwrap_or_else(|| panic!("{bytes} bytes at {:#x} are in no allocation", at.0));
        let offset = (at.0 - lines.as_ptr() as u64) as usize;
        // SAFETY: the offset was found to lie inside the allocation.
        unsafe { lines.as_mut_ptr().cast::<u8>().add(offset) }
    }

    fn run(&self, noted: &Noted) {
        let block = [noted.block, 1, 1];
        let ran = launch(noted.kernel, noted.grid, block, noted.smem, &noted.params, &self.options);
        if let Err(fault) = ran {
            panic!("{fault}");
        }
    }
}

impl Driver for SimDriver {
    fn device(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> u64 {
        self.free.get()
    }

    fn alloc(&self, bytes: usize, what: &'static str) -> Result<DevicePtr, KernelError> {
        let refused = KernelError::Memory(base::Bytes(bytes as u64), what);
        let left = self.free.get().checked_sub(bytes as u64).ok_or(refused)?;
        self.free.set(left);
        let lines = vec![Line([POISON; 256]); bytes.div_ceil(256).max(1)].into_boxed_slice();
        let at = DevicePtr(lines.as_ptr() as u64);
        self.memory.borrow_mut().push(lines);
        Ok(at)
    }

    fn upload(&self, to: DevicePtr, bytes: &[u8]) {
        let place = self.place(to, bytes.len());
        // SAFETY: `place` holds as many bytes, and `bytes` is the caller's own memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    fn download(&self, from: DevicePtr, out: &mut [u8]) {
        let place = self.place(from, out.len());
        // SAFETY: as in `upload`.
        unsafe { std::ptr::copy_nonoverlapping(place, out.as_mut_ptr(), out.len()) };
    }

    fn zero(&self, at: DevicePtr, bytes: usize) {
        let place = self.place(at, bytes);
        // SAFETY: `place` holds as many bytes.
        unsafe { std::ptr::write_bytes(place, 0, bytes) };
    }

    fn launch(&self, launch: &Launch<'_>) {
        let Launch { kernel, grid, block, smem, params } = *launch;
        let noted = Noted { kernel, grid, block, smem, params: params.to_vec() };
        match self.recording.borrow_mut().as_mut() {
            Some(recording) => recording.push(noted),
            None => self.run(&noted),
        }
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
        graphs.push(launches);
        Some(GraphId(graphs.len() as u32 - 1))
    }

    fn abandon(&self) {
        self.recording.borrow_mut().take();
    }

    fn replay(&self, graph: GraphId) {
        self.replays.fetch_add(1, Ordering::Relaxed);
        self.graphs.borrow()[graph.0 as usize].iter().for_each(|noted| self.run(noted));
    }

    fn pin(&self, _start: *const u8, _bytes: usize) {}
}
