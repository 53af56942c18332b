//! The text side of a Hugging Face style directory.
//!
//! The same facts stand in up to five files that disagree in practice. The order here is that of the
//! common servers: `chat_template.jinja` before `tokenizer_config.json`; ends of sequence are the union
//! of `generation_config.json`, `config.json` and the tokenizer's own.

use base::TokenId;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::assets::Assets;
use crate::files::ModelFiles;
use crate::template::{ChatTemplate, SpecialNames};
use crate::text::{GenerationDefaults, Parts, TextError};

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
        assets: Assets::read(files)?,
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
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::{AddSpecials, Text};

    /// A directory with a byte-level tokenizer of a few letters and the given side files.
    fn load(files: &[(&str, Value)]) -> Result<Text, TextError> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let added = json!({"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let tokenizer = json!({
            "version": "1.0", "normalizer": null, "post_processor": null, "added_tokens": [added],
            "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": null, "pre_tokenizer": bytes, "decoder": bytes,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": false, "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": ["a b"]},
        });
        write("tokenizer.json", &tokenizer.to_string());
        for (name, content) in files {
            write(name, content.as_str().map_or(content.to_string(), str::to_owned).as_str());
        }
        Text::load(&ModelFiles::Dir(Path::to_owned(dir.path())))
    }

    #[test]
    fn a_tokenizer_larger_than_the_model_is_refused() {
        let error = load(&[("config.json", json!({"vocab_size": 3}))]).unwrap_err();
        let want = "the tokenizer does not fit the model: it knows token 3, the model's vocab_size is 3";
        assert_eq!(error.to_string(), want);
        assert!(load(&[("config.json", json!({"vocab_size": 4}))]).is_ok());
    }

    #[test]
    fn prompts_are_neither_cut_nor_padded_by_the_file() {
        let text = load(&[]).unwrap();
        assert_eq!(text.encode("abba", AddSpecials::Yes).unwrap(), [2, 1, 0]);
    }

    #[test]
    fn begin_of_sequence_is_added_once_where_the_settings_say_so() {
        let settings = |add| ("tokenizer_config.json", json!({"bos_token": "<s>", "add_bos_token": add}));
        let text = load(&[settings(true)]).unwrap();
        assert_eq!(text.encode("a", AddSpecials::Yes).unwrap(), [3, 0]);
        assert_eq!(text.encode("<s>a", AddSpecials::Yes).unwrap(), [3, 0]);
        assert_eq!(text.encode("a", AddSpecials::No).unwrap(), [0]);
        let text = load(&[settings(false)]).unwrap();
        assert_eq!(text.encode("a", AddSpecials::Yes).unwrap(), [0]);
    }

    #[test]
    fn ends_of_sequence_come_from_every_file() {
        let text = load(&[
            ("config.json", json!({"eos_token_id": 1})),
            ("generation_config.json", json!({"eos_token_id": [0, 1]})),
            ("special_tokens_map.json", json!({"eos_token": {"content": "<s>"}})),
        ]);
        assert_eq!(text.unwrap().eos(), [0, 1, 3]);
    }

    #[test]
    fn a_broken_file_is_named() {
        let broken = |name: &'static str| load(&[(name, json!("{\"a\": "))]).unwrap_err().to_string();
        assert!(broken("tokenizer.json").starts_with("tokenizer.json: "));
        assert!(broken("generation_config.json").starts_with("generation_config.json: EOF while parsing"));
        assert!(broken("tokenizer_config.json").starts_with("tokenizer_config.json: "));
        let error = load(&[("chat_template.jinja", json!("{% if %}"))]).unwrap_err().to_string();
        assert!(error.starts_with("chat template: "), "{error}");
    }

    #[test]
    fn the_template_file_wins_over_the_settings() {
        let settings = ("tokenizer_config.json", json!({"chat_template": "settings"}));
        let list = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        let shown = |files: &[(&str, Value)]| {
            let text = load(files).unwrap();
            let (none, kwargs) = (Value::Null, serde_json::Map::new());
            text.render(&crate::ChatPrompt {
                messages: &json!([]),
                tools: &none,
                documents: &none,
                kwargs: &kwargs,
                turn: crate::Turn::None,
                unix_ms: 0,
            })
        };
        assert_eq!(shown(std::slice::from_ref(&settings)).unwrap(), "settings");
        assert_eq!(shown(&[settings, ("chat_template.jinja", json!("file"))]).unwrap(), "file");
        assert_eq!(shown(&[("tokenizer_config.json", json!({"chat_template": list}))]).unwrap(), "d");
        assert!(matches!(shown(&[]), Err(TextError::NoTemplate)));
    }

    #[test]
    fn greedy_models_default_to_temperature_zero() {
        let generation = json!({"do_sample": false, "temperature": 0.7, "top_k": 20});
        let want = GenerationDefaults { temperature: Some(0.0), top_k: Some(20), ..Default::default() };
        assert_eq!(defaults(&generation), want);
    }

    #[test]
    fn ends_of_sequence_may_be_one_or_many() {
        assert_eq!(ids(&json!(7)), [7]);
        assert_eq!(ids(&json!([7, 9])), [7, 9]);
        assert!(ids(&Value::Null).is_empty());
    }
}
