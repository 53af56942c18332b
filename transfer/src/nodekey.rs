//! Secrets that come from files: the node's own key, under which namespace keys rest, with the interface behind
//! which a key management service can take its place, and the key that a cluster shares for naming.
//!
//! Limits: whoever can read the file can read every stored namespace key; it is refused if anybody
//! but its owner may.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base::NamespaceKey;
use zeroize::{Zeroize, Zeroizing};

use crate::seal::{DataKey, SealingKey, random};

/// Wraps keys under one that this process need not hold.
pub trait KeyWrap: Send + Sync {
    /// `context` says whose key it is; unwrapping under another context fails.
    fn wrap(&self, context: &[u8], key: &[u8; 32]) -> Result<Vec<u8>, WrapError>;
    fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<[u8; 32]>, WrapError>;
}

/// A key that could not be wrapped or unwrapped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WrapError {
    #[error("the wrapped key does not open under this node key")]
    NotOurs,
    #[error("the key service failed: {0}")]
    Service(String),
}

/// Why a node key could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum NodeKeyError {
    #[error("{path}: others may read this key (mode {mode:03o}); run `chmod 600 {path}`")]
    Readable { path: String, mode: u32 },
    #[error("{path}: a key is 32 bytes, raw or as 64 hex digits; this is neither")]
    Form { path: String },
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
}

impl NodeKeyError {
    pub fn kind(&self) -> &'static str {
        match self {
            NodeKeyError::Readable { .. } => "readable",
            NodeKeyError::Form { .. } => "form",
            NodeKeyError::Io { .. } => "io",
        }
    }
}

/// A node key from a file.
pub struct NodeKey(SealingKey);

impl NodeKey {
    /// Reads a key of 32 raw bytes or 64 hex digits.
    pub fn load(path: &Path) -> Result<Self, NodeKeyError> {
        let mut key = secret(path)?;
        Ok(Self(SealingKey::new(&DataKey::new(&mut key))))
    }

    /// Writes a new key with mode 0600, unless there is a file, and reads it.
    pub fn load_or_create(path: &Path) -> Result<Self, NodeKeyError> {
        let mut key = secret_or_create(path)?;
        Ok(Self(SealingKey::new(&DataKey::new(&mut key))))
    }
}

/// The secret that replicas share in order to call the same page by the same name. It derives naming keys only;
/// what seals pages is drawn by every node for itself.
pub struct ClusterKey(Zeroizing<[u8; 32]>);

impl ClusterKey {
    /// Reads a key of 32 raw bytes or 64 hex digits. None is made if there is none: it would be this node's alone.
    pub fn load(path: &Path) -> Result<Self, NodeKeyError> {
        secret(path).map(Self)
    }

    /// What names the pages of the namespace of this name.
    pub fn naming_key(&self, namespace: &str) -> NamespaceKey {
        NamespaceKey::of_cluster(&self.0, namespace)
    }
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

/// 32 secret bytes of a file that nobody else may read.
pub(crate) fn secret(path: &Path) -> Result<Zeroizing<[u8; 32]>, NodeKeyError> {
    let name = || path.display().to_string();
    let io = |source| NodeKeyError::Io { path: name(), source };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(NodeKeyError::Readable { path: name(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(128));
    file.take(128).read_to_end(&mut bytes).map_err(io)?;
    parse(&bytes).map(Zeroizing::new).ok_or_else(|| NodeKeyError::Form { path: name() })
}

/// As [`secret`], written first with mode 0600 if there is no file.
pub(crate) fn secret_or_create(path: &Path) -> Result<Zeroizing<[u8; 32]>, NodeKeyError> {
    let io = |source| NodeKeyError::Io { path: path.display().to_string(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match file {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return secret(path),
        Err(error) => return Err(io(error)),
        Ok(mut file) => {
            let mut key = [0; 32];
            random(&mut key).map_err(|e| io(io::Error::other(e)))?;
            let text = Zeroizing::new(hex(&key) + "\n");
            key.zeroize();
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        }
    }
    secret(path)
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

impl KeyWrap for NodeKey {
    fn wrap(&self, context: &[u8], key: &[u8; 32]) -> Result<Vec<u8>, WrapError> {
        self.0.seal_vec(context, key).map_err(|_| WrapError::Service("no random bytes".to_owned()))
    }

    fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<[u8; 32]>, WrapError> {
        let plain = Zeroizing::new(self.0.open_vec(context, wrapped).ok_or(WrapError::NotOurs)?);
        let mut key = Zeroizing::new([0; 32]);
        if plain.len() != key.len() {
            return Err(WrapError::NotOurs);
        }
        key.copy_from_slice(&plain);
        Ok(key)
    }
}

fn parse(bytes: &[u8]) -> Option<[u8; 32]> {
    if let Ok(raw) = <[u8; 32]>::try_from(bytes) {
        return Some(raw);
    }
    let mut key = [0; 32];
    let text = Zeroizing::new(unhex(bytes.trim_ascii())?);
    if text.len() != key.len() {
        return None;
    }
    key.copy_from_slice(&text);
    Some(key)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

pub(crate) fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_chunks::<2>();
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then(|| bytes.collect()).flatten()
}
