//! Qwen2 and Qwen2.5: biases on q, k and v; an optional window in the upper layers.

use super::Family;
use crate::model::config::Config;
use crate::model::description::{Biases, Defaults, Description};
use crate::model::error::ModelError;

pub(super) const FAMILY: Family =
    Family { architecture: "Qwen2ForCausalLM", model_type: "qwen2", gguf: Some("qwen2"), describe };

fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = Description::common("qwen2", c, Defaults { rope_theta: 10_000.0, tied: false })?;
    d.bias = Biases { qkv: true, o: false, mlp: false };
    upper_windows(&mut d, c)?;
    Ok(d)
}

/// With `use_sliding_window`, layers from `max_window_layers` on see `sliding_window` tokens.
pub(super) fn upper_windows(d: &mut Description, c: &Config) -> Result<(), ModelError> {
    if !c.flag("use_sliding_window", false)? {
        return d.set_windows(c, None, |_| false);
    }
    let first = match c.get("max_window_layers").and_then(serde_json::Value::as_u64) {
        Some(n) => n as usize,
        None if c.get("layer_types").is_some() => 0,
        None => return Err(c.missing("max_window_layers")),
    };
    d.set_windows(c, c.count_opt("sliding_window")?, |i| i >= first)
}
