//! `config.json` as a map whose readers answer with the field's name.
//!
//! No serde struct per family: a wrong or absent field should say which one and what was expected, a
//! `null` means absent (as in `transformers`), and a field that would change the arithmetic but is not
//! understood must be refused rather than skipped, which a struct with ignored fields cannot do.
//! GGUF metadata is translated into the same names, so that a family is described once.

use serde_json::{Map, Value};

use super::error::ModelError;

/// Largest size or count a config may name; a damaged file must not drive allocations.
const COUNT_MAX: u64 = 1 << 31;

/// A model's hyperparameters under the names of Hugging Face configs.
#[derive(Clone, Debug)]
pub struct Config {
    map: Map<String, Value>,
    place: &'static str,
}

impl Config {
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let place = "config.json";
        match serde_json::from_slice(bytes) {
            Ok(map) => Ok(Self { map, place }),
            Err(e) => Err(ModelError::Json { place: place.into(), reason: e.to_string() }),
        }
    }

    pub(crate) fn from_map(map: Map<String, Value>, place: &'static str) -> Self {
        Self { map, place }
    }

    /// The sub-object `name`, whose errors carry the same place.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Config>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config { map: map.clone(), place: self.place })),
            Some(other) => Err(self.wrong(name, "an object", other)),
        }
    }

    /// The value of `name`; `null` counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// True if the key is there, even as `null`.
    pub(crate) fn mentions(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    pub(crate) fn count(&self, name: &str) -> Result<usize, ModelError> {
        self.count_opt(name)?.ok_or_else(|| self.missing(name))
    }

    pub(crate) fn count_opt(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=COUNT_MAX).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.wrong(name, "a positive integer", value)),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<f64, ModelError> {
        self.number_opt(name)?.ok_or_else(|| self.missing(name))
    }

    pub(crate) fn number_opt(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.wrong(name, "a positive number", value)),
        }
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(name, "true or false", other)),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(name, "a string", other)),
        }
    }

    /// A list of positive numbers.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f64>, ModelError> {
        let value = self.get(name).ok_or_else(|| self.missing(name))?;
        let list = value.as_array().map(|a| a.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
        match list {
            Some(Some(list)) if list.iter().all(|x| x.is_finite() && *x > 0.0) => Ok(list),
            _ => Err(self.wrong(name, "a list of positive numbers", value)),
        }
    }

    pub(crate) fn missing(&self, name: &str) -> ModelError {
        ModelError::FieldMissing { place: self.place, field: name.into() }
    }

    pub(crate) fn unsupported(&self, name: &str, why: impl Into<String>) -> ModelError {
        let value = self.map.get(name).map_or_else(|| "null".into(), brief);
        ModelError::FieldUnsupported { place: self.place, field: name.into(), value, why: why.into() }
    }

    pub(crate) fn wrong(&self, name: &str, expected: &'static str, found: &Value) -> ModelError {
        ModelError::FieldType { place: self.place, field: name.into(), expected, found: brief(found) }
    }
}

/// A value as it may stand in a message: long ones are cut.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
