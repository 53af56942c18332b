//! Phi-3 and Phi-4: fused projections, LongRoPE, partial rotary in the minis, a sliding window in some.

use super::Family;
use crate::model::config::Config;
use crate::model::description::{Defaults, Description, Fused};
use crate::model::error::ModelError;

pub(super) const FAMILY: Family =
    Family { architecture: "Phi3ForCausalLM", model_type: "phi3", gguf: Some("phi3"), describe };

fn describe(c: &Config) -> Result<Description, ModelError> {
    let mut d = Description::common("phi3", c, Defaults { rope_theta: 10_000.0, tied: false })?;
    d.fused = Fused { qkv: true, gate_up: true };
    let window = c.count_opt("sliding_window")?;
    d.set_windows(c, window, |_| window.is_some())?;
    Ok(d)
}
