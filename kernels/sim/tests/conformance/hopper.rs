//! The meaning of the wrappers of hopper.cuh, element by element.

use cusim::Swizzle;
use cusim::conformance::{Case, TENSOR_AT};

use crate::support::f32_of;

pub fn expected(case: &Case) -> Option<Vec<u32>> {
    let kernel = case.kernel.strip_prefix("quire_conform_")?;
    let input = case.input.as_slice();
    Some(match kernel {
        "bar_sync" => (0..128).flat_map(|t| (0..3).map(move |r| input[t ^ 32].wrapping_add(r))).collect(),
        "mbar_ring" => (0..160).map(|i| input[i / 32 * 32 + 31 - i % 32]).collect(),
        "tma_2d" | "tma_3d" | "tma_4d" => {
            let at: Vec<i64> = (0..5).map(|d| i64::from(input[1 + d] as i32)).collect();
            tma_box(case, &at)
        }
        "tma_phases" => [0, 8, 16, 24].iter().flat_map(|row| tma_box(case, &[0, *row])).collect(),
        "wgmma_ss_n32" => wgmma_ss(input, 32, 0, 0, 4),
        "wgmma_ss_n64" => wgmma_ss(input, 64, 0, 0, 4),
        "wgmma_ss_n128" => wgmma_ss(input, 128, 0, 0, 4),
        "wgmma_ss_n256" => wgmma_ss(input, 256, 0, 0, 4),
        "wgmma_rs_tb_n64" => wgmma_rs_tb(input, 64),
        "wgmma_rs_tb_n128" => wgmma_rs_tb(input, 128),
        "wgmma_rs_tb_n256" => wgmma_rs_tb(input, 256),
        "wgmma_groups" => {
            let (first, second) = (wgmma_ss(input, 64, 0, 0, 1), wgmma_ss(input, 64, 16, 32, 1));
            (0..128)
                .flat_map(|t| [&first[t * 32..t * 32 + 32], &second[t * 32..t * 32 + 32]].concat())
                .collect()
        }
        "no_ops" => (0..256).map(|t| if t < 128 { input[t] } else { !input[t] }).collect(),
        _ => return None,
    })
}

fn half(words: &[u32], i: usize) -> u16 {
    (words[i / 2] >> (16 * (i % 2))) as u16
}

/// The box in row-major order, zeros outside of the tensor; under the 128-byte swizzle each 16-byte piece of a
/// 1024-byte atom changes places with the one whose number is xored with that of its line.
fn tma_box(case: &Case, at: &[i64]) -> Vec<u32> {
    let tensor = case.tensor.as_ref().expect("a tensor");
    let tile: Vec<i64> = tensor.tile.iter().map(|t| i64::from(*t)).collect();
    let elements = tile.iter().product::<i64>();
    let mut plain = vec![0u16; elements as usize];
    for (i, value) in plain.iter_mut().enumerate() {
        let (mut rest, mut offset, mut inside) = (i as i64, 0, true);
        for d in 0..tile.len() {
            let coordinate = at[d] + rest % tile[d];
            rest /= tile[d];
            inside &= coordinate >= 0 && coordinate < tensor.dims[d] as i64;
            offset += coordinate * if d == 0 { 2 } else { tensor.strides[d - 1] as i64 };
        }
        if inside {
            *value = half(&case.input[TENSOR_AT..], offset as usize / 2);
        }
    }
    let place = |i: usize| match tensor.swizzle {
        Swizzle::None => i,
        Swizzle::Bytes128 => i / 64 * 64 + ((i / 8 % 8) ^ (i / 64 % 8)) * 8 + i % 8,
    };
    let mut lying = vec![0u16; plain.len()];
    for (i, value) in plain.iter().enumerate() {
        lying[place(i)] = *value;
    }
    lying.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect()
}

/// The fragments of a 64 x n result: thread t holds, in register 4i + 2r + c, row 16 (t / 32) + 8r + (t mod 32) / 4
/// and column 8i + 2 (t mod 4) + c.
fn fragments(n: usize, value: impl Fn(usize, usize, usize) -> f32) -> Vec<u32> {
    let mut out = Vec::new();
    for t in 0..128 {
        for register in 0..n / 2 {
            let row = 16 * (t / 32) + 8 * (register / 2 % 2) + t % 32 / 4;
            let column = 8 * (register / 4) + 2 * (t % 4) + register % 2;
            out.push(value(row, column, register).to_bits());
        }
    }
    out
}

/// A and B are 64 wide; `steps` of 16 along k from these columns.
fn wgmma_ss(input: &[u32], n: usize, a_column: usize, b_column: usize, steps: usize) -> Vec<u32> {
    let (a, b) = input.split_at(64 * 32);
    let value = |words: &[u32], row: usize, k: usize| f32_of(half(words, row * 64 + k));
    fragments(n, |row, column, _| {
        (0..16 * steps).map(|k| value(a, row, a_column + k) * value(b, column, b_column + k)).sum()
    })
}

fn wgmma_rs_tb(input: &[u32], n: usize) -> Vec<u32> {
    let (registers, b) = input.split_at(512);
    let mut a = [[0f32; 16]; 64];
    for t in 0..128 {
        for i in 0..8 {
            let row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2);
            a[row][2 * (t % 4) + i % 2 + 8 * (i / 4)] = f32_of(half(registers, t * 8 + i));
        }
    }
    fragments(n, |row, column, register| {
        let sum: f32 = (0..16).map(|k| a[row][k] * f32_of(half(b, k * n + column))).sum();
        (register % 7) as f32 - 3.0 + sum
    })
}
