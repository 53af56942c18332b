//! The 8-bit float e4m3: 4 exponent bits, 3 of mantissa, no infinity; and how a run of values shares a power of two.
//!
//! A run (the key or the value of one token and head) is scaled so that its largest magnitude lies in (224, 448], and the
//! scale is kept as a byte: the exponent field of the bf16 that widens it. Powers of two, because a widened value is then
//! exact in bf16 and a matrix product of it is the product of bf16; 3 bits of mantissa round the same at any scale.
//! `kernels/cu/ptx.cuh` has the same formulas, held to these by test.

/// The largest finite e4m3.
pub const MAX: f32 = 448.0;

/// The value of e4m3 bits.
pub fn value(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * (-9f32).exp2(),
        _ => (8.0 + mantissa) * ((exponent - 10) as f32).exp2(),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

/// The nearest e4m3, ties to even; beyond the largest becomes the largest, NaN becomes 0x7f. Without branches, so that
/// a loop over it is compiled to vectors.
#[inline(always)]
pub fn nearest(v: f32) -> u8 {
    let (bits, sign) = (v.to_bits() & 0x7fff_ffff, (v.to_bits() >> 24) as u8 & 0x80);
    // Below 2^-6 steps are 2^-9, found by adding a number whose own step that is.
    let stepped = (f32::from_bits(bits) + 16384.0).to_bits().wrapping_sub(0x4680_0000);
    let rounded = ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    let size = if bits < 0x3c80_0000 { stepped } else { rounded };
    let size = if bits >= 0x43e8_0000 { 0x7e } else { size }; // 464: nearer to 480
    let size = if bits > 0x7f80_0000 { 0x7f } else { size };
    sign | size as u8
}

/// 16 values as kernels read them, `0 8 1 9 … 7 15`: ldmatrix then hands every lane the bytes of its fragment.
#[inline(always)]
pub fn interleaved(values: [u8; 16]) -> [u8; 16] {
    std::array::from_fn(|at| values[at / 2 + at % 2 * 8])
}

/// Where dimension `d` of a row lies: [`interleaved`].
pub fn place(d: usize) -> usize {
    d / 16 * 16 + d % 8 * 2 + d % 16 / 8
}

/// The byte that a run of values shares; 255 if one is not finite.
pub fn run_exponent(values: &[f32]) -> u8 {
    let top = values.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    if top >= 0x7f80_0000 {
        return 255;
    }
    // A significand above 1.75 takes the next power.
    (((top + 0x1f_ffff) >> 23) + 112).clamp(147, 254) as u8
}

/// What widens a run: a power of two.
pub fn run_scale(exponent: u8) -> f32 {
    if exponent == 255 { f32::INFINITY } else { f32::exp2(f32::from(exponent) - 247.0) }
}

/// What a run is after it was stored and read again.
pub fn run_stored(values: &[f32]) -> Vec<f32> {
    let exponent = run_exponent(values);
    let (scale, inverse) = (run_scale(exponent), f32::from_bits((374 - u32::from(exponent)) << 23));
    values.iter().map(|v| value(nearest(v * inverse)) * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_e4m3_survives_and_neighbours_round_to_the_even_one() {
        for bits in (0..=0xFEu8).filter(|b| b & 0x7F != 0x7F) {
            assert_eq!(nearest(value(bits)), bits, "{bits:#x}");
        }
        for low in 0..0x7Eu8 {
            let middle = (value(low) + value(low + 1)) / 2.0;
            assert_eq!(nearest(middle), low + (low & 1), "between {low:#x} and the next");
        }
        assert_eq!([1e9, f32::INFINITY, -500.0, f32::NAN, -0.0].map(nearest), [0x7E, 0x7E, 0xFE, 0x7F, 0x80]);
    }

    #[test]
    fn interleaving_moves_each_value_to_its_place() {
        let there = interleaved(std::array::from_fn(|i| i as u8));
        assert!((0..16).all(|d| usize::from(there[place(d)]) == d));
        assert_eq!(there[..5], [0, 8, 1, 9, 2]);
        assert_eq!(place(16 + 9), 16 + 3);
    }

    #[test]
    fn a_runs_largest_value_uses_the_upper_half_of_the_range() {
        for (top, scale) in [(448.0, 1.0), (448.1, 2.0), (224.0, 0.5), (224.1, 1.0), (1.0, 1.0 / 256.0)] {
            assert_eq!(run_scale(run_exponent(&[0.0, -top, 0.1])), scale, "{top}");
        }
        assert_eq!(run_exponent(&[0.0; 4]), 147);
        assert_eq!(run_exponent(&[f32::MAX]), 254);
        assert_eq!([f32::NAN, f32::NEG_INFINITY].map(|v| run_exponent(&[1.0, v])), [255, 255]);
    }

    proptest! {
        #[test]
        fn a_stored_run_is_near_and_stays_as_it_is(values in prop::collection::vec(-1e3f32..1e3, 1..40), by in -20i32..5) {
            let values: Vec<f32> = values.iter().map(|v| v * (by as f32).exp2()).collect();
            let stored = run_stored(&values);
            let top = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (v, s) in values.iter().zip(&stored) {
                prop_assert!((v - s).abs() <= (v.abs() / 16.0).max(top * (-17f32).exp2()), "{} for {}", s, v);
                prop_assert_eq!(half::bf16::from_f32(*s).to_f32(), *s, "exact in bf16");
            }
            prop_assert_eq!(run_stored(&stored), stored);
        }
    }
}
