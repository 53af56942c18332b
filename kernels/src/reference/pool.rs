//! The reference page pool: f64, `[page][layer][K,V][kv_head][token][dim]`.

use crate::{KvShape, KvType, e4m3};

/// Pages of keys and values, each value already rounded to the pool's element type.
#[derive(Debug)]
pub(super) struct Pool {
    shape: KvShape,
    data: Vec<f64>,
}

impl Pool {
    pub(super) fn new(shape: KvShape) -> Self {
        Self { shape, data: vec![0.0; shape.pages * page_len(&shape)] }
    }
    pub(super) fn shape(&self) -> &KvShape {
        &self.shape
    }
    pub(super) fn page(&self, page: usize) -> &[f64] {
        let len = page_len(&self.shape);
        &self.data[page * len..(page + 1) * len]
    }
    pub(super) fn page_mut(&mut self, page: usize) -> &mut [f64] {
        let len = page_len(&self.shape);
        &mut self.data[page * len..(page + 1) * len]
    }
    pub(super) fn copy(&mut self, from: usize, to: usize) {
        let len = page_len(&self.shape);
        self.data.copy_within(from * len..(from + 1) * len, to * len);
    }

    /// Keys and values of one head at one slot of a page.
    pub(super) fn kv(&self, page: usize, layer: usize, head: usize, slot: usize) -> (&[f64], &[f64]) {
        let k = self.offset(layer, 0, head, slot);
        let v = self.offset(layer, 1, head, slot);
        let dim = self.shape.head_dim;
        (&self.page(page)[k..k + dim], &self.page(page)[v..v + dim])
    }

    /// Stores one token's keys and values (all heads).
    pub(super) fn store(&mut self, page: usize, layer: usize, slot: usize, k: &[f64], v: &[f64]) {
        let dim = self.shape.head_dim;
        let kind = self.shape.kind;
        for (side, values) in [k, v].into_iter().enumerate() {
            for (head, values) in values.chunks_exact(dim).enumerate() {
                let at = self.offset(layer, side, head, slot);
                self.page_mut(page)[at..at + dim].copy_from_slice(&rounded(values, kind));
            }
        }
    }

    fn offset(&self, layer: usize, side: usize, head: usize, slot: usize) -> usize {
        let s = &self.shape;
        (((layer * 2 + side) * s.kv_heads + head) * s.page_tokens + slot) * s.head_dim
    }
}

fn page_len(s: &KvShape) -> usize {
    s.layers * 2 * s.kv_heads * s.page_tokens * s.head_dim
}

/// One head of one token as the pool's type keeps it.
fn rounded(values: &[f64], kind: KvType) -> Vec<f64> {
    let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let kept = match kind {
        KvType::F32 => narrow,
        KvType::Bf16 => narrow.into_iter().map(|v| half::bf16::from_f32(v).to_f32()).collect(),
        KvType::E4m3 => e4m3::run_stored(&narrow),
    };
    kept.into_iter().map(f64::from).collect()
}
