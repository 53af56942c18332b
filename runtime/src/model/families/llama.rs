//! Llama 2 and 3.x, and the many models that share their architecture.

use super::Family;
use crate::model::config::Config;
use crate::model::description::{Defaults, Description};
use crate::model::error::ModelError;

pub(super) const FAMILY: Family =
    Family { architecture: "LlamaForCausalLM", model_type: "llama", gguf: Some("llama"), describe };

fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = Description::common("llama", c, Defaults { rope_theta: 10_000.0, tied: false })?;
    let attention_bias = c.flag("attention_bias", false)?;
    d.bias.qkv = attention_bias;
    d.bias.o = attention_bias;
    d.bias.mlp = c.flag("mlp_bias", false)?;
    Ok(d)
}
