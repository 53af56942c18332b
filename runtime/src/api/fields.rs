//! Reading a JSON request field by field, so that every complaint names the field.
//!
//! A derived deserializer would stop at "invalid type … at line 1 column 88"; clients need `param`.
//! `null` counts as absent, as in OpenAI's API. Unknown fields are ignored, as in vLLM; those known to
//! change the answer are refused where they are read.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::api::error::ApiError;

/// One JSON object and where it stands in the request.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    /// The request body itself.
    pub fn root(value: &'a Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path: String::new() }),
            other => {
                let error = format!("the request body must be a JSON object, not {}", kind(other));
                Err(ApiError { param: None, ..ApiError::invalid("", error) })
            }
        }
    }

    /// An object inside a list, such as `messages[2]`.
    pub fn item(value: &'a Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(wrong(&path, "an object", other)),
        }
    }

    /// Full name of a field: `stream_options.include_usage`.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Refuses fields that are not among `known`: where a misspelt one would do something else than
    /// was meant.
    pub fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let name = self.name(key);
                Err(ApiError::invalid(
                    name.clone(),
                    format!("`{name}` is not known here: {}", known.join(", ")),
                ))
            }
        }
    }

    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        let read = |value: &'a Value| value.as_str().ok_or_else(|| self.wrong(key, "a string", value));
        self.get(key).map(read).transpose()
    }

    pub fn flag(&self, key: &str, default: Flag) -> Result<Flag, ApiError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(true)) => Ok(Flag::On),
            Some(Value::Bool(false)) => Ok(Flag::Off),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    pub fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        let read = |value: &'a Value| value.as_array().ok_or_else(|| self.wrong(key, "an array", value));
        self.get(key).map(read).transpose()
    }

    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(key).map(|value| Fields::item(value, self.name(key))).transpose()
    }

    pub fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = value.as_i64().or_else(|| whole_float(value));
        match whole {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            None if !value.is_number() => Err(self.wrong(key, "an integer", value)),
            _ => {
                let wanted = format!("an integer from {} to {}", range.start(), range.end());
                Err(self.out_of_range(key, &wanted, value))
            }
        }
    }

    /// As [`Fields::integer`] for a `u32` that is at least `low`.
    pub fn count(&self, key: &str, low: u32) -> Result<Option<u32>, ApiError> {
        let number = self.integer(key, i64::from(low)..=i64::from(u32::MAX))?;
        Ok(number.map(|n| n as u32))
    }

    pub fn float(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number as f32)),
            Some(_) => {
                let wanted = format!("a number from {} to {}", range.start(), range.end());
                Err(self.out_of_range(key, &wanted, value))
            }
            None => Err(self.wrong(key, "a number", value)),
        }
    }

    /// Refuses `key` unless it is absent, null, false, zero or empty.
    pub fn refuse(&self, key: &str, why: &str) -> Result<(), ApiError> {
        let harmless = match self.get(key) {
            None | Some(Value::Bool(false)) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(items)) => items.is_empty(),
            Some(Value::Number(number)) => number.as_f64() == Some(0.0),
            Some(_) => false,
        };
        if harmless {
            return Ok(());
        }
        let name = self.name(key);
        let message = format!("`{name}` is not supported: {why}");
        Err(ApiError::unsupported(name, message))
    }

    pub fn wrong(&self, key: &str, wanted: &str, got: &Value) -> ApiError {
        wrong(&self.name(key), wanted, got)
    }

    pub fn out_of_range(&self, key: &str, wanted: &str, got: &Value) -> ApiError {
        let name = self.name(key);
        let message = format!("`{name}` must be {wanted}, got {}", brief(got));
        ApiError::invalid(name, message)
    }
}

/// A boolean of the request, as a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    On,
    Off,
}

impl Flag {
    pub fn is_on(self) -> bool {
        self == Flag::On
    }
}

pub(crate) fn wrong(name: &str, wanted: &str, got: &Value) -> ApiError {
    ApiError::invalid(name, format!("`{name}` must be {wanted}, got {}", kind(got)))
}

/// `2.0` is a whole number to clients whose language has only floats.
fn whole_float(value: &Value) -> Option<i64> {
    value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
