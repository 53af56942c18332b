//! The text side of a GGUF file: its metadata rewritten as a `tokenizer.json`, then loaded like one.
//!
//! Two vocabularies are served: `gpt2` (byte-level BPE with merges; the pre-tokenizer named by
//! `tokenizer.ggml.pre`) and `llama` (SentencePiece BPE, whose merges follow from the scores). An
//! unknown pre-tokenizer is refused: guessing one gives a model that half works.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use base::TokenId;
use candle_core::quantized::gguf_file::{Content, Value as Meta};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::assets::Told;
use crate::bpe::{LLAMA3, QWEN2, TEKKEN};
use crate::template::{ChatTemplate, SpecialNames};
use crate::text::{GenerationDefaults, Parts, TextError};

pub(crate) fn parts(path: &Path) -> Result<Parts, TextError> {
    let fail = |message: String| TextError::Parse { file: path.display().to_string(), message };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let content = Content::read(&mut BufReader::new(file)).map_err(|e| fail(e.to_string()))?;
    let rows = content.tensor_infos.get("token_embd.weight").map(|info| info.shape.dims()[0] as u32);
    from_metadata(&content.metadata, rows)
}

fn from_metadata(metadata: &HashMap<String, Meta>, vocab: Option<u32>) -> Result<Parts, TextError> {
    let meta = Metadata(metadata);
    let tokens = meta.strings("tokenizer.ggml.tokens").ok_or(TextError::Missing("tokenizer.ggml.tokens"))?;
    let kinds = meta.ints("tokenizer.ggml.token_type");
    let json = match meta.string("tokenizer.ggml.model").unwrap_or("") {
        "gpt2" => byte_level(&meta, &tokens)?,
        "llama" => sentencepiece(&meta, &tokens)?,
        other => return Err(unsupported("tokenizer.ggml.model", other)),
    };
    let json = with_added(json, &tokens, &kinds);
    let id = |key: &str| meta.int(key).and_then(|id| TokenId::try_from(id).ok());
    let bos = id("tokenizer.ggml.bos_token_id");
    let ends = ["eos", "eot", "eom"].map(|end| id(&format!("tokenizer.ggml.{end}_token_id")));
    let name = |id: Option<TokenId>| id.and_then(|id| tokens.get(id as usize)).map(|t| (*t).to_owned());
    let names = SpecialNames {
        bos: name(bos),
        eos: name(ends[0]),
        unk: name(id("tokenizer.ggml.unknown_token_id")),
        pad: name(id("tokenizer.ggml.padding_token_id")),
    };
    let source = meta.string("tokenizer.chat_template");
    // Without the key, SentencePiece models want one and byte-level models do not.
    let add_bos = meta.bool("tokenizer.ggml.add_bos_token");
    let add_bos = add_bos.or(Some(meta.string("tokenizer.ggml.model") == Some("llama")));
    let eos: Vec<TokenId> = ends.into_iter().flatten().collect();
    let told = Told { tokenizer: &json, names: &names, template: source, add_bos, eos: &eos, vocab };
    let assets = told.assets();
    let template = match source {
        None => None,
        Some(source) => Some(ChatTemplate::compile(vec![("default".into(), source.into())], names)?),
    };
    let tokenizer = serde_json::from_value::<Tokenizer>(json)
        .map_err(|e| TextError::Parse { file: "GGUF tokenizer".into(), message: e.to_string() })?;
    Ok(Parts {
        tokenizer,
        template,
        defaults: GenerationDefaults::default(),
        eos,
        bos,
        add_bos,
        vocab,
        assets,
    })
}

/// Typed look-ups.
struct Metadata<'a>(&'a HashMap<String, Meta>);

impl<'a> Metadata<'a> {
    fn string(&self, key: &str) -> Option<&'a str> {
        self.0.get(key)?.to_string().ok().map(String::as_str)
    }
    fn strings(&self, key: &str) -> Option<Vec<&'a str>> {
        let list = self.0.get(key)?.to_vec().ok()?;
        list.iter().map(|v| v.to_string().ok().map(String::as_str)).collect()
    }
    fn int(&self, key: &str) -> Option<i64> {
        whole(self.0.get(key)?)
    }
    fn ints(&self, key: &str) -> Vec<i64> {
        let list = self.0.get(key).and_then(|v| v.to_vec().ok());
        list.map(|l| l.iter().filter_map(whole).collect()).unwrap_or_default()
    }
    fn floats(&self, key: &str) -> Vec<f32> {
        let list = self.0.get(key).and_then(|v| v.to_vec().ok());
        list.map(|l| l.iter().filter_map(|v| v.to_f32().ok()).collect()).unwrap_or_default()
    }
    fn bool(&self, key: &str) -> Option<bool> {
        self.0.get(key)?.to_bool().ok()
    }
}

