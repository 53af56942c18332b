//! Lanes as one AVX-512 register; bf16 pairs go through the bf16 dot product.
//!
//! `unsafe` here is one fact said often: every method runs inside [`enter`], where AVX-512 is on.

use std::arch::x86_64::*;

use super::{Kernel, LN2_HIGH, LN2_LOW, Lanes};
use crate::exp::EXP2;

/// Exists only inside [`enter`].
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

type V = __m512;

/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and BF16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

macro_rules! on {
    ($e:expr) => {{
        // SAFETY: an `Avx512` exists only where AVX-512 is on.
        unsafe { $e }
    }};
}

/// Polynomial of `2^r`.
#[inline(always)]
fn poly(r: V) -> V {
    on!({
        let mut p = _mm512_set1_ps(EXP2[5]);
        for &c in EXP2[..5].iter().rev() {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
        }
        _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0))
    })
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl Lanes for Avx512 {
    type V = V;
    type Pairs = __m512bh;
    const ROWS: usize = 8;
    const WIDE: bool = true;
    const PAIR_WORDS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        on!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> V {
        // SAFETY: the caller's contract, and AVX-512 is on.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: V) {
        // SAFETY: the caller's contract, and AVX-512 is on.
        unsafe { _mm512_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u16) -> V {
        // SAFETY: the caller's contract, and AVX-512 is on.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        on!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        on!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        on!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        on!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        on!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        on!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn keep(self, v: V, from: usize, to: usize, other: V) -> V {
        let mask = ((1u32 << to) - 1) as u16 & !(((1u32 << from) - 1) as u16);
        on!(_mm512_mask_mov_ps(other, mask, v))
    }
    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        on!({
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        on!({
            let eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn exp2(self, x: V) -> V {
        on!({
            let n = _mm512_roundscale_ps::<NEAREST>(x);
            let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(-126.0));
            _mm512_maskz_scalef_ps(inside, poly(_mm512_sub_ps(x, n)), n)
        })
    }
    #[inline(always)]
    fn exp(self, x: V) -> V {
        on!({
            let clamped = _mm512_min_ps(x, _mm512_set1_ps(88.0));
            let log2e = _mm512_set1_ps(std::f32::consts::LOG2_E);
            let n = _mm512_roundscale_ps::<NEAREST>(_mm512_mul_ps(clamped, log2e));
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), clamped);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
            let inside = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(-87.3));
            _mm512_maskz_scalef_ps(inside, poly(_mm512_mul_ps(r, log2e)), n)
        })
    }
    #[inline(always)]
    unsafe fn pack_pair(self, a: f32, b: f32, to: *mut u32) {
        let word = |x: f32| u32::from(half::bf16::from_f32(x).to_bits());
        // SAFETY: the caller's contract.
        unsafe { to.write(word(a) | word(b) << 16) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, at: *const u16) -> __m512bh {
        // SAFETY: the caller's contract, and AVX-512 is on; both types are 64 bytes of any bits.
        unsafe { std::mem::transmute(_mm512_loadu_si512(at.cast())) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: V, k: __m512bh, q: *const u32) -> V {
        // SAFETY: the caller's contract, and AVX-512 with BF16 is on; both types are 64 bytes of any bits.
        unsafe {
            let q = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(q.read() as i32));
            _mm512_dpbf16_ps(acc, k, q)
        }
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        on!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }
}
