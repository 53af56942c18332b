//! Namespaces and their keys: who is who, in which generation, under which secrets.
//!
//! Every namespace has a key that names its pages and one per generation that seals them. They are drawn
//! at start and live in memory, unless a key store keeps them, wrapped under the node's key, so that
//! sealed pages open again after a restart. A generation that was purged is gone from ring and store
//! before anything is erased; nothing sealed under it opens again, wherever a copy of it may lie.

use std::sync::Arc;

use base::{Generation, NamespaceId, NamespaceKey, Tier};
use transfer::{
    DataKey, KeyRing, KeyStore, KeyStoreError, NoRandomness, NodeKey, NodeKeyError, StoredNamespace,
};

use super::KeyStorePaths;

/// What a namespace is called that nobody named.
pub const DEFAULT: &str = "default";

/// A namespace as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceSpec {
    pub name: String,
    /// Bearer keys of its users.
    pub api_keys: Vec<String>,
    pub retention: Retention,
    /// Most bytes in each tier.
    pub quotas: [Option<u64>; Tier::ALL.len()],
}

/// Whether anything of a namespace outlives its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Retention {
    #[default]
    Keep,
    /// Nothing is inserted into any tier, and nothing is looked up.
    Nothing,
}

/// A namespace as it is served.
#[derive(Clone, Debug)]
pub struct Namespace {
    pub id: NamespaceId,
    pub generation: Generation,
    /// Names its pages.
    pub chain: NamespaceKey,
    pub spec: NamespaceSpec,
}

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("node key: {0}")]
    NodeKey(#[from] NodeKeyError),
    #[error("key store: {0}")]
    Store(#[from] KeyStoreError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    #[error("two namespaces are called {0:?}")]
    Twice(String),
    #[error("two namespaces have the same API key: {0:?} and {1:?}")]
    SharedKey(String, String),
    #[error("no namespace has the id {0}")]
    Unknown(NamespaceId),
}

/// All namespaces of a replica and the secrets of each.
pub struct Keys {
    ring: Arc<KeyRing>,
    store: Option<KeyStore>,
    namespaces: Vec<Namespace>,
}

impl Keys {
    /// The default namespace and those of `specs`; known ones come from the store, others are made.
    pub fn open(specs: &[NamespaceSpec], store: Option<&KeyStorePaths>) -> Result<Self, KeysError> {
        check(specs)?;
        let store = match store {
            Some(paths) => {
                let node = NodeKey::load_or_create(&paths.node_key)?;
                Some(KeyStore::open(&paths.store, Arc::new(node))?)
            }
            None => None,
        };
        let mut keys = Self { ring: Arc::new(KeyRing::new()), store, namespaces: Vec::new() };
        if !specs.iter().any(|spec| spec.name == DEFAULT) {
            keys.add(&NamespaceSpec { name: DEFAULT.into(), ..NamespaceSpec::default() })?;
        }
        for spec in specs {
            keys.add(spec)?;
        }
        Ok(keys)
    }

    fn add(&mut self, spec: &NamespaceSpec) -> Result<(), KeysError> {
        let stored = self.store.as_ref().map(KeyStore::namespaces).unwrap_or_default();
        let found = stored.iter().find(|known| known.name == spec.name);
        let id = found.map_or_else(|| self.next_id(spec, &stored), |known| known.id);
        let secrets = match (&self.store, found) {
            (Some(store), Some(known)) => store.secrets(known.id)?,
            _ => None,
        };
        let mut namespace = Namespace {
            id,
            generation: secrets.as_ref().map_or(Generation(0), |secrets| secrets.generation),
            chain: match &secrets {
                Some(secrets) => secrets.chain.clone(),
                None => NamespaceKey(*DataKey::random()?.expose()),
            },
            spec: spec.clone(),
        };
        match secrets.and_then(|secrets| secrets.data) {
            Some(data) => self.ring.insert(id, namespace.generation, data),
            // A purge that was cut short after it destroyed a key goes on where it was.
            None => self.begin(&mut namespace, found.is_some())?,
        }
        self.namespaces.push(namespace);
        Ok(())
    }

    /// 0 for the default namespace, whatever else is configured.
    fn next_id(&self, spec: &NamespaceSpec, stored: &[StoredNamespace]) -> NamespaceId {
        if spec.name == DEFAULT {
            return NamespaceId(0);
        }
        let known = stored.iter().map(|known| known.id.0);
        let here = self.namespaces.iter().map(|namespace| namespace.id.0);
        NamespaceId(1 + known.chain(here).max().unwrap_or(0))
    }

    /// Draws the data key of a generation: the present one, or the next if that one is spent.
    fn begin(&self, namespace: &mut Namespace, is_spent: bool) -> Result<(), KeysError> {
        namespace.generation.0 += u64::from(is_spent);
        let data = DataKey::random()?;
        self.keep(namespace, &data)?;
        self.ring.insert(namespace.id, namespace.generation, data);
        Ok(())
    }

    fn keep(&self, namespace: &Namespace, data: &DataKey) -> Result<(), KeysError> {
        if let Some(store) = &self.store {
            let stored = StoredNamespace {
                name: namespace.spec.name.clone(),
                id: namespace.id,
                generation: namespace.generation,
            };
            store.put(&stored, &namespace.chain, data)?;
        }
        Ok(())
    }

    /// Destroys the keys of `id` up to a generation and begins the next; answers with how many sealing
    /// keys are gone. When it returns, nothing of the old generation opens any more.
    pub fn retire(&mut self, id: NamespaceId, up_to: Generation) -> Result<usize, KeysError> {
        // The file first: if it cannot be written nothing has changed, and the caller hears it.
        if let Some(store) = &self.store {
            store.destroy(id, up_to)?;
        }
        let destroyed = self.ring.destroy(id, up_to);
        let at = self.namespaces.iter().position(|namespace| namespace.id == id);
        let mut namespace = self.namespaces[at.ok_or(KeysError::Unknown(id))?].clone();
        if namespace.generation <= up_to {
            namespace.generation = Generation(up_to.0 + 1);
            let data = DataKey::random()?;
            if let Err(error) = self.keep(&namespace, &data) {
                // The old key is gone, which is what was asked; the new one will not survive a restart.
                tracing::warn!(%error, namespace = namespace.spec.name, "the next key could not be stored");
            }
            self.ring.insert(id, namespace.generation, data);
        }
        if let Some(at) = at {
            self.namespaces[at] = namespace;
        }
        Ok(destroyed)
    }

    pub fn ring(&self) -> Arc<KeyRing> {
        Arc::clone(&self.ring)
    }

    /// Whether keys, and with them sealed pages, survive a restart.
    pub fn is_kept(&self) -> bool {
        self.store.is_some()
    }

    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }
}

