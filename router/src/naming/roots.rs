//! Names of prompts at our own replicas: where their chains begin, as replicas told us, and the chain itself.
//!
//! The router has no key of a namespace. It asks a replica once per (credential, adapter, salt, generation) where the
//! chain begins (`Cache.ChainRoot`) and keeps the answer until the generation is purged; from there on naming a prompt
//! is hashing and needs nobody. Credentials are kept as digests only: a dump of the router's memory gives no key.
//!
//! Bounded by count, and the oldest answers go first: a client that draws salts costs itself its own lookups.
//! Not least recently used: lookups would have to write, and what is asked for again is asked for again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use base::{AdapterId, ChainHash, Generation, TokenId};
use sha2::{Digest, Sha256};

use crate::source::Scope;

/// Who asks, without what would let somebody else ask.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CredentialDigest([u8; 32]);

impl CredentialDigest {
    /// Of what stands behind `Bearer`; empty for a request without.
    pub fn of(credential: &str) -> Self {
        Self(Sha256::digest(credential.as_bytes()).into())
    }
}

/// What a root is asked for by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RootKey {
    pub credential: CredentialDigest,
    pub adapter: AdapterId,
    /// Digest of `cache_salt`; salts may be of any length.
    salt: [u8; 32],
    /// `None` for the generation that a replica stores into when it is asked.
    pub generation: Option<Generation>,
}

impl RootKey {
    pub fn new(credential: CredentialDigest, adapter: AdapterId, salt: &[u8]) -> Self {
        Self { credential, adapter, salt: Sha256::digest(salt).into(), generation: None }
    }

    pub fn in_generation(self, generation: Generation) -> Self {
        Self { generation: Some(generation), ..self }
    }
}

/// Where a user's chain begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    pub scope: Scope,
    pub hash: ChainHash,
    /// Whether anything of the user is kept; if not, there is nothing to look up.
    pub keeps: Keeps,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeps {
    Blocks,
    Nothing,
}

/// The roots that are known.
pub struct Roots {
    known: HashMap<RootKey, Arc<Root>>,
    /// In order of arrival; what was dropped may still stand here.
    order: VecDeque<RootKey>,
    purged: BTreeMap<Arc<str>, Generation>,
    most: usize,
}

impl Roots {
    /// Keeps `most` at a time.
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { known: HashMap::new(), order: VecDeque::new(), purged: BTreeMap::new(), most }
    }

    pub fn get(&self, key: &RootKey) -> Option<Arc<Root>> {
        self.known.get(key).cloned()
    }

    /// Takes an answer in; `false` if its generation has been purged since it was asked for.
    pub fn put(&mut self, key: RootKey, root: Root) -> bool {
        if self.purged.get(&root.scope.namespace).is_some_and(|purged| root.scope.generation <= *purged) {
            return false;
        }
        if self.known.insert(key.clone(), Arc::new(root)).is_none() {
            self.order.push_back(key);
        }
        while self.known.len() > self.most {
            let Some(oldest) = self.order.pop_front() else { break };
            self.known.remove(&oldest);
        }
        true
    }

    /// A namespace's generations up to this one are purged: their roots are of no use, and name what is forgotten.
    /// Answers with how many there were.
    pub fn purge(&mut self, namespace: &str, up_to: Generation) -> usize {
        let before = self.known.len();
        let is_gone = |of: &Scope| *of.namespace == *namespace && of.generation <= up_to;
        self.known.retain(|_, root| !is_gone(&root.scope));
        self.order.retain(|key| self.known.contains_key(key));
        let purged = self.purged.entry(namespace.into()).or_default();
        *purged = (*purged).max(up_to);
        before - self.known.len()
    }

    /// Replicas begin anew at generation 0 when they restart without a key store: what was purged of a namespace may
    /// be in use again once a replica says so.
    pub fn unpurge(&mut self, namespace: &str, from: Generation) {
        if self.purged.get(namespace).is_some_and(|purged| from <= *purged) {
            self.purged.remove(namespace);
        }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub fn check(&self) {
        assert!(self.known.len() <= self.most && self.order.len() == self.known.len());
        for root in self.known.values() {
            let purged = self.purged.get(&root.scope.namespace);
            assert!(purged.is_none_or(|purged| root.scope.generation > *purged));
        }
    }
}

/// Names of the whole blocks of a prompt.
pub fn names(root: &ChainHash, tokens: &[TokenId], block_tokens: usize) -> Vec<u64> {
    let mut names = Vec::with_capacity(tokens.len() / block_tokens.max(1));
    extend_names(*root, tokens, block_tokens, &mut names);
    names
}

/// As [`names`], after the block `from`; answers with the last block's whole hash, from which to go on later.
pub fn extend_names(
    from: ChainHash,
    tokens: &[TokenId],
    block_tokens: usize,
    names: &mut Vec<u64>,
) -> ChainHash {
    let mut hash = from;
    for block in tokens.chunks_exact(block_tokens.max(1)) {
        hash = hash.next(block);
        names.push(hash.low64());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(namespace: &str, generation: u64, byte: u8) -> Root {
        let scope = Scope::new(namespace, Generation(generation));
        Root { scope, hash: ChainHash([byte; 32]), keeps: Keeps::Blocks }
    }

    fn key(credential: &str, salt: &str) -> RootKey {
        RootKey::new(CredentialDigest::of(credential), AdapterId(0), salt.as_bytes())
    }

    #[test]
    fn a_purge_drops_the_roots_of_its_namespace_and_refuses_late_ones() {
        let mut roots = Roots::new(10);
        assert!(roots.put(key("a", ""), root("acme", 0, 1)));
        assert!(roots.put(key("a", "s"), root("acme", 0, 2)));
        assert!(roots.put(key("z", ""), root("zen", 0, 3)));
        assert_eq!(roots.purge("acme", Generation(0)), 2);
        assert!(roots.get(&key("a", "")).is_none() && roots.get(&key("z", "")).is_some());
        assert!(!roots.put(key("a", ""), root("acme", 0, 1)), "an answer that was under way");
        assert!(roots.put(key("a", ""), root("acme", 1, 4)));
        roots.check();
        roots.unpurge("acme", Generation(0));
        assert!(roots.put(key("a", ""), root("acme", 0, 5)));
        roots.check();
    }

    #[test]
    fn the_oldest_make_room() {
        let mut roots = Roots::new(2);
        for (n, salt) in ["a", "b", "c"].iter().enumerate() {
            roots.put(key("k", salt), root("acme", 0, n as u8));
            roots.check();
        }
        assert!(roots.get(&key("k", "a")).is_none());
        assert_eq!(roots.get(&key("k", "c")).unwrap().hash, ChainHash([2; 32]));
    }

    #[test]
    fn whole_blocks_are_named_and_a_chain_goes_on_where_it_was_left() {
        let root = ChainHash([7; 32]);
        let tokens: Vec<u32> = (0..70).collect();
        let all = names(&root, &tokens, 16);
        assert_eq!(all.len(), 4);
        assert_eq!(all[1], root.next(&tokens[..16]).next(&tokens[16..32]).low64());
        let mut parts = Vec::new();
        let middle = extend_names(root, &tokens[..32], 16, &mut parts);
        extend_names(middle, &tokens[32..], 16, &mut parts);
        assert_eq!(parts, all);
    }
}
