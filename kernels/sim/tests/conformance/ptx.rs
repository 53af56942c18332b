//! The meaning of the wrappers of ptx.cuh, element by element.

use cusim::conformance::Case;

use crate::support::{bf16, f32_of};

pub fn expected(case: &Case) -> Option<Vec<u32>> {
    let kernel = case.kernel.strip_prefix("quire_conform_")?;
    let (words, input) = (case.output_words, case.input.as_slice());
    let float = |i: usize| f32::from_bits(input[i]);
    let each = |value: &dyn Fn(usize) -> f32| (0..words).map(|i| value(i).to_bits()).collect::<Vec<u32>>();
    Some(match kernel {
        "bf16_round" => (0..words).map(|i| u32::from(rounded(float(i)))).collect(),
        "bf16_pack" => (0..words)
            .map(|i| u32::from(rounded(float(2 * i))) | u32::from(rounded(float(2 * i + 1))) << 16)
            .collect(),
        "bf16_unpack" => input.iter().flat_map(|w| [w << 16, w & 0xffff_0000, w << 16]).collect(),
        "ex2" => each(&|i| f64::from(float(i)).exp2() as f32),
        "lg2" => each(&|i| f64::from(float(i)).log2() as f32),
        "rsqrt" => each(&|i| (1.0 / f64::from(float(i)).sqrt()) as f32),
        "unfused" => each(&|i| {
            let product = (f64::from(float(3 * i)) * f64::from(float(3 * i + 1))) as f32;
            (f64::from(product) + f64::from(float(3 * i + 2))) as f32
        }),
        "e4m3_decode" => each(&|i| e4m3_value(i as u8)),
        "e4m3_encode" => (0..words).map(|i| u32::from(e4m3_nearest(float(i)))).collect(),
        "e4m3_widen" => input.iter().map(|w| widened(w >> 8) | widened(w >> 24) << 16).collect(),
        "e4m3_scaled" => {
            input.chunks(2).map(|c| scaled(c[0] >> 8, c[1]) | scaled(c[0] >> 24, c[1] >> 16) << 16).collect()
        }
        "vector_copy" => (0..words).map(|i| input[i ^ 4]).collect(),
        "cp_async" => cp_async(input),
        "shared_arrays" => (0..64).rev().flat_map(|t| [0, 1, 2].map(|k| input[t].wrapping_add(k))).collect(),
        "atomics" => atomics(input),
        "warp_reduce" => warp_reduce(input),
        "shuffles" => (0..32).flat_map(|lane| shuffles(input, lane)).collect(),
        "votes" => (0..32).flat_map(|lane| votes(input, lane)).collect(),
        "ldsm4" => ldmatrix(input, |matrix, row, column| matrix * 64 + row * 8 + column),
        "ldsm4t" => ldmatrix(input, |matrix, row, column| matrix * 64 + column * 8 + row),
        "mma" => mma(input),
        _ => return None,
    })
}

/// cvt.rn.bf16: the nearest, ties to even; one NaN for all.
fn rounded(v: f32) -> u16 {
    if v.is_nan() { 0x7fff } else { bf16(v) }
}

/// The same, 2^120 times smaller, times the bf16 of the lower half of `scale`.
fn scaled(word: u32, scale: u32) -> u32 {
    let value = f64::from(f32_of(widened(word) as u16)) * 2f64.powi(-120);
    u32::from(rounded((value * f64::from(f32_of(scale as u16))) as f32))
}

/// The bf16 of the lowest byte; what would be NaN counts on as a number.
fn widened(word: u32) -> u32 {
    let bits = word as u8;
    let value = if bits & 0x7f == 0x7f { 480f32.copysign(f32::from(bits as i8)) } else { e4m3_value(bits) };
    u32::from(bf16(value))
}

