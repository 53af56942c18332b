//! The CUDA backend: the trait's ops as launches of our own kernels on a device.
//!
//! ```text
//! backend ── plans (attention work list, products) ── params ── Driver ─┬─ gpu: libcuda, NVRTC, cuBLASLt
//!                                                                      └─ quire-cusim: the CPU emulates
//! ```
//!
//! The kernels (`kernels/cu`) are one source for nvcc, NVRTC and g++. Everything above [`Driver`] runs the
//! same on a card and under the emulator, which is how it is tested where there is no card.

pub mod attend_plan;
mod attention;
mod backend;
mod copies;
pub mod driver;
pub mod gpu;
mod ledger;
pub mod linear_fp8;
pub mod linear_plan;
mod memory;
mod pages;
pub mod params;
pub mod prefix_groups;
mod replay;
mod rope;
mod sampling;
pub mod sharing;
pub mod source;
mod step;
mod weights;

pub use backend::{CudaBackend, CudaOptions, Determinism};
pub use driver::Driver;
