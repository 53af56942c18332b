//! A model's text side, loaded once and shared by every request.
//!
//! The `tokenizers` crate loads every tokenizer and decodes; [`Bpe`] encodes where it can, which it decides
//! at load.

use std::convert::Infallible;

use base::TokenId;
use tokenizers::Tokenizer;

use crate::assets::Assets;
use crate::bpe::{Bpe, NotOwn, Piece};
use crate::detokenizer::Specials;
use crate::files::{FilesError, ModelFiles};
#[cfg(feature = "gguf")]
use crate::gguf::parts as gguf_parts;
use crate::hub;
use crate::template::{ChatPrompt, ChatTemplate};
use crate::token_cache::{Standing, TEXT_MIN, TokenCache};
use crate::vocabulary::{Kind, Vocabulary};

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

/// Who turns text into tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// Our own byte pair encoder, checked against the reference at load.
    Own,
    /// The `tokenizers` crate, and why.
    Reference(String),
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
    bpe: Result<Bpe, NotOwn>,
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
            ModelFiles::Gguf(path) => gguf_parts(path)?,
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
        let bpe = own_encoder(&parts.tokenizer);
        parts.eos.sort_unstable();
        parts.eos.dedup();
        Ok(Self {
            tokenizer: parts.tokenizer,
            bpe,
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
        let mut tokens = Vec::with_capacity(text.len() / 4 + 8);
        match &self.bpe {
            Ok(bpe) => self.framed(bpe, specials, &mut tokens, |out| bpe.encode(text, out)),
            Err(_) => self.encode_by_reference(text, specials, &mut tokens)?,
        }
        self.add_begin(specials, &mut tokens);
        Ok(tokens)
    }

    /// As [`Text::encode`], taking from `cache` what it has of this text. A cache serves one `Text` only.
    pub fn encode_cached(
        &self,
        text: &str,
        specials: AddSpecials,
        cache: &TokenCache,
    ) -> Result<Vec<TokenId>, TextError> {
        let mut tokens = Vec::with_capacity(text.len() / 4 + 8);
        match &self.bpe {
            Ok(bpe) => self.framed(bpe, specials, &mut tokens, |out| encode_pieces(bpe, text, cache, out)),
            Err(_) => {
                // What the reference does between control tokens is not ours to know: all or nothing.
                let standing =
                    if specials == AddSpecials::Yes { Standing::First } else { Standing::Anywhere };
                cache.append(text, standing, &mut tokens, |out| {
                    self.encode_by_reference(text, specials, out)
                })?;
            }
        }
        self.add_begin(specials, &mut tokens);
        Ok(tokens)
    }

    /// Who encodes.
    pub fn encoder(&self) -> Encoder {
        match &self.bpe {
            Ok(_) => Encoder::Own,
            Err(why) => Encoder::Reference(why.to_string()),
        }
    }

    /// What `encode` appends, between the tokens that belong around it.
    fn framed(
        &self,
        bpe: &Bpe,
        specials: AddSpecials,
        out: &mut Vec<TokenId>,
        encode: impl FnOnce(&mut Vec<TokenId>),
    ) {
        let framed = specials == AddSpecials::Yes && self.add_bos != Some(false);
        let (before, after) = if framed { bpe.frame() } else { (&[][..], &[][..]) };
        out.extend_from_slice(before);
        encode(out);
        out.extend_from_slice(after);
    }

    fn encode_by_reference(
        &self,
        text: &str,
        specials: AddSpecials,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TextError> {
        let add = specials == AddSpecials::Yes && self.add_bos != Some(false);
        let encoding = self.tokenizer.encode_fast(text, add).map_err(|e| TextError::Encode(e.to_string()))?;
        out.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The begin of sequence that the settings ask for and the tokenizer does not write.
    fn add_begin(&self, specials: AddSpecials, tokens: &mut Vec<TokenId>) {
        let wanted = specials == AddSpecials::Yes && self.add_bos == Some(true);
        if let Some(bos) = self.bos.filter(|bos| wanted && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
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

fn encode_pieces(bpe: &Bpe, text: &str, cache: &TokenCache, out: &mut Vec<TokenId>) {
    bpe.split(text, |piece| match piece {
        Piece::Token(id) => out.push(id),
        Piece::Text(from, to) if to - from < TEXT_MIN => bpe.encode_piece(&text[from..to], from, out),
        Piece::Text(from, to) => {
            let first = from == 0 && bpe.place_matters();
            let standing = if first { Standing::First } else { Standing::Anywhere };
            let Ok(()) = cache.append(&text[from..to], standing, out, |out| {
                bpe.encode_piece(&text[from..to], from, out);
                Ok::<(), Infallible>(())
            });
        }
    });
}

fn own_encoder(tokenizer: &Tokenizer) -> Result<Bpe, NotOwn> {
    let own = Bpe::of(tokenizer);
    match &own {
        Ok(_) => {}
        Err(why @ NotOwn::Shape(_)) => tracing::info!(%why, "tokenizer encodes by the reference"),
        Err(why) => tracing::warn!(%why, "tokenizer encodes by the reference"),
    }
    own
}

#[cfg(not(feature = "gguf"))]
fn gguf_parts(path: &std::path::Path) -> Result<Parts, TextError> {
    Err(TextError::Unsupported { key: "GGUF in this build", value: path.display().to_string() })
}
