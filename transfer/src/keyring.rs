//! Which data keys exist: one per live generation of a namespace.
//!
//! A key is used only inside [`KeyRing::with`], under a shared lock of that key alone. `destroy` takes
//! the lock for itself, so when it returns nothing is being sealed or opened under the key and its
//! memory has been wiped: what an `Arc` handed out freely could not promise. Other namespaces' keys
//! are not waited for.
//!
//! Limits: as many keys as there are live generations; the caller's namespace limit bounds it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use base::{Generation, NamespaceId};

use crate::error::TierError;
use crate::seal::{DataKey, NoRandomness, PageLabel, PageSeal, SealRefused, SealingKey};

type Place = Arc<RwLock<Option<SealingKey>>>;

/// The keys in use, shared by every tier and the journal.
#[derive(Default)]
pub struct KeyRing {
    keys: RwLock<HashMap<(NamespaceId, Generation), Place>>,
}

impl KeyRing {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the key of a generation.
    pub fn insert(&self, namespace: NamespaceId, generation: Generation, key: DataKey) {
        let place = Arc::new(RwLock::new(Some(SealingKey::new(&key))));
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert((namespace, generation), place);
    }

    /// Destroys every key of the namespace up to and including `up_to`; how many there were. Waits for
    /// the pages that are being sealed or opened under them at this moment.
    pub fn destroy(&self, namespace: NamespaceId, up_to: Generation) -> usize {
        let mut gone = Vec::new();
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|(owner, generation), place| {
            let dies = *owner == namespace && *generation <= up_to;
            if dies {
                gone.push(Arc::clone(place));
            }
            !dies
        });
        drop(keys);
        for place in &gone {
            *place.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        gone.len()
    }

    pub fn holds(&self, namespace: NamespaceId, generation: Generation) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).contains_key(&(namespace, generation))
    }

    pub fn len(&self) -> usize {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Seals `plain` into the first bytes of `out`, which is at least a tag longer; zeros the tag's place.
    pub fn seal(&self, label: &PageLabel, plain: &[u8], out: &mut [u8]) -> Result<PageSeal, TierError> {
        let aad = label.encode();
        let sealed = self.with(label.namespace, label.generation, |key| key.seal_into(&aad, plain, out));
        sealed.ok_or(TierError::KeyGone)?.map_err(|refused| match refused {
            SealRefused::Spent => TierError::KeySpent,
            SealRefused::Failed => {
                TierError::Io { slot: label.slot, source: std::io::Error::other(NoRandomness) }
            }
        })
    }

    /// Opens `sealed` into `plain`, of equal length; on failure `plain` is zeroed.
    pub fn open(
        &self,
        label: &PageLabel,
        seal: &PageSeal,
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), TierError> {
        let aad = label.encode();
        let work = |key: &SealingKey| key.open_into(&aad, seal, sealed, plain);
        let opened = self.with(label.namespace, label.generation, work);
        // Destroyed since: who asks now must not get the page.
        let still_held = self.holds(label.namespace, label.generation);
        match opened {
            Some(true) if still_held => Ok(()),
            Some(false) if still_held => Err(TierError::BadSeal { slot: label.slot }),
            _ => {
                plain.fill(0);
                Err(TierError::KeyGone)
            }
        }
    }

    /// Runs `work` with the key, which cannot be destroyed meanwhile; none if it is gone.
    pub(crate) fn with<R>(
        &self,
        namespace: NamespaceId,
        generation: Generation,
        work: impl FnOnce(&SealingKey) -> R,
    ) -> Option<R> {
        let place = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(keys.get(&(namespace, generation))?)
        };
        let held = place.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(work)
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRing({} keys)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destroys_up_to_a_generation_of_one_namespace_only() {
        let ring = KeyRing::new();
        for namespace in [1, 2] {
            for generation in 1..=3 {
                let key = DataKey::new(&mut [generation as u8; 32]);
                ring.insert(NamespaceId(namespace), Generation(generation), key);
            }
        }
        assert_eq!(ring.destroy(NamespaceId(1), Generation(2)), 2);
        assert!(!ring.holds(NamespaceId(1), Generation(1)));
        assert!(!ring.holds(NamespaceId(1), Generation(2)));
        assert!(ring.holds(NamespaceId(1), Generation(3)));
        assert_eq!(ring.len(), 4);
        assert!(ring.with(NamespaceId(1), Generation(2), |_| ()).is_none());
        assert_eq!(ring.destroy(NamespaceId(1), Generation(2)), 0);
    }
}
