//! Sixteen f32 lanes: one source for the portable, AVX2 and AVX-512 forms of a kernel.
//!
//! A kernel is written once over [`Lanes`] and entered through [`dispatch`], which runs it inside a function
//! that has the instructions switched on; everything in between is `#[inline(always)]`, so each form is
//! compiled as if written by hand. Sixteen lanes for all (two AVX2 registers, one array) keep the order of
//! every reduction the same in all forms, though their bits differ where one fuses a multiply-add.
//!
//! Rule for kernels: no closure may touch lanes, because a closure is a function of its own that the
//! compiler may leave outside, without the instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::isa::Isa;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Operations on sixteen f32. The value is a proof that the processor has the instructions.
pub(crate) trait Lanes: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen pairs of bf16, as a dot product wants them.
    type Pairs: Copy;

    /// Rows that a kernel should keep in registers at once.
    const ROWS: usize;
    /// True if there is room for several vectors per row: 2, or 4 for up to four rows.
    const WIDE: bool;
    /// 32-bit words that [`Self::pack_pair`] writes.
    const PAIR_WORDS: usize;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// Sixteen f32 are readable at `at`.
    unsafe fn load(self, at: *const f32) -> Self::V;
    /// # Safety
    /// Sixteen f32 are writable at `at`.
    unsafe fn store(self, at: *mut f32, v: Self::V);
    /// Widens sixteen bf16.
    /// # Safety
    /// Sixteen u16 are readable at `at`.
    unsafe fn load_bf16(self, at: *const u16) -> Self::V;

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused if the instruction set can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Lanes `from..to` of `v`, the others of `other`.
    fn keep(self, v: Self::V, from: usize, to: usize, other: Self::V) -> Self::V;
    /// Sum of all lanes, halving.
    fn sum(self, v: Self::V) -> f32;
    fn largest(self, v: Self::V) -> f32;
    /// `2^x` for `x` up to 127, exactly 1 at 0, exactly 0 below −126 and for NaN; within 2 ulp.
    fn exp2(self, x: Self::V) -> Self::V;
    /// `e^x` with saturation above 88, exactly 0 below −87.3; within 2 ulp.
    fn exp(self, x: Self::V) -> Self::V;

    /// Writes a pair of query values as [`Self::dot_pairs`] reads it.
    /// # Safety
    /// [`Self::PAIR_WORDS`] words are writable at `to`.
    unsafe fn pack_pair(self, a: f32, b: f32, to: *mut u32);
    /// # Safety
    /// 32 u16 are readable at `at`.
    unsafe fn load_pairs(self, at: *const u16) -> Self::Pairs;
    /// `acc + k.0 * q.0 + k.1 * q.1`.
    /// # Safety
    /// `q` was written by [`Self::pack_pair`].
    unsafe fn dot_pairs(self, acc: Self::V, k: Self::Pairs, q: *const u32) -> Self::V;
    /// Asks for the cache line at `at`, which need not be readable.
    fn prefetch(self, at: *const u8);
}

/// A kernel over any lanes. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Out;
    fn run<L: Lanes>(self, lanes: L) -> Self::Out;
}

