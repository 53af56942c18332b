//! What a reader who has heard every event holds: which blocks lie in which tier, and whose they are.
//!
//! Kept so that a new reader can be told the state at a sequence number without asking the scheduler. The other
//! way, to have the scheduler walk its trees, would stall a step by the size of the cache, or need trees that
//! can be walked while they change. This costs about 65 bytes a block (a page of KV is a thousand times that) and
//! no time of the scheduler: the hub's own thread keeps it while it numbers batches, so the mirror after batch n
//! *is* the fold of all events up to n, which is what a snapshot claims. Events only ever speak of pages, so
//! there are never more blocks here than the tiers have places; a bound stands for the case that they do.
//!
//! A snapshot is a copy of the table made under the lock, in which only the hub's thread waits; a thousand batches
//! fit between it and the scheduler. It is sorted once the lock is free.
//!
//! Order: a block is born after its parent, because a tier holds whole prefixes from the root and is told of
//! parents first, and lives as long as any child for the same reason. So the order of birth puts parents first.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use base::{Generation, NamespaceId, Tier};
use kvcache::{KvChange, Stored, TierEvent};

use super::record::{Change, Owner, Run, TierSet};

/// Blocks kept track of; at 64 GiB of KV for a small model, sixteen times what there is.
const BLOCKS_MAX: usize = 1 << 24;

/// The blocks of all tiers after some batch.
pub(crate) struct Mirror {
    blocks: HashMap<u64, Block, BuildHasherDefault<AsIs>>,
    owners: Owners,
    born: u64,
    blocks_max: usize,
    is_whole: bool,
}

#[derive(Clone, Copy)]
struct Block {
    parent: Option<u64>,
    born: u64,
    owner: u32,
    tiers: TierSet,
}

/// Forty bytes in a table that is between seven sixteenths and seven eighths full.
const _: () = assert!(size_of::<(u64, Block)>() <= 40);

impl Default for Mirror {
    fn default() -> Self {
        Self {
            blocks: HashMap::default(),
            owners: Owners::default(),
            born: 0,
            blocks_max: BLOCKS_MAX,
            is_whole: true,
        }
    }
}

/// A block of a snapshot.
#[derive(Clone, Copy, Debug)]
struct Held {
    born: u64,
    hash: u64,
    parent: Option<u64>,
    owner: Owner,
    tiers: TierSet,
}

/// All blocks at one moment.
pub(crate) struct Snapshot {
    blocks: Vec<Held>,
}

impl Mirror {
    /// Takes over one event and says what changed, by namespace.
    pub fn apply(&mut self, event: &TierEvent) -> Vec<Change> {
        match &event.change {
            KvChange::Stored(stored) => {
                self.store(stored, event.tier);
                vec![Change::Stored(Run::new(stored, event.tier))]
            }
            KvChange::Removed { names } => {
                let hashes: Vec<u64> = names.iter().map(|name| name.low64()).collect();
                self.remove(&hashes, event.tier)
            }
            KvChange::Cleared | KvChange::Lost { .. } => {
                *self = Self { blocks_max: self.blocks_max, born: self.born, ..Self::default() };
                vec![Change::Cleared]
            }
        }
    }

    fn store(&mut self, stored: &Stored, tier: Tier) {
        let Stored { namespace, generation, adapter, .. } = *stored;
        let mut parent = stored.parent.map(|name| name.low64());
        for name in &stored.names {
            let hash = name.low64();
            if let Some(block) = self.blocks.get_mut(&hash) {
                block.tiers = block.tiers.with(TierSet::of(tier));
            } else if self.blocks.len() < self.blocks_max {
                self.born += 1;
                let owner = self.owners.enter(Owner { namespace, generation, adapter });
                let block = Block { parent, born: self.born, owner, tiers: TierSet::of(tier) };
                self.blocks.insert(hash, block);
            } else {
                self.is_whole = false;
            }
            parent = Some(hash);
        }
    }

    fn remove(&mut self, hashes: &[u64], tier: Tier) -> Vec<Change> {
        let mut changes = Vec::new();
        let whose: Vec<_> = hashes.iter().map(|&hash| (self.take(hash, tier), hash)).collect();
        for run in whose.chunk_by(|a, b| a.0 == b.0) {
            let (namespace, same) = (run[0].0, run.iter().map(|(_, hash)| *hash).collect());
            changes.push(match namespace {
                None if self.is_whole => Change::Swept { tier, hashes: same },
                namespace => Change::Removed { tier, namespace, hashes: same },
            });
        }
        changes
    }

    /// Takes a block out of a tier; whose it is, if it was known.
    fn take(&mut self, hash: u64, tier: Tier) -> Option<NamespaceId> {
        let block = self.blocks.get_mut(&hash)?;
        block.tiers = block.tiers.without(TierSet::of(tier));
        let (id, is_gone) = (block.owner, block.tiers.is_empty());
        let owner = self.owners.get(id);
        if is_gone {
            self.blocks.remove(&hash);
            self.owners.leave(id);
        }
        owner.map(|owner| owner.namespace)
    }

