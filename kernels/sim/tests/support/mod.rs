//! What every subject needs: random data, bf16, errors relative to the reference, and buffers that notice.

#![allow(dead_code, unused_imports, reason = "each subject uses its part")]

mod buffer;
mod data;

pub use buffer::Guarded;
pub use data::{
    assert_close, bf16, bf16_values, bf16_vec, cases, f32_of, normal, normal_bf16, relative_error,
};

use cusim::{Options, Stats};

/// The schedules of every test: in order, backwards, and two random ones.
pub const SEEDS: [u64; 4] = [0, 1, 7, 99];

/// Launches with one parameter struct; panics with the fault's text.
pub fn run<P: bytemuck::Pod>(
    name: &str,
    grid: [u32; 3],
    block: [u32; 3],
    smem_bytes: u32,
    params: &P,
    seed: u64,
) -> Stats {
    let options = Options { seed, threads: 1 };
    match cusim::launch(name, grid, block, smem_bytes, bytemuck::bytes_of(params), &options) {
        Ok(stats) => stats,
        Err(fault) => panic!("{fault}"),
    }
}
