//! Packing activations with AVX-512.
//!
//! The plain loop costs 3.5 cycles a value, a sixth of a quantized prefill. Float forms are transposes of
//! 16 x 16 words in registers (rows in, steps out); integer forms quantize a row's group in two registers.
//! The values are those of the plain loop, bit for bit.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::geometry::{GROUP, row_group_bytes};
use crate::cpu::arena::Rows;
use crate::cpu::linear::form::Form;

/// As `activations::pack_block`, for whole groups only.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
pub fn pack_whole(x: &Rows<'_>, block: Range<usize>, part: Range<usize>, form: Form, out: &mut [u8]) {
    let count = block.len();
    let size = count * row_group_bytes(form);
    assert!(out.len() >= part.len() * size && part.end * GROUP <= x.cols && count <= 16);
    for (g, out) in part.zip(out.chunks_exact_mut(size)) {
        match form {
            Form::Bf16 => {
                // SAFETY: `out` holds the group's 16 steps.
                unsafe { store_steps(transpose(load(x, &block, |row| bf16_pairs(row, g))), count, out) };
            }
            Form::F32 | Form::F16 => {
                let (low, high) = out.split_at_mut(size / 2);
                // SAFETY: each half holds 16 steps.
                unsafe {
                    store_steps(transpose(load(x, &block, |row| words(row, g * GROUP))), count, low);
                    store_steps(transpose(load(x, &block, |row| words(row, g * GROUP + 16))), count, high);
                }
            }
            Form::Q8 => quantized(x, &block, g, -128, out),
            Form::Q4 => quantized(x, &block, g, -8, out),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &Rows<'_>, block: &Range<usize>, of: impl Fn(&[f32]) -> __m512i) -> [__m512i; 16] {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (lane, row) in block.clone().enumerate() {
        rows[lane] = of(x.row(row));
    }
    rows
}

#[inline]
#[target_feature(enable = "avx512f")]
fn words(row: &[f32], from: usize) -> __m512i {
    let words = &row[from..from + 16];
    // SAFETY: 16 floats lie there.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// The group's 32 values, rounded, two in a word.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_pairs(row: &[f32], g: usize) -> __m512i {
    let low = _mm512_castsi512_ps(words(row, g * GROUP));
    let high = _mm512_castsi512_ps(words(row, g * GROUP + 16));
    // SAFETY: same size, any bits are a value.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Lane i of register j becomes lane j of register i.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = r; // pairs of rows interleaved by word
    for i in (0..16).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    let mut b = a; // b[4q + c]: rows 4q..4q+4 of column c of each 128-bit quarter
    for q in (0..16).step_by(4) {
        b[q] = _mm512_unpacklo_epi64(a[q], a[q + 2]);
        b[q + 1] = _mm512_unpackhi_epi64(a[q], a[q + 2]);
        b[q + 2] = _mm512_unpacklo_epi64(a[q + 1], a[q + 3]);
        b[q + 3] = _mm512_unpackhi_epi64(a[q + 1], a[q + 3]);
    }
    let mut out = b;
    for c in 0..4 {
        let (b0, b1, b2, b3) = (b[c], b[4 + c], b[8 + c], b[12 + c]);
        let low01 = _mm512_shuffle_i32x4::<0x88>(b0, b1); // quarters 0, 2 of b0, then of b1
        let low23 = _mm512_shuffle_i32x4::<0x88>(b2, b3);
        let high01 = _mm512_shuffle_i32x4::<0xdd>(b0, b1); // quarters 1, 3
        let high23 = _mm512_shuffle_i32x4::<0xdd>(b2, b3);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low01, low23);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low01, low23);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(high01, high23);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high01, high23);
    }
    out
}

/// Stores the first `count` lanes of each register, one after the other.
///
/// # Safety
/// `out` must hold 16 · `count` words.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_steps(steps: [__m512i; 16], count: usize, out: &mut [u8]) {
    debug_assert!(out.len() >= 16 * count * 4);
    let lanes = ((1u32 << count) - 1) as __mmask16;
    for (i, step) in steps.into_iter().enumerate() {
        // SAFETY: the caller's contract; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().add(i * count * 4).cast(), lanes, step) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn quantized(x: &Rows<'_>, block: &Range<usize>, g: usize, offset: i32, out: &mut [u8]) {
    let count = block.len();
    let out = &mut out.as_chunks_mut::<4>().0[..10 * count];
    for (lane, row) in block.clone().enumerate() {
        let row = x.row(row);
        let low = _mm512_castsi512_ps(words(row, g * GROUP));
        let high = _mm512_castsi512_ps(words(row, g * GROUP + 16));
        let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        let low = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)));
        let high = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, inverse)));
        let bytes = _mm256_set_m128i(high, low);
        let sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
        let sum = _mm512_reduce_add_epi32(_mm512_zextsi256_si512(sums));
        // SAFETY: same size, any bits are a value.
        let quads: [[u8; 4]; 8] = unsafe { std::mem::transmute(bytes) };
        for (j, quad) in quads.into_iter().enumerate() {
            out[j * count + lane] = quad;
        }
        out[8 * count + lane] = (offset * sum).to_le_bytes();
        out[9 * count + lane] = (largest / 127.0).to_le_bytes();
    }
}
