//! The index after a crash: a state that once was, or part of it, and never a wrong record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use base::{ChainHash, Generation, ManualClock, NamespaceId, SlotId, Tier};
use proptest::prelude::*;
use quire_transfer::{DataKey, Entry, Journal, JournalConfig, KeyRing, PageSeal, Recovered};

const LAYOUT: [u8; 32] = [9; 32];
type At = (Tier, SlotId);

fn keys(namespaces: u64) -> Arc<KeyRing> {
    let ring = KeyRing::new();
    for namespace in 1..=namespaces {
        ring.insert(NamespaceId(namespace), Generation(1), DataKey::new(&mut [namespace as u8; 32]));
    }
    Arc::new(ring)
}

fn open(dir: &Path, keys: &Arc<KeyRing>) -> (Journal, Recovered) {
    Journal::open(&JournalConfig::new(dir, LAYOUT), Arc::clone(keys), &ManualClock::default()).unwrap()
}

/// Writes the entries and ends in order.
fn write(dir: &Path, keys: &Arc<KeyRing>, entries: Vec<Entry>) {
    let (journal, _) = open(dir, keys);
    journal.submit(entries).unwrap();
}

fn tree(tree: u64, namespace: u64) -> Entry {
    Entry::Tree {
        tree,
        namespace: NamespaceId(namespace),
        generation: Generation(1),
        key: format!("key of {tree} in {namespace}").into_bytes(),
    }
}

fn page(slot: u32, tree: u64, parent: Option<u32>, number: u8) -> Entry {
    Entry::Page {
        tier: Tier::Nvme,
        slot: SlotId(slot),
        tree,
        parent: parent.map(|slot| (Tier::Nvme, SlotId(slot))),
        name: ChainHash([number; 32]),
        seal: PageSeal { nonce: [number; 12], tag: [number; 16] },
        tokens: vec![u32::from(number); usize::from(number % 4)],
    }
}

fn names(recovered: &Recovered) -> Vec<u8> {
    recovered.pages.iter().map(|page| page.name.0[0]).collect()
}

fn log(dir: &Path) -> std::path::PathBuf {
    dir.join("index.log")
}

#[test]
fn what_was_entered_is_recovered_parents_first() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(2);
    let entries =
        vec![tree(4, 1), page(9, 4, None, 1), page(3, 4, Some(9), 2), page(1, 4, Some(3), 3), tree(5, 2)];
    write(dir.path(), &keys, entries);
    let (_journal, recovered) = open(dir.path(), &keys);
    assert_eq!(names(&recovered), [1, 2, 3]);
    assert_eq!(recovered.pages[2].tokens, [3, 3, 3]);
    assert_eq!(recovered.pages[2].parent, Some((Tier::Nvme, SlotId(3))));
    assert_eq!(recovered.trees.len(), 1, "a tree without pages is not worth its key");
    assert_eq!(recovered.trees[0].key, b"key of 4 in 1");
    assert_eq!(recovered.next_tree, 6);
    assert_eq!(recovered.dropped, Default::default());
}

#[test]
fn a_slot_written_again_orphans_what_hung_below() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    let entries = vec![
        tree(1, 1),
        page(0, 1, None, 1),
        page(1, 1, Some(0), 2),
        page(2, 1, Some(1), 3),
        page(0, 1, None, 9),
    ];
    write(dir.path(), &keys, entries);
    let (_journal, recovered) = open(dir.path(), &keys);
    assert_eq!(names(&recovered), [9]);
    assert_eq!(recovered.dropped.orphans, 2);
}

#[test]
fn the_same_page_written_again_keeps_what_hung_below() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    let entries = vec![tree(1, 1), page(0, 1, None, 1), page(1, 1, Some(0), 2), page(0, 1, None, 1)];
    write(dir.path(), &keys, entries);
    assert_eq!(names(&open(dir.path(), &keys).1), [1, 2]);
}