fn e4m3_value(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    if bits & 0x7f == 0x7f {
        return f32::from_bits(0x7fff_ffff | u32::from(bits & 0x80) << 24);
    }
    let magnitude =
        if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

/// By trying all: the nearest, the even one of two, 448 at most.
fn e4m3_nearest(v: f32) -> u8 {
    if v.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(v.abs()).min(448.0);
    let distance = |bits: &u8| (f64::from(e4m3_value(*bits)) - magnitude).abs();
    let best = (0..0x7fu8).min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
    best.unwrap_or(0) | if v.is_sign_negative() { 0x80 } else { 0 }
}

fn cp_async(input: &[u32]) -> Vec<u32> {
    let seen = |group: usize, thread: usize, word: usize| {
        if (thread + group).is_multiple_of(3) { 0 } else { input[(group * 64 + thread) * 4 + word] }
    };
    let threads = (0..64usize).rev();
    threads.flat_map(|t| (0..12).map(move |i| seen(i / 4, t, i % 4))).collect()
}

fn atomics(input: &[u32]) -> Vec<u32> {
    let sum: u32 = input.iter().sum();
    let wide = u64::from(sum) << 20;
    vec![wide as u32, (wide >> 32) as u32, sum, u32::MAX]
}

fn warp_reduce(input: &[u32]) -> Vec<u32> {
    let of_warp = |warp: usize| {
        let values = input[warp * 32..warp * 32 + 32].iter().map(|w| f32::from_bits(*w));
        [values.clone().sum::<f32>().to_bits(), values.fold(f32::NEG_INFINITY, f32::max).to_bits()]
    };
    (0..64).flat_map(|t| of_warp(t / 32)).collect()
}

fn shuffles(input: &[u32], lane: usize) -> [u32; 10] {
    let or_own = |from: usize, inside: bool| input[if inside { from } else { lane }];
    let wide = |i: usize| u64::from(input[i]) << 32 | u64::from(!input[i]);
    [
        input[5],
        input[lane * 7 % 32],
        input[lane / 8 * 8 + 3],
        input[lane ^ 9],
        input[lane ^ 4],
        or_own(lane + 3, lane + 3 < 32),
        or_own(lane + 3, lane % 8 + 3 < 8),
        or_own(lane.wrapping_sub(2), lane >= 2),
        or_own(lane.wrapping_sub(2), lane % 16 >= 2),
        (wide(lane ^ 1) >> 16) as u32,
    ]
}

fn votes(input: &[u32], lane: usize) -> [u32; 6] {
    let half = lane / 16 * 16..lane / 16 * 16 + 16;
    let bits = |lanes: std::ops::Range<usize>, holds: &dyn Fn(u32) -> bool| {
        lanes.filter(|l| holds(input[*l])).fold(0u32, |m, l| m | 1 << l)
    };
    let v = input[lane];
    [
        bits(0..32, &|w| w & 1 != 0),
        bits(half.clone(), &|w| w & 2 != 0),
        u32::from(half.clone().any(|l| input[l] & 4 != 0)),
        u32::from(half.clone().all(|l| input[l] & 4 != 0)),
        bits(half, &|w| w & 3 == v & 3),
        v.count_ones() | v.leading_zeros() << 8 | (if v == 0 { 0 } else { v.trailing_zeros() + 1 }) << 16,
    ]
}

/// Register j of a lane holds elements (lane / 4, 2 (lane mod 4)) and the next of matrix j.
fn ldmatrix(input: &[u32], at: impl Fn(usize, usize, usize) -> usize) -> Vec<u32> {
    let element = |i: usize| input[i / 2] >> (16 * (i % 2)) & 0xffff;
    let register = |lane: usize, j: usize| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        element(at(j, row, column)) | element(at(j, row, column + 1)) << 16
    };
    (0..128).map(|i| register(i / 4, i % 4)).collect()
}

/// From the fragment tables of mma.m16n8k16: matrices first, then their product, then the fragments of the result.
fn mma(input: &[u32]) -> Vec<u32> {
    let (mut a, mut b) = ([[0f32; 16]; 16], [[0f32; 8]; 16]);
    for lane in 0..32 {
        let (group, pair) = (lane / 4, lane % 4);
        let half = |register: usize, i: usize| f32_of((input[lane * 10 + register] >> (16 * i)) as u16);
        for i in 0..8 {
            let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
            let column = pair * 2 + i % 2 + if i >= 4 { 8 } else { 0 };
            a[row][column] = half(i / 2, i % 2);
        }
        for i in 0..4 {
            b[pair * 2 + i % 2 + if i >= 2 { 8 } else { 0 }][group] = half(4 + i / 2, i % 2);
        }
    }
    let result = |lane: usize, i: usize| {
        let (row, column) = (lane / 4 + if i >= 2 { 8 } else { 0 }, lane % 4 * 2 + i % 2);
        let sum: f32 = (0..16).map(|k| a[row][k] * b[k][column]).sum();
        (f32::from_bits(input[lane * 10 + 6 + i]) + sum).to_bits()
    };
    (0..128).map(|i| result(i / 4, i % 4)).collect()
}
