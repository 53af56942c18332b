//! Between the cache's notes and the journal's entries: trees get numbers, keys become bytes.
//!
//! A tree is entered with the first page of it that is stored. Its number is forgotten with its
//! namespace's generation, never before: a tree whose pages have all gone costs a few bytes of index
//! until then.

use std::collections::HashMap;

use base::{AdapterId, Generation, ModelDigest, NamespaceId};
use kvcache::{JournalNote, SlotRecord, TreeKey};
use transfer::{Entry, Recovered};

use super::orders::{pack, unpack};

/// Bytes of a tree key before its salt.
const KEY_BYTES: usize = 32 + 4;

#[derive(Default)]
pub(super) struct Index {
    trees: HashMap<TreeKey, u64>,
    next_tree: u64,
}

impl Index {
    /// The index as it was found, and the pages that it names.
    pub fn recover(recovered: Recovered) -> (Self, Vec<SlotRecord>) {
        let mut index = Self { trees: HashMap::new(), next_tree: recovered.next_tree };
        let mut keys: HashMap<u64, TreeKey> = HashMap::new();
        for tree in recovered.trees {
            if let Some(key) = decode(tree.namespace, tree.generation, &tree.key) {
                index.trees.insert(key.clone(), tree.tree);
                keys.insert(tree.tree, key);
            }
        }
        let record = |page: transfer::RecoveredPage| {
            Some(SlotRecord {
                tier: page.tier,
                slot: page.slot,
                key: keys.get(&page.tree)?.clone(),
                parent: page.parent.map(|(_, slot)| slot),
                name: page.name,
                seal: pack(&page.seal),
                tokens: page.tokens,
            })
        };
        let records = recovered.pages.into_iter().filter_map(record).collect();
        (index, records)
    }

    pub fn entries(&mut self, notes: Vec<JournalNote>) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(notes.len());
        for note in notes {
            match note {
                JournalNote::Page(record) => self.enter_page(record, &mut entries),
                JournalNote::Drop { tier, slot } => entries.push(Entry::Drop { tier, slot }),
                JournalNote::Forget { namespace, up_to } => {
                    self.trees.retain(|key, _| key.namespace != namespace || key.generation > up_to);
                    entries.push(Entry::DropNamespace { namespace, up_to });
                }
            }
        }
        entries
    }

    fn enter_page(&mut self, record: SlotRecord, entries: &mut Vec<Entry>) {
        let tree = match self.trees.get(&record.key) {
            Some(&tree) => tree,
            None => {
                let tree = self.next_tree;
                self.next_tree += 1;
                let (namespace, generation) = (record.key.namespace, record.key.generation);
                entries.push(Entry::Tree { tree, namespace, generation, key: encode(&record.key) });
                self.trees.insert(record.key, tree);
                tree
            }
        };
        entries.push(Entry::Page {
            tier: record.tier,
            slot: record.slot,
            tree,
            parent: record.parent.map(|slot| (record.tier, slot)),
            name: record.name,
            seal: unpack(&record.seal),
            tokens: record.tokens,
        });
    }
}

/// Namespace and generation stand beside it in clear.
fn encode(key: &TreeKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(KEY_BYTES + key.salt.len());
    bytes.extend(key.model.0);
    bytes.extend(key.adapter.0.to_le_bytes());
    bytes.extend(&key.salt);
    bytes
}

fn decode(namespace: NamespaceId, generation: Generation, bytes: &[u8]) -> Option<TreeKey> {
    let (model, rest) = bytes.split_first_chunk::<32>()?;
    let (adapter, salt) = rest.split_first_chunk::<4>()?;
    Some(TreeKey {
        namespace,
        generation,
        model: ModelDigest(*model),
        adapter: AdapterId(u32::from_le_bytes(*adapter)),
        salt: salt.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_key_comes_back_from_its_bytes() {
        let key = TreeKey {
            generation: Generation(3),
            adapter: AdapterId(7),
            salt: b"pepper".to_vec(),
            ..TreeKey::new(NamespaceId(9), ModelDigest([5; 32]))
        };
        assert_eq!(decode(NamespaceId(9), Generation(3), &encode(&key)), Some(key));
        assert_eq!(decode(NamespaceId(9), Generation(3), &[0; 20]), None);
    }
}
