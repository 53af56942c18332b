//! The CUDA kernels on the emulator, against references written here in f64.
//!
//! Every subject shows its numerics over many shapes, that nothing leaks from dead slots, that nothing outside of
//! its outputs is written, and that its bits do not depend on the schedule. `QUIRE_CASES=N` runs longer.

mod attend;
mod conformance;
mod copies;
mod elementwise;
mod linear;
mod sampling;
mod support;
