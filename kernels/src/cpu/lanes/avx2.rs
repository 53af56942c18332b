//! Lanes as two AVX2 registers.
//!
//! `unsafe` here is one fact said often: every method runs inside [`enter`], where AVX2 and FMA are on.

use std::arch::x86_64::*;

use super::{Kernel, LN2_HIGH, LN2_LOW, Lanes};
use crate::exp::EXP2;

/// Exists only inside [`enter`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

type V = (__m256, __m256);

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// Applies an expression to both halves.
macro_rules! both {
    ($($v:ident),+ => $e:expr) => {{
        // SAFETY: an `Avx2` exists only where AVX2 and FMA are on.
        unsafe { ({ $(let $v = $v.0;)+ $e }, { $(let $v = $v.1;)+ $e }) }
    }};
}

/// Lane numbers, to compare with bounds.
const INDEX: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// `2^(n + r)`, `n` integral.
#[inline(always)]
fn power(n: __m256, r: __m256) -> __m256 {
    // SAFETY: called by `Avx2`'s methods only, so AVX2 and FMA are on.
    unsafe {
        let mut p = _mm256_set1_ps(EXP2[5]);
        for &c in EXP2[..5].iter().rev() {
            p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
        }
        let p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0));
        let scale = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), scale))
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl Lanes for Avx2 {
    type V = V;
    type Pairs = (V, V);
    const ROWS: usize = 4;
    const WIDE: bool = false;
    const PAIR_WORDS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        // SAFETY: an `Avx2` exists only where AVX2 is on.
        let v = unsafe { _mm256_set1_ps(x) };
        (v, v)
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> V {
        // SAFETY: the caller's contract, and AVX2 is on.
        unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: V) {
        // SAFETY: the caller's contract, and AVX2 is on.
        unsafe {
            _mm256_storeu_ps(at, v.0);
            _mm256_storeu_ps(at.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u16) -> V {
        // SAFETY: the caller's contract, and AVX2 is on.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(8).cast()));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        both!(a, b => _mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        both!(a, b => _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        both!(a, b => _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        both!(a, b => _mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        both!(a, b, c => _mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        both!(a, b => _mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn keep(self, v: V, from: usize, to: usize, other: V) -> V {
        // SAFETY: an array of sixteen.
        let index = unsafe { self.load(INDEX.as_ptr()) };
        let (from, to) = (self.splat(from as f32), self.splat(to as f32));
        both!(v, other, index, from, to => {
            let inside = _mm256_and_ps(
                _mm256_cmp_ps::<_CMP_GE_OQ>(index, from),
                _mm256_cmp_ps::<_CMP_LT_OQ>(index, to),
            );
            _mm256_blendv_ps(other, v, inside)
        })
    }
    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        // SAFETY: an `Avx2` exists only where AVX2 is on.
        unsafe {
            let eight = _mm256_add_ps(v.0, v.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        // SAFETY: an `Avx2` exists only where AVX2 is on.
        unsafe {
            let eight = _mm256_max_ps(v.0, v.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn exp2(self, x: V) -> V {
        both!(x => {
            let n = _mm256_round_ps::<NEAREST>(x);
            let y = power(n, _mm256_sub_ps(x, n));
            _mm256_and_ps(y, _mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(-126.0)))
        })
    }
    #[inline(always)]
    fn exp(self, x: V) -> V {
        both!(x => {
            let clamped = _mm256_min_ps(x, _mm256_set1_ps(88.0));
            let log2e = _mm256_set1_ps(std::f32::consts::LOG2_E);
            let n = _mm256_round_ps::<NEAREST>(_mm256_mul_ps(clamped, log2e));
            let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), clamped);
            let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), r);
            let y = power(n, _mm256_mul_ps(r, log2e));
            _mm256_and_ps(y, _mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(-87.3)))
        })
    }
    #[inline(always)]
    unsafe fn pack_pair(self, a: f32, b: f32, to: *mut u32) {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<[u32; 2]>().write_unaligned([a.to_bits(), b.to_bits()]) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, at: *const u16) -> (V, V) {
        // SAFETY: the caller's contract, and AVX2 is on.
        let words = unsafe { (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(16).cast())) };
        let first = both!(words => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)));
        let second = both!(words => _mm256_castsi256_ps(
            _mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000u32 as i32))
        ));
        (first, second)
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: V, k: (V, V), q: *const u32) -> V {
        // SAFETY: the caller's contract.
        let [a, b] = unsafe { q.cast::<[f32; 2]>().read_unaligned() };
        let acc = self.mul_add(k.0, self.splat(a), acc);
        self.mul_add(k.1, self.splat(b), acc)
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch of any address is a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
