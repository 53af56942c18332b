//! Deterministic values and their comparison.

use base::SplitMix;

/// The bits of the nearest bf16, ties to even.
pub fn bf16(v: f32) -> u16 {
    half::bf16::from_f32(v).to_bits()
}

/// The value of bf16 bits.
pub fn f32_of(bits: u16) -> f32 {
    half::bf16::from_bits(bits).to_f32()
}

pub fn bf16_vec(values: &[f32]) -> Vec<u16> {
    values.iter().map(|v| bf16(*v)).collect()
}

pub fn bf16_values(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|b| f32_of(*b)).collect()
}

/// Standard normal values.
pub fn normal(rng: &mut SplitMix, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Standard normal values as bf16 bits.
pub fn normal_bf16(rng: &mut SplitMix, n: usize) -> Vec<u16> {
    (0..n).map(|_| bf16(rng.normal() as f32)).collect()
}

/// ‖out − reference‖ / ‖reference‖; infinite where a value is NaN or lengths differ.
pub fn relative_error(out: &[f32], reference: &[f64]) -> f64 {
    if out.len() != reference.len() || out.iter().any(|v| v.is_nan()) {
        return f64::INFINITY;
    }
    let distance: f64 = out.iter().zip(reference).map(|(o, r)| (f64::from(*o) - r).powi(2)).sum();
    let norm: f64 = reference.iter().map(|r| r * r).sum();
    if distance == 0.0 { 0.0 } else { (distance / norm).sqrt() }
}

/// Panics where the relative error is above `limit`.
pub fn assert_close(out: &[f32], reference: &[f64], limit: f64, what: &str) {
    let error = relative_error(out, reference);
    assert!(error <= limit, "{what}: relative error {error:e}, allowed {limit:e}");
}

/// How many random shapes to run: `QUIRE_CASES`, or the suite's own number.
pub fn cases(default: usize) -> usize {
    std::env::var("QUIRE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
