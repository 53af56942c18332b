//! Why a model could not be loaded: each error names the file and the field or tensor at fault.

use std::path::PathBuf;

use base::Bytes;
use kernels::KernelError;

use crate::files::FilesError;

/// A refusal while describing or loading a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("{place} is not valid JSON: {reason}")]
    Json { place: String, reason: String },
    #[error("{place} is missing")]
    NoConfig { place: &'static str },
    #[error("{place}: field `{field}` is missing")]
    FieldMissing { place: &'static str, field: String },
    #[error("{place}: field `{field}` must be {expected}, not {found}")]
    FieldType { place: &'static str, field: String, expected: &'static str, found: String },
    #[error("{place}: `{field}` = {value} is not supported: {why}")]
    FieldUnsupported { place: &'static str, field: String, value: String, why: String },
    #[error("architecture {name} is not supported; supported are {supported}")]
    Architecture { name: String, supported: String },
    #[error("cannot read {file}: {reason}")]
    Unreadable { file: PathBuf, reason: String },
    #[error("{file} is damaged: {reason}")]
    Damaged { file: PathBuf, reason: String },
    #[error("{index} names shard {shard}, which is missing")]
    ShardMissing { index: PathBuf, shard: String },
    #[error("{file}: tensor `{tensor}` is missing")]
    TensorMissing { file: PathBuf, tensor: String },
    #[error("{file}: tensor `{tensor}` has shape {found:?}, the config asks for {expected:?}")]
    TensorShape { file: PathBuf, tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{file}: tensor `{tensor}` has type {found}, supported are {supported}")]
    TensorType { file: PathBuf, tensor: String, found: String, supported: &'static str },
    #[error(
        "{file}: tensor `{tensor}` has no place in this architecture; the config and the weights disagree"
    )]
    TensorUnexpected { file: PathBuf, tensor: String },
    #[error("{available} of memory are available, the weights need {needed}")]
    Memory { available: Bytes, needed: Bytes },
    #[error(
        "the GPU has {free} free, {needed} are needed: weights {weights}, KV pages {kv_pages}, buffers {buffers}, \
         reserve {reserve}; --{flag} {advice}"
    )]
    Device {
        free: Bytes,
        needed: Bytes,
        weights: Bytes,
        buffers: Bytes,
        reserve: Bytes,
        kv_pages: Bytes,
        flag: &'static str,
        advice: String,
    },
    #[error("the KV pool holds {pages} pages of {page_bytes}; one step of one sequence needs {needed}")]
    Pool { pages: u64, needed: u64, page_bytes: Bytes },
    #[error("option `{option}` = {value} is out of range: {why}")]
    Option { option: &'static str, value: String, why: String },
    #[error("the executor thread did not start: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl ModelError {
    /// Stable label for logs and tests.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Json { .. } => "json",
            Self::NoConfig { .. } => "no_config",
            Self::FieldMissing { .. } => "field_missing",
            Self::FieldType { .. } => "field_type",
            Self::FieldUnsupported { .. } => "field_unsupported",
            Self::Architecture { .. } => "architecture",
            Self::Unreadable { .. } => "unreadable",
            Self::Damaged { .. } => "damaged",
            Self::ShardMissing { .. } => "shard_missing",
            Self::TensorMissing { .. } => "tensor_missing",
            Self::TensorShape { .. } => "tensor_shape",
            Self::TensorType { .. } => "tensor_type",
            Self::TensorUnexpected { .. } => "tensor_unexpected",
            Self::Memory { .. } => "memory",
            Self::Device { .. } => "device",
            Self::Pool { .. } => "pool",
            Self::Option { .. } => "option",
            Self::Thread(_) => "thread",
            Self::Kernel(_) => "kernel",
        }
    }
}
