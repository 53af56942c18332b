//! Tiles in AVX-512: bf16 dot, f32 FMA, byte dot (VNNI).
//!
//! A panel is two registers wide, so a tile of R rows keeps 2R accumulators; each weight register feeds R
//! instructions and each broadcast feeds two. Twelve rows (24 accumulators) need 14 loads for 24 dot
//! products, below the two loads and two dots a cycle of the core, and enough chains to hide their latency. The
//! integer tiles hold 2R integers and 2R floats, hence six rows.
//!
//! vdpbf16ps adds the two products of a lane in its own fixed order and flushes subnormals; that is the
//! arithmetic of this backend, the same for any row count.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::geometry::GROUP;
use super::super::tile::{Reuse, Tile, TileFn};
use crate::cpu::linear::form::Form;

pub const ROWS_FLOAT: usize = 12;
pub const ROWS_INT: usize = 6;

const ONCE: bool = true;
const AGAIN: bool = false;

/// The instantiation of `$f` for `$rows` rows.
macro_rules! by_rows {
    ($f:ident, $rows:expr, $reuse:expr, [$($r:literal)*]) => {
        match ($rows, $reuse) {
            $(($r, Reuse::Once) => $f::<$r, ONCE> as TileFn,)*
            $(($r, Reuse::Again) => $f::<$r, AGAIN> as TileFn,)*
            (rows, _) => unreachable!("{rows} rows"),
        }
    };
}

pub fn select(form: Form, rows: usize, reuse: Reuse) -> TileFn {
    match form {
        Form::F32 => by_rows!(f32_tile, rows, reuse, [1 2 3 4 5 6 7 8 9 10 11 12]),
        Form::F16 => by_rows!(f16_tile, rows, reuse, [1 2 3 4 5 6 7 8 9 10 11 12]),
        Form::Bf16 => by_rows!(bf16_tile, rows, reuse, [1 2 3 4 5 6 7 8 9 10 11 12]),
        Form::Q8 => by_rows!(q8_tile, rows, reuse, [1 2 3 4 5 6]),
        Form::Q4 => by_rows!(q4_tile, rows, reuse, [1 2 3 4 5 6]),
    }
}

type Acc<const R: usize> = [[__m512; 2]; R];