    /// Drops what a namespace has up to a generation, and counts it.
    pub fn purge(&mut self, namespace: NamespaceId, up_to: Generation) -> u64 {
        let owners = &mut self.owners;
        let before = self.blocks.len();
        self.blocks.retain(|_, block| {
            let is_purged = owners.get(block.owner).is_some_and(|owner| owner.is_within(namespace, up_to));
            if is_purged {
                owners.leave(block.owner);
            }
            !is_purged
        });
        (before - self.blocks.len()) as u64
    }

    /// The blocks of these namespaces, or all if there are none; `None` if there were too many to keep.
    pub fn snapshot(&self, namespaces: &[NamespaceId]) -> Option<Snapshot> {
        // Owners are few and blocks are many: whose are meant is decided once per owner.
        let wanted: BTreeSet<NamespaceId> = namespaces.iter().copied().collect();
        let is_meant = |owner: &Owner| wanted.is_empty() || wanted.contains(&owner.namespace);
        let meant: Vec<Option<Owner>> =
            self.owners.slots.iter().map(|(owner, _)| Some(*owner).filter(is_meant)).collect();
        let held = |(&hash, block): (&u64, &Block)| {
            let Block { parent, born, tiers, .. } = *block;
            let owner = (*meant.get(block.owner as usize)?)?;
            Some(Held { born, hash, parent, owner, tiers })
        };
        self.is_whole.then(|| Snapshot { blocks: self.blocks.iter().filter_map(held).collect() })
    }
}

impl Snapshot {
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Parents first. Apart from the copying, which holds a lock.
    pub fn sort(&mut self) {
        self.blocks.sort_unstable_by_key(|held| held.born);
    }

    /// Runs of the next `blocks_max` blocks from `at` on.
    pub fn page(&self, at: usize, blocks_max: usize, page_tokens: u32) -> Vec<Run> {
        let end = self.blocks.len().min(at.saturating_add(blocks_max));
        let follows =
            |a: &Held, b: &Held| b.parent == Some(a.hash) && b.owner == a.owner && b.tiers == a.tiers;
        let run = |run: &[Held]| Run {
            owner: run[0].owner,
            tiers: run[0].tiers,
            parent: run[0].parent,
            hashes: run.iter().map(|held| held.hash).collect(),
            tokens: Vec::new(),
            page_tokens,
        };
        self.blocks[at.min(end)..end].chunk_by(follows).map(run).collect()
    }
}

/// Owners by number, each for as long as a block is theirs.
#[derive(Default)]
struct Owners {
    slots: Vec<(Owner, usize)>,
    known: HashMap<Owner, u32>,
    free: Vec<u32>,
}

impl Owners {
    fn enter(&mut self, owner: Owner) -> u32 {
        if let Some(&id) = self.known.get(&owner) {
            self.slots[id as usize].1 += 1;
            return id;
        }
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = (owner, 1);
                id
            }
            None => {
                self.slots.push((owner, 1));
                self.slots.len() as u32 - 1
            }
        };
        self.known.insert(owner, id);
        id
    }

    fn get(&self, id: u32) -> Option<Owner> {
        self.slots.get(id as usize).map(|(owner, _)| *owner)
    }

    fn leave(&mut self, id: u32) {
        let (owner, blocks) = &mut self.slots[id as usize];
        *blocks -= 1;
        if *blocks == 0 {
            self.known.remove(owner);
            self.free.push(id);
        }
    }
}

