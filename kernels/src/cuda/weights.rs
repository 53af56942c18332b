//! Weights on the device: linear weights as bf16 rows or as e4m3 with a scale a channel, vectors as f32.
//!
//! A checkpoint in f32 or f16 is rounded to bf16, which is what tensor cores and every other engine use; the
//! CPU backend serves it exactly. e4m3 is made here, a run of rows at a time, from the values of the file. The CPU's
//! integer forms are refused by name: tensor cores would want their activations in int8 too.

use half::bf16;

use super::driver::{DevicePtr, Driver};
use super::linear_fp8::quantize_row;
use crate::{HostTensor, HostType, KernelError, WeightForm};

/// Bytes of a row that are converted at a time.
const CHUNK: usize = 8 << 20;

/// `[n][k]`, row-major.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub at: DevicePtr,
    /// Of e4m3: f32, one a channel; null for bf16.
    pub scales: DevicePtr,
    pub n: usize,
    pub k: usize,
}

/// Refuses the forms that there are no kernels for.
pub(super) fn check_form(form: WeightForm) -> Result<(), KernelError> {
    let form = match form {
        WeightForm::Q8 => "q8",
        WeightForm::Q4 => "q4",
        WeightForm::F32 | WeightForm::F16 | WeightForm::Bf16 | WeightForm::E4m3 => return Ok(()),
    };
    let why = "a GPU holds them in bfloat16 or fp8";
    Err(KernelError::Form { backend: "cuda", what: "weights", form, why })
}

impl Linear {
    pub fn load(
        driver: &dyn Driver,
        parts: &[HostTensor<'_>],
        form: WeightForm,
    ) -> Result<Self, KernelError> {
        check_form(form)?;
        let k = parts.first().map_or(0, HostTensor::cols);
        if let Some(other) = parts.iter().find(|p| p.cols() != k) {
            return Err(KernelError::Columns(k, other.cols()));
        }
        let n = parts.iter().map(HostTensor::rows).sum();
        let [values, scales] = Self::bytes_of(n, k, form)?;
        let mut made = Self { at: DevicePtr::NULL, scales: DevicePtr::NULL, n, k };
        if scales > 0 {
            made.scales = driver.alloc(scales, "weights")?;
        }
        made.at = driver.alloc(values, "weights")?;
        let mut row = 0;
        for part in parts {
            match made.is_e4m3() {
                true => made.upload_e4m3(driver, row, part),
                false => upload_bf16(driver, made.at.plus(row * k * size_of::<bf16>()), part),
            }
            row += part.rows();
        }
        Ok(made)
    }

    pub fn is_e4m3(&self) -> bool {
        self.scales != DevicePtr::NULL
    }

    pub fn bytes(&self) -> usize {
        let form = if self.is_e4m3() { WeightForm::E4m3 } else { WeightForm::Bf16 };
        let [values, scales] = Self::sizes(self.n, self.k, form);
        values + scales
    }

    /// Of the values and of the scales of a weight; refuses rows that the kernels do not serve.
    pub fn bytes_of(n: usize, k: usize, form: WeightForm) -> Result<[usize; 2], KernelError> {
        let unit = if form == WeightForm::E4m3 { 16 } else { 8 };
        if !k.is_multiple_of(unit) {
            let why = "rows of a weight are whole 16-byte vectors";
            return Err(KernelError::Unsupported { backend: "cuda", what: "columns", value: k, why });
        }
        Ok(Self::sizes(n, k, form))
    }

    fn sizes(n: usize, k: usize, form: WeightForm) -> [usize; 2] {
        match form {
            WeightForm::E4m3 => [n * k, n * size_of::<f32>()],
            _ => [n * k * size_of::<bf16>(), 0],
        }
    }

    /// Quantizes `part` into the rows from `first` on.
    fn upload_e4m3(&self, driver: &dyn Driver, first: usize, part: &HostTensor<'_>) {
        let rows = (CHUNK / self.k).max(1);
        let mut wide = vec![0.0f32; self.k];
        let mut bytes = vec![0u8; rows.min(part.rows()) * self.k];
        for from in (0..part.rows()).step_by(rows) {
            let count = rows.min(part.rows() - from);
            let narrow = &mut bytes[..count * self.k];
            let quantize = |(row, out): (usize, &mut [u8])| {
                part.read_row(row, &mut wide);
                quantize_row(&wide, out)
            };
            let scales: Vec<f32> = (from..).zip(narrow.chunks_mut(self.k)).map(quantize).collect();
            driver.upload(self.at.plus((first + from) * self.k), narrow);
            driver.upload(self.scales.plus((first + from) * size_of::<f32>()), bytemuck::cast_slice(&scales));
        }
    }
}

fn upload_bf16(driver: &dyn Driver, at: DevicePtr, part: &HostTensor<'_>) {
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
