//! Namespaces and their keys on disk, wrapped under the node key: what a warm restart needs.
//!
//! A small JSON file that is replaced whole: it changes when a namespace is made or purged, and a
//! person should be able to see what is in it. A replaced file is overwritten before it is let go, and
//! a destroyed key is out of the file, and the directory entry synced, before the call returns.
//!
//! Limits: an SSD may keep the old blocks until it needs them; what lies there is wrapped.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base::{Generation, NamespaceId, NamespaceKey};
use serde::{Deserialize, Serialize};

use crate::nodekey::{KeyWrap, WrapError, hex, unhex};
use crate::nvme::lock;
use crate::seal::DataKey;

const VERSION: u32 = 1;
/// Namespaces in one store.
const NAMESPACES_MAX: usize = 1 << 16;

/// Why the store could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("{path} is not a key store: {reason}")]
    Form { path: String, reason: String },
    #[error("the keys of namespace {name:?} do not open: {source}")]
    Wrapped { name: String, source: WrapError },
    #[error("a key store holds {most} namespaces at most")]
    Full { most: usize },
}

impl KeyStoreError {
    pub fn kind(&self) -> &'static str {
        match self {
            KeyStoreError::Io { .. } => "io",
            KeyStoreError::Form { .. } => "form",
            KeyStoreError::Wrapped { .. } => "wrapped",
            KeyStoreError::Full { .. } => "full",
        }
    }
}

/// A namespace as the store knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredNamespace {
    pub name: String,
    pub id: NamespaceId,
    pub generation: Generation,
}

/// What opens a namespace's pages.
#[derive(Debug)]
pub struct NamespaceSecrets {
    pub generation: Generation,
    pub chain: NamespaceKey,
    /// None after its generation was destroyed and before the next was put.
    pub data: Option<DataKey>,
}

/// The file of namespaces and their wrapped keys.
pub struct KeyStore {
    path: PathBuf,
    wrap: Arc<dyn KeyWrap>,
    file: Mutex<Stored>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    version: u32,
    namespaces: Vec<StoredKeys>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKeys {
    name: String,
    id: u64,
    generation: u64,
    /// Wrapped, hex.
    chain_key: String,
    data_key: Option<String>,
}

impl KeyStore {
    /// Reads the file, or starts an empty store if there is none. Fails if the keys in it are not
    /// wrapped under this node key.
    pub fn open(path: &Path, wrap: Arc<dyn KeyWrap>) -> Result<Self, KeyStoreError> {
        let stored = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Stored { version: VERSION, namespaces: Vec::new() }
            }
            Err(error) => return Err(failed(path, error)),
            Ok(bytes) => parse(path, &bytes)?,
        };
        let store = Self { path: path.to_owned(), wrap, file: Mutex::new(stored) };
        for namespace in store.namespaces() {
            store.secrets(namespace.id)?;
        }
        Ok(store)
    }

    pub fn namespaces(&self) -> Vec<StoredNamespace> {
        let stored = lock(&self.file);
        let known = stored.namespaces.iter().map(|keys| StoredNamespace {
            name: keys.name.clone(),
            id: NamespaceId(keys.id),
            generation: Generation(keys.generation),
        });
        known.collect()
    }

    /// The keys of a namespace; none if the store does not know it.
    pub fn secrets(&self, id: NamespaceId) -> Result<Option<NamespaceSecrets>, KeyStoreError> {
        let keys = lock(&self.file).namespaces.iter().find(|keys| keys.id == id.0).cloned();
        let Some(keys) = keys else { return Ok(None) };
        let chain = self.unwrap(&keys, "chain", &keys.chain_key)?;
        let data = keys.data_key.as_ref().map(|wrapped| self.unwrap(&keys, "data", wrapped));
        let data = data.transpose()?.map(|mut key| DataKey::new(&mut key));
        let generation = Generation(keys.generation);
        Ok(Some(NamespaceSecrets { generation, chain: NamespaceKey(*chain), data }))
    }

    /// Adds a namespace, or replaces its keys by those of another generation.
    pub fn put(
        &self,
        namespace: &StoredNamespace,
        chain: &NamespaceKey,
        data: &DataKey,
    ) -> Result<(), KeyStoreError> {
        let mut keys = StoredKeys {
            name: namespace.name.clone(),
            id: namespace.id.0,
            generation: namespace.generation.0,
            chain_key: String::new(),
            data_key: None,
        };
        keys.chain_key = self.wrapped(&keys, "chain", &chain.0)?;
        keys.data_key = Some(self.wrapped(&keys, "data", data.expose())?);
        self.change(|stored| {
            stored.namespaces.retain(|old| old.id != keys.id);
            if stored.namespaces.len() >= NAMESPACES_MAX {
                return Err(KeyStoreError::Full { most: NAMESPACES_MAX });
            }
            stored.namespaces.push(keys);
            Ok(true)
        })?;
        Ok(())
    }

    /// Takes the data key of a generation up to `up_to` out of the file; whether there was one.
    pub fn destroy(&self, id: NamespaceId, up_to: Generation) -> Result<bool, KeyStoreError> {
        self.change(|stored| {
            let dies = |keys: &&mut StoredKeys| keys.id == id.0 && keys.generation <= up_to.0;
            let found = stored.namespaces.iter_mut().find(dies);
            Ok(found.and_then(|keys| keys.data_key.take()).is_some())
        })
    }

    /// Forgets a namespace with all its keys; whether it was known.
    pub fn remove(&self, id: NamespaceId) -> Result<bool, KeyStoreError> {
        self.change(|stored| {
            let before = stored.namespaces.len();
            stored.namespaces.retain(|keys| keys.id != id.0);
            Ok(stored.namespaces.len() < before)
        })
    }

    /// Makes a change last before anybody sees it.
    fn change(
        &self,
        work: impl FnOnce(&mut Stored) -> Result<bool, KeyStoreError>,
    ) -> Result<bool, KeyStoreError> {
        let mut stored = lock(&self.file);
        let mut next = stored.clone();
        let changed = work(&mut next)?;
        if changed {
            let written = replace(&self.path, &next);
            // Once renamed, the file is the new one whatever failed after it.
            if !matches!(written, Err(Replace::Before(_))) {
                *stored = next;
            }
            written.map_err(|error| failed(&self.path, error.source()))?;
        }
        Ok(changed)
    }

    fn wrapped(&self, keys: &StoredKeys, kind: &str, key: &[u8; 32]) -> Result<String, KeyStoreError> {
        let wrapped = self.wrap.wrap(&context(keys, kind), key);
        let name = || keys.name.clone();
        wrapped.map(|bytes| hex(&bytes)).map_err(|source| KeyStoreError::Wrapped { name: name(), source })
    }

    fn unwrap(
        &self,
        keys: &StoredKeys,
        kind: &str,
        wrapped: &str,
    ) -> Result<zeroize::Zeroizing<[u8; 32]>, KeyStoreError> {
        let bytes = unhex(wrapped.as_bytes()).ok_or(WrapError::NotOurs);
        let key = bytes.and_then(|bytes| self.wrap.unwrap(&context(keys, kind), &bytes));
        key.map_err(|source| KeyStoreError::Wrapped { name: keys.name.clone(), source })
    }
}

