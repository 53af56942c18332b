//! A model's text side, loaded once and shared by every request.

use base::TokenId;
use tokenizers::Tokenizer;

use crate::files::{FilesError, ModelFiles};
use crate::text::assets::Assets;
use crate::text::detokenizer::Specials;
use crate::text::template::{ChatPrompt, ChatTemplate};
use crate::text::vocabulary::{Kind, Vocabulary};
use crate::text::{gguf, hub};

/// What can go wrong between a model's files and its text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("the model has no {0}")]
    Missing(&'static str),
    #[error("{file}: {message}")]
    Parse { file: String, message: String },
    #[error(
        "the tokenizer does not fit the model: it knows token {token}, the model's vocab_size is {vocab}"
    )]
    Mismatch { token: TokenId, vocab: u32 },
    #[error("{key} = {value:?} is not supported")]
    Unsupported { key: &'static str, value: String },
    #[error("the chat template failed: {0}")]
    Template(String),
    #[error("the model has no chat template; use /v1/completions, or a model with one")]
    NoTemplate,
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

/// What the model's authors recommend where a request says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct GenerationDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub max_tokens: Option<u32>,
}

/// Whether a prompt gets the tokens that the model expects around a text (begin of sequence).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecials {
    Yes,
    No,
}

/// What a model's files say, before it is checked.
pub(crate) struct Parts {
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    pub defaults: GenerationDefaults,
    pub eos: Vec<TokenId>,
    pub bos: Option<TokenId>,
    pub add_bos: Option<bool>,
    /// Rows of the embedding, if the files tell.
    pub vocab: Option<u32>,
    pub assets: Assets,
}

/// Tokenizer, chat template and generation defaults of one model.
#[derive(Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    template: Option<ChatTemplate>,
    defaults: GenerationDefaults,
    eos: Vec<TokenId>,
    bos: Option<TokenId>,
    add_bos: Option<bool>,
    assets: Assets,
}

impl Text {
    pub fn load(files: &ModelFiles) -> Result<Self, TextError> {
        Self::check(match files {
            ModelFiles::Gguf(path) => gguf::parts(path)?,
            files => hub::parts(files)?,
        })
    }

    pub(crate) fn check(mut parts: Parts) -> Result<Self, TextError> {
        // A tokenizer that cuts or pads would change prompts behind the client's back.
        let reset = parts.tokenizer.with_truncation(None);
        reset.map_err(|e| TextError::Encode(e.to_string()))?.with_padding(None);
        let vocabulary = Vocabulary::of(&parts.tokenizer);
        if let Some(vocab) = parts.vocab
            && vocabulary.len() > vocab as usize
        {
            return Err(TextError::Mismatch { token: vocabulary.len() as u32 - 1, vocab });
        }
        parts.eos.sort_unstable();
        parts.eos.dedup();
        Ok(Self {
            tokenizer: parts.tokenizer,
            vocabulary,
            template: parts.template,
            defaults: parts.defaults,
            eos: parts.eos,
            bos: parts.bos,
            add_bos: parts.add_bos,
            assets: parts.assets,
        })
    }

    /// Tokens of `text`.
    pub fn encode(&self, text: &str, specials: AddSpecials) -> Result<Vec<TokenId>, TextError> {
        let add = specials == AddSpecials::Yes;
        let encoding = self
            .tokenizer
            .encode_fast(text, add && self.add_bos != Some(false))
            .map_err(|e| TextError::Encode(e.to_string()))?;
        let ids = encoding.get_ids();
        match self.bos {
            Some(bos) if add && self.add_bos == Some(true) && ids.first() != Some(&bos) => {
                Ok(std::iter::once(bos).chain(ids.iter().copied()).collect())
            }
            _ => Ok(ids.to_vec()),
        }
    }

    /// The whole text of `tokens`, as the tokenizer's own decoder gives it.
    pub fn decode(&self, tokens: &[TokenId], specials: Specials) -> String {
        self.decode_raw(tokens, specials)
    }

    pub(crate) fn decode_raw(&self, tokens: &[TokenId], specials: Specials) -> String {
        // Decoders only fail on their own configuration; an empty text then says as much as can be said.
        self.tokenizer.decode(tokens, specials == Specials::Skip).unwrap_or_default()
    }

    /// The prompt of a conversation, as text.
    pub fn render(&self, prompt: &ChatPrompt<'_>) -> Result<String, TextError> {
        self.template.as_ref().ok_or(TextError::NoTemplate)?.render(prompt)
    }

    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Whether the chat template tells the `developer` role from `system`.
    pub fn knows_developer_role(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::knows_developer_role)
    }

    /// The token's own bytes, for logprobs; control tokens show.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.vocabulary.bytes(token)
    }

    pub fn is_special(&self, token: TokenId) -> bool {
        self.vocabulary.kind(token) == Kind::Special
    }

    /// Tokens that end an answer unless the request says `ignore_eos`.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }

    pub fn defaults(&self) -> &GenerationDefaults {
        &self.defaults
    }

    /// One more than the largest token id that the tokenizer knows.
    pub fn vocab(&self) -> usize {
        self.vocabulary.len()
    }

    /// The files that this was made of.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}