/// Prefetches the lines that belong to one step of 128 bytes of weights.
#[inline(always)]
unsafe fn ahead<const FIRST_USE: bool>(at: *const u8) {
    // SAFETY: a prefetch never faults.
    unsafe {
        if FIRST_USE {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64).cast());
        } else {
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_acc<const R: usize>(t: &Tile) -> Acc<R> {
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    if t.resume {
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `out` covers R rows of 32 columns at `stride`.
            unsafe {
                acc[0] = _mm512_loadu_ps(t.out.add(r * t.stride));
                acc[1] = _mm512_loadu_ps(t.out.add(r * t.stride + 16));
            }
        }
    }
    acc
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_acc<const R: usize>(t: &Tile, acc: &Acc<R>) {
    for (r, acc) in acc.iter().enumerate() {
        // SAFETY: `out` covers R rows of 32 columns at `stride`.
        unsafe {
            _mm512_storeu_ps(t.out.add(r * t.stride), acc[0]);
            _mm512_storeu_ps(t.out.add(r * t.stride + 16), acc[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn bf16_tile<const R: usize, const FIRST_USE: bool>(t: &Tile) {
    // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
    unsafe {
        let mut acc = load_acc::<R>(t);
        let (mut w, mut x, mut next) = (t.weight, t.x, t.ahead);
        for _ in 0..t.groups * (GROUP / 2) {
            ahead::<FIRST_USE>(next);
            let w0: __m512bh = transmute(_mm512_load_si512(w.cast()));
            let w1: __m512bh = transmute(_mm512_load_si512(w.add(64).cast()));
            for (r, acc) in acc.iter_mut().enumerate() {
                let pair: __m512bh = transmute(_mm512_set1_epi32(x.cast::<i32>().add(r).read_unaligned()));
                acc[0] = _mm512_dpbf16_ps(acc[0], w0, pair);
                acc[1] = _mm512_dpbf16_ps(acc[1], w1, pair);
            }
            w = w.add(128);
            x = x.add(R * 4);
            next = next.wrapping_add(t.ahead_step);
        }
        store_acc(t, &acc);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn f32_tile<const R: usize, const FIRST_USE: bool>(t: &Tile) {
    // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
    unsafe {
        let mut acc = load_acc::<R>(t);
        let (mut w, mut x, mut next) = (t.weight, t.x, t.ahead);
        for _ in 0..t.groups * GROUP {
            ahead::<FIRST_USE>(next);
            let w0 = _mm512_load_ps(w.cast());
            let w1 = _mm512_load_ps(w.add(64).cast());
            for (r, acc) in acc.iter_mut().enumerate() {
                let value = _mm512_set1_ps(x.cast::<f32>().add(r).read_unaligned());
                acc[0] = _mm512_fmadd_ps(w0, value, acc[0]);
                acc[1] = _mm512_fmadd_ps(w1, value, acc[1]);
            }
            w = w.add(128);
            x = x.add(R * 4);
            next = next.wrapping_add(t.ahead_step);
        }
        store_acc(t, &acc);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn f16_tile<const R: usize, const FIRST_USE: bool>(t: &Tile) {
    // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
    unsafe {
        let mut acc = load_acc::<R>(t);
        let (mut w, mut x, mut next) = (t.weight, t.x, t.ahead);
        for _ in 0..t.groups * (GROUP / 2) {
            ahead::<FIRST_USE>(next);
            for k in 0..2 {
                let w0 = _mm512_cvtph_ps(_mm256_load_si256(w.add(k * 64).cast()));
                let w1 = _mm512_cvtph_ps(_mm256_load_si256(w.add(k * 64 + 32).cast()));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(x.cast::<f32>().add(k * R + r).read_unaligned());
                    acc[0] = _mm512_fmadd_ps(w0, value, acc[0]);
                    acc[1] = _mm512_fmadd_ps(w1, value, acc[1]);
                }
            }
            w = w.add(128);
            x = x.add(R * 8);
            next = next.wrapping_add(t.ahead_step);
        }
        store_acc(t, &acc);
    }
}

/// What every integer tile does at the end of a group: `acc += sum · (weight scale · activation scale)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn close_group<const R: usize>(
    acc: &mut Acc<R>,
    sums: &[[__m512i; 2]; R],
    scales: *const u8,
    x_scales: *const f32,
) {
    // SAFETY: 32 f16 scales lie at `scales`, R f32 at `x_scales`.
    unsafe {
        let s0 = _mm512_cvtph_ps(_mm256_load_si256(scales.cast()));
        let s1 = _mm512_cvtph_ps(_mm256_load_si256(scales.add(32).cast()));
        for (r, (acc, sum)) in acc.iter_mut().zip(sums).enumerate() {
            let scale = _mm512_set1_ps(x_scales.add(r).read_unaligned());
            acc[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0]), _mm512_mul_ps(s0, scale), acc[0]);
            acc[1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[1]), _mm512_mul_ps(s1, scale), acc[1]);
        }
    }
}

/// The integer sums start at `-offset · Σx`, which undoes the offset of the stored weights.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn open_group<const R: usize>(offsets: *const i32) -> [[__m512i; 2]; R] {
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for (r, sum) in sums.iter_mut().enumerate() {
        // SAFETY: R offsets lie at `offsets`.
        *sum = [_mm512_set1_epi32(unsafe { offsets.add(r).read_unaligned() }); 2];
    }
    sums
}

/// One quad of k for all rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn dot_quad<const R: usize>(sums: &mut [[__m512i; 2]; R], w: [__m512i; 2], x: *const u8) {
    for (r, sum) in sums.iter_mut().enumerate() {
        // SAFETY: R quads lie at `x`.
        let quad = _mm512_set1_epi32(unsafe { x.cast::<i32>().add(r).read_unaligned() });
        sum[0] = _mm512_dpbusd_epi32(sum[0], w[0], quad);
        sum[1] = _mm512_dpbusd_epi32(sum[1], w[1], quad);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn q8_tile<const R: usize, const FIRST_USE: bool>(t: &Tile) {
    // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
    unsafe {
        let mut acc = load_acc::<R>(t);
        let (mut w, mut x, mut next) = (t.weight, t.x, t.ahead);
        for _ in 0..t.groups {
            let mut sums = open_group::<R>(x.add(R * 32).cast());
            for j in 0..8 {
                ahead::<FIRST_USE>(next);
                let (at0, at1) = (w.add(j * 128), w.add(j * 128 + 64));
                let weights = [_mm512_load_si512(at0.cast()), _mm512_load_si512(at1.cast())];
                dot_quad(&mut sums, weights, x.add(j * R * 4));
                next = next.wrapping_add(t.ahead_step);
            }
            next = next.wrapping_add(t.ahead_step / 2);
            close_group(&mut acc, &sums, w.add(1024), x.add(R * 36).cast());
            w = w.add(1088);
            x = x.add(R * 40);
        }
        store_acc(t, &acc);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn q4_tile<const R: usize, const FIRST_USE: bool>(t: &Tile) {
    let low = _mm512_set1_epi8(15);
    // SAFETY: the caller's pointers cover `groups` groups of weights and rows.
    unsafe {
        let mut acc = load_acc::<R>(t);
        let (mut w, mut x, mut next) = (t.weight, t.x, t.ahead);
        for _ in 0..t.groups {
            let mut sums = open_group::<R>(x.add(R * 32).cast());
            for j in 0..4 {
                ahead::<FIRST_USE>(next);
                let v0 = _mm512_load_si512(w.add(j * 128).cast());
                let v1 = _mm512_load_si512(w.add(j * 128 + 64).cast());
                let lows = [_mm512_and_si512(v0, low), _mm512_and_si512(v1, low)];
                dot_quad(&mut sums, lows, x.add(j * R * 8));
                let h0 = _mm512_and_si512(_mm512_srli_epi16::<4>(v0), low);
                let h1 = _mm512_and_si512(_mm512_srli_epi16::<4>(v1), low);
                dot_quad(&mut sums, [h0, h1], x.add(j * R * 8 + R * 4));
                next = next.wrapping_add(t.ahead_step);
            }
            next = next.wrapping_add(t.ahead_step / 2);
            close_group(&mut acc, &sums, w.add(512), x.add(R * 36).cast());
            w = w.add(576);
            x = x.add(R * 40);
        }
        store_acc(t, &acc);
    }
}