#[test]
fn a_page_of_a_dropped_namespace_or_a_gone_key_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let ring = keys(3);
    let mut entries = vec![tree(1, 1), tree(2, 2), tree(3, 3)];
    entries.extend([page(1, 1, None, 1), page(2, 2, None, 2), page(3, 3, None, 3)]);
    let (journal, _) = open(dir.path(), &ring);
    journal.submit(entries).unwrap();
    journal.flush().unwrap();
    let before = std::fs::read(log(dir.path())).unwrap();
    journal.submit(vec![Entry::DropNamespace { namespace: NamespaceId(2), up_to: Generation(1) }]).unwrap();
    journal.flush().unwrap();
    let after = std::fs::read(log(dir.path())).unwrap();
    let shows = |bytes: &[u8]| bytes.windows(32).any(|w| w == [2; 32]);
    assert!(shows(&before) && !shows(&after), "the name is gone from the file when flush returns");
    drop(journal);
    ring.destroy(NamespaceId(3), Generation(1));
    let (journal, recovered) = open(dir.path(), &ring);
    assert_eq!(names(&recovered), [1]);
    assert_eq!(recovered.dropped.key_gone, 1);
    drop(journal);
    let file = std::fs::read(log(dir.path())).unwrap();
    assert!(!file.windows(32).any(|w| w == [3; 32]), "nor does a page without a key stay");
}

#[test]
fn another_layout_starts_empty_and_removes_the_slots() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    write(dir.path(), &keys, vec![tree(1, 1), page(1, 1, None, 1)]);
    std::fs::write(dir.path().join("segment-00000.pages"), b"old").unwrap();
    std::fs::write(dir.path().join("unrelated"), b"kept").unwrap();
    let other = JournalConfig::new(dir.path(), [8; 32]);
    let (journal, recovered) = Journal::open(&other, Arc::clone(&keys), &ManualClock::default()).unwrap();
    assert!(recovered.pages.is_empty());
    assert_eq!(recovered.dropped.other_layout, 1);
    assert!(!dir.path().join("segment-00000.pages").exists());
    assert!(dir.path().join("unrelated").exists());
    journal.submit(vec![tree(1, 1), page(1, 1, None, 7)]).unwrap();
    drop(journal);
    let (_journal, recovered) = Journal::open(&other, keys, &ManualClock::default()).unwrap();
    assert_eq!(names(&recovered), [7]);
}

#[test]
fn the_file_tells_neither_tokens_nor_keys_without_the_data_key() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    let mut secret = page(1, 1, None, 3);
    if let Entry::Page { tokens, .. } = &mut secret {
        *tokens = vec![0x5A5A_5A5A; 16];
    }
    write(dir.path(), &keys, vec![tree(1, 1), secret]);
    let file = std::fs::read(log(dir.path())).unwrap();
    assert!(!file.windows(8).any(|w| w == [0x5A; 8]));
    assert!(!file.windows(6).any(|w| w == b"key of"));
}

#[test]
fn rewriting_keeps_what_counts_and_little_else() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    let (journal, _) = open(dir.path(), &keys);
    let mut entries = vec![tree(1, 1)];
    for round in 0..200u32 {
        for slot in 0..50 {
            let parent = (slot > 0).then(|| slot - 1);
            entries.push(page(slot, 1, parent, (round % 7) as u8 * 30 + (slot % 30) as u8));
        }
    }
    for chunk in entries.chunks(1000) {
        journal.submit(chunk.to_vec()).unwrap();
        journal.flush().unwrap();
    }
    let stats = journal.stats();
    assert!(stats.compactions > 0, "{stats:?}");
    assert!(stats.file_bytes <= 1 << 20, "{stats:?}");
    assert_eq!((stats.pages, stats.lost), (50, 0));
    drop(journal);
    assert_eq!(open(dir.path(), &keys).1.pages.len(), 50);
}

#[test]
fn a_full_queue_gives_the_entries_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = JournalConfig { queue_max: 2, ..JournalConfig::new(dir.path(), LAYOUT) };
    let (journal, _) = Journal::open(&config, keys(1), &ManualClock::default()).unwrap();
    let entries = vec![tree(1, 1), tree(2, 1), tree(3, 1)];
    assert_eq!(journal.submit(entries.clone()).unwrap_err(), entries);
}

