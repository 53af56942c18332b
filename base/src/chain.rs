//! The keyed chain that names pages.
//!
//! ```text
//! h0  = HMAC-SHA-256(namespace key, "quire.page.v1" | generation | model digest | layout digest | adapter | salt)
//! h_i = SHA-256(h_{i-1} | tokens of page i as u32 LE)
//! ```
//!
//! 256 bits, because a short or unkeyed hash lets one tenant probe for or collide with another's
//! prefix. The radix tree compares real tokens; these names are for events, tiers and the router and
//! tell nothing without the namespace's key.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::{AdapterId, Generation, ModelDigest, TokenId};

/// Bytes of one chain hash.
pub const CHAIN_BYTES: usize = 32;

const DOMAIN: &[u8] = b"quire.page.v1";
const CLUSTER_DOMAIN: &[u8] = b"quire.cluster.v1";

/// The name of a page: the hash of everything from the root to its last token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainHash(pub [u8; CHAIN_BYTES]);

impl ChainHash {
    /// The 64 bits that foreign event formats carry.
    pub fn low64(&self) -> u64 {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(low)
    }

    /// The name of the page of `tokens` that follows this one.
    pub fn next(&self, tokens: &[TokenId]) -> ChainHash {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        for chunk in tokens.chunks(64) {
            let mut bytes = [0u8; 64 * 4];
            for (slot, token) in bytes.chunks_exact_mut(4).zip(chunk) {
                slot.copy_from_slice(&token.to_le_bytes());
            }
            hasher.update(&bytes[..chunk.len() * 4]);
        }
        ChainHash(hasher.finalize().into())
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// The secret that makes a namespace's page names unguessable.
#[derive(Clone, PartialEq, Eq)]
pub struct NamespaceKey(pub [u8; 32]);

impl NamespaceKey {
    /// The key of the namespace of this name wherever a cluster shares `cluster`: replicas that agree on it
    /// agree on the names of pages, and none need send a key to another.
    pub fn of_cluster(cluster: &[u8; 32], name: &str) -> Self {
        let mut mac = keyed(cluster);
        mac.update(CLUSTER_DOMAIN);
        mac.update(name.as_bytes());
        Self(mac.finalize().into_bytes().into())
    }
}

/// Never shows the key: it must not reach a log.
impl fmt::Debug for NamespaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NamespaceKey(..)")
    }
}

/// Everything that separates one tree of pages from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainRoot {
    pub generation: Generation,
    pub model: ModelDigest,
    /// Digest of page size, KV dtype and memory layout: a page of another layout is another page.
    pub layout: [u8; 32],
    pub adapter: AdapterId,
    /// `cache_salt` of the request.
    pub salt: Vec<u8>,
}

impl ChainRoot {
    /// `h0`, from which the first page's name follows.
    pub fn hash(&self, key: &NamespaceKey) -> ChainHash {
        let mut mac = keyed(&key.0);
        mac.update(DOMAIN);
        mac.update(&self.generation.0.to_le_bytes());
        mac.update(&self.model.0);
        mac.update(&self.layout);
        mac.update(&self.adapter.0.to_le_bytes());
        mac.update(&self.salt);
        ChainHash(mac.finalize().into_bytes().into())
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clusters_keys_differ_by_cluster_and_by_name() {
        let a = NamespaceKey::of_cluster(&[1; 32], "a");
        assert!(a == NamespaceKey::of_cluster(&[1; 32], "a"));
        assert!(a != NamespaceKey::of_cluster(&[1; 32], "b"));
        assert!(a != NamespaceKey::of_cluster(&[2; 32], "a"));
    }

    fn root() -> ChainRoot {
        ChainRoot {
            generation: Generation(1),
            model: ModelDigest([1; 32]),
            layout: [2; 32],
            adapter: AdapterId(0),
            salt: Vec::new(),
        }
    }

    #[test]
    fn every_part_of_the_root_changes_the_name() {
        let key = NamespaceKey([3; 32]);
        let base = root().hash(&key);
        let mut others = vec![root().hash(&NamespaceKey([4; 32]))];
        others.push(ChainRoot { generation: Generation(2), ..root() }.hash(&key));
        others.push(ChainRoot { model: ModelDigest([9; 32]), ..root() }.hash(&key));
        others.push(ChainRoot { layout: [9; 32], ..root() }.hash(&key));
        others.push(ChainRoot { adapter: AdapterId(1), ..root() }.hash(&key));
        others.push(ChainRoot { salt: b"s".to_vec(), ..root() }.hash(&key));
        for other in &others {
            assert_ne!(*other, base);
        }
    }

    #[test]
    fn a_page_name_depends_on_all_that_came_before() {
        let h0 = root().hash(&NamespaceKey([3; 32]));
        let ab = h0.next(&[1, 2]).next(&[3, 4]);
        assert_ne!(ab, h0.next(&[3, 4]));
        assert_ne!(ab, h0.next(&[1, 2, 3, 4]));
        assert_eq!(ab, h0.next(&[1, 2]).next(&[3, 4]));
    }

    #[test]
    fn pages_longer_than_one_buffer_hash_every_token() {
        let h0 = root().hash(&NamespaceKey([3; 32]));
        let tokens: Vec<u32> = (0..200).collect();
        let mut changed = tokens.clone();
        changed[199] = 7;
        assert_ne!(h0.next(&tokens), h0.next(&changed));
    }
}
