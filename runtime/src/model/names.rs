//! The tensors that a description asks for, under Hugging Face names, with their shapes.
//!
//! One list drives the check of a checkpoint, random weights, the digest and the progress bar, so they
//! cannot disagree about what belongs to a model.

use super::description::Description;

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub name: String,
    /// `[rows, cols]` or `[length]`.
    pub shape: Vec<usize>,
}

impl Expected {
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";
pub(crate) const NORM: &str = "model.norm.weight";

/// The name of a tensor of layer `i`.
pub(crate) fn of_layer(i: usize, rest: &str) -> String {
    format!("model.layers.{i}.{rest}")
}

/// Parts of a projection as the checkpoint stores them, stacked in this order.
pub(crate) struct Projection {
    pub parts: Vec<(&'static str, usize)>,
    pub cols: usize,
    pub bias: bool,
}

pub(crate) fn qkv(d: &Description) -> Projection {
    let (q, kv) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let parts = if d.fused.qkv {
        vec![("self_attn.qkv_proj", q + 2 * kv)]
    } else {
        vec![("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]
    };
    Projection { parts, cols: d.hidden, bias: d.bias.qkv }
}

pub(crate) fn o(d: &Description) -> Projection {
    Projection { parts: vec![("self_attn.o_proj", d.hidden)], cols: d.heads * d.head_dim, bias: d.bias.o }
}

pub(crate) fn gate_up(d: &Description) -> Projection {
    let parts = if d.fused.gate_up {
        vec![("mlp.gate_up_proj", 2 * d.intermediate)]
    } else {
        vec![("mlp.gate_proj", d.intermediate), ("mlp.up_proj", d.intermediate)]
    };
    Projection { parts, cols: d.hidden, bias: d.bias.mlp }
}

pub(crate) fn down(d: &Description) -> Projection {
    Projection { parts: vec![("mlp.down_proj", d.hidden)], cols: d.intermediate, bias: d.bias.mlp }
}

/// Every tensor of the model, in the order of computation.
pub fn expected(d: &Description) -> Vec<Expected> {
    let mut all = vec![Expected { name: EMBEDDING.into(), shape: vec![d.vocab, d.hidden] }];
    for i in 0..d.layers.len() {
        expected_layer(d, i, &mut all);
    }
    all.push(Expected { name: NORM.into(), shape: vec![d.hidden] });
    if !d.tied {
        all.push(Expected { name: HEAD.into(), shape: vec![d.vocab, d.hidden] });
    }
    all
}

fn expected_layer(d: &Description, i: usize, all: &mut Vec<Expected>) {
    let mut vector = |rest: &str, len: usize| {
        all.push(Expected { name: of_layer(i, rest), shape: vec![len] });
    };
    vector("input_layernorm.weight", d.hidden);
    if d.qk_norm {
        vector("self_attn.q_norm.weight", d.head_dim);
        vector("self_attn.k_norm.weight", d.head_dim);
    }
    vector("post_attention_layernorm.weight", d.hidden);
    for p in [qkv(d), o(d), gate_up(d), down(d)] {
        for (part, rows) in p.parts {
            all.push(Expected { name: of_layer(i, &format!("{part}.weight")), shape: vec![rows, p.cols] });
            if p.bias {
                all.push(Expected { name: of_layer(i, &format!("{part}.bias")), shape: vec![rows] });
            }
        }
    }
}
