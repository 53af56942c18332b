//! Weights of 8 bits: e4m3 with one f32 scale a channel, in the byte order of `kernels/cu/linear_fp8.cu`.
//!
//! The scale puts the channel's largest weight at 448, the largest e4m3. Each 16 bytes hold 16 k of one channel
//! interleaved, so that ldmatrix hands every lane the four weights of its mma fragment in one word. Done once, at
//! load. Not block scales: they would have to be applied inside of the chain, which then would not be one accumulator.

use crate::e4m3;

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
        let mut bytes = vec![0; w.len()];
        let scales = w.chunks(k).zip(bytes.chunks_mut(k)).map(|(row, out)| quantize_row(row, out)).collect();
        Self { bytes, scales }
    }
}

/// One channel into `out`, interleaved; its scale.
pub fn quantize_row(row: &[f32], out: &mut [u8]) -> f32 {
    assert!(row.len() == out.len() && row.len().is_multiple_of(16));
    let scale = channel_scale(row);
    for (group, out) in row.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
        *out = e4m3::interleaved(group.map(|w| e4m3::nearest(w / scale)));
    }
    scale
}

/// What the bytes of a channel are multiplied with.
pub fn channel_scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0f32, |m, v| m.max(v.abs()));
    if largest > 0.0 { largest / e4m3::MAX } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_spans_the_whole_range() {
        let w: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) * 0.01).collect();
        let q = Fp8Weights::quantize(&w, 32);
        assert_eq!(q.scales.len(), 2);
        assert!(q.bytes.iter().any(|b| b & 0x7F == 0x7E));
        let third = e4m3::value(q.bytes[32 + e4m3::place(19)]) * q.scales[1];
        assert!((third - w[32 + 19]).abs() <= w[32 + 19].abs() / 16.0);
    }

    #[test]
    fn a_channel_of_zeros_stays_one() {
        assert_eq!(
            Fp8Weights::quantize(&[0.0; 16], 16),
            Fp8Weights { bytes: vec![0; 16], scales: vec![1.0] }
        );
    }
}
