//! Qwen3 dense: Qwen2 without biases, with a norm on each head's query and key.

use super::{Family, qwen2};
use crate::model::config::Config;
use crate::model::description::{Biases, Defaults, Description};
use crate::model::error::ModelError;

pub(super) const FAMILY: Family =
    Family { architecture: "Qwen3ForCausalLM", model_type: "qwen3", gguf: Some("qwen3"), describe };

fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = Description::common("qwen3", c, Defaults { rope_theta: 10_000.0, tied: false })?;
    // `transformers` assumes 128 where other families divide; a config without the field is too rare
    // to guess about.
    c.count("head_dim")?;
    d.qk_norm = true;
    let attention_bias = c.flag("attention_bias", false)?;
    d.bias = Biases { qkv: attention_bias, o: attention_bias, mlp: false };
    qwen2::upper_windows(&mut d, c)?;
    Ok(d)
}
