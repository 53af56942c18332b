//! The node's own signature, under what it says of itself.
//!
//! Ed25519, because every language verifies it without a library of ours. The key is its own file and not
//! derived from the node key: who may unwrap data keys need not be who may sign, and a verifier is shown
//! the public half. Without a file the key lives as long as the process, and what it signed can be
//! checked against the key in the report only.

use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::nodekey::{NodeKeyError, secret_or_create};
use crate::seal::{NoRandomness, random};

pub const PUBLIC_KEY_BYTES: usize = 32;
pub const SIGNATURE_BYTES: usize = 64;

/// Signs as this node.
pub struct NodeSigner(Ed25519KeyPair);

impl NodeSigner {
    /// A key of this process.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        random(&mut *seed)?;
        Ok(Self::of(&seed))
    }

    /// The key in a file that nobody else may read; made if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, NodeKeyError> {
        Ok(Self::of(&*secret_or_create(path)?))
    }

    fn of(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("32 bytes are a seed of Ed25519"))
    }

    pub fn public_key(&self) -> [u8; PUBLIC_KEY_BYTES] {
        self.0.public_key().as_ref().try_into().expect("a public key of Ed25519 has 32 bytes")
    }

    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).as_ref().try_into().expect("a signature of Ed25519 has 64 bytes")
    }
}

impl std::fmt::Debug for NodeSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeSigner(..)")
    }
}

/// Whether `signature` under `message` is that of `public_key`.
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_message_and_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sign.key");
        let signer = NodeSigner::load_or_create(&path).unwrap();
        let signature = signer.sign(b"gone");
        let key = NodeSigner::load_or_create(&path).unwrap().public_key();
        assert!(verify(&key, b"gone", &signature));
        assert!(!verify(&key, b"Gone", &signature));
        assert!(!verify(&NodeSigner::random().unwrap().public_key(), b"gone", &signature));
        assert!(!verify(b"short", b"gone", &signature));
    }
}
