//! Where a model's files come from: a Hugging Face style directory, one GGUF file, or the binary
//! itself (the demo model).
//!
//! Text and weights read through this, so that neither knows which of the three it is.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// A place that holds a model.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// `config.json`, `tokenizer.json`, `*.safetensors`, …
    Dir(PathBuf),
    /// A single `.gguf` with everything inside.
    Gguf(PathBuf),
    /// Name and content; the demo model.
    Embedded(&'static [(&'static str, &'static [u8])]),
    /// Name and content; what a replica handed out.
    Fetched(Vec<(String, Vec<u8>)>),
}

/// The place does not exist or is not a model.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("no model at {0}: no such file or directory")]
    Missing(PathBuf),
    #[error("{0} is neither a model directory (with config.json) nor a .gguf file")]
    NotAModel(PathBuf),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
}

impl ModelFiles {
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        if path.is_dir() && path.join("config.json").is_file() {
            return Ok(Self::Dir(path.to_owned()));
        }
        if path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::Gguf(path.to_owned()));
        }
        Err(if path.exists() {
            FilesError::NotAModel(path.to_owned())
        } else {
            FilesError::Missing(path.to_owned())
        })
    }

    /// The content of a side file such as `config.json`; `None` if there is none (always for GGUF).
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, FilesError> {
        match self {
            Self::Embedded(files) => {
                Ok(files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Self::Fetched(files) => {
                Ok(files.iter().find(|(n, _)| n == name).map(|(_, bytes)| Cow::Owned(bytes.clone())))
            }
            Self::Gguf(_) => Ok(None),
            Self::Dir(dir) => {
                let path = dir.join(name);
                match std::fs::read(&path) {
                    Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(FilesError::Read { path, source }),
                }
            }
        }
    }
}
