//! The quantization rules: symmetric, groups of 32 along k, an f16 scale for weights, f32 for activations.
//!
//! The rules are those of GGUF's Q8_0 and Q4_0, so that a file in one of these forms, widened to f32 and
//! quantized again, comes back with the same integers and scales: Q8_0's largest value is always ±127 and
//! Q4_0's is always −8. Integers are rounded against the scale as stored (f16), not as computed.
//! Limits: scales below 2⁻²⁴ vanish (such a group becomes zero) and stop at 65,504.

use half::f16;

use super::geometry::GROUP;

/// One group of weights: scale and integers (−127..=127 for q8, −8..=7 for q4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantGroup {
    pub scale: f16,
    pub values: [i8; GROUP],
}

/// Q8: the largest magnitude becomes ±127; ties round to even.
#[inline(always)]
pub fn quantize_q8(group: &[f32; GROUP]) -> QuantGroup {
    let scale = stored(largest(group) / 127.0);
    let inverse = inverse(scale);
    let mut values = [0i8; GROUP];
    for (v, &w) in values.iter_mut().zip(group) {
        *v = round(w * inverse).clamp(-127, 127) as i8;
    }
    QuantGroup { scale, values }
}

/// Q4: the value of largest magnitude becomes −8, whatever its sign; the scale carries the sign.
#[inline(always)]
pub fn quantize_q4(group: &[f32; GROUP]) -> QuantGroup {
    let largest = largest(group);
    let extreme = group.iter().copied().find(|w| w.abs() == largest).unwrap_or(0.0); // the first, as in Q4_0
    let scale = stored(extreme / -8.0);
    let inverse = inverse(scale);
    let mut values = [0i8; GROUP];
    for (v, &w) in values.iter_mut().zip(group) {
        *v = round(w * inverse).clamp(-8, 7) as i8;
    }
    QuantGroup { scale, values }
}

/// One group of activations: scale and integers. Rounding is to the nearest even.
#[inline(always)]
pub fn quantize_activations(group: &[f32; GROUP]) -> (f32, [i8; GROUP]) {
    let largest = largest(group);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut values = [0i8; GROUP];
    for (v, &x) in values.iter_mut().zip(group) {
        *v = round(x * inverse) as i8;
    }
    (largest / 127.0, values)
}

#[inline(always)]
fn largest(group: &[f32; GROUP]) -> f32 {
    // Eight running maxima, so that the compiler may use a register of lanes: max has no rounding.
    let mut max = [0f32; 8];
    for eight in group.as_chunks::<8>().0 {
        for (m, &x) in max.iter_mut().zip(eight) {
            *m = if x.abs() > *m { x.abs() } else { *m };
        }
    }
    max.into_iter().fold(0.0, |a, b| if b > a { b } else { a })
}

/// Rounds to nearest even by adding and taking away 1.5·2²³, exact for |x| < 2²²; what is not finite or
/// out of range ends at a bound.
#[inline(always)]
fn round(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    let x = if x > 1000.0 { 1000.0 } else { x };
    let x = if x > -1000.0 { x } else { -1000.0 }; // NaN goes here
    (x + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

fn stored(scale: f32) -> f16 {
    f16::from_f32(scale.clamp(-65_504.0, 65_504.0))
}

fn inverse(scale: f16) -> f32 {
    if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn widen(scale: f16, values: &[i8; GROUP]) -> [f32; GROUP] {
        values.map(|v| f32::from(v) * scale.to_f32())
    }

    proptest! {
        #[test]
        fn a_q8_0_group_comes_back_bit_for_bit(
            mut values in proptest::array::uniform32(-127i8..=127),
            at in 0usize..32, sign in proptest::bool::ANY, scale in 1u16..0x7bff,
        ) {
            values[at] = if sign { 127 } else { -127 };
            let group = QuantGroup { scale: f16::from_bits(scale), values };
            prop_assert_eq!(quantize_q8(&widen(group.scale, &values)), group);
        }

        #[test]
        fn a_q4_0_group_comes_back_bit_for_bit(
            mut values in proptest::array::uniform32(-8i8..=7), at in 0usize..32,
            scale in 1u16..0x7bff, negative in proptest::bool::ANY,
        ) {
            values[at] = -8;
            let scale = f16::from_bits(scale | if negative { 0x8000 } else { 0 });
            let group = QuantGroup { scale, values };
            prop_assert_eq!(quantize_q4(&widen(scale, &values)), group);
        }

        #[test]
        fn errors_stay_below_half_a_step(group in proptest::array::uniform32(-3.0f32..3.0)) {
            let q8 = quantize_q8(&group);
            let q4 = quantize_q4(&group);
            let (scale, values) = quantize_activations(&group);
            for i in 0..GROUP {
                let error = |q: f32| (q - group[i]).abs();
                prop_assert!(error(widen(q8.scale, &q8.values)[i]) <= 0.502 * q8.scale.to_f32() + 1e-5);
                // The far side of −8..=7 is a whole step away.
                prop_assert!(error(widen(q4.scale, &q4.values)[i]) <= 1.01 * q4.scale.to_f32().abs() + 1e-5);
                prop_assert!(error(f32::from(values[i]) * scale) <= 0.5001 * scale + 1e-6);
            }
        }
    }

    #[test]
    fn groups_of_zeros_and_odd_values_have_a_defined_result() {
        assert_eq!(quantize_q8(&[0.0; GROUP]), QuantGroup { scale: f16::ZERO, values: [0; GROUP] });
        assert_eq!(quantize_q4(&[0.0; GROUP]).values, [0; GROUP]);
        assert_eq!(quantize_activations(&[0.0; GROUP]), (0.0, [0; GROUP]));
        let mut odd = [1.0; GROUP];
        odd[3] = f32::INFINITY;
        assert_eq!(quantize_q8(&odd).scale, f16::from_f32(65_504.0));
        assert_eq!(quantize_q8(&odd).values[3], 127);
    }
}
