//! Tokenizers of every shape in use, trained on the documentation while a test or a bench runs.
//!
//! Real vocabularies cannot lie in the repository; a trained one has the same structure, and the shapes are
//! written out here as the models' files have them, so a slip in the crate's own list shows.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{PreTokenizerWrapper, Tokenizer};

/// `(name, regular expression)` of the byte-level families.
pub const SPLITS: [(&str, &str); 6] = [
    ("gpt2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    (
        "llama3",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "marked",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "tekken",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "o200k",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// Control tokens of the trained tokenizers.
pub const CONTROLS: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<|im", "</s>"];

/// The documentation.
pub static CORPUS: LazyLock<String> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files: Vec<PathBuf> = vec![root.join("README.md"), root.join("ARCHITECTURE.md")];
    for folder in ["docs", "docs/reference"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(entries.filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
});

/// Text that is not in the documentation: other scripts, code, and whitespace.
const OTHER: &str = "Größe naïve café résumé déjà vu Ångström 你好世界 我们 日本語 テキスト こんにちは 한국어 \
    привет мир как дела العربية मानक हिन्दी ไทย 😀😀👍🏽👨‍👩‍👧 fn main() { let x = vec![1, 2, 3]; }\n\
    \tfor (int i = 0; i < n; ++i) {\n\t\tsum += a[i];\n\t}\n    return self.value  # comment\n";

fn trained(pre: PreTokenizerWrapper, trainer: BpeTrainer) -> Value {
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(pre));
    let lines = CORPUS.lines().chain(std::iter::repeat_n(OTHER, 30));
    tokenizer.train(&mut TrainerWrapper::from(trainer), lines).unwrap();
    serde_json::to_value(&tokenizer).unwrap()["model"].take()
}

static BYTE_LEVEL: LazyLock<Value> = LazyLock::new(|| {
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(4000)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect());
    trained(ByteLevel::new(false, true, true).into(), trainer.build())
});

static MARKED: LazyLock<Value> = LazyLock::new(|| {
    let trainer = BpeTrainer::builder().show_progress(false).vocab_size(3000);
    let mut model = trained(Metaspace::new('\u{2581}', PrependScheme::Always, true).into(), trainer.build());
    let vocab = model["vocab"].as_object_mut().unwrap();
    for byte in 0..=255u8 {
        let id = vocab.len();
        vocab.insert(format!("<0x{byte:02X}>"), json!(id));
    }
    // Runs of spaces, as in the vocabularies of code models.
    for (left, right) in [("\u{2581}", "\u{2581}"), ("\u{2581}\u{2581}", "\u{2581}\u{2581}")] {
        let id = vocab.len();
        vocab.insert(format!("{left}{right}"), json!(id));
    }
    let merges = model["merges"].as_array_mut().unwrap();
    merges.push(json!(["\u{2581}", "\u{2581}"]));
    merges.push(json!(["\u{2581}\u{2581}", "\u{2581}\u{2581}"]));
    model["byte_fallback"] = json!(true);
    model["fuse_unk"] = json!(true);
    model
});

fn whole(mut model: Value, parts: Value) -> Value {
    let first = model["vocab"].as_object().unwrap().len();
    let added: Vec<Value> =
        CONTROLS.iter().enumerate().map(|(at, content)| added(first + at, content)).collect();
    let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model.take()});
    for (key, value) in parts.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

/// A control token that is matched before normalization.
pub fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

fn bytes(regex: bool, space: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex})
}

/// A byte-level `tokenizer.json` that splits at `regex`.
pub fn byte_level(regex: &str) -> Value {
    let split =
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let steps = json!({"type": "Sequence", "pretokenizers": [split, bytes(false, false)]});
    whole(BYTE_LEVEL.clone(), json!({"pre_tokenizer": steps, "decoder": bytes(true, true)}))
}

/// Every shape that is read, by name.
pub fn shapes() -> Vec<(String, Value)> {
    let mut shapes: Vec<(String, Value)> =
        SPLITS.iter().map(|(name, regex)| ((*name).to_owned(), byte_level(regex))).collect();
    shapes.extend(byte_level_variants());
    shapes.extend(marked_variants());
    shapes
}

fn byte_level_variants() -> Vec<(String, Value)> {
    let of = |parts: Value| whole(BYTE_LEVEL.clone(), parts);
    let digits = json!({"type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true, false)]});
    let mut composed = byte_level(SPLITS[2].1);
    composed["normalizer"] = json!({"type": "NFC"});
    let mut ignoring = byte_level(SPLITS[1].1);
    ignoring["model"]["ignore_merges"] = json!(true);
    ignoring["post_processor"] = begin_of_sequence(&ignoring, CONTROLS[3]);
    let mut stripping = byte_level(SPLITS[1].1);
    stripping["added_tokens"][0]["lstrip"] = json!(true);
    stripping["added_tokens"][1]["rstrip"] = json!(true);
    stripping["added_tokens"][3]["normalized"] = json!(true);
    vec![
        ("built-in".into(), of(json!({"pre_tokenizer": bytes(true, false)}))),
        ("space before".into(), of(json!({"pre_tokenizer": bytes(true, true)}))),
        ("uncut".into(), of(json!({"pre_tokenizer": bytes(false, false)}))),
        ("digits".into(), of(json!({"pre_tokenizer": digits}))),
        ("composed".into(), composed),
        ("whole words".into(), ignoring),
        ("stripping".into(), stripping),
    ]
}

fn marked_variants() -> Vec<(String, Value)> {
    let of = |parts: Value| whole(MARKED.clone(), parts);
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split});
    let mut prefixed = of(json!({"normalizer": both}));
    prefixed["post_processor"] = begin_of_sequence(&prefixed, CONTROLS[3]);
    prefixed["added_tokens"][3]["normalized"] = json!(true);
    let mut reaching = of(json!({"normalizer": both}));
    let id = reaching["model"]["vocab"].as_object().unwrap().len() + 10;
    reaching["model"]["vocab"]["e\u{2581}"] = json!(id);
    reaching["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["e", "\u{2581}"]));
    vec![
        ("llama2".into(), prefixed),
        ("merges over spaces".into(), reaching),
        ("gemma".into(), of(json!({"normalizer": replace, "pre_tokenizer": split}))),
        ("metaspace first".into(), of(json!({"pre_tokenizer": metaspace("first", false)}))),
        ("metaspace always".into(), of(json!({"pre_tokenizer": metaspace("always", true)}))),
        ("metaspace never".into(), of(json!({"pre_tokenizer": metaspace("never", true)}))),
    ]
}

fn begin_of_sequence(json: &Value, content: &str) -> Value {
    let token = json["added_tokens"].as_array().unwrap().iter().find(|token| token["content"] == content);
    let id = &token.unwrap()["id"];
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": content, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {content: {"id": content, "ids": [id], "tokens": [content]}}})
}

/// The nearest place at or before `at` where a character begins.
pub fn floor_char(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}
