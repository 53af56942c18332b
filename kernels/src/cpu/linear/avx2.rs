//! Tiles in AVX2 with FMA and F16C, over the same packed layout.
//!
//! A panel is four registers wide and there are sixteen, so a tile runs over the panel in two halves of 16
//! outputs. Bytes are widened to 16 bits before multiplying: the one-instruction byte dot of this set
//! saturates, and with it results would depend on the data. Nibbles are small enough for it.

use std::arch::x86_64::*;

use super::super::geometry::{GROUP, group_bytes};
use super::super::tile::{Tile, TileFn};
use crate::cpu::linear::form::Form;

pub const ROWS: usize = 4;

macro_rules! by_rows {
    ($f:ident, $rows:expr) => {
        match $rows {
            1 => $f::<1> as TileFn,
            2 => $f::<2>,
            3 => $f::<3>,
            4 => $f::<4>,
            rows => unreachable!("{rows} rows"),
        }
    };
}

pub fn select(form: Form, rows: usize) -> TileFn {
    match form {
        Form::F32 => by_rows!(f32_tile, rows),
        Form::F16 => by_rows!(f16_tile, rows),
        Form::Bf16 => by_rows!(bf16_tile, rows),
        Form::Q8 => by_rows!(q8_tile, rows),
        Form::Q4 => by_rows!(q4_tile, rows),
    }
}