/// The index as a person would write it: maps, and a walk to the root for each page.
#[derive(Clone, Default)]
struct Model {
    trees: BTreeMap<u64, (u64, u32)>,
    pages: BTreeMap<At, ModelPage>,
    counted: u32,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ModelPage {
    tree: u64,
    life: u32,
    parent: Option<(At, u8)>,
    name: u8,
}

impl Model {
    fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Tree { tree, namespace, .. } => {
                self.counted += 1;
                self.trees.insert(*tree, (namespace.0, self.counted));
            }
            Entry::Page { tier, slot, tree, parent, name, .. } => {
                let at = (*tier, *slot);
                let life = self.trees.get(tree).map(|t| t.1);
                let above = parent.map(|p| {
                    let page =
                        self.pages.get(&p).filter(|page| page.tree == *tree && Some(page.life) == life);
                    page.map(|page| (p, page.name))
                });
                self.pages.remove(&at);
                if let (Some(life), None | Some(Some(_))) = (life, above) {
                    let page = ModelPage { tree: *tree, life, parent: above.flatten(), name: name.0[0] };
                    self.pages.insert(at, page);
                }
            }
            Entry::Drop { tier, slot } => drop(self.pages.remove(&(*tier, *slot))),
            Entry::DropTree { tree } => drop(self.trees.remove(tree)),
            Entry::DropNamespace { namespace, .. } => {
                self.trees.retain(|_, (owner, _)| *owner != namespace.0)
            }
        }
    }

    fn is_visible(&self, at: At, depth: usize) -> bool {
        let Some(page) = self.pages.get(&at) else { return false };
        let in_tree = self.trees.get(&page.tree).is_some_and(|tree| tree.1 == page.life);
        let above = page.parent.is_none_or(|(parent, name)| {
            let same = |p: &ModelPage| p.name == name && p.tree == page.tree && p.life == page.life;
            depth < 64 && self.pages.get(&parent).is_some_and(same) && self.is_visible(parent, depth + 1)
        });
        in_tree && above
    }

    fn visible(&self) -> BTreeSet<(At, u64, u64, Option<At>, u8)> {
        let shown = self.pages.iter().filter(|(at, _)| self.is_visible(**at, 0));
        shown.map(|(at, p)| (*at, p.tree, self.trees[&p.tree].0, p.parent.map(|x| x.0), p.name)).collect()
    }
}

fn visible(recovered: &Recovered) -> BTreeSet<(At, u64, u64, Option<At>, u8)> {
    let mut seen: BTreeSet<(At, u64, u64, Option<At>, u8)> = BTreeSet::new();
    let owners: BTreeMap<u64, u64> = recovered.trees.iter().map(|t| (t.tree, t.namespace.0)).collect();
    for tree in &recovered.trees {
        assert_eq!(tree.key, format!("key of {} in {}", tree.tree, tree.namespace).into_bytes());
    }
    for page in &recovered.pages {
        let number = page.name.0[0];
        assert_eq!(page.name, ChainHash([number; 32]));
        assert_eq!(page.seal, PageSeal { nonce: [number; 12], tag: [number; 16] });
        assert_eq!(page.tokens, vec![u32::from(number); usize::from(number % 4)]);
        let above = page.parent.is_none_or(|at| seen.iter().any(|(seen, ..)| *seen == at));
        assert!(above, "a parent comes first");
        seen.insert(((page.tier, page.slot), page.tree, owners[&page.tree], page.parent, number));
    }
    assert_eq!(seen.len(), recovered.pages.len(), "no page twice");
    seen
}

