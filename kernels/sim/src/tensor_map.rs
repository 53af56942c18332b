//! What `cuTensorMapEncodeTiled` does, for emulated TMA: a description of a tensor and of the box that one load
//! brings, checked by the driver's rules and encoded into the 128 bytes of a kernel's `TensorMap` member.
//!
//! The bytes are the emulator's own (cpp/tensor_map.hpp), since the driver's are not documented. A GPU's host code
//! makes the same call with the driver's encoder.

/// The pattern in which 16-byte pieces of a 128-byte line are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    Bytes128,
}

/// A tensor in memory and the box of a load; all lists innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Address of the first element.
    pub base: u64,
    pub element_bytes: u8,
    /// Elements.
    pub dims: Vec<u64>,
    /// Bytes from one to the next, of every dimension but the innermost.
    pub strides: Vec<u64>,
    /// Elements.
    pub tile: Vec<u32>,
    pub swizzle: Swizzle,
}

/// What the driver would refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorMapSpecError {
    #[error("rank {0}: 1 to 5, with a stride less and a box dimension for each")]
    Rank(usize),
    #[error("elements of {0} bytes")]
    Element(u8),
    #[error("base {0:#x} is not aligned to 16")]
    Base(u64),
    #[error("dimension {at} has {elements} elements")]
    Dimension { at: usize, elements: u64 },
    #[error("stride {at} of {bytes} bytes: a multiple of 16 below 2^40")]
    Stride { at: usize, bytes: u64 },
    #[error("box dimension {at} of {elements}: 1 to 256")]
    Box { at: usize, elements: u32 },
    /// The driver takes lines shorter than the swizzle as well; how they lie then is not written anywhere clearly.
    #[error("innermost box of {bytes} bytes: a multiple of 16; with a swizzle its 128")]
    Line { bytes: u32 },
}

const MAGIC: u32 = 0x5041_4d54;

impl TensorMapSpec {
    /// The 128 bytes of the `TensorMap` member.
    pub fn encode(&self) -> Result<[u64; 16], TensorMapSpecError> {
        self.check()?;
        let mut bytes = [0u8; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.base.to_le_bytes());
        for (i, dim) in self.dims.iter().enumerate() {
            put(8 + 8 * i, &dim.to_le_bytes());
        }
        for (i, stride) in self.strides.iter().enumerate() {
            put(48 + 8 * i, &stride.to_le_bytes());
        }
        for (i, side) in self.tile.iter().enumerate() {
            put(80 + 2 * i, &(*side as u16).to_le_bytes());
        }
        put(90, &[self.dims.len() as u8, self.element_bytes]);
        let swizzle: u32 = if self.swizzle == Swizzle::Bytes128 { 128 } else { 0 };
        put(92, &swizzle.to_le_bytes());
        put(96, &MAGIC.to_le_bytes());
        Ok(std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|b| bytes[8 * i + b]))))
    }

    fn check(&self) -> Result<(), TensorMapSpecError> {
        use TensorMapSpecError as Error;
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) || self.strides.len() != rank - 1 || self.tile.len() != rank {
            return Err(Error::Rank(rank));
        }
        if ![1, 2, 4, 8].contains(&self.element_bytes) {
            return Err(Error::Element(self.element_bytes));
        }
        if !self.base.is_multiple_of(16) {
            return Err(Error::Base(self.base));
        }
        for (at, &elements) in self.dims.iter().enumerate() {
            if elements == 0 || elements > 1 << 32 {
                return Err(Error::Dimension { at, elements });
            }
        }
        for (at, &bytes) in self.strides.iter().enumerate() {
            if !bytes.is_multiple_of(16) || bytes >= 1 << 40 {
                return Err(Error::Stride { at, bytes });
            }
        }
        for (at, &elements) in self.tile.iter().enumerate() {
            if elements == 0 || elements > 256 {
                return Err(Error::Box { at, elements });
            }
        }
        let bytes = self.tile[0] * u32::from(self.element_bytes);
        if !bytes.is_multiple_of(16) || (self.swizzle == Swizzle::Bytes128 && bytes != 128) {
            return Err(Error::Line { bytes });
        }
        Ok(())
    }
}
