//! Which instructions the kernels use, found at run time.
//!
//! Three levels instead of a flag per feature: each level is one full set of kernels that is tested whole.
//! A machine with AVX-512 but without its bf16 or byte dot products runs the AVX2 set.

use crate::KernelError;

/// A set of kernels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Isa {
    /// Plain Rust, any processor.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ, BF16, VNNI.
    Avx512,
}

impl Isa {
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The best set of this machine.
    pub fn detect() -> Self {
        *Self::ALL.iter().rfind(|isa| isa.available()).expect("portable always is")
    }

    /// True if this machine has all instructions of the set.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The set asked for, or the best one.
    pub fn choose(forced: Option<Isa>) -> Result<Self, KernelError> {
        match forced {
            None => Ok(Self::detect()),
            Some(isa) if isa.available() => Ok(isa),
            Some(isa) => Err(KernelError::Unsupported {
                backend: "cpu",
                what: isa.name(),
                value: 0,
                why: "this processor lacks its instructions",
            }),
        }
    }

    /// As `BackendInfo::isa` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2-fma",
            Isa::Avx512 => "avx512-bf16-vnni",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_is_always_there_and_detection_takes_the_best() {
        assert!(Isa::Portable.available());
        assert!(Isa::ALL.iter().all(|&isa| isa <= Isa::detect() || !isa.available()));
    }

    #[test]
    fn forcing_what_the_machine_lacks_is_refused() {
        for isa in Isa::ALL {
            match Isa::choose(Some(isa)) {
                Ok(chosen) => assert!(chosen == isa && isa.available()),
                Err(refusal) => {
                    assert!(!isa.available());
                    assert!(refusal.to_string().contains(isa.name()), "{refusal}");
                }
            }
        }
    }
}
