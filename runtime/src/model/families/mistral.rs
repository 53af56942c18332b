//! Mistral 7B and its kin: Llama with a sliding window in every layer, unless the config says `null`.

use super::Family;
use crate::model::config::Config;
use crate::model::description::{Defaults, Description};
use crate::model::error::ModelError;

pub(super) const FAMILY: Family =
    Family { architecture: "MistralForCausalLM", model_type: "mistral", gguf: None, describe };

/// What `transformers` assumes if the field is absent (not if it is `null`).
const WINDOW_IF_ABSENT: usize = 4096;

fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = Description::common("mistral", c, Defaults { rope_theta: 10_000.0, tied: false })?;
    if c.get("num_key_value_heads").is_none() && !c.mentions("num_key_value_heads") {
        return Err(c.missing("num_key_value_heads"));
    }
    let window = match c.mentions("sliding_window") {
        true => c.count_opt("sliding_window")?,
        false => Some(WINDOW_IF_ABSENT),
    };
    d.set_windows(c, window, |_| window.is_some())?;
    Ok(d)
}