type Acc<const R: usize> = [[__m256; 2]; R];
type Sums<const R: usize> = [[__m256i; 2]; R];

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_acc<const R: usize>(t: &Tile, half: usize) -> Acc<R> {
    let mut acc = [[_mm256_setzero_ps(); 2]; R];
    if t.resume {
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `out` covers R rows of 32 columns at `stride`.
            unsafe {
                let at = t.out.add(r * t.stride + half * 16);
                *acc = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
            }
        }
    }
    acc
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_acc<const R: usize>(t: &Tile, half: usize, acc: &Acc<R>) {
    for (r, acc) in acc.iter().enumerate() {
        // SAFETY: `out` covers R rows of 32 columns at `stride`.
        unsafe {
            let at = t.out.add(r * t.stride + half * 16);
            _mm256_storeu_ps(at, acc[0]);
            _mm256_storeu_ps(at.add(8), acc[1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled(acc: &mut [__m256; 2], w: [__m256; 2], x: f32) {
    let x = _mm256_set1_ps(x);
    acc[0] = _mm256_fmadd_ps(w[0], x, acc[0]);
    acc[1] = _mm256_fmadd_ps(w[1], x, acc[1]);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f32_tile<const R: usize>(t: &Tile) {
    for half in 0..2 {
        // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
        unsafe {
            let mut acc = load_acc::<R>(t, half);
            for i in 0..t.groups * GROUP {
                let w = t.weight.add(i * 128 + half * 64).cast::<f32>();
                let w = [_mm256_load_ps(w), _mm256_load_ps(w.add(8))];
                for (r, acc) in acc.iter_mut().enumerate() {
                    add_scaled(acc, w, t.x.cast::<f32>().add(i * R + r).read_unaligned());
                }
            }
            store_acc(t, half, &acc);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_tile<const R: usize>(t: &Tile) {
    for half in 0..2 {
        // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
        unsafe {
            let mut acc = load_acc::<R>(t, half);
            for i in 0..t.groups * GROUP {
                let w = t.weight.add(i * 64 + half * 32);
                let low = _mm256_cvtph_ps(_mm_load_si128(w.cast()));
                let high = _mm256_cvtph_ps(_mm_load_si128(w.add(16).cast()));
                for (r, acc) in acc.iter_mut().enumerate() {
                    add_scaled(acc, [low, high], t.x.cast::<f32>().add(i * R + r).read_unaligned());
                }
            }
            store_acc(t, half, &acc);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bf16_tile<const R: usize>(t: &Tile) {
    let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
    for half in 0..2 {
        // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
        unsafe {
            let mut acc = load_acc::<R>(t, half);
            for i in 0..t.groups * (GROUP / 2) {
                let w = t.weight.add(i * 128 + half * 64);
                let w = [_mm256_load_si256(w.cast()), _mm256_load_si256(w.add(32).cast())];
                let even = w.map(|w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)));
                let odd = w.map(|w| _mm256_castsi256_ps(_mm256_and_si256(w, high)));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let pair = t.x.cast::<u32>().add(i * R + r).read_unaligned();
                    add_scaled(acc, even, f32::from_bits(pair << 16));
                    add_scaled(acc, odd, f32::from_bits(pair & 0xffff_0000));
                }
            }
            store_acc(t, half, &acc);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn open_group<const R: usize>(offsets: *const i32) -> Sums<R> {
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (r, sum) in sums.iter_mut().enumerate() {
        // SAFETY: R offsets lie at `offsets`.
        *sum = [_mm256_set1_epi32(unsafe { offsets.add(r).read_unaligned() }); 2];
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn close_group<const R: usize>(
    acc: &mut Acc<R>,
    sums: &Sums<R>,
    scales: *const u8,
    x_scales: *const f32,
) {
    // SAFETY: 16 f16 scales lie at `scales`, R f32 at `x_scales`.
    unsafe {
        let s0 = _mm256_cvtph_ps(_mm_load_si128(scales.cast()));
        let s1 = _mm256_cvtph_ps(_mm_load_si128(scales.add(16).cast()));
        for (r, (acc, sum)) in acc.iter_mut().zip(sums).enumerate() {
            let scale = _mm256_set1_ps(x_scales.add(r).read_unaligned());
            acc[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[0]), _mm256_mul_ps(s0, scale), acc[0]);
            acc[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[1]), _mm256_mul_ps(s1, scale), acc[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_tile<const R: usize>(t: &Tile) {
    let even = _mm256_set1_epi16(0x00ff);
    for half in 0..2 {
        // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
        unsafe {
            let mut acc = load_acc::<R>(t, half);
            for g in 0..t.groups {
                let w = t.weight.add(g * group_bytes(Form::Q8));
                let x = t.x.add(g * R * 40);
                let mut sums = open_group::<R>(x.add(R * 32).cast());
                for j in 0..GROUP / 4 {
                    let w = w.add(j * 128 + half * 64);
                    let w = [_mm256_load_si256(w.cast()), _mm256_load_si256(w.add(32).cast())];
                    let w_even = w.map(|w| _mm256_and_si256(w, even));
                    let w_odd = w.map(|w| _mm256_srli_epi16::<8>(w));
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let quad = _mm256_set1_epi32(x.cast::<i32>().add(j * R + r).read_unaligned());
                        let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(quad));
                        let x_odd = _mm256_srai_epi16::<8>(quad);
                        for p in 0..2 {
                            let e = _mm256_madd_epi16(w_even[p], x_even);
                            let o = _mm256_madd_epi16(w_odd[p], x_odd);
                            sum[p] = _mm256_add_epi32(sum[p], _mm256_add_epi32(e, o));
                        }
                    }
                }
                close_group(&mut acc, &sums, w.add(1024 + half * 32), x.add(R * 36).cast());
            }
            store_acc(t, half, &acc);
        }
    }
}

/// Nibbles times bytes: at most 2 · 15 · 127 in 16 bits, so the saturating byte dot is exact.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_nibbles<const R: usize>(sums: &mut Sums<R>, w: [__m256i; 2], x: *const u8) {
    let ones = _mm256_set1_epi16(1);
    for (r, sum) in sums.iter_mut().enumerate() {
        // SAFETY: R quads lie at `x`.
        let quad = _mm256_set1_epi32(unsafe { x.cast::<i32>().add(r).read_unaligned() });
        for p in 0..2 {
            let pairs = _mm256_maddubs_epi16(w[p], quad);
            sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(pairs, ones));
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_tile<const R: usize>(t: &Tile) {
    let low = _mm256_set1_epi8(15);
    for half in 0..2 {
        // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
        unsafe {
            let mut acc = load_acc::<R>(t, half);
            for g in 0..t.groups {
                let w = t.weight.add(g * group_bytes(Form::Q4));
                let x = t.x.add(g * R * 40);
                let mut sums = open_group::<R>(x.add(R * 32).cast());
                for j in 0..GROUP / 8 {
                    let w = w.add(j * 128 + half * 64);
                    let w = [_mm256_load_si256(w.cast()), _mm256_load_si256(w.add(32).cast())];
                    let lows = w.map(|w| _mm256_and_si256(w, low));
                    dot_nibbles(&mut sums, lows, x.add(j * R * 8));
                    let highs = w.map(|w| _mm256_and_si256(_mm256_srli_epi16::<4>(w), low));
                    dot_nibbles(&mut sums, highs, x.add(j * R * 8 + R * 4));
                }
                close_group(&mut acc, &sums, w.add(512 + half * 32), x.add(R * 36).cast());
            }
            store_acc(t, half, &acc);
        }
    }
}
