//! A tokenizer that needs no files: the 256 bytes, ChatML's marks, and invented words above them.
//!
//! The simulated executor draws from any vocabulary; with this text side the whole server can be run,
//! tested and measured without a model.

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::assets::Told;
use crate::template::{ChatTemplate, SpecialNames};
use crate::text::{GenerationDefaults, Parts, Text, TextError};
use crate::vocabulary::char_of_byte;

/// Ids below are bytes and the three marks.
const WORDS_FROM: u32 = 259;
const MARKS: [(&str, u32); 3] = [("<|endoftext|>", 256), ("<|im_start|>", 257), ("<|im_end|>", 258)];
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
    message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

impl Text {
    /// Ids 0–255 are bytes, 256–258 ChatML's marks (256 and 258 end an answer), the rest up to `vocab`
    /// are words such as ` w300`, which encoding never gives.
    pub fn synthetic(vocab: u32) -> Result<Text, TextError> {
        let names = SpecialNames { eos: Some(MARKS[0].0.into()), ..SpecialNames::default() };
        let fail =
            |e: serde_json::Error| TextError::Parse { file: "synthetic".into(), message: e.to_string() };
        let tokenizer = tokenizer(vocab);
        let eos = vec![MARKS[0].1, MARKS[2].1];
        let told = Told {
            tokenizer: &tokenizer,
            names: &names,
            template: Some(CHATML),
            add_bos: None,
            eos: &eos,
            vocab: Some(vocab),
        };
        Text::check(Parts {
            assets: told.assets(),
            tokenizer: serde_json::from_value::<Tokenizer>(tokenizer).map_err(fail)?,
            template: Some(ChatTemplate::compile(vec![("default".into(), CHATML.into())], names)?),
            defaults: GenerationDefaults::default(),
            eos,
            bos: None,
            add_bos: None,
            vocab: Some(vocab),
        })
    }
}

fn tokenizer(vocab: u32) -> Value {
    let bytes = (0..=255u8).map(|b| (char_of_byte(b).to_string(), json!(b)));
    let marks = MARKS.iter().map(|(name, id)| ((*name).to_owned(), json!(id)));
    let words = (WORDS_FROM..vocab).map(|id| (format!("Ġw{id}"), json!(id)));
    let added: Vec<Value> = MARKS
        .iter()
        .map(|(name, id)| {
            json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": bytes.chain(marks).chain(words).collect::<serde_json::Map<_, _>>(), "merges": []},
    })
}