impl std::fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyStore({})", self.path.display())
    }
}

/// Whose key it is: a wrapped key moved to another namespace, generation or use does not open.
fn context(keys: &StoredKeys, kind: &str) -> Vec<u8> {
    format!("quire.keys.v1|{kind}|{}|{}|{}", keys.id, keys.generation, keys.name).into_bytes()
}

fn failed(path: &Path, source: io::Error) -> KeyStoreError {
    KeyStoreError::Io { path: path.display().to_string(), source }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Stored, KeyStoreError> {
    let form = |reason: String| KeyStoreError::Form { path: path.display().to_string(), reason };
    let stored: Stored = serde_json::from_slice(bytes).map_err(|e| form(e.to_string()))?;
    if stored.version != VERSION {
        return Err(form(format!("version {} is not {VERSION}", stored.version)));
    }
    if stored.namespaces.len() > NAMESPACES_MAX {
        return Err(KeyStoreError::Full { most: NAMESPACES_MAX });
    }
    Ok(stored)
}

/// How far a replacement came.
enum Replace {
    /// The old file is in place.
    Before(io::Error),
    /// The new one is, but not all that should follow was done.
    After(io::Error),
}

impl Replace {
    fn source(self) -> io::Error {
        match self {
            Replace::Before(error) | Replace::After(error) => error,
        }
    }
}

fn replace(path: &Path, stored: &Stored) -> Result<(), Replace> {
    let old = write_aside(path, stored).map_err(Replace::Before)?;
    settle(path, old).map_err(Replace::After)
}

/// Writes and renames; the old file, if there was one.
fn write_aside(path: &Path, stored: &Stored) -> io::Result<Option<File>> {
    let mut text = serde_json::to_vec_pretty(stored)?;
    text.push(b'\n');
    let aside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    let old = OpenOptions::new().write(true).open(path).ok();
    std::fs::rename(&aside, path)?;
    Ok(old)
}

/// Makes the rename last, and overwrites the old file's keys.
fn settle(path: &Path, old: Option<File>) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()?;
    if let Some(old) = old {
        let bytes = old.metadata()?.len() as usize;
        old.write_all_at(&vec![0; bytes], 0)?;
        old.sync_all()?;
    }
    Ok(())
}
