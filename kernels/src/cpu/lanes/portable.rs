//! Lanes as an array: plain Rust that the compiler vectorises as far as the target allows.

use super::{LANES, Lanes};
use crate::exp::{exp, exp2};

#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; LANES];

macro_rules! each {
    ($i:ident => $e:expr) => {{
        let mut out = [0.0f32; LANES];
        for $i in 0..LANES {
            out[$i] = $e;
        }
        out
    }};
}

impl Lanes for Portable {
    type V = V;
    type Pairs = (V, V);
    const ROWS: usize = 2;
    const WIDE: bool = false;
    const PAIR_WORDS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> V {
        // SAFETY: the caller's contract; arrays of f32 need no more alignment than f32.
        unsafe { at.cast::<V>().read() }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: V) {
        // SAFETY: the caller's contract.
        unsafe { at.cast::<V>().write(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u16) -> V {
        // SAFETY: the caller's contract.
        let bits = unsafe { at.cast::<[u16; LANES]>().read() };
        each!(i => f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        each!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        each!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        each!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        each!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: V, b: V, c: V) -> V {
        each!(i => a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        each!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn keep(self, v: V, from: usize, to: usize, other: V) -> V {
        each!(i => if i >= from && i < to { v[i] } else { other[i] })
    }
    #[inline(always)]
    fn sum(self, mut v: V) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                v[i] += v[i + half];
            }
            half /= 2;
        }
        v[0]
    }
    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        let mut m = v[0];
        for x in v {
            m = if x > m { x } else { m };
        }
        m
    }
    #[inline(always)]
    fn exp2(self, x: V) -> V {
        each!(i => exp2(x[i]))
    }
    #[inline(always)]
    fn exp(self, x: V) -> V {
        each!(i => exp(x[i]))
    }
    #[inline(always)]
    unsafe fn pack_pair(self, a: f32, b: f32, to: *mut u32) {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<[u32; 2]>().write([a.to_bits(), b.to_bits()]) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, at: *const u16) -> (V, V) {
        // SAFETY: the caller's contract.
        let words = unsafe { at.cast::<[[u16; 2]; LANES]>().read() };
        (
            each!(i => f32::from_bits(u32::from(words[i][0]) << 16)),
            each!(i => f32::from_bits(u32::from(words[i][1]) << 16)),
        )
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: V, k: (V, V), q: *const u32) -> V {
        // SAFETY: the caller's contract.
        let [a, b] = unsafe { q.cast::<[f32; 2]>().read() };
        each!(i => (acc[i] + k.0[i] * a) + k.1[i] * b)
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
