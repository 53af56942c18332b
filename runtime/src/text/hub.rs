//! The text side of a Hugging Face style directory.
//!
//! The same facts stand in up to five files that disagree in practice. The order here is that of the
//! common servers: `chat_template.jinja` before `tokenizer_config.json`; ends of sequence are the union
//! of `generation_config.json`, `config.json` and the tokenizer's own.

use base::TokenId;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::files::ModelFiles;
use crate::text::template::{ChatTemplate, SpecialNames};
use crate::text::text::{GenerationDefaults, Parts, TextError};

pub(crate) fn parts(files: &ModelFiles) -> Result<Parts, TextError> {
    let bytes = files.read("tokenizer.json")?.ok_or(TextError::Missing("tokenizer.json"))?;
    let tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| parse_error("tokenizer.json", &e))?;
    let settings = json(files, "tokenizer_config.json")?;
    let map = json(files, "special_tokens_map.json")?;
    let config = json(files, "config.json")?;
    let generation = json(files, "generation_config.json")?;

    let name = |key: &str| token_name(&settings[key]).or_else(|| token_name(&map[key]));
    let names = SpecialNames {
        bos: name("bos_token"),
        eos: name("eos_token"),
        unk: name("unk_token"),
        pad: name("pad_token"),
    };
    let id = |name: &Option<String>| name.as_deref().and_then(|n| tokenizer.token_to_id(n));
    let mut eos = ids(&generation["eos_token_id"]);
    eos.extend(ids(&config["eos_token_id"]));
    eos.extend(id(&names.eos));
    let vocab = [&config["vocab_size"], &config["text_config"]["vocab_size"]];
    Ok(Parts {
        bos: id(&names.bos),
        template: template(files, &settings, names)?,
        defaults: defaults(&generation),
        eos,
        add_bos: settings["add_bos_token"].as_bool(),
        vocab: vocab.iter().find_map(|v| v.as_u64()).and_then(|v| u32::try_from(v).ok()),
        tokenizer,
    })
}

/// The named file's JSON; null if there is none.
fn json(files: &ModelFiles, name: &'static str) -> Result<Value, TextError> {
    match files.read(name)? {
        None => Ok(Value::Null),
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| parse_error(name, &e)),
    }
}

fn parse_error(file: &str, error: &dyn std::fmt::Display) -> TextError {
    TextError::Parse { file: file.into(), message: error.to_string() }
}

/// `"<s>"` or `{"content": "<s>", …}`.
fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// An id, a list of ids, or nothing.
fn ids(value: &Value) -> Vec<TokenId> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(Value::as_u64).filter_map(|id| TokenId::try_from(id).ok()).collect()
}

fn template(
    files: &ModelFiles,
    settings: &Value,
    names: SpecialNames,
) -> Result<Option<ChatTemplate>, TextError> {
    let mut sources = Vec::new();
    if let Some(bytes) = files.read("chat_template.jinja")? {
        let source = String::from_utf8(bytes.into_owned());
        sources.push(("default".into(), source.map_err(|e| parse_error("chat_template.jinja", &e))?));
    } else {
        let own = json(files, "chat_template.json")?;
        let value =
            if own["chat_template"].is_null() { &settings["chat_template"] } else { &own["chat_template"] };
        sources.extend(named_sources(value));
    }
    if sources.is_empty() {
        return Ok(None);
    }
    ChatTemplate::compile(sources, names).map(Some)
}

/// A template, or a list of `{"name", "template"}`.
fn named_sources(value: &Value) -> Vec<(String, String)> {
    if let Some(source) = value.as_str() {
        return vec![("default".into(), source.into())];
    }
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    let pair = |entry: &Value| Some((entry["name"].as_str()?.into(), entry["template"].as_str()?.into()));
    list.iter().filter_map(pair).collect()
}

fn defaults(generation: &Value) -> GenerationDefaults {
    let float = |key: &str| generation[key].as_f64().map(|v| v as f32);
    let int = |key: &str| generation[key].as_u64().and_then(|v| u32::try_from(v).ok());
    let greedy = generation["do_sample"] == false;
    GenerationDefaults {
        temperature: if greedy { Some(0.0) } else { float("temperature") },
        top_p: float("top_p").filter(|p| *p > 0.0 && *p <= 1.0),
        top_k: int("top_k"),
        min_p: float("min_p").filter(|p| (0.0..=1.0).contains(p)),
        repetition_penalty: float("repetition_penalty").filter(|p| *p > 0.0),
        max_tokens: int("max_new_tokens").filter(|n| *n > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_models_default_to_temperature_zero() {
        let generation = serde_json::json!({"do_sample": false, "temperature": 0.7, "top_k": 20});
        let want = GenerationDefaults { temperature: Some(0.0), top_k: Some(20), ..Default::default() };
        assert_eq!(defaults(&generation), want);
    }

    #[test]
    fn ends_of_sequence_may_be_one_or_many() {
        assert_eq!(ids(&serde_json::json!(7)), [7]);
        assert_eq!(ids(&serde_json::json!([7, 9])), [7, 9]);
        assert!(ids(&Value::Null).is_empty());
    }
}
