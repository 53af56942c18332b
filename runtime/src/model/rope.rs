//! Rotary position schemes, from their config to a table of frequencies.
//!
//! Every scheme here is a fixed function of the position: a key rotated once is right for every later
//! query, in this request and in any other that shares the prefix. Dynamic NTK changes the frequencies
//! as a sequence grows and is refused for that reason. LongRoPE has two sets of factors; which one
//! applies is decided once, by the longest sequence that is served, not by each request's length.

use kernels::RopeTable;

use super::config::Config;
use super::error::ModelError;

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Dimensions of each head that turn; the rest pass unchanged.
    pub dims: usize,
    pub scaling: RopeScaling,
}

/// How frequencies are stretched beyond the trained length.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn {
        factor: f64,
        original: f64,
        fast: f64,
        slow: f64,
        magnitude: f64,
        ramp: YarnRamp,
    },
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original: usize,
        magnitude: f64,
    },
    /// Each frequency divided by its own factor (what GGUF files store for Llama 3).
    Factors(Vec<f64>),
}

/// Whether YaRN's correction range is rounded to whole dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YarnRamp {
    Rounded,
    Exact,
}

impl Rope {
    /// Frequencies for a model that serves sequences up to `positions`.
    pub fn table(&self, positions: usize) -> RopeTable {
        let dims = self.dims as f64;
        let plain = (0..self.dims / 2).map(|i| self.theta.powf(-2.0 * i as f64 / dims));
        let over = |f: &[f64]| plain.clone().zip(f).map(|(w, f)| w / f).collect::<Vec<f64>>();
        let (inv_freq, magnitude) = match &self.scaling {
            RopeScaling::None => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => (plain.map(|w| w / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low, high, original } => {
                (plain.map(|w| llama3(w, *factor, *low, *high, *original)).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, magnitude, .. } => {
                let keep = self.yarn_keep();
                let mix = |(w, k): (f64, f64)| w / factor * (1.0 - k) + w * k;
                (plain.zip(keep).map(mix).collect(), *magnitude)
            }
            RopeScaling::LongRope { short, long, original, magnitude } => {
                let factors = if positions > *original { long } else { short };
                (over(factors), *magnitude)
            }
            RopeScaling::Factors(factors) => (over(factors), 1.0),
        };
        RopeTable { inv_freq, magnitude, positions }
    }

    /// Per frequency, the share that YaRN leaves unstretched.
    fn yarn_keep(&self) -> Vec<f64> {
        let RopeScaling::Yarn { original, fast, slow, ramp, .. } = self.scaling else { return Vec::new() };
        let dims = self.dims as f64;
        let dim_of =
            |turns: f64| dims * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
        let (low, high) = match ramp {
            YarnRamp::Rounded => (dim_of(fast).floor(), dim_of(slow).ceil()),
            YarnRamp::Exact => (dim_of(fast), dim_of(slow)),
        };
        let (low, high) = (low.max(0.0), high.min(dims - 1.0));
        let span = if high == low { 0.001 } else { high - low };
        (0..self.dims / 2).map(|i| 1.0 - ((i as f64 - low) / span).clamp(0.0, 1.0)).collect()
    }

    /// Longest sequence the scheme is meant for, given the config's `max_position_embeddings`.
    pub(crate) fn positions(&self, configured: usize) -> usize {
        match self.scaling {
            RopeScaling::Linear { factor } => (configured as f64 * factor) as usize,
            RopeScaling::Yarn { factor, original, .. } => configured.max((original * factor) as usize),
            _ => configured,
        }
    }
}

fn llama3(w: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let turns = original * w / std::f64::consts::TAU;
    if turns > high {
        return w;
    }
    if turns < low {
        return w / factor;
    }
    let smooth = (turns - low) / (high - low);
    (1.0 - smooth) * w / factor + smooth * w
}

/// Reads `rope_parameters` (transformers 5) or `rope_scaling` + `rope_theta` (before).
pub(crate) fn parse(c: &Config, head_dim: usize, default_theta: f64) -> Result<Rope, ModelError> {
    let field = if c.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let scaling = c.object(field)?;
    let within = |name: &str| match &scaling {
        Some(s) => s.number_opt(name),
        None => Ok(None),
    };
    let theta = match within("rope_theta")? {
        Some(theta) => theta,
        None => c.number_opt("rope_theta")?.unwrap_or(default_theta),
    };
    let partial = match within("partial_rotary_factor")? {
        Some(p) => p,
        None => c.number_opt("partial_rotary_factor")?.unwrap_or(1.0),
    };
    let dims = (head_dim as f64 * partial) as usize;
    if dims == 0 || dims > head_dim || !dims.is_multiple_of(2) {
        return Err(
            c.unsupported("partial_rotary_factor", format!("it turns {dims} of {head_dim} dimensions"))
        );
    }
    let scaling = match &scaling {
        Some(s) => parse_scaling(c, s, field, dims)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, dims, scaling })
}

fn parse_scaling(c: &Config, s: &Config, field: &str, dims: usize) -> Result<RopeScaling, ModelError> {
    let kind = match s.text("rope_type")? {
        Some(kind) => Some(kind),
        None => s.text("type")?,
    };
    match kind.unwrap_or("default") {
        "default" if s.get("full_attention").is_some() => {
            Err(c.unsupported(field, "one rope per kind of layer is not understood"))
        }
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: s.number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: s.number("factor")?,
            low: s.number("low_freq_factor")?,
            high: s.number("high_freq_factor")?,
            original: original(c, s)? as f64,
        }),
        "yarn" => yarn(c, s),
        "longrope" | "su" => longrope(c, s, dims),
        "dynamic" => Err(c.unsupported(field, "dynamic NTK changes cached keys as a sequence grows")),
        other => Err(c.unsupported(
            field,
            format!("rope type {other:?} is unknown; known are default, linear, llama3, yarn, longrope"),
        )),
    }
}

