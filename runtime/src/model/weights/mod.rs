//! Where tensors come from: safetensors shards, one GGUF file, or a formula.
//!
//! A source is asked for one tensor at a time under its Hugging Face name and answers with bytes in
//! host memory, borrowed from the map where the file's layout is already ours. Checks come first and
//! are complete: a model is never half loaded because its last shard is bad.

mod dummy;
mod gguf;
mod safetensors;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use kernels::{HostTensor, HostType, WeightForm};
use sha2::Sha256;

pub use dummy::Dummy;
pub(crate) use gguf::Gguf;
pub(crate) use safetensors::Shards;

use super::error::ModelError;
use super::memory::MemoryPlan;
use super::names::Expected;

/// Told how far loading has come; decides itself how often to speak.
pub trait Progress {
    fn advance(&mut self, done: u64, total: u64);
    /// What will take memory: on a device before the first weight is read, else once all are.
    fn planned(&mut self, _plan: &MemoryPlan) {}
}

impl<F: FnMut(u64, u64)> Progress for F {
    fn advance(&mut self, done: u64, total: u64) {
        self(done, total);
    }
}

/// What a source says of a tensor without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub shape: Vec<usize>,
    pub bytes: u64,
    pub file: PathBuf,
}

/// A tensor in host memory, as rows.
#[derive(Debug)]
pub struct Tensor<'a> {
    pub kind: HostType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: Cow<'a, [u8]>,
    /// The form that keeps what the file stores.
    pub form: WeightForm,
}

impl Tensor<'_> {
    pub(crate) fn host(&self) -> Result<HostTensor<'_>, ModelError> {
        Ok(HostTensor::new(self.kind, self.rows, self.cols, &self.bytes)?)
    }
}

/// How much of a tensor goes into a digest; see [`sampled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    EveryByte,
    Sample,
}

/// Gives tensors by their Hugging Face names.
pub trait TensorSource {
    /// `None` if there is no such tensor; an error if there is but its type cannot be read.
    fn info(&self, expected: &Expected) -> Result<Option<TensorInfo>, ModelError>;
    fn read(&self, expected: &Expected) -> Result<Tensor<'_>, ModelError>;
    /// Feeds what identifies the tensor's content; see [`sampled`].
    fn digest(&self, expected: &Expected, depth: Depth, hasher: &mut Sha256);
    /// Names of tensors that no `expected` entry asked for, with their file.
    fn unexpected(&self, expected: &[Expected]) -> Option<(PathBuf, String)>;
    /// The file to blame for a missing tensor.
    fn main_file(&self) -> &Path;
}

/// Refuses a checkpoint that does not hold exactly what the config describes.
pub(crate) fn check(source: &dyn TensorSource, expected: &[Expected]) -> Result<u64, ModelError> {
    let mut total = 0;
    for e in expected {
        let Some(info) = source.info(e)? else {
            let file = source.main_file().to_owned();
            return Err(ModelError::TensorMissing { file, tensor: e.name.clone() });
        };
        if info.shape != e.shape {
            return Err(ModelError::TensorShape {
                file: info.file,
                tensor: e.name.clone(),
                found: info.shape,
                expected: e.shape.clone(),
            });
        }
        total += info.bytes;
    }
    match source.unexpected(expected) {
        Some((file, tensor)) => Err(ModelError::TensorUnexpected { file, tensor }),
        None => Ok(total),
    }
}

/// Rows and columns of a shape: a vector is one row.
pub(crate) fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match shape {
        [rows, cols] => (*rows, *cols),
        _ => (1, shape.iter().product()),
    }
}

/// Bytes that stand for `bytes` in a digest: all of them, or the first 4 KiB of every 256 KiB and the
/// last 4 KiB. Fine-tuning moves whole matrices, so a sample tells two checkpoints apart; one that
/// differs from another in a few single weights outside the sample would not be told apart.
pub(crate) fn sampled(bytes: &[u8], depth: Depth) -> impl Iterator<Item = &[u8]> {
    const PIECE: usize = 4 << 10;
    let (stride, piece) = match depth {
        Depth::EveryByte => (bytes.len().max(1), bytes.len()),
        Depth::Sample => (256 << 10, PIECE),
    };
    let tail = &bytes[bytes.len().saturating_sub(PIECE)..];
    bytes.chunks(stride).map(move |c| &c[..c.len().min(piece)]).chain(std::iter::once(tail))
}
