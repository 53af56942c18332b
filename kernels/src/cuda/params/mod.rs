//! What each kernel is launched with: one plain struct, byte for byte the kernel's own.
//!
//! Eight-byte members first, padding written out. The emulator compares the length with `sizeof` of the
//! kernel's struct at every launch; a field in the wrong place gives wrong results in its tests.

pub mod act;
pub mod attend;
pub mod linear;
pub mod merge;
pub mod norm;
pub mod pages;
pub mod rope_store;
pub mod rows;
pub mod sample;

use super::driver::Launch;

/// A launch without dynamic shared memory.
fn launch<'a, P: bytemuck::Pod>(
    kernel: &'static str,
    grid: [u32; 3],
    block: u32,
    params: &'a P,
) -> Launch<'a> {
    Launch { kernel, grid, block, smem: 0, params: bytemuck::bytes_of(params) }
}

/// Threads for a row of this many 16-byte vectors: whole warps, at most 256 threads.
fn row_block(vectors: u32) -> u32 {
    vectors.next_multiple_of(32).clamp(32, 256)
}
