//! Random weights from a seed, for benches (`--load-format dummy`) and tests.
//!
//! Element `i` of tensor `name` is a hash of (seed, name, i), so any part can be computed alone and in
//! any language: `scripts/oracle` computes the same weights in NumPy, and fixtures hold logits only.
//! Sizes are chosen so that a random model is neither dead nor explosive: projections keep unit
//! variance, norms stay near 1, biases are small but not negligible.

use std::borrow::Cow;
use std::path::Path;

use kernels::{HostType, WeightForm};
use sha2::{Digest, Sha256};

use super::{Depth, Tensor, TensorInfo, TensorSource, rows_cols};
use crate::model::error::ModelError;
use crate::model::names::Expected;

/// A source that computes what it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Dummy {
    pub seed: u64,
    pub kind: HostType,
}

impl Dummy {
    /// The values of a tensor before they are rounded to `kind`.
    pub fn values(&self, expected: &Expected) -> Vec<f32> {
        let (center, reach) = size(expected);
        let unit = |z: u64| (z >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        self.hashes(expected).map(|z| center + unit(z) * reach).collect()
    }

    /// One hash for each element.
    pub fn hashes(&self, expected: &Expected) -> impl Iterator<Item = u64> + use<> {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let key = self.seed ^ fnv1a(expected.name.as_bytes());
        (0..expected.elements()).map(move |i| mix(key.wrapping_add(i.wrapping_mul(GOLDEN))))
    }

    /// The values as bytes of `kind`.
    pub fn bytes(&self, expected: &Expected) -> Vec<u8> {
        let values = self.values(expected);
        // Billions of them: collected as words, not byte by byte.
        let words = |narrow: fn(f32) -> u16| values.iter().map(|&v| narrow(v)).collect::<Vec<u16>>();
        match self.kind {
            HostType::F32 => bytemuck::cast_slice(&values).to_vec(),
            HostType::F16 => bytemuck::cast_slice(&words(|v| half::f16::from_f32(v).to_bits())).to_vec(),
            HostType::Bf16 => bytemuck::cast_slice(&words(|v| half::bf16::from_f32(v).to_bits())).to_vec(),
        }
    }
}

/// Where a tensor's values lie: uniform in `center ± reach`.
fn size(expected: &Expected) -> (f32, f32) {
    let (_, cols) = rows_cols(&expected.shape);
    if expected.name.ends_with("norm.weight") {
        (1.0, 0.25)
    } else if expected.name.ends_with(".bias") {
        (0.0, 0.25)
    } else if expected.name.ends_with("embed_tokens.weight") {
        (0.0, 1.0)
    } else {
        (0.0, (3.0 / cols as f32).sqrt())
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl TensorSource for Dummy {
    fn info(&self, e: &Expected) -> Result<Option<TensorInfo>, ModelError> {
        let bytes = e.elements() * self.kind.bytes() as u64;
        Ok(Some(TensorInfo { shape: e.shape.clone(), bytes, file: self.main_file().to_owned() }))
    }

    fn read(&self, e: &Expected) -> Result<Tensor<'_>, ModelError> {
        let (rows, cols) = rows_cols(&e.shape);
        let form = form_of(self.kind);
        Ok(Tensor { kind: self.kind, rows, cols, bytes: Cow::Owned(self.bytes(e)), form })
    }

    fn digest(&self, e: &Expected, _depth: Depth, hasher: &mut Sha256) {
        hasher.update(self.seed.to_le_bytes());
        hasher.update(self.kind.name());
        hasher.update(&e.name);
    }

    fn unexpected(&self, _: &[Expected]) -> Option<(std::path::PathBuf, String)> {
        None
    }

    fn main_file(&self) -> &Path {
        Path::new("(random weights)")
    }
}

/// The form that keeps `kind` as it is.
pub(super) fn form_of(kind: HostType) -> WeightForm {
    match kind {
        HostType::F32 => WeightForm::F32,
        HostType::F16 => WeightForm::F16,
        HostType::Bf16 => WeightForm::Bf16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_the_published_formula() {
        // The same numbers come out of scripts/oracle/weights.py.
        let e = Expected { name: "model.norm.weight".into(), shape: vec![4] };
        let got = Dummy { seed: 7, kind: HostType::F32 }.values(&e);
        expect_test::expect!["[0.9286166, 1.0267816, 0.8472992, 0.8374618]"].assert_eq(&format!("{got:?}"));
    }

    #[test]
    fn projections_keep_unit_variance() {
        let e = Expected { name: "x.weight".into(), shape: vec![64, 48] };
        let got = Dummy { seed: 1, kind: HostType::F32 }.values(&e);
        let var = got.iter().map(|v| v * v).sum::<f32>() / got.len() as f32;
        assert!((var * 48.0 - 1.0).abs() < 0.1, "{var}");
    }
}
