//! How large the measured cases are: as in Llama-3.1-8B on a device, a few rows on the emulator.

use kernels::AttentionShape;

use crate::bench::Device;

/// Sequences, tokens that all share, tokens of each.
pub type Cascade = (u32, u32, u32, &'static str);

pub struct Sizes {
    pub shape: AttentionShape,
    /// Sequences and tokens of each.
    pub decodes: &'static [(u32, u32)],
    pub prefills: &'static [u32],
    pub cascades: &'static [Cascade],
    /// Sequences and the tokens that all share, from which the costs of sharing are made.
    pub shared: &'static [(u32, u32)],
    /// Name, outputs, inputs.
    pub products: &'static [(&'static str, usize, usize)],
    pub product_rows: &'static [usize],
    /// Beyond these rows a step has no logits, so that the head is left out.
    pub head_rows_max: usize,
    /// Rows and columns of row ops.
    pub rows: usize,
    pub hidden: usize,
    pub inner: usize,
    pub draws: (usize, usize),
    /// A square product, pages and layers of the pool: for the ceilings.
    pub square: usize,
    pub pages: usize,
    pub layers: usize,
}

const fn heads(heads: usize, kv_heads: usize) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim: 128, scale: 0.088_388_35, window: None }
}

const LLAMA_8B: Sizes = Sizes {
    shape: heads(32, 8),
    decodes: &[(32, 4096), (64, 4096), (1, 32768)],
    prefills: &[2048, 8192, 32768],
    cascades: &[(256, 32768, 256, "20x"), (64, 8192, 512, "8x")],
    shared: &[
        (2, 1024),
        (2, 8192),
        (4, 512),
        (4, 4096),
        (8, 256),
        (8, 2048),
        (16, 512),
        (16, 4096),
        (32, 256),
        (32, 2048),
        (64, 1024),
        (128, 512),
    ],
    products: &[
        ("qkv", 6144, 4096),
        ("o", 4096, 4096),
        ("gate_up", 28672, 4096),
        ("down", 4096, 14336),
        ("head", 128_256, 4096),
    ],
    product_rows: &[1, 16, 64, 256, 2048, 8192],
    head_rows_max: 256,
    rows: 8192,
    hidden: 4096,
    inner: 14336,
    draws: (64, 128_256),
    square: 8192,
    pages: 4096,
    layers: 10,
};

const SMALL: Sizes = Sizes {
    shape: heads(2, 1),
    decodes: &[(2, 300)],
    prefills: &[64],
    cascades: &[(3, 512, 64, "-")],
    shared: &[(2, 256), (2, 512), (3, 256)],
    products: &[("qkv", 96, 128), ("head", 200, 64)],
    product_rows: &[1, 20],
    head_rows_max: 8,
    rows: 16,
    hidden: 256,
    inner: 128,
    draws: (2, 2048),
    square: 64,
    pages: 8,
    layers: 2,
};

pub fn of(device: &Device) -> &'static Sizes {
    if device.is_emulated() { &SMALL } else { &LLAMA_8B }
}
