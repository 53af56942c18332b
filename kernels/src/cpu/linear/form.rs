//! The forms of a weight that the CPU has kernels for: those of [`WeightForm`] without e4m3.
//!
//! A type of its own, so that no kernel needs an arm for what never reaches it. Why not e4m3: a CPU has no
//! instruction for it, and q8 takes as many bytes, is more exact (a scale for each 32 weights) and multiplies as int8.

use crate::{KernelError, WeightForm};

/// How a weight is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Form {
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
}

impl TryFrom<WeightForm> for Form {
    type Error = KernelError;

    fn try_from(form: WeightForm) -> Result<Self, KernelError> {
        match form {
            WeightForm::F32 => Ok(Form::F32),
            WeightForm::F16 => Ok(Form::F16),
            WeightForm::Bf16 => Ok(Form::Bf16),
            WeightForm::Q8 => Ok(Form::Q8),
            WeightForm::Q4 => Ok(Form::Q4),
            WeightForm::E4m3 => Err(KernelError::Form {
                backend: "cpu",
                what: "weights",
                form: "fp8",
                why: "q8 takes as many bytes and is more exact",
            }),
        }
    }
}