/// Block hashes are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base::{AdapterId, ChainHash};
    use proptest::prelude::*;

    use super::*;

    fn name(hash: u64) -> ChainHash {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&hash.to_le_bytes());
        ChainHash(bytes)
    }

    /// A prompt of namespace n has the blocks 100 n + 1, 100 n + 2, …
    fn stored(namespace: u64, generation: u64, from: u64, to: u64) -> KvChange {
        let hash = |at: u64| name(10_000 * generation + 100 * namespace + at);
        KvChange::Stored(Stored {
            namespace: NamespaceId(namespace),
            generation: Generation(generation),
            adapter: AdapterId(0),
            parent: from.checked_sub(1).filter(|&at| at > 0).map(hash),
            names: (from..to).map(hash).collect(),
            tokens: vec![1; (to - from) as usize],
            page_tokens: 1,
        })
    }

    /// Tiers in which prefixes grow and shrink at their ends, as the real ones do.
    #[derive(Default)]
    struct World {
        /// Length of each prompt by (tier, namespace, generation).
        lens: BTreeMap<(Tier, u64, u64), u64>,
    }

    type Set = BTreeSet<(u64, Tier)>;

    /// Applies what the mirror says changed, as a reader does.
    fn fold(set: &mut Set, owners: &mut BTreeMap<u64, Owner>, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Stored(run) => {
                    for &hash in &run.hashes {
                        owners.insert(hash, run.owner);
                        set.extend(run.tiers.iter().map(|tier| (hash, tier)));
                    }
                }
                Change::Removed { tier, hashes, namespace } => {
                    for hash in hashes {
                        assert!(set.remove(&(*hash, *tier)));
                        assert_eq!(namespace.unwrap(), owners[hash].namespace);
                    }
                }
                Change::Cleared => set.clear(),
                Change::Swept { .. } | Change::Purged { .. } => unreachable!("{change:?}"),
            }
        }
    }

    fn held(snapshot: &Snapshot) -> Set {
        let runs = (0..snapshot.len()).step_by(3).flat_map(|at| snapshot.page(at, 3, 1));
        let mut set = Set::new();
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        for run in runs {
            assert!(run.parent.is_none_or(|parent| seen.contains(&parent)), "a child before its parent");
            seen.extend(&run.hashes);
            set.extend(run.hashes.iter().flat_map(|&hash| run.tiers.iter().map(move |tier| (hash, tier))));
        }
        set
    }

    proptest! {
        #[test]
        fn a_snapshot_is_the_fold_of_all_events_parents_first(
            steps in prop::collection::vec((0..2usize, 0..3u64, 0..2u64, 0..9u64, 0..60u32), 1..120)
        ) {
            let (mut world, mut mirror) = (World::default(), Mirror::default());
            let (mut set, mut owners) = (Set::new(), BTreeMap::new());
            for (tier, namespace, generation, to, what) in steps {
                let tier = Tier::ALL[tier];
                if what == 0 {
                    world.lens.clear();
                    let event = TierEvent { sequence: 0, tier, change: KvChange::Cleared };
                    fold(&mut set, &mut owners, &mirror.apply(&event));
                } else if what == 1 {
                    let within = |(_, n, g): &(Tier, u64, u64)| *n == namespace && *g <= generation;
                    world.lens.retain(|key, _| !within(key));
                    let owned = |hash: &u64| owners[hash].is_within(NamespaceId(namespace), Generation(generation));
                    let gone: BTreeSet<u64> = set.iter().map(|(hash, _)| *hash).filter(owned).collect();
                    set.retain(|(hash, _)| !gone.contains(hash));
                    prop_assert_eq!(mirror.purge(NamespaceId(namespace), Generation(generation)), gone.len() as u64);
                } else {
                    let len = world.lens.entry((tier, namespace, generation)).or_default();
                    let change = if to >= *len {
                        stored(namespace, generation, *len + 1, to + 1)
                    } else {
                        let hash = |at: u64| name(10_000 * generation + 100 * namespace + at);
                        KvChange::Removed { names: (to + 1..=*len).rev().map(hash).collect() }
                    };
                    *len = to;
                    fold(&mut set, &mut owners, &mirror.apply(&TierEvent { sequence: 0, tier, change }));
                }
                let mut snapshot = mirror.snapshot(&[]).unwrap();
                snapshot.sort();
                prop_assert_eq!(&held(&snapshot), &set);
                let mut one = mirror.snapshot(&[NamespaceId(1)]).unwrap();
                one.sort();
                let of_one: Set = set.iter().copied().filter(|(hash, _)| owners[hash].namespace.0 == 1).collect();
                prop_assert_eq!(held(&one), of_one);
            }
        }
    }

    #[test]
    fn what_a_purge_took_is_not_removed_again() {
        let mut mirror = Mirror::default();
        let mut tell = |change| mirror.apply(&TierEvent { sequence: 0, tier: Tier::Device, change });
        tell(stored(3, 0, 1, 3));
        tell(stored(4, 0, 1, 2));
        assert_eq!(mirror.purge(NamespaceId(3), Generation(0)), 2);
        let names = [302, 301, 401].map(name).to_vec();
        let change = KvChange::Removed { names };
        let changes = mirror.apply(&TierEvent { sequence: 0, tier: Tier::Device, change });
        let removed =
            Change::Removed { tier: Tier::Device, namespace: Some(NamespaceId(4)), hashes: vec![401] };
        assert_eq!(changes, [Change::Swept { tier: Tier::Device, hashes: vec![302, 301] }, removed]);
    }

    #[test]
    fn past_its_bound_it_gives_no_snapshot_until_all_is_cleared() {
        let mut mirror = Mirror { blocks_max: 3, ..Mirror::default() };
        let tell = |mirror: &mut Mirror, change| {
            mirror.apply(&TierEvent { sequence: 0, tier: Tier::Device, change });
            mirror.snapshot(&[]).map(|snapshot| snapshot.len())
        };
        assert_eq!(tell(&mut mirror, stored(0, 0, 1, 4)), Some(3));
        assert_eq!(tell(&mut mirror, stored(0, 0, 4, 5)), None);
        assert_eq!(tell(&mut mirror, KvChange::Removed { names: vec![name(3)] }), None);
        assert_eq!(tell(&mut mirror, KvChange::Cleared), Some(0));
    }
}