fn whole(value: &Meta) -> Option<i64> {
    match value {
        Meta::U8(v) => Some(i64::from(*v)),
        Meta::I8(v) => Some(i64::from(*v)),
        Meta::U16(v) => Some(i64::from(*v)),
        Meta::I16(v) => Some(i64::from(*v)),
        Meta::U32(v) => Some(i64::from(*v)),
        Meta::I32(v) => Some(i64::from(*v)),
        Meta::U64(v) => i64::try_from(*v).ok(),
        Meta::I64(v) => Some(*v),
        _ => None,
    }
}

fn unsupported(key: &'static str, value: &str) -> TextError {
    TextError::Unsupported { key, value: value.to_owned() }
}

fn byte_level(meta: &Metadata<'_>, tokens: &[&str]) -> Result<Value, TextError> {
    let merges = meta.strings("tokenizer.ggml.merges").ok_or(TextError::Missing("tokenizer.ggml.merges"))?;
    let pairs: Vec<_> = merges.iter().filter_map(|m| m.split_once(' ')).collect();
    let pre = meta.string("tokenizer.ggml.pre").unwrap_or("default");
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split = |regex: &str| {
        let split =
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let digits = json!({"type": "Digits", "individual_digits": true});
    let pre_tokenizer = match pre {
        "default" | "gpt-2" | "gpt2" | "jina-es" | "phi-2" => bytes(true),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "smaug-bpe" | "dbrx" => split(LLAMA3),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => split(QWEN2),
        "tekken" => split(TEKKEN),
        "smollm" | "refact" | "starcoder" | "command-r" | "codeshell" | "exaone" => {
            json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})
        }
        other => return Err(unsupported("tokenizer.ggml.pre", other)),
    };
    let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null };
    let whole_words = matches!(pre, "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "tekken");
    Ok(json!({
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": bytes(true),
        "model": bpe(tokens, &pairs, Fallback { ignore_merges: whole_words, ..Fallback::default() }),
    }))
}

fn sentencepiece(meta: &Metadata<'_>, tokens: &[&str]) -> Result<Value, TextError> {
    let scores = meta.floats("tokenizer.ggml.scores");
    if scores.len() != tokens.len() {
        return Err(TextError::Missing("tokenizer.ggml.scores (one per token)"));
    }
    let pairs = merges_of_scores(tokens, &scores);
    let unknown = meta.int("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    let unknown = tokens.get(unknown as usize).copied().filter(|_| unknown >= 0);
    let prefix = meta.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut normalizers = vec![space];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": bpe(tokens, &pairs, Fallback { unknown, bytes: true, ignore_merges: false }),
    }))
}

/// SentencePiece merges the pair whose result scores best; the same order as a list of merges.
fn merges_of_scores<'a>(tokens: &[&'a str], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id], l, r, (left, right)));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    merges.into_iter().map(|merge| merge.3).collect()
}

#[derive(Default)]
struct Fallback<'a> {
    unknown: Option<&'a str>,
    bytes: bool,
    ignore_merges: bool,
}

fn bpe(tokens: &[&str], merges: &[(&str, &str)], fallback: Fallback<'_>) -> Value {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    json!({
        "type": "BPE", "dropout": null, "unk_token": fallback.unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": fallback.bytes, "byte_fallback": fallback.bytes,
        "ignore_merges": fallback.ignore_merges, "vocab": vocab, "merges": merges,
    })
}

