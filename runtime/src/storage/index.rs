//! Between the cache's notes and the journal's entries: trees get numbers, keys become bytes.
//!
//! A tree is entered with the first page of it that is stored and dropped with its last: every
//! `cache_salt` makes a tree, and clients may draw as many as they like.

use std::collections::HashMap;

use base::{AdapterId, Generation, ModelDigest, NamespaceId, SlotId, Tier};
use kvcache::{JournalNote, SlotRecord, TreeKey};
use transfer::{Entry, Recovered};

use super::orders::{pack, unpack};

/// Bytes of a tree key before its salt.
const KEY_BYTES: usize = 32 + 4;

#[derive(Default)]
pub(super) struct Index {
    trees: HashMap<TreeKey, u64>,
    /// Key and pages of each tree.
    counts: HashMap<u64, (TreeKey, usize)>,
    slots: HashMap<(Tier, SlotId), u64>,
    next_tree: u64,
}

impl Index {
    /// The index as it was found, and the pages that it names.
    pub fn recover(recovered: Recovered) -> (Self, Vec<SlotRecord>) {
        let mut index = Self { next_tree: recovered.next_tree, ..Self::default() };
        let mut keys: HashMap<u64, TreeKey> = HashMap::new();
        for tree in recovered.trees {
            if let Some(key) = decode(tree.namespace, tree.generation, &tree.key) {
                index.trees.insert(key.clone(), tree.tree);
                index.counts.insert(tree.tree, (key.clone(), 0));
                keys.insert(tree.tree, key);
            }
        }
        let record = |page: transfer::RecoveredPage| {
            index.count((page.tier, page.slot), page.tree);
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
                JournalNote::Drop { tier, slot } => {
                    entries.push(Entry::Drop { tier, slot });
                    self.uncount((tier, slot), &mut entries);
                }
                JournalNote::Forget { namespace, up_to } => {
                    let stays = |key: &TreeKey| key.namespace != namespace || key.generation > up_to;
                    self.trees.retain(|key, _| stays(key));
                    self.counts.retain(|_, (key, _)| stays(key));
                    self.slots.retain(|_, tree| self.counts.contains_key(tree));
                    entries.push(Entry::DropNamespace { namespace, up_to });
                }
            }
        }
        entries
    }

    fn count(&mut self, place: (Tier, SlotId), tree: u64) {
        self.slots.insert(place, tree);
        if let Some((_, pages)) = self.counts.get_mut(&tree) {
            *pages += 1;
        }
    }

    fn uncount(&mut self, place: (Tier, SlotId), entries: &mut Vec<Entry>) {
        let Some(tree) = self.slots.remove(&place) else { return };
        let Some((_, pages)) = self.counts.get_mut(&tree) else { return };
        *pages -= 1;
        if *pages == 0
            && let Some((key, _)) = self.counts.remove(&tree)
        {
            self.trees.remove(&key);
            entries.push(Entry::DropTree { tree });
        }
    }

    fn enter_page(&mut self, record: SlotRecord, entries: &mut Vec<Entry>) {
        let tree = match self.trees.get(&record.key) {
            Some(&tree) => tree,
            None => {
                let tree = self.next_tree;
                self.next_tree += 1;
                let (namespace, generation) = (record.key.namespace, record.key.generation);
                entries.push(Entry::Tree { tree, namespace, generation, key: encode(&record.key) });
                self.counts.insert(tree, (record.key.clone(), 0));
                self.trees.insert(record.key, tree);
                tree
            }
        };
        self.count((record.tier, record.slot), tree);
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
    use base::ChainHash;

    use super::*;

    #[test]
    fn a_tree_is_entered_with_its_first_page_and_dropped_with_its_last() {
        let key = TreeKey::new(NamespaceId(1), ModelDigest([5; 32]));
        let page = |slot: u32, salt: &[u8]| {
            JournalNote::Page(SlotRecord {
                tier: Tier::Nvme,
                slot: SlotId(slot),
                key: TreeKey { salt: salt.to_vec(), ..key.clone() },
                parent: None,
                name: ChainHash([slot as u8; 32]),
                seal: [0; 28],
                tokens: Vec::new(),
            })
        };
        let drop = |slot: u32| JournalNote::Drop { tier: Tier::Nvme, slot: SlotId(slot) };
        let mut index = Index::default();
        let notes = vec![page(1, b""), page(2, b""), page(3, b"salt"), drop(1), drop(2), page(1, b"")];
        let entered = format!("{:?}", index.entries(notes));
        let expected = "[Tree(0), Page(nvme 1 of 0), Page(nvme 2 of 0), Tree(1), Page(nvme 3 of 1), \
                        Drop(nvme 1), Drop(nvme 2), DropTree(0), Tree(2), Page(nvme 1 of 2)]";
        assert_eq!(entered, expected);
        index.entries(vec![JournalNote::Forget { namespace: NamespaceId(1), up_to: Generation(0) }]);
        assert!(index.trees.is_empty() && index.counts.is_empty() && index.slots.is_empty());
    }

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
