//! Weights on the device: linear weights as bf16 rows, vectors as f32.
//!
//! A checkpoint in f32 or f16 is rounded to bf16, which is what tensor cores and every other engine use; the
//! CPU backend serves it exactly. Quantized forms are refused by name until their kernels exist.

use half::bf16;

use super::driver::{DevicePtr, Driver};
use crate::{HostTensor, HostType, KernelError, WeightForm};

/// Bytes of a row that are converted at a time.
const CHUNK: usize = 8 << 20;

/// `[n][k]` bf16, row-major.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub at: DevicePtr,
    pub n: usize,
    pub k: usize,
}

impl Linear {
    pub fn load(
        driver: &dyn Driver,
        parts: &[HostTensor<'_>],
        form: WeightForm,
    ) -> Result<Self, KernelError> {
        let refuse = |what, value, why| Err(KernelError::Unsupported { backend: "cuda", what, value, why });
        if matches!(form, WeightForm::Q8 | WeightForm::Q4) {
            let bits = if form == WeightForm::Q8 { 8 } else { 4 };
            return refuse("quantize", bits, "weights are held as bf16 on a GPU");
        }
        let k = parts.first().map_or(0, HostTensor::cols);
        if let Some(other) = parts.iter().find(|p| p.cols() != k) {
            return Err(KernelError::Columns(k, other.cols()));
        }
        if !k.is_multiple_of(8) {
            return refuse("columns", k, "rows of a weight are whole 16-byte vectors");
        }
        let n = parts.iter().map(HostTensor::rows).sum();
        let at = driver.alloc(Self::bytes_of(n * k), "weights")?;
        let mut next = at;
        for part in parts {
            upload(driver, next, part);
            next = next.plus(part.rows() * k * size_of::<bf16>());
        }
        Ok(Self { at, n, k })
    }

    pub fn bytes(&self) -> usize {
        Self::bytes_of(self.n * self.k)
    }

    /// Of a weight with this many elements.
    pub fn bytes_of(elements: usize) -> usize {
        elements * size_of::<bf16>()
    }
}

fn upload(driver: &dyn Driver, at: DevicePtr, part: &HostTensor<'_>) {
    if part.kind() == HostType::Bf16 {
        return driver.upload(at, part.bytes());
    }
    let rows = (CHUNK / (part.cols().max(1) * 4)).max(1);
    let mut wide = vec![0.0f32; part.cols()];
    let mut narrow = Vec::new();
    for from in (0..part.rows()).step_by(rows) {
        narrow.clear();
        for row in from..(from + rows).min(part.rows()) {
            part.read_row(row, &mut wide);
            narrow.extend(wide.iter().map(|&x| bf16::from_f32(x)));
        }
        driver.upload(at.plus(from * part.cols() * size_of::<bf16>()), bytemuck::cast_slice(&narrow));
    }
}

/// A vector in f32, and in bf16 where a library wants it so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vector {
    pub at: DevicePtr,
    pub narrow: DevicePtr,
    pub len: usize,
}

impl Vector {
    /// Of both copies of a vector of this length.
    pub fn bytes_of(len: usize) -> [usize; 2] {
        [len * size_of::<f32>(), len * size_of::<bf16>()]
    }

    pub fn load(driver: &dyn Driver, parts: &[HostTensor<'_>]) -> Result<Self, KernelError> {
        let mut values = vec![0.0f32; parts.iter().map(|p| p.rows() * p.cols()).sum()];
        let mut rest = values.as_mut_slice();
        for (part, row) in parts.iter().flat_map(|p| (0..p.rows()).map(move |row| (p, row))) {
            let (out, after) = rest.split_at_mut(part.cols());
            part.read_row(row, out);
            rest = after;
        }
        let narrow_values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let [wide, small] = Self::bytes_of(values.len());
        let at = driver.alloc(wide, "weights")?;
        let narrow = driver.alloc(small, "weights")?;
        driver.upload(at, bytemuck::cast_slice(&values));
        driver.upload(narrow, bytemuck::cast_slice(&narrow_values));
        Ok(Self { at, narrow, len: values.len() })
    }
}
