//! Weights of the reference backend: quantized by the house's rules, then widened to f64.

use crate::cuda::linear_fp8::channel_scale;
use crate::{HostTensor, KernelError, WeightForm, e4m3};

/// Values that share one scale, along k; of e4m3 a whole row does.
const GROUP: usize = 32;

/// A dense `[rows, cols]` matrix.
#[derive(Debug, Default)]
pub(super) struct Weight {
    cols: usize,
    data: Vec<f64>,
}

impl Weight {
    pub(super) fn stack(parts: &[HostTensor<'_>], form: WeightForm) -> Result<Self, KernelError> {
        let cols = parts.first().map_or(0, HostTensor::cols);
        if let Some(odd) = parts.iter().find(|p| p.cols() != cols) {
            return Err(KernelError::Columns(cols, odd.cols()));
        }
        let mut data = Vec::new();
        for row in parts.iter().flat_map(widened_rows) {
            let group = if form == WeightForm::E4m3 { row.len().max(1) } else { GROUP };
            data.extend(row.chunks(group).flat_map(|group| represented(group, form)));
        }
        Ok(Self { cols, data })
    }
    pub(super) fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }
}

/// The rows of a host tensor as f32.
pub(super) fn widened_rows(tensor: &HostTensor<'_>) -> Vec<Vec<f32>> {
    let read = |r| {
        let mut row = vec![0.0; tensor.cols()];
        tensor.read_row(r, &mut row);
        row
    };
    (0..tensor.rows()).map(read).collect()
}

/// What `form` makes of one group of weights.
fn represented(group: &[f32], form: WeightForm) -> Vec<f64> {
    let each = |f: &dyn Fn(f32) -> f32| group.iter().map(|&w| f64::from(f(w))).collect();
    match form {
        WeightForm::F32 => each(&|w| w),
        WeightForm::F16 => each(&|w| half::f16::from_f32(w).to_f32()),
        WeightForm::Bf16 => each(&|w| half::bf16::from_f32(w).to_f32()),
        WeightForm::Q8 => {
            let absmax = group.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            quantized(group, absmax / 127.0, -127.0, 127.0)
        }
        WeightForm::Q4 => {
            // The value of largest magnitude, with its sign, maps to −8: the grid has one more step there.
            let peak = group.iter().fold(0.0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
            quantized(group, peak / -8.0, -8.0, 7.0)
        }
        WeightForm::E4m3 => {
            let scale = channel_scale(group);
            group
                .iter()
                .map(|w| f64::from(e4m3::value(e4m3::nearest(w / scale))) * f64::from(scale))
                .collect()
        }
    }
}

/// The nearest multiples (ties to even) of the scale, which is held in f16.
fn quantized(group: &[f32], scale: f32, low: f32, high: f32) -> Vec<f64> {
    let scale = half::f16::from_f32(scale.clamp(-65_504.0, 65_504.0)).to_f32();
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let nearest = |w: &f32| (w * inverse).round_ties_even().clamp(low, high);
    group.iter().map(|w| f64::from(nearest(w)) * f64::from(scale)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q4_maps_the_signed_peak_to_minus_eight() {
        let got = represented(&[-1.0, 0.5, 0.9, 0.0], WeightForm::Q4);
        assert_eq!(got, [-1.0, 0.5, 0.875, 0.0]); // 0.9 would be 7.2 steps, the grid ends at 7
        let got = represented(&[1.0, -0.5, -0.9, 0.0], WeightForm::Q4);
        assert_eq!(got, [1.0, -0.5, -0.875, 0.0]);
    }

    #[test]
    fn q8_maps_the_largest_magnitude_to_127() {
        let got = represented(&[-12.7, 6.34, 0.0], WeightForm::Q8);
        for (got, want) in got.iter().zip([-12.7, 6.3, 0.0]) {
            assert!((got - want).abs() < 6e-3, "{got} is not {want}");
        }
    }
}
