//! What a caller hands to a backend: tensors in host memory, and the forms they are packed into.

use crate::KernelError;

/// Element type of a tensor in host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum HostType {
    F32,
    F16,
    Bf16,
}

impl HostType {
    pub fn bytes(self) -> usize {
        match self {
            HostType::F32 => 4,
            HostType::F16 | HostType::Bf16 => 2,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            HostType::F32 => "f32",
            HostType::F16 => "f16",
            HostType::Bf16 => "bf16",
        }
    }
}

/// A row-major matrix in host memory (usually a memory-mapped file); a vector is one row.
#[derive(Clone, Copy, Debug)]
pub struct HostTensor<'a> {
    kind: HostType,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> HostTensor<'a> {
    pub fn new(kind: HostType, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self, KernelError> {
        let need = rows * cols * kind.bytes();
        if bytes.len() != need {
            return Err(KernelError::Size { have: bytes.len(), need, rows, cols, kind: kind.name() });
        }
        Ok(Self { kind, rows, cols, bytes })
    }
    pub fn kind(&self) -> HostType {
        self.kind
    }
    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn cols(&self) -> usize {
        self.cols
    }
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Rows `from..to`, sharing the bytes.
    pub fn row_range(&self, from: usize, to: usize) -> HostTensor<'a> {
        let stride = self.cols * self.kind.bytes();
        HostTensor { rows: to - from, bytes: &self.bytes[from * stride..to * stride], ..*self }
    }

    /// Widens row `row` into `out`; exact for every type.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let stride = self.cols * self.kind.bytes();
        let src = &self.bytes[row * stride..(row + 1) * stride];
        match self.kind {
            HostType::F32 => widen(src, out, |b: [u8; 4]| f32::from_le_bytes(b)),
            HostType::F16 => widen(src, out, |b: [u8; 2]| half::f16::from_le_bytes(b).to_f32()),
            HostType::Bf16 => widen(src, out, |b: [u8; 2]| half::bf16::from_le_bytes(b).to_f32()),
        }
    }
}

fn widen<const N: usize>(src: &[u8], out: &mut [f32], to_f32: impl Fn([u8; N]) -> f32) {
    for (o, chunk) in out.iter_mut().zip(src.as_chunks::<N>().0) {
        *o = to_f32(*chunk);
    }
}

/// How a linear weight is held after packing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum WeightForm {
    F32,
    F16,
    Bf16,
    /// Symmetric int8 in groups of 32 along k, one scale a group.
    Q8,
    /// Symmetric int4 (−8..7) in groups of 32 along k, one scale a group.
    Q4,
    /// 8-bit floats (see [`crate::e4m3`]), one f32 scale an output channel.
    E4m3,
}

/// Element type of cached keys and values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum KvType {
    F32,
    Bf16,
    /// 8-bit floats; the values of a token and head share an exponent, a byte beside them (see [`crate::e4m3`]).
    E4m3,
}

impl KvType {
    /// Of one value.
    pub fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::Bf16 => 2,
            KvType::E4m3 => 1,
        }
    }
    /// Held beside the values of a token and head.
    pub fn exponent_bytes(self) -> usize {
        usize::from(self == KvType::E4m3)
    }
}

/// The device pool: `pages` pages, page-first `[page][layer][K,V][kv_head][token x dim]`.
/// The order inside the last block (one head's tokens of one page) is the backend's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct KvShape {
    pub pages: usize,
    /// 16, 32 or 64.
    pub page_tokens: usize,
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub kind: KvType,
}

impl KvShape {
    /// Bytes of one page over all layers: one contiguous extent.
    pub fn page_bytes(&self) -> usize {
        self.layers * 2 * self.kv_heads * self.block_bytes()
    }
    /// Bytes of one head's keys (or values) of one page of one layer.
    pub fn block_bytes(&self) -> usize {
        self.page_tokens * (self.head_dim * self.kind.bytes() + self.kind.exponent_bytes())
    }
}
