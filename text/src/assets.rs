//! The files that a model's text side was made of, for whoever must tokenize as this replica does.
//!
//! Bytes as they were read and not paths: a folder may change under a running server, and what is handed out must be
//! what is served. Sources that have no such files (GGUF, the synthetic tokenizer) write ones that say the same, so
//! that there is one form to read.
//!
//! Limits: they stay in memory, some ten megabytes for the largest vocabularies.

use base::TokenId;
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::files::ModelFiles;
use crate::template::SpecialNames;
use crate::text::TextError;

/// Every file that decides how text becomes tokens, and no other.
const NAMES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
];

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    pub name: &'static str,
    pub content: Bytes,
    pub sha256: [u8; 32],
}

/// All of a model's, and one digest of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assets {
    files: Vec<Asset>,
    digest: [u8; 32],
}

impl Assets {
    fn new(files: Vec<(&'static str, Bytes)>) -> Self {
        let files: Vec<Asset> = files
            .into_iter()
            .map(|(name, content)| Asset { name, sha256: Sha256::digest(&content).into(), content })
            .collect();
        let mut all = Sha256::new();
        for file in &files {
            all.update((file.name.len() as u32).to_le_bytes());
            all.update(file.name);
            all.update(file.sha256);
        }
        Self { digest: all.finalize().into(), files }
    }

    /// Those that are there of a folder.
    pub(crate) fn read(files: &ModelFiles) -> Result<Self, TextError> {
        let mut found = Vec::new();
        for name in NAMES {
            if let Some(content) = files.read(name)? {
                found.push((name, Bytes::from(content.into_owned())));
            }
        }
        Ok(Self::new(found))
    }

    pub fn files(&self) -> &[Asset] {
        &self.files
    }

    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// What a source without a folder knows.
pub(crate) struct Told<'a> {
    pub tokenizer: &'a Value,
    pub names: &'a SpecialNames,
    pub template: Option<&'a str>,
    pub add_bos: Option<bool>,
    pub eos: &'a [TokenId],
    pub vocab: Option<u32>,
}

impl Told<'_> {
    pub fn assets(&self) -> Assets {
        let settings = json!({
            "bos_token": self.names.bos, "eos_token": self.names.eos,
            "unk_token": self.names.unk, "pad_token": self.names.pad,
            "add_bos_token": self.add_bos, "chat_template": self.template,
        });
        let bytes = |value: &Value| Bytes::from(value.to_string());
        Assets::new(vec![
            (NAMES[0], bytes(self.tokenizer)),
            (NAMES[1], bytes(&settings)),
            (NAMES[5], bytes(&json!({"eos_token_id": self.eos}))),
            (NAMES[6], bytes(&json!({"vocab_size": self.vocab}))),
        ])
    }
}

#[cfg(test)]
mod tests {
    use crate::files::ModelFiles;
    use crate::template::{ChatPrompt, Turn};
    use crate::text::{AddSpecials, Text};

    /// Who was handed the files tokenizes as who served them.
    #[test]
    fn a_text_made_of_its_assets_is_the_same_text() {
        let served = Text::synthetic(300).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for file in served.assets().files() {
            std::fs::write(dir.path().join(file.name), &file.content).unwrap();
        }
        let made = Text::load(&ModelFiles::open(dir.path()).unwrap()).unwrap();
        let messages = serde_json::json!([{"role": "user", "content": "hé <|im_end|>"}]);
        let (null, kwargs) = (serde_json::Value::Null, serde_json::Map::new());
        let prompt = ChatPrompt {
            messages: &messages,
            tools: &null,
            documents: &null,
            kwargs: &kwargs,
            turn: Turn::Answer,
            unix_ms: 0,
        };
        let text = served.render(&prompt).unwrap();
        assert_eq!(made.render(&prompt).unwrap(), text);
        assert_eq!(
            made.encode(&text, AddSpecials::Yes).unwrap(),
            served.encode(&text, AddSpecials::Yes).unwrap()
        );
        assert_eq!((made.eos(), made.vocab()), (served.eos(), served.vocab()));
        assert_eq!(made.assets(), served.assets(), "handed on, they are the same files");
    }
}
