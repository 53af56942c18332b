//! A SIMT emulator for the kernels of `kernels/cu`: the same sources, compiled for the CPU, one fiber per CUDA
//! thread, on schedules that a seed decides.
//!
//! It proves kernels without a GPU: shared memory starts as NaN, copies land as late or as early as the rules
//! allow, warps run far apart, and what is undefined on a GPU (a divergent collective, a deadlock, a misaligned
//! copy, an accumulator read too early) is a [`Fault`] here. It is not a backend: about 30 ns for a lane and a
//! collective. A plain data race between two barriers is found only if some seed makes it change a result.
//!
//! ```text
//! launch(name, grid, block, shared, params, options)     name → CUSIM_KERNEL, params = the kernel's one struct
//!   └─ C++: blocks in the seed's order, on `threads` OS threads
//!        └─ a block: rounds over warps; a fiber runs until its next barrier, collective or wait
//! ```

pub mod conformance;
mod driver;
mod launch;
mod streams;
mod tensor_map;

pub use driver::{Room, SimDriver};
pub use launch::{Fault, Options, Stats, kernel_names, launch, params_bytes};
pub use tensor_map::{Swizzle, TensorMapSpec, TensorMapSpecError};
