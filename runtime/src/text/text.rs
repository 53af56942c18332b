//! A model's text side, loaded once and shared by every request.

use crate::files::{FilesError, ModelFiles};

/// What can go wrong between a model's files and its text.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("the model has no {0}")]
    Missing(&'static str),
}

/// Tokenizer, chat template and generation defaults of one model.
#[derive(Debug)]
pub struct Text {}

impl Text {
    pub fn load(files: &ModelFiles) -> Result<Self, TextError> {
        files.read("tokenizer.json")?.ok_or(TextError::Missing("tokenizer.json"))?;
        Ok(Self {})
    }
}
