//! Namespaces and their keys: who is who, in which generation, under which secrets.
//!
//! Every namespace has a key that names its pages and one per generation that seals them. They are drawn
//! at start and live in memory, unless a key store keeps them, wrapped under the node's key, so that
//! sealed pages open again after a restart. A generation that was purged is gone from ring and store
//! before anything is erased; nothing sealed under it opens again, wherever a copy of it may lie.
//!
//! Replicas that share a cluster key name pages alike: the naming key of a namespace then follows from its name.
//! Keys that seal are each node's own all the same. A key store that was filled under another naming key is refused
//! and not converted: its pages are called by names that nobody would ask for, and giving them up is a decision
//! of whoever owns them, as is a mistyped file.

use std::sync::Arc;

use base::{Generation, NamespaceId, NamespaceKey, Tier};
use transfer::{
    ClusterKey, DataKey, KeyRing, KeyStore, KeyStoreError, NoRandomness, NodeKey, NodeKeyError,
    StoredNamespace,
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
    #[error(
        "the key store names the pages of namespace {0:?} by another key than the cluster's; start with the cluster \
         key that it was made with, or with a new key store (what the old one sealed is then forgotten)"
    )]
    OtherCluster(String),
}

/// All namespaces of a replica and the secrets of each.
pub struct Keys {
    ring: Arc<KeyRing>,
    store: Option<KeyStore>,
    cluster: Option<ClusterKey>,
    namespaces: Vec<Namespace>,
}

impl Keys {
    /// The default namespace and those of `specs`; known ones come from the store, others are made.
    pub fn open(specs: &[NamespaceSpec], store: Option<&KeyStorePaths>) -> Result<Self, KeysError> {
        Self::open_in(specs, store, None)
    }

    /// As [`Keys::open`], in a cluster whose replicas name pages alike.
    pub fn open_in(
        specs: &[NamespaceSpec],
        store: Option<&KeyStorePaths>,
        cluster: Option<ClusterKey>,
    ) -> Result<Self, KeysError> {
        check(specs)?;
        let store = match store {
            Some(paths) => {
                let node = NodeKey::load_or_create(&paths.node_key)?;
                Some(KeyStore::open(&paths.store, Arc::new(node))?)
            }
            None => None,
        };
        let mut keys = Self { ring: Arc::new(KeyRing::new()), store, cluster, namespaces: Vec::new() };
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
            chain: self.chain(&spec.name, secrets.as_ref().map(|secrets| &secrets.chain))?,
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

    /// What names the pages of a namespace: the cluster's key for it, the stored one, or a new one.
    fn chain(&self, name: &str, stored: Option<&NamespaceKey>) -> Result<NamespaceKey, KeysError> {
        let shared = self.cluster.as_ref().map(|cluster| cluster.naming_key(name));
        match (shared, stored) {
            (Some(shared), Some(stored)) if shared != *stored => {
                Err(KeysError::OtherCluster(name.to_owned()))
            }
            (Some(shared), _) => Ok(shared),
            (None, Some(stored)) => Ok(stored.clone()),
            (None, None) => Ok(NamespaceKey(*DataKey::random()?.expose())),
        }
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

    fn cluster(dir: &std::path::Path, byte: u8) -> ClusterKey {
        use std::os::unix::fs::OpenOptionsExt;
        let path = dir.join(format!("cluster{byte}.key"));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, &[byte; 32]).unwrap();
        ClusterKey::load(&path).unwrap()
    }

    #[test]
    fn replicas_of_a_cluster_name_alike_and_seal_apart() {
        let dir = tempfile::tempdir().unwrap();
        let open = |specs: &[NamespaceSpec], byte| {
            Keys::open_in(specs, None, Some(cluster(dir.path(), byte))).unwrap()
        };
        let (one, two) = (open(&[named("a"), named("b")], 1), open(&[named("b"), named("a")], 1));
        let chain = |keys: &Keys, name: &str| {
            keys.namespaces().iter().find(|of| of.spec.name == name).unwrap().chain.clone()
        };
        for name in [DEFAULT, "a", "b"] {
            assert!(chain(&one, name) == chain(&two, name));
            assert!(chain(&one, name) != chain(&open(&[named("a"), named("b")], 2), name));
        }
        let label = transfer::PageLabel {
            namespace: NamespaceId(0),
            generation: Generation(0),
            name: base::ChainHash([0; 32]),
            layout: [0; 32],
            tier: Tier::Nvme,
            slot: base::SlotId(0),
            bytes: 8,
        };
        let (mut sealed, mut opened) = ([0; 64], [0; 8]);
        let seal = one.ring().seal(&label, &[7; 8], &mut sealed).unwrap();
        assert!(one.ring().open(&label, &seal, &sealed[..8], &mut opened).is_ok());
        assert!(two.ring().open(&label, &seal, &sealed[..8], &mut opened).is_err());
    }

    #[test]
    fn a_key_store_of_another_cluster_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let paths =
            KeyStorePaths { store: dir.path().join("keys.json"), node_key: dir.path().join("node.key") };
        let open = |byte: Option<u8>| {
            let cluster = byte.map(|byte| cluster(dir.path(), byte));
            Keys::open_in(&[named("a")], Some(&paths), cluster).map(|keys| keys.namespaces()[1].chain.clone())
        };
        let first = open(Some(1)).unwrap();
        let before = std::fs::read(&paths.store).unwrap();
        assert!(matches!(open(Some(2)), Err(KeysError::OtherCluster(name)) if name == DEFAULT));
        assert_eq!(std::fs::read(&paths.store).unwrap(), before);
        assert!(open(Some(1)).unwrap() == first);
        // A store that was filled in a cluster keeps its names outside of it.
        assert!(open(None).unwrap() == first);
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