fn entry() -> impl Strategy<Value = Entry> {
    let slot = 0..8u32;
    prop_oneof![
        2 => (1..4u64, 1..3u64).prop_map(|(id, namespace)| tree(id, namespace)),
        12 => (slot.clone(), 1..4u64, proptest::option::weighted(0.7, slot.clone()), 0..40u8)
            .prop_map(|(slot, tree, parent, number)| page(slot, tree, parent, number)),
        2 => slot.prop_map(|slot| Entry::Drop { tier: Tier::Nvme, slot: SlotId(slot) }),
        1 => (1..4u64).prop_map(|tree| Entry::DropTree { tree }),
    ]
}

fn drop_namespace() -> impl Strategy<Value = Entry> {
    (1..3u64).prop_map(|n| Entry::DropNamespace { namespace: NamespaceId(n), up_to: Generation(1) })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cut anywhere, the index is what it was after some entry; uncut, what it was after the last.
    #[test]
    fn a_crash_at_any_byte_recovers_a_state_that_was(
        entries in proptest::collection::vec(entry(), 1..60), cut in 0.0..1.0f64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(2);
        write(dir.path(), &keys, entries.clone());
        let mut model = Model::default();
        let mut states = vec![model.visible()];
        for entry in &entries {
            model.apply(entry);
            states.push(model.visible());
        }
        let whole = std::fs::read(log(dir.path())).unwrap();
        let recovered = open(dir.path(), &keys).1;
        prop_assert_eq!(&visible(&recovered), states.last().unwrap());

        let kept = (whole.len() as f64 * cut) as usize;
        std::fs::write(log(dir.path()), &whole[..kept]).unwrap();
        let (journal, recovered) = open(dir.path(), &keys);
        let seen = visible(&recovered);
        prop_assert!(states.contains(&seen), "{seen:?}");
        // And it goes on from there.
        journal.submit(vec![tree(7, 1), page(30, 7, None, 200)]).unwrap();
        drop(journal);
        let again = visible(&open(dir.path(), &keys).1);
        prop_assert_eq!(again.len(), seen.len() + 1);
        prop_assert!(again.is_superset(&seen));
    }

    /// A flipped bit ends the index there: an earlier state, or nothing.
    #[test]
    fn a_flipped_bit_recovers_a_state_that_was(
        entries in proptest::collection::vec(entry(), 1..60), place in 0.0..1.0f64, bit in 0..8u32,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(2);
        write(dir.path(), &keys, entries.clone());
        let mut model = Model::default();
        let mut states = vec![model.visible()];
        for entry in &entries {
            model.apply(entry);
            states.push(model.visible());
        }
        let mut file = std::fs::read(log(dir.path())).unwrap();
        let at = (file.len() as f64 * place) as usize;
        file[at] ^= 1 << bit;
        std::fs::write(log(dir.path()), &file).unwrap();
        let recovered = open(dir.path(), &keys).1;
        prop_assert!(states.contains(&visible(&recovered)));
        prop_assert!(recovered.dropped.torn_bytes > 0 || recovered.dropped.other_layout > 0);
    }

    /// With namespaces dropped the file is rewritten on the way; what is recovered was entered, and
    /// what was dropped stays dropped.
    #[test]
    fn dropped_namespaces_stay_dropped_through_rewrites_and_crashes(
        mut entries in proptest::collection::vec(entry(), 1..40),
        purge in drop_namespace(), more in proptest::collection::vec(entry(), 0..20), cut in 0.0..1.0f64,
    ) {
        entries.push(purge);
        entries.extend(more);
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(2);
        write(dir.path(), &keys, entries.clone());
        let mut model = Model::default();
        let mut once = BTreeSet::new();
        for entry in &entries {
            model.apply(entry);
            if matches!(entry, Entry::DropNamespace { .. }) {
                once.clear();
            }
            once.extend(model.visible());
        }
        prop_assert_eq!(visible(&open(dir.path(), &keys).1), model.visible());
        let whole = std::fs::read(log(dir.path())).unwrap();
        let kept = (whole.len() as f64 * cut) as usize;
        std::fs::write(log(dir.path()), &whole[..kept]).unwrap();
        prop_assert!(visible(&open(dir.path(), &keys).1).is_subset(&once));
    }
}