/// The trained length: beside the model's own (Phi-3), inside the rope's, or the model's length.
fn original(c: &Config, s: &Config) -> Result<usize, ModelError> {
    let name = "original_max_position_embeddings";
    match (c.count_opt(name)?, s.count_opt(name)?) {
        (Some(n), _) | (None, Some(n)) => Ok(n),
        (None, None) => c.count("max_position_embeddings"),
    }
}

fn yarn(c: &Config, s: &Config) -> Result<RopeScaling, ModelError> {
    let original = original(c, s)? as f64;
    let factor = match s.number_opt("factor")? {
        Some(factor) => factor,
        None => c.count("max_position_embeddings")? as f64 / original,
    };
    let grown = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let magnitude =
        match (s.number_opt("attention_factor")?, nonzero(s, "mscale")?, nonzero(s, "mscale_all_dim")?) {
            (Some(given), ..) => given,
            (None, Some(one), Some(all)) => grown(one) / grown(all),
            (None, ..) => grown(1.0),
        };
    Ok(RopeScaling::Yarn {
        factor,
        original,
        fast: s.number_opt("beta_fast")?.unwrap_or(32.0),
        slow: s.number_opt("beta_slow")?.unwrap_or(1.0),
        magnitude,
        ramp: if s.flag("truncate", true)? { YarnRamp::Rounded } else { YarnRamp::Exact },
    })
}

/// A number that may be written as 0 for "not used".
fn nonzero(s: &Config, name: &str) -> Result<Option<f64>, ModelError> {
    if s.get(name).and_then(serde_json::Value::as_f64) == Some(0.0) { Ok(None) } else { s.number_opt(name) }
}

fn longrope(c: &Config, s: &Config, dims: usize) -> Result<RopeScaling, ModelError> {
    let (short, long) = (s.numbers("short_factor")?, s.numbers("long_factor")?);
    for (name, list) in [("short_factor", &short), ("long_factor", &long)] {
        if list.len() != dims / 2 {
            let why = format!("{} factors, the rope has {} frequencies", list.len(), dims / 2);
            return Err(s.unsupported(name, why));
        }
    }
    let original = original(c, s)?;
    let factor = match s.number_opt("factor")? {
        Some(factor) => factor,
        None => c.count("max_position_embeddings")? as f64 / original as f64,
    };
    let magnitude = match s.number_opt("attention_factor")? {
        Some(given) => given,
        None => longrope_magnitude(factor, original),
    };
    Ok(RopeScaling::LongRope { short, long, original, magnitude })
}

/// LongRoPE's own attention factor for a length stretched by `factor`.
pub(crate) fn longrope_magnitude(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(json: &str) -> Result<Rope, ModelError> {
        parse(&Config::parse(json.as_bytes()).unwrap(), 8, 10_000.0)
    }

    #[test]
    fn both_spellings_of_a_config_mean_the_same() {
        let old = r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}"#;
        let new = r#"{"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}"#;
        assert_eq!(rope(old).unwrap(), rope(new).unwrap());
        assert_eq!(rope(old).unwrap().table(16).inv_freq[0], 0.25);
    }

    #[test]
    fn llama3_leaves_fast_and_divides_slow_frequencies() {
        let r = rope(
            r#"{"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#,
        );
        let table = r.unwrap().table(64).inv_freq;
        assert_eq!(table[0], 1.0);
        assert!((table[3] - 5e5f64.powf(-0.75) / 8.0).abs() < 1e-12);
    }

    #[test]
    fn longrope_picks_factors_by_the_served_length() {
        let r = rope(
            r#"{"max_position_embeddings": 64, "original_max_position_embeddings": 16,
                "rope_scaling": {"type": "su", "short_factor": [1,1,1,1], "long_factor": [2,2,2,2]}}"#,
        )
        .unwrap();
        assert_eq!(r.table(16).inv_freq[0], 1.0);
        assert_eq!(r.table(17).inv_freq[0], 0.5);
        assert!((r.table(17).magnitude - 1.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_would_change_cached_keys_is_refused() {
        let e = rope(r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#).unwrap_err();
        expect_test::expect![[r#"config.json: `rope_scaling` = {"type":"dynamic","factor":2.0} is not supported: dynamic NTK changes cached keys as a sequence grows"#]]
            .assert_eq(&e.to_string());
    }
}