/// Adds control (3) and user-defined (4) tokens.
fn with_added(mut tokenizer: Value, tokens: &[&str], kinds: &[i64]) -> Value {
    let kinded = tokens.iter().zip(kinds).enumerate();
    let added: Vec<Value> = kinded
        .filter(|(_, (_, kind))| matches!(kind, 3 | 4))
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == 3})
        })
        .collect();
    tokenizer["version"] = json!("1.0");
    tokenizer["truncation"] = Value::Null;
    tokenizer["padding"] = Value::Null;
    tokenizer["post_processor"] = Value::Null;
    tokenizer["added_tokens"] = Value::Array(added);
    tokenizer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::char_of_byte;
    use crate::{AddSpecials, Detokenizer, Specials, Text};

    fn strings(list: &[String]) -> Meta {
        Meta::Array(list.iter().cloned().map(Meta::String).collect())
    }

    fn load(pairs: Vec<(&str, Meta)>) -> Result<Text, TextError> {
        let metadata = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Text::check(from_metadata(&metadata, None)?)
    }

    fn shown(text: &std::sync::Arc<Text>, tokens: &[TokenId]) -> String {
        let mut out = String::new();
        let mut detokenizer = Detokenizer::new(std::sync::Arc::clone(text), Specials::Skip);
        tokens.iter().for_each(|token| detokenizer.push(*token, &mut out));
        detokenizer.finish(&mut out);
        out
    }

    #[test]
    fn byte_level_metadata_becomes_a_tokenizer() {
        let mut tokens: Vec<String> = (0..=255).map(|b| char_of_byte(b).to_string()).collect();
        tokens.extend(["Ġh".into(), "Ġhi".into(), "<|end|>".into()]);
        let mut kinds = vec![Meta::I32(1); tokens.len()];
        kinds[258] = Meta::I32(3);
        let text = load(vec![
            ("tokenizer.ggml.model", Meta::String("gpt2".into())),
            ("tokenizer.ggml.pre", Meta::String("qwen2".into())),
            ("tokenizer.ggml.tokens", strings(&tokens)),
            ("tokenizer.ggml.token_type", Meta::Array(kinds)),
            ("tokenizer.ggml.merges", strings(&["Ġ h".into(), "Ġh i".into()])),
            ("tokenizer.ggml.eos_token_id", Meta::U32(258)),
        ]);
        let text = std::sync::Arc::new(text.unwrap());
        let ids = text.encode("oh hi é<|end|>", AddSpecials::Yes).unwrap();
        assert_eq!(ids, [111, 104, 257, 32, 0xC3, 0xA9, 258]);
        assert_eq!(text.eos(), [258]);
        assert_eq!(shown(&text, &ids), "oh hi é");
    }

    #[test]
    fn sentencepiece_scores_become_merges() {
        let mut tokens: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
        tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
        let bytes = tokens.len();
        tokens.extend(["\u{2581}", "h", "i", "hi", "\u{2581}h", "\u{2581}hi"].map(String::from));
        let mut scores = vec![Meta::F32(0.0); bytes + 3];
        scores.extend([-1.0, -3.0, -2.0].map(Meta::F32));
        let mut kinds = vec![Meta::I32(6); bytes];
        kinds[..3].clone_from_slice(&[Meta::I32(2), Meta::I32(3), Meta::I32(3)]);
        kinds.extend(vec![Meta::I32(1); 6]);
        let text = load(vec![
            ("tokenizer.ggml.model", Meta::String("llama".into())),
            ("tokenizer.ggml.tokens", strings(&tokens)),
            ("tokenizer.ggml.scores", Meta::Array(scores)),
            ("tokenizer.ggml.token_type", Meta::Array(kinds)),
            ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
            ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ]);
        let text = std::sync::Arc::new(text.unwrap());
        let ids = text.encode("hi 世", AddSpecials::Yes).unwrap();
        let byte = |b: u32| b + 3;
        assert_eq!(ids, [1, 264, 259, byte(0xE4), byte(0xB8), byte(0x96)]);
        assert_eq!(shown(&text, &ids), "hi 世");
    }

    #[test]
    fn an_unknown_pre_tokenizer_is_refused_by_name() {
        let result = load(vec![
            ("tokenizer.ggml.model", Meta::String("gpt2".into())),
            ("tokenizer.ggml.pre", Meta::String("novel".into())),
            ("tokenizer.ggml.tokens", strings(&["a".into()])),
            ("tokenizer.ggml.merges", strings(&[])),
        ]);
        let message = result.unwrap_err().to_string();
        assert_eq!(message, "tokenizer.ggml.pre = \"novel\" is not supported");
    }
}
