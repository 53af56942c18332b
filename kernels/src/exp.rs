//! Exponentials in plain arithmetic: for drawing, for merging tiles, and where no FMA is at hand.
//!
//! Not libm's: that is a call per value, differs between systems, and so would the tokens drawn. This is
//! Cephes' reduction and polynomial in plain mul and add, which the compiler vectorises and which gives the
//! same bits in a vector and alone. Within 2 ulp of the truth over the range below.

/// Below this the result is 0: no subnormal ever appears.
pub(crate) const EXP_MIN: f32 = -87.33;
/// Above this the result is that of `EXP_MAX`: about 1.65e38, still finite.
pub(crate) const EXP_MAX: f32 = 88.0;

/// `e^x`; 1 exactly at 0.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer that then sits in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > EXP_MAX { EXP_MAX } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let e = (p * (r * r) + r) + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let y = e * f32::from_bits(power);
    if x < EXP_MIN { 0.0 } else { y }
}

/// Coefficients of `2^r`, `|r| ≤ ½`, from r¹ to r⁶; the constant term is 1, so that `2^0` is.
pub(crate) const EXP2: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_48, 0.055_503_32, 0.009_618_439, 0.001_339_900_3, 0.000_153_532_57];

/// `2^x` for `x` up to 127; 1 exactly at 0, 0 below −126 and for NaN.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = EXP2[5];
    for c in EXP2[..5].iter().rev() {
        p = p * r + c;
    }
    p = p * r + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x >= -126.0 { p * f32::from_bits(power) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_everywhere() {
        let mut worst = 0.0f64;
        let steps = 2_000_000;
        for i in 0..=steps {
            let x = EXP_MIN + (EXP_MAX - EXP_MIN) * (i as f32 / steps as f32);
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max(((got - want) / want).abs());
        }
        assert!(worst < 2.0 * 2f64.powi(-23), "relative error {worst:e}");
    }

    #[test]
    fn exp2_is_within_two_ulp_and_exact_at_powers() {
        let mut worst = 0.0f64;
        for i in 0..=1_000_000 {
            let x = -126.0 * (i as f32 / 1_000_000.0);
            let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
            worst = worst.max(((got - want) / want).abs());
        }
        assert!(worst < 2.0 * 2f64.powi(-23), "relative error {worst:e}");
        for n in -126..=0 {
            assert_eq!(exp2(n as f32), 2f32.powi(n));
        }
        assert_eq!((exp2(-127.0), exp2(f32::NEG_INFINITY), exp2(f32::NAN)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn exp_has_no_surprises_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::INFINITY) > 1e38);
    }
}
