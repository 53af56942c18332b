//! Safetensors: one file, shards named by an index, or bytes inside the binary. Mapped, never copied.
//!
//! The header is parsed and bounds-checked by the `safetensors` crate when a file is opened; tensors
//! are then slices of the map. Shards are opened before anything is loaded, so a missing or truncated
//! one is found at once.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use kernels::HostType;
use kernels::mapped::MappedFile;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::dummy::form_of;
use super::{Depth, Tensor, TensorInfo, TensorSource, rows_cols, sampled};
use crate::files::{FilesError, ModelFiles};
use crate::model::error::ModelError;
use crate::model::names::Expected;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Every safetensors file of a model.
#[derive(Debug)]
pub(crate) struct Shards {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Place>,
    main_file: PathBuf,
}

#[derive(Debug)]
struct Shard {
    file: PathBuf,
    bytes: Bytes,
}

/// File content: mapped, or part of the binary.
#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Embedded(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Embedded(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Place {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the file.
    range: std::ops::Range<usize>,
}

impl Shards {
    pub(crate) fn open(files: &ModelFiles) -> Result<Self, ModelError> {
        let names = match files.read(INDEX)? {
            Some(index) => shard_names(files, &index)?,
            None => vec![SINGLE.to_owned()],
        };
        let main = if names.len() == 1 { names[0].as_str() } else { INDEX };
        let main_file = path_of(files, main);
        let (mut shards, mut tensors) = (Vec::new(), BTreeMap::new());
        for name in &names {
            let shard = Shard { file: path_of(files, name), bytes: open_one(files, name)? };
            places(&shard, shards.len(), &mut tensors)?;
            shards.push(shard);
        }
        Ok(Self { shards, tensors, main_file })
    }

    fn slice(&self, place: &Place) -> &[u8] {
        &self.shards[place.shard].bytes[place.range.clone()]
    }

    fn kind(&self, name: &str, place: &Place) -> Result<HostType, ModelError> {
        match place.dtype {
            Dtype::F32 => Ok(HostType::F32),
            Dtype::F16 => Ok(HostType::F16),
            Dtype::BF16 => Ok(HostType::Bf16),
            other => Err(ModelError::TensorType {
                file: self.shards[place.shard].file.clone(),
                tensor: name.into(),
                found: format!("{other:?}"),
                supported: "F32, F16 and BF16",
            }),
        }
    }
}

fn path_of(files: &ModelFiles, name: &str) -> PathBuf {
    match files {
        ModelFiles::Dir(dir) => dir.join(name),
        ModelFiles::Gguf(path) => path.clone(),
        ModelFiles::Embedded(_) => PathBuf::from(format!("(built in)/{name}")),
        ModelFiles::Fetched(_) => PathBuf::from(format!("(fetched)/{name}")),
    }
}

/// The distinct shards of an index, in name order.
fn shard_names(files: &ModelFiles, index: &[u8]) -> Result<Vec<String>, ModelError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let damaged = |reason: String| ModelError::Damaged { file: path_of(files, INDEX), reason };
    let index: Index = serde_json::from_slice(index).map_err(|e| damaged(e.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    match names.iter().find(|n| Path::new(n).components().count() != 1 || n.starts_with('.')) {
        Some(odd) => Err(damaged(format!("shard name {odd:?} is not a plain file name"))),
        None if names.is_empty() => Err(damaged("the weight map is empty".into())),
        None => Ok(names),
    }
}

fn open_one(files: &ModelFiles, name: &str) -> Result<Bytes, ModelError> {
    let absent = || ModelError::ShardMissing { index: path_of(files, INDEX), shard: name.into() };
    match files {
        ModelFiles::Embedded(list) => match list.iter().find(|(n, _)| *n == name) {
            Some((_, bytes)) => Ok(Bytes::Embedded(bytes)),
            None => Err(absent()),
        },
        _ => {
            let path = path_of(files, name);
            match MappedFile::open(&path) {
                Ok(map) => Ok(Bytes::Mapped(map)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && name != SINGLE => Err(absent()),
                Err(source) => Err(FilesError::Read { path, source }.into()),
            }
        }
    }
}

fn places(shard: &Shard, number: usize, all: &mut BTreeMap<String, Place>) -> Result<(), ModelError> {
    let damaged = |reason: String| ModelError::Damaged { file: shard.file.clone(), reason };
    let parsed = SafeTensors::deserialize(&shard.bytes)
        .map_err(|e| damaged(format!("its safetensors header does not fit the file ({e})")))?;
    let base = shard.bytes.as_ptr() as usize;
    for (name, view) in parsed.iter() {
        let start = view.data().as_ptr() as usize - base;
        let range = start..start + view.data().len();
        let place = Place { shard: number, dtype: view.dtype(), shape: view.shape().to_vec(), range };
        if all.insert(name.to_owned(), place).is_some() {
            return Err(damaged(format!("tensor `{name}` is in two shards")));
        }
    }
    Ok(())
}

impl TensorSource for Shards {
    fn info(&self, e: &Expected) -> Result<Option<TensorInfo>, ModelError> {
        let Some(place) = self.tensors.get(&e.name) else { return Ok(None) };
        self.kind(&e.name, place)?;
        let file = self.shards[place.shard].file.clone();
        Ok(Some(TensorInfo { shape: place.shape.clone(), bytes: place.range.len() as u64, file }))
    }

    fn read(&self, e: &Expected) -> Result<Tensor<'_>, ModelError> {
        let file = || self.main_file.clone();
        let place = (self.tensors.get(&e.name))
            .ok_or_else(|| ModelError::TensorMissing { file: file(), tensor: e.name.clone() })?;
        let kind = self.kind(&e.name, place)?;
        let (rows, cols) = rows_cols(&place.shape);
        Ok(Tensor { kind, rows, cols, bytes: Cow::Borrowed(self.slice(place)), form: form_of(kind) })
    }

    fn digest(&self, e: &Expected, depth: Depth, hasher: &mut Sha256) {
        let Some(place) = self.tensors.get(&e.name) else { return };
        hasher.update(&e.name);
        hasher.update(format!("{:?}{:?}", place.dtype, place.shape));
        sampled(self.slice(place), depth).for_each(|piece| hasher.update(piece));
    }

    /// `inv_freq` buffers are computed here; a head beside tied embeddings is their copy.
    fn unexpected(&self, expected: &[Expected]) -> Option<(PathBuf, String)> {
        let known: HashSet<&str> = expected.iter().map(|e| e.name.as_str()).collect();
        let ignored = |name: &str| name == crate::model::names::HEAD || name.ends_with("inv_freq");
        let (name, place) =
            self.tensors.iter().find(|(name, _)| !known.contains(name.as_str()) && !ignored(name))?;
        Some((self.shards[place.shard].file.clone(), name.clone()))
    }

    fn main_file(&self) -> &Path {
        &self.main_file
    }
}
