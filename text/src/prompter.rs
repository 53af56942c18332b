//! What a router needs of a model: a request's prompt as text, and its tokens, each made once.
//!
//! A [`Text`] with a [`TokenCache`] of its own, so that tokens of one model can never be found by another.
//! Rendering and tokenizing are two steps, since who only wants to know how long a prompt is can stop after
//! the first. Shared by reference: both steps take `&self`.

use std::path::Path;
use std::sync::Arc;

use base::{Bytes, TokenId};

use crate::files::ModelFiles;
use crate::template::ChatPrompt;
use crate::text::{AddSpecials, Text, TextError};
use crate::token_cache::{TokenCache, TokenCacheStats};

/// A prompt as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Chat templates write the begin of sequence themselves; plain prompts get it from the tokenizer.
    pub specials: AddSpecials,
}

impl Rendered {
    /// The prompt of `/v1/completions`.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), specials: AddSpecials::Yes }
    }
}

/// One model's templates and tokens.
#[derive(Debug)]
pub struct Prompter {
    text: Arc<Text>,
    cache: TokenCache,
}

impl Prompter {
    /// Reads a model directory (or GGUF file, in a build with the `gguf` feature); weights are not touched.
    pub fn from_model_dir(path: &Path, cache_bytes_max: Bytes) -> Result<Self, TextError> {
        let text = Text::load(&ModelFiles::open(path)?)?;
        Ok(Self::from_text(Arc::new(text), cache_bytes_max))
    }

    /// Over a text side that is loaded already.
    pub fn from_text(text: Arc<Text>, cache_bytes_max: Bytes) -> Self {
        Self { text, cache: TokenCache::new(cache_bytes_max) }
    }

    /// The prompt of a conversation.
    pub fn prompt_of(&self, prompt: &ChatPrompt<'_>) -> Result<Rendered, TextError> {
        Ok(Rendered { text: self.text.render(prompt)?, specials: AddSpecials::No })
    }

    /// The prompt's tokens: those that the replica would make of the same request.
    pub fn tokens(&self, rendered: &Rendered) -> Result<Vec<TokenId>, TextError> {
        self.text.encode_cached(&rendered.text, rendered.specials, &self.cache)
    }

    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    pub fn cache_stats(&self) -> TokenCacheStats {
        self.cache.stats()
    }
}