/// Never shows a key.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({} namespaces)", self.namespaces.len())
    }
}

fn check(specs: &[NamespaceSpec]) -> Result<(), KeysError> {
    for (i, spec) in specs.iter().enumerate() {
        for other in &specs[..i] {
            if other.name == spec.name {
                return Err(KeysError::Twice(spec.name.clone()));
            }
            if spec.api_keys.iter().any(|key| other.api_keys.contains(key)) {
                return Err(KeysError::SharedKey(other.name.clone(), spec.name.clone()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> NamespaceSpec {
        NamespaceSpec { name: name.into(), ..NamespaceSpec::default() }
    }

    #[test]
    fn keys_of_memory_are_new_each_time_and_stored_ones_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let paths =
            KeyStorePaths { store: dir.path().join("keys.json"), node_key: dir.path().join("node.key") };
        let chains = |store: Option<&KeyStorePaths>| {
            let keys = Keys::open(&[named("a"), named("b")], store).unwrap();
            keys.namespaces().iter().map(|n| (n.id, n.chain.0)).collect::<Vec<_>>()
        };
        assert_ne!(chains(None), chains(None));
        let first = chains(Some(&paths));
        assert_eq!(chains(Some(&paths)), first);
        assert_eq!(first.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [0, 1, 2]);
        let keys = Keys::open(&[named("c"), named("b")], Some(&paths)).unwrap();
        assert_eq!(keys.namespaces().iter().map(|n| n.id.0).collect::<Vec<_>>(), [0, 3, 2]);
    }

    #[test]
    fn a_retired_generation_is_gone_from_ring_and_store() {
        let dir = tempfile::tempdir().unwrap();
        let paths =
            KeyStorePaths { store: dir.path().join("keys.json"), node_key: dir.path().join("node.key") };
        let mut keys = Keys::open(&[named("a")], Some(&paths)).unwrap();
        let id = NamespaceId(1);
        assert_eq!(keys.retire(id, Generation(0)).unwrap(), 1);
        let ring = keys.ring();
        assert!(!ring.holds(id, Generation(0)) && ring.holds(id, Generation(1)));
        drop(keys);
        let again = Keys::open(&[named("a")], Some(&paths)).unwrap();
        assert_eq!(again.namespaces()[1].generation, Generation(1));
        assert!(!again.ring().holds(id, Generation(0)));
    }

    #[test]
    fn two_tenants_cannot_have_one_name_or_one_key() {
        let with_key = |name: &str| NamespaceSpec { api_keys: vec!["k".into()], ..named(name) };
        assert!(matches!(Keys::open(&[named("a"), named("a")], None), Err(KeysError::Twice(_))));
        assert!(matches!(Keys::open(&[with_key("a"), with_key("b")], None), Err(KeysError::SharedKey(..))));
    }
}
