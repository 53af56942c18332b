//! Launching a kernel by name, with the arguments that `cuLaunchKernel` would get.
//!
//! Device memory is host memory: a parameter struct holds addresses of the caller's vectors. The call is safe in
//! name only as far as a kernel is right about those, as on a GPU; what goes wrong inside of the emulator's
//! reach is an error, what a stray pointer does is not. (ASan finds those: scripts/cusim-sanitize.)

use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// How a launch runs; its result may depend on none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// 0: threads in order, copies as late as the order allows; 1: backwards, greedy, copies at once; others random.
    pub seed: u64,
    /// OS threads that blocks are spread over.
    pub threads: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, threads: 1 }
    }
}

impl Options {
    /// One OS thread, this schedule.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, threads: 1 }
    }
}

/// What a launch did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub blocks: u64,
    /// Times a fiber was switched to.
    pub switches: u64,
    /// Warp-wide operations, matrix operations included.
    pub collectives: u64,
    /// Barriers of a block, numbered ones included.
    pub barriers: u64,
    pub async_copies: u64,
    pub matrix_ops: u64,
    /// Shared memory of the block that used most, static arrays included.
    pub shared_bytes: u64,
}

/// Why a launch gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Something undefined happened in a block; outputs are partly written.
    #[error("{kernel} (seed {seed}): {what}")]
    Block { kernel: String, seed: u64, what: String },
    /// The launch was not begun.
    #[error("{kernel}: refused: {what}")]
    Refused { kernel: String, what: String },
}

#[repr(C)]
struct RawLaunch {
    kernel: *const c_char,
    params: *const c_void,
    params_bytes: u64,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    threads: u32,
    seed: u64,
}

unsafe extern "C" {
    fn cusim_launch(
        launch: *const RawLaunch,
        stats: *mut Stats,
        text: *mut c_char,
        text_bytes: usize,
    ) -> c_int;
    fn cusim_kernel_count() -> u64;
    fn cusim_kernel_name(i: u64) -> *const c_char;
    fn cusim_kernel_params_bytes(i: u64) -> u64;
}

/// Runs `name` over the grid and returns when all blocks have ended, or at the first fault.
pub fn launch(
    name: &str,
    grid: [u32; 3],
    block: [u32; 3],
    smem_bytes: u32,
    params: &[u8],
    options: &Options,
) -> Result<Stats, Fault> {
    let refused = |what: String| Fault::Refused { kernel: name.to_owned(), what };
    let kernel = CString::new(name).map_err(|e| refused(e.to_string()))?;
    let raw = RawLaunch {
        kernel: kernel.as_ptr(),
        params: params.as_ptr().cast(),
        params_bytes: params.len() as u64,
        grid,
        block,
        shared_bytes: smem_bytes,
        threads: options.threads,
        seed: options.seed,
    };
    let mut stats = Stats::default();
    let mut text = [0 as c_char; 1024];
    // SAFETY: all pointers in `raw` outlive the call, which writes `stats` and at most `text.len()` bytes of text.
    // What the kernel does with the addresses in `params` is the caller's business, see the head of this file.
    let code = unsafe { cusim_launch(&raw, &mut stats, text.as_mut_ptr(), text.len()) };
    if code == 0 {
        return Ok(stats);
    }
    // SAFETY: on every code but 0 the callee wrote text with a closing zero within the array.
    let what = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
    Err(if code == 1 {
        Fault::Block { kernel: name.to_owned(), seed: options.seed, what }
    } else {
        refused(what)
    })
}

/// Names of all kernels of this build, sorted.
pub fn kernel_names() -> Vec<String> {
    let mut names: Vec<String> = (0..kernel_count()).map(kernel_name).collect();
    names.sort();
    names
}

/// The size of a kernel's parameter struct, as the C++ compiler laid it out.
pub fn params_bytes(name: &str) -> Option<usize> {
    let i = (0..kernel_count()).find(|&i| kernel_name(i) == name)?;
    // SAFETY: `i` is below the count; the registry does not change after start.
    Some(unsafe { cusim_kernel_params_bytes(i) } as usize)
}

fn kernel_count() -> u64 {
    // SAFETY: reads the length of a list that is complete before main.
    unsafe { cusim_kernel_count() }
}

fn kernel_name(i: u64) -> String {
    // SAFETY: callers pass `i` below the count; names are string literals of the kernels' objects.
    unsafe { CStr::from_ptr(cusim_kernel_name(i)) }.to_string_lossy().into_owned()
}
