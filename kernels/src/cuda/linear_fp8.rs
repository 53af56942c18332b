//! Weights of 8 bits: e4m3 with one f32 scale a channel, in the byte order of `kernels/cu/linear_fp8.cu`.
//!
//! The scale puts the channel's largest weight at 448, the largest e4m3. Each 16 bytes hold 16 k of one channel, but
//! shuffled, so that ldmatrix hands every lane the four weights of its mma fragment in one word: lane t's bytes are
//! k `2t`, `2t + 8`, `2t + 1`, `2t + 9`. Done once, at load. Not block scales: they would have to be applied inside of the
//! chain, which then would not be one accumulator.

/// The largest finite e4m3.
pub const E4M3_MAX: f32 = 448.0;

/// A weight matrix `[n][k]` as the kernels read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Weights {
    pub bytes: Vec<u8>,
    /// One a channel; what the bytes are multiplied with.
    pub scales: Vec<f32>,
}

impl Fp8Weights {
    /// Quantizes rows of `k` finite weights; `k` is a multiple of 16.
    pub fn quantize(w: &[f32], k: usize) -> Self {
        assert!(
            k > 0 && k.is_multiple_of(16) && w.len().is_multiple_of(k),
            "{} weights in rows of {k}",
            w.len()
        );
        let mut bytes = Vec::with_capacity(w.len());
        let mut scales = Vec::with_capacity(w.len() / k);
        for row in w.chunks(k) {
            let largest = row.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = if largest > 0.0 { largest / E4M3_MAX } else { 1.0 };
            scales.push(scale);
            for group in row.chunks(16) {
                let narrow: [u8; 16] = std::array::from_fn(|i| e4m3(group[i] / scale));
                bytes.extend_from_slice(&shuffle(narrow));
            }
        }
        Self { bytes, scales }
    }
}

/// 16 k of one channel into the kernels' order.
pub fn shuffle(k: [u8; 16]) -> [u8; 16] {
    std::array::from_fn(|at| {
        let (lane, byte) = (at / 4, at % 4);
        k[2 * lane + [0, 8, 1, 9][byte]]
    })
}

/// The value of e4m3 bits.
pub fn e4m3_value(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * (-9f32).exp2(),
        _ => (8.0 + mantissa) * ((exponent - 10) as f32).exp2(),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

/// The nearest e4m3, ties to even; beyond the largest becomes the largest.
pub fn e4m3(v: f32) -> u8 {
    let sign = if v.is_sign_negative() { 0x80 } else { 0 };
    let size = v.abs().min(E4M3_MAX);
    // Steps double with each power of two, from 2^-9 below 2^-6 on.
    let exponent = if size < (-6f32).exp2() { -6 } else { (size.to_bits() >> 23) as i32 - 127 };
    let steps = (size / ((exponent - 3) as f32).exp2()).round_ties_even() as i32; // exact quotient: a power of two
    // 16 steps are 8 of the next power: the carry runs into the exponent field by itself.
    sign | (((exponent + 6) * 8) + steps) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_survives_and_neighbours_round_to_the_even_one() {
        for bits in (0..=0xFEu8).filter(|b| b & 0x7F != 0x7F) {
            assert_eq!(e4m3(e4m3_value(bits)), bits, "{bits:#x}");
        }
        for low in 0..0x7Eu8 {
            let middle = (e4m3_value(low) + e4m3_value(low + 1)) / 2.0;
            assert_eq!(e4m3(middle), low + (low & 1), "between {low:#x} and the next");
        }
        assert_eq!(e4m3(1e9), 0x7E);
    }

    #[test]
    fn a_shuffle_keeps_every_byte() {
        let mut seen = shuffle(std::array::from_fn(|i| i as u8));
        seen.sort();
        assert_eq!(seen, std::array::from_fn(|i| i as u8));
    }

    #[test]
    fn a_channel_spans_the_whole_range() {
        let w: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) * 0.01).collect();
        let q = Fp8Weights::quantize(&w, 32);
        assert_eq!(q.scales.len(), 2);
        assert!(q.bytes.iter().any(|b| b & 0x7F == 0x7E));
    }
}
