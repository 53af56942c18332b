//! The supported families: a table of names, and for each one page that maps its config.

mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use super::config::Config;
use super::description::Description;
use super::error::ModelError;

/// How to recognise a family and read its config.
pub struct Family {
    /// The `architectures` entry.
    pub architecture: &'static str,
    /// The `model_type` entry.
    pub model_type: &'static str,
    /// `general.architecture` of GGUF files; Mistral's call themselves `llama`.
    pub gguf: Option<&'static str>,
    describe: fn(&Config) -> Result<Description, ModelError>,
}

/// Every family that is understood.
pub const FAMILIES: [Family; 6] =
    [llama::FAMILY, mistral::FAMILY, phi3::FAMILY, qwen2::FAMILY, qwen3::FAMILY, smollm3::FAMILY];

/// Describes the model of `config.json`.
pub fn describe(c: &Config) -> Result<Description, ModelError> {
    let named = c.get("architectures").and_then(|a| a.get(0)).and_then(|a| a.as_str());
    let family = match (named, c.text("model_type")?) {
        (Some(name), _) => FAMILIES.iter().find(|f| f.architecture == name).ok_or_else(|| unknown(name)),
        (None, Some(name)) => FAMILIES.iter().find(|f| f.model_type == name).ok_or_else(|| unknown(name)),
        (None, None) => Err(c.missing("architectures")),
    }?;
    (family.describe)(c)
}

/// The family of a GGUF file.
pub(crate) fn of_gguf(architecture: &str) -> Result<&'static Family, ModelError> {
    const { &FAMILIES }.iter().find(|f| f.gguf == Some(architecture)).ok_or_else(|| unknown(architecture))
}

impl Family {
    pub(crate) fn describe(&self, c: &Config) -> Result<Description, ModelError> {
        (self.describe)(c)
    }
}

fn unknown(name: &str) -> ModelError {
    let supported: Vec<&str> = FAMILIES.iter().map(|f| f.architecture).collect();
    ModelError::Architecture { name: name.into(), supported: supported.join(", ") }
}
