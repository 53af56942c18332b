//! What a dense decoder-only transformer is, as a value.
//!
//! A family is data, not a program: everything in which the supported families differ is a field here,
//! and the forward pass reads the fields. A new family is then a page that maps its config's names, and
//! the digest of a model covers every field at once.

use kernels::AttentionShape;
use serde_json::{Value, json};

use super::config::Config;
use super::error::ModelError;
use super::rope::{self, Rope};

/// Everything about a model but its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// `llama`, `qwen2`, …
    pub family: &'static str,
    pub vocab: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub norm_eps: f32,
    pub rope: Rope,
    pub layers: Vec<Layer>,
    /// Where linear layers have biases.
    pub bias: Biases,
    /// Per-head rmsnorm of queries and keys.
    pub qk_norm: bool,
    /// The output projection is the embedding table.
    pub tied: bool,
    /// Which projections the checkpoint stores as one tensor.
    pub fused: Fused,
    /// Longest sequence the config allows.
    pub positions_max: usize,
}

/// What differs between layers of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub positions: Positions,
    /// A token sees itself and the `window - 1` before it.
    pub window: Option<u32>,
}

/// Whether a layer knows where its tokens stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    Rotary,
    /// No position encoding (SmolLM3's every fourth layer).
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    pub o: bool,
    pub mlp: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fused {
    /// `self_attn.qkv_proj`
    pub qkv: bool,
    /// `mlp.gate_up_proj`
    pub gate_up: bool,
}

/// What a family assumes when its config is silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub rope_theta: f64,
    pub tied: bool,
}

/// More layers than any model has; a damaged config must not drive a loop.
const LAYERS_MAX: usize = 4096;

impl Description {
    /// The fields that all families share; the caller adds what is its own.
    pub(crate) fn common(family: &'static str, c: &Config, d: Defaults) -> Result<Self, ModelError> {
        refuse_unknown_arithmetic(c)?;
        let (hidden, heads) = (c.count("hidden_size")?, c.count("num_attention_heads")?);
        let head_dim = match c.count_opt("head_dim")? {
            Some(dim) => dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(c.unsupported("num_attention_heads", format!("it does not divide {hidden}")));
            }
        };
        let kv_heads = c.count_opt("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(c.unsupported("num_key_value_heads", format!("it does not divide {heads} heads")));
        }
        let layers = c.count("num_hidden_layers")?;
        if layers > LAYERS_MAX {
            return Err(c.unsupported("num_hidden_layers", format!("at most {LAYERS_MAX}")));
        }
        let rope = rope::parse(c, head_dim, d.rope_theta)?;
        Ok(Self {
            family,
            vocab: c.count("vocab_size")?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: c.count("intermediate_size")?,
            norm_eps: c.number("rms_norm_eps")? as f32,
            layers: vec![Layer { positions: Positions::Rotary, window: None }; layers],
            bias: Biases::default(),
            qk_norm: false,
            tied: c.flag("tie_word_embeddings", d.tied)?,
            fused: Fused::default(),
            positions_max: rope.positions(c.count("max_position_embeddings")?),
            rope,
        })
    }

    /// Gives the layers for which `slides` holds a window of `window` tokens. A `layer_types` list in
    /// the config overrides `slides`; a window that no sequence can outgrow is none.
    pub(crate) fn set_windows(
        &mut self,
        c: &Config,
        window: Option<usize>,
        slides: impl Fn(usize) -> bool,
    ) -> Result<(), ModelError> {
        let kinds = layer_kinds(c, self.layers.len())?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let sliding = kinds.as_ref().map_or_else(|| slides(i), |k| k[i] == LayerKind::Sliding);
            if !sliding {
                continue;
            }
            let window = window.ok_or_else(|| c.missing("sliding_window"))?;
            layer.window = (window < self.positions_max).then_some(window as u32);
        }
        Ok(())
    }

    /// Geometry of attention in `layer`.
    pub fn attention(&self, layer: &Layer) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).sqrt().recip(),
            window: layer.window,
        }
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        super::names::expected(self).iter().map(|t| t.elements()).sum()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LayerKind {
    Full,
    Sliding,
}

fn layer_kinds(c: &Config, layers: usize) -> Result<Option<Vec<LayerKind>>, ModelError> {
    let Some(value) = c.get("layer_types") else { return Ok(None) };
    let list = value.as_array().ok_or_else(|| c.wrong("layer_types", "a list", value))?;
    if list.len() != layers {
        return Err(c.unsupported("layer_types", format!("{} entries for {layers} layers", list.len())));
    }
    let kind = |v: &Value| match v.as_str() {
        Some("full_attention") => Ok(LayerKind::Full),
        Some("sliding_attention") => Ok(LayerKind::Sliding),
        _ => Err(c.unsupported("layer_types", format!("{v} is not a known kind of layer"))),
    };
    list.iter().map(kind).collect::<Result<_, _>>().map(Some)
}

/// Fields that change the arithmetic in ways nothing here computes, with the values that do not.
fn refuse_unknown_arithmetic(c: &Config) -> Result<(), ModelError> {
    let act = c.text("hidden_act")?.unwrap_or("silu");
    if act != "silu" && act != "swish" {
        return Err(c.unsupported("hidden_act", "only silu is"));
    }
    if c.get("quantization_config").is_some() {
        let why = "quantized checkpoints are not read; load the plain one and pass --quantize";
        return Err(c.unsupported("quantization_config", why));
    }
    let off = [json!(false), json!(0), json!([]), json!({})];
    let one = [json!(1), json!(1.0)];
    let switches = [
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "clip_qkv",
        "alibi",
        "use_qk_norm",
        "qk_layernorm",
        "use_parallel_residual",
        "rope_interleaved",
        "is_encoder_decoder",
        "num_experts",
        "n_routed_experts",
        "num_local_experts",
        "cross_attention_layers",
        "attention_chunk_size",
        "kv_lora_rank",
        "query_pre_attn_scalar",
        "attention_multiplier",
        "vision_config",
    ];
    let multipliers = ["logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier"];
    let bad = |names: &[&'static str], neutral: &[Value]| {
        names.iter().copied().find(|n| c.get(n).is_some_and(|v| !neutral.contains(v)))
    };
    match bad(&switches, &off).or_else(|| bad(&multipliers, &one)) {
        Some(field) => {
            Err(c.unsupported(field, "it changes the arithmetic in a way that is not implemented"))
        }
        None => Ok(()),
    }
}