/// Runs a kernel with the instructions of `isa`, which must be available.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    debug_assert!(isa.available());
    match isa {
        Isa::Portable => kernel.run(portable::Portable),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: backends are made with an available `Isa` only (`Isa::choose`).
        Isa::Avx2 => unsafe { avx2::enter(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { avx512::enter(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => kernel.run(portable::Portable),
    }
}

/// Loads the first `n` of sixteen lanes, the rest 0.
/// # Safety
/// `n` ≤ 16 values are readable at `at`.
#[inline(always)]
pub(crate) unsafe fn load_part<L: Lanes>(lanes: L, at: *const f32, n: usize) -> L::V {
    let mut whole = [0.0f32; LANES];
    // SAFETY: the caller vouches for `n` values; `n` fits.
    unsafe { std::ptr::copy_nonoverlapping(at, whole.as_mut_ptr(), n) };
    // SAFETY: an array of sixteen.
    unsafe { lanes.load(whole.as_ptr()) }
}

/// Stores the first `n` of sixteen lanes.
/// # Safety
/// `n` ≤ 16 values are writable at `at`.
#[inline(always)]
pub(crate) unsafe fn store_part<L: Lanes>(lanes: L, at: *mut f32, v: L::V, n: usize) {
    let mut whole = [0.0f32; LANES];
    // SAFETY: an array of sixteen.
    unsafe { lanes.store(whole.as_mut_ptr(), v) };
    // SAFETY: the caller vouches for `n` values; `n` fits.
    unsafe { std::ptr::copy_nonoverlapping(whole.as_ptr(), at, n) };
}

/// ln 2 in two parts, the first short enough that its product with an exponent is exact.
#[cfg(target_arch = "x86_64")]
const LN2_HIGH: f32 = 0.693_359_4;
#[cfg(target_arch = "x86_64")]
const LN2_LOW: f32 = -2.121_944_4e-4;

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies `exp2` (or `exp`) to a slice of sixteen.
    struct Exp<'a>(&'a mut [f32; LANES], Base);
    #[derive(Clone, Copy)]
    enum Base {
        Two,
        E,
    }
    impl Kernel for Exp<'_> {
        type Out = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            // SAFETY: an array of sixteen.
            let x = unsafe { lanes.load(self.0.as_ptr()) };
            let y = match self.1 {
                Base::Two => lanes.exp2(x),
                Base::E => lanes.exp(x),
            };
            // SAFETY: as above.
            unsafe { lanes.store(self.0.as_mut_ptr(), y) };
        }
    }

    fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    #[test]
    fn exponentials_are_within_two_ulp_on_every_instruction_set() {
        for (isa, base) in available().flat_map(|isa| [(isa, Base::Two), (isa, Base::E)]) {
            let (low, high) = match base {
                Base::Two => (-126.0f32, 126.9f32),
                Base::E => (-87.3, 88.0),
            };
            let mut worst = 0.0f64;
            for i in 0..100_000 {
                let at = |j: usize| low + (high - low) * ((i * LANES + j) as f32 / 1_600_000.0);
                let x: [f32; LANES] = std::array::from_fn(at);
                let mut y = x;
                dispatch(isa, Exp(&mut y, base));
                for (x, y) in x.into_iter().zip(y) {
                    let want = match base {
                        Base::Two => f64::from(x).exp2(),
                        Base::E => f64::from(x).exp(),
                    };
                    worst = worst.max(((f64::from(y) - want) / want).abs());
                }
            }
            assert!(worst < 2.0 * 2f64.powi(-23), "{isa:?}: relative error {worst:e}");
        }
    }

    #[test]
    fn exponentials_are_exact_at_zero_and_zero_far_below() {
        for (isa, base) in available().flat_map(|isa| [(isa, Base::Two), (isa, Base::E)]) {
            let mut x = [f32::NEG_INFINITY; LANES];
            x[..6].copy_from_slice(&[0.0, -0.0, -126.5, -1e30, f32::MIN, f32::NEG_INFINITY]);
            dispatch(isa, Exp(&mut x, base));
            assert_eq!(x[..2], [1.0, 1.0], "{isa:?}");
            assert!(x[2..].iter().all(|y| y.to_bits() == 0), "{isa:?}: {x:?}");
        }
    }

    /// Sum, maximum and partial select of known lanes.
    struct Reduce([f32; LANES]);
    impl Kernel for Reduce {
        type Out = (f32, f32, f32);
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Self::Out {
            // SAFETY: an array of sixteen.
            let v = unsafe { lanes.load(self.0.as_ptr()) };
            let part = lanes.keep(v, 3, 9, lanes.splat(0.0));
            (lanes.sum(v), lanes.largest(v), lanes.sum(part))
        }
    }

    #[test]
    fn reductions_agree_bit_for_bit_on_every_instruction_set() {
        let x: [f32; LANES] = std::array::from_fn(|i| (i as f32 * 0.37).sin() * 10f32.powi(i as i32 % 7));
        let want = dispatch(Isa::Portable, Reduce(x));
        for isa in available() {
            assert_eq!(dispatch(isa, Reduce(x)), want, "{isa:?}");
        }
        let mut strange = x;
        strange[1] = f32::NAN;
        for isa in available() {
            assert_eq!(dispatch(isa, Reduce(strange)).2, want.2, "{isa:?}: a masked lane leaked");
        }
    }
}
