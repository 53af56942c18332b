//! SmolLM3: Llama in which every fourth layer has no position encoding.

use super::Family;
use crate::model::config::Config;
use crate::model::description::{Defaults, Description, Positions};
use crate::model::error::ModelError;

pub(super) const FAMILY: Family =
    Family { architecture: "SmolLM3ForCausalLM", model_type: "smollm3", gguf: Some("smollm3"), describe };

fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = Description::common("smollm3", c, Defaults { rope_theta: 2_000_000.0, tied: true })?;
    let attention_bias = c.flag("attention_bias", false)?;
    d.bias.qkv = attention_bias;
    d.bias.o = attention_bias;
    d.bias.mlp = c.flag("mlp_bias", false)?;
    let nope = nope_layers(c, d.layers.len())?;
    for (layer, nope) in d.layers.iter_mut().zip(&nope) {
        layer.positions = if *nope { Positions::None } else { Positions::Rotary };
    }
    let window = if c.flag("use_sliding_window", false)? { c.count_opt("sliding_window")? } else { None };
    d.set_windows(c, window, |i| window.is_some() && nope[i])?;
    Ok(d)
}

/// Which layers have no positions: `no_rope_layers` marks them with 0, else every
/// `no_rope_layer_interval`-th.
fn nope_layers(c: &Config, layers: usize) -> Result<Vec<bool>, ModelError> {
    let Some(value) = c.get("no_rope_layers") else {
        let every = c.count_opt("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((1..=layers).map(|n| n.is_multiple_of(every)).collect());
    };
    let list: Option<Vec<bool>> =
        value.as_array().and_then(|a| a.iter().map(|v| v.as_u64().map(|n| n == 0)).collect());
    match list {
        Some(list) if list.len() >= layers => Ok(list),
        _ => Err(c.wrong("no_rope_layers", "a list of 0 and 1 for each layer", value)),
    }
}
