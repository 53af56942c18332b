//! What every replica holds, in every tier: from the events of all of them to "who has how much of this prompt".
//!
//! ```text
//!  sources, a thread each                                    readers, no lock
//!  stored removed clear purge                                lookup(scope, names, seats)
//!        │                                                        │
//!        ▼                 Registry                               ▼
//!   scope's lock ──▶ family ─▶ generation ─▶ Holdings ◀── atomic pointer
//!        │                                     │ device  host  nvme  object
//!        │                                     ▼
//!        │                              ┌──────┬──────────────────┐
//!        └── in place, word by word ──▶ │ name │ 64 seats, one bit │  16 bytes
//!                                       └──────┴──────────────────┘
//!  Translator: engine hash → name, one for each foreign engine   Assumed: no events, what was routed where
//! ```
//!
//! A flat table of names and not a tree over them: an event names its blocks, so it is one probe a block,
//! whatever the prompt's length, and a lookup jumps along the prompt because a replica that evicts leaves first
//! holds a beginning of it (`walk`). A tree follows every edge and allocates for every branch.
//!
//! | operation | costs | while readers |
//! |---|---|---|
//! | `stored`, `removed` | one probe a block and tier | read on |
//! | `lookup` of n names, h distinct depths | O(h log n) probes a tier; O(n) for seats that break the promise | – |
//! | `clear`, `purge` | hidden in one store, then one pass over the scope's tables | see nothing of it at once |
//! | growth | a copy of one table, once in so many new names | have the old one |
//! | memory | 25–36 bytes a name and tier, whatever the number of seats; 50–71 with a translation | |
//!
//! **The promise.** Jumping is exact for replicas that evict leaves first, in each tier. That a parent is missing
//! is seen when a child is stored, exactly and for one probe a run; that a child is left behind is not seen at the
//! removal of its parent: it would take a link to the parent in every slot, half as much memory again. It is
//! instead looked for by `audit`, which walks a prompt both ways. A seat found to break the promise is walked
//! linearly from then on, so its scores are exact too, and slower.
//!
//! **Never above the truth.** At the byte budget the newest blocks are refused and the seat is marked, `clear`
//! and `replace` hide before they sweep, and a snapshot is filled in parents first after everything old is gone.
//!
//! Limits: 64 seats. Two 64-bit names of one scope that are equal are one block. Calls for one seat come from one
//! thread at a time, as they do from a source; different seats need no order.

mod assumed;
mod budget;
mod chain;
mod check;
mod holdings;
mod matches;
mod outcome;
mod registry;
mod scope;
mod table;
mod translator;
mod walk;
mod writer;

#[cfg(test)]
mod tests;

pub use assumed::{Assumed, AssumedConfig};
pub use chain::Chain;
pub use check::Unlawful;
pub use matches::Matches;
pub use outcome::{Dropped, Removed, Stored};
pub use scope::{Family, Scope};
pub use translator::{ForeignRun, Translator, Unnamed};

use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use base::{Bytes, Generation, Tier};

use crate::{Seat, SeatSet};
use budget::Budget;
use holdings::{Holdings, Ledger};
use registry::Registry;

const TIERS: usize = Tier::ALL.len();

/// Bounds of the index.
#[derive(Clone, Copy, Debug)]
pub struct IndexConfig {
    /// For everything, translations included.
    pub bytes_max: Bytes,
    /// Namespaces times generations, and models times adapters.
    pub scopes_max: usize,
}

impl Default for IndexConfig {
    fn default() -> Self {
        Self { bytes_max: Bytes(4 << 30), scopes_max: 65_536 }
    }
}

/// What a replica promises about evictions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evicts {
    /// No block goes before the blocks that follow it, in each tier. Ours do so.
    LeafFirst,
    /// In any order.
    Anyhow,
}

/// Of one seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeatView {
    /// Blocks it holds, by tier.
    pub memberships: [u64; TIERS],
    /// Blocks were refused: scores may be below the truth.
    pub is_incomplete: bool,
    /// It promised to evict leaves first and has not been found not to.
    pub is_leaf_first: bool,
}

/// Of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexView {
    pub bytes: Bytes,
    pub bytes_max: Bytes,
    pub scopes: usize,
    /// Counter: blocks refused for want of room.
    pub refused_blocks: u64,
    /// Counter: blocks stored below a parent that was missing.
    pub orphan_blocks: u64,
    /// Counter: seats found not to evict leaves first by an audit.
    pub broken_promises: u64,
    pub incomplete: SeatSet,
    pub linear: SeatSet,
}

/// The prefix index of one pool.
pub struct Index {
    registry: Registry,
    budget: Arc<Budget>,
    /// Seats that are walked linearly.
    linear: AtomicU64,
    totals: Box<Totals>,
}

/// What writers count; apart from what readers read.
#[repr(align(128))]
struct Totals {
    incomplete: AtomicU64,
    promised: AtomicU64,
    refused: AtomicU64,
    orphans: AtomicU64,
    broken: AtomicU64,
    memberships: [[AtomicU64; TIERS]; Seat::MAX],
}

impl Index {
    pub fn new(config: IndexConfig) -> Self {
        let zero = || AtomicU64::new(0);
        let memberships = std::array::from_fn(|_| std::array::from_fn(|_| zero()));
        let totals = Totals {
            incomplete: zero(),
            promised: zero(),
            refused: zero(),
            orphans: zero(),
            broken: zero(),
            memberships,
        };
        Self {
            registry: Registry::new(config.scopes_max),
            budget: Budget::new(config.bytes_max),
            linear: AtomicU64::new(u64::MAX),
            totals: Box::new(totals),
        }
    }

    /// How many of the names, from the first, each of the seats holds in each tier. Takes no lock.
    #[inline]
    pub fn lookup(&self, scope: &Scope, names: &[u64], seats: SeatSet, into: &mut Matches) {
        into.clear();
        if let Some(holdings) = self.registry.find(&scope.family).scope(scope) {
            holdings.lookup(names, seats, SeatSet(self.linear.load(Relaxed)), into);
        }
    }

    /// A replica holds these blocks in these tiers from now on; each is the child of the one before.
    pub fn stored(
        &self,
        seat: Seat,
        scope: &Scope,
        tiers: &[Tier],
        parent: Option<u64>,
        names: &[u64],
    ) -> Stored {
        let mut outcome = Stored::default();
        if names.is_empty() || tiers.is_empty() {
            return outcome;
        }
        let is_open = self.with_scope(scope, |holdings, ledger| {
            for &tier in tiers {
                let stored = holdings.store(ledger, seat, tier, parent, names);
                outcome += stored;
                self.total(seat, tier).fetch_add(u64::from(stored.added), Relaxed);
            }
        });
        if is_open.is_none() {
            outcome.refused = (names.len() * tiers.len()) as u32;
        }
        if outcome.refused + outcome.orphans > 0 {
            self.note(seat, outcome);
        }
        outcome
    }

    /// A tier of a replica no longer holds these blocks. Without a family they may be anybody's.
    pub fn removed(&self, seat: Seat, family: Option<&Family>, tier: Tier, names: &[u64]) -> Removed {
        let mut removed = 0;
        let mut of = |holdings: &Arc<Holdings>| {
            let mut ledger = holdings.lock();
            removed += holdings.remove(&mut ledger, seat, tier, names);
            self.leave(holdings, ledger);
        };
        match family {
            Some(family) => self.registry.find(family).generations(family).iter().for_each(&mut of),
            None => self.registry.all().iter().for_each(&mut of),
        }
        self.total(seat, tier).fetch_sub(u64::from(removed), Relaxed);
        Removed { removed, unknown: (names.len() as u32).saturating_sub(removed) }
    }

    /// A replica holds nothing any more. What was found out about it is forgotten too.
    pub fn clear(&self, seat: Seat) -> Dropped {
        let dropped = self.drop_seat(seat, &self.registry.all());
        let bit = SeatSet::of(seat).0;
        self.totals.incomplete.fetch_and(!bit, AcqRel);
        if self.totals.promised.load(Acquire) & bit != 0 {
            self.linear.fetch_and(!bit, AcqRel);
        }
        dropped
    }

    /// A snapshot of a replica begins, of whom nothing is believed any more: what is stored from now on, parents
    /// first, is what it holds. Scores begin at nothing and rise to the truth, never beyond.
    pub fn replace(&self, seat: Seat, evicts: Evicts) -> Dropped {
        let bit = SeatSet::of(seat).0;
        match evicts {
            Evicts::LeafFirst => self.totals.promised.fetch_or(bit, AcqRel),
            Evicts::Anyhow => self.totals.promised.fetch_and(!bit, AcqRel),
        };
        self.linear.fetch_or(bit, AcqRel);
        self.clear(seat)
    }

    /// A replica can use nothing of a namespace up to a generation any more.
    pub fn purge(&self, seat: Seat, namespace: &str, up_to: Generation) -> Dropped {
        let family = Family::Namespace(namespace.into());
        let found = self.registry.find(&family);
        let reached = found.generations(&family).iter().filter(|of| of.scope.generation <= up_to);
        self.drop_seat(seat, &reached.cloned().collect::<Vec<_>>())
    }

    /// Walks a prompt both ways, with writers held off, and marks the seats whose scores differ: they do not
    /// evict leaves first. For one lookup in so many; takes the scope's lock.
    pub fn audit(&self, scope: &Scope, names: &[u64], seats: SeatSet) -> SeatSet {
        let found = self.registry.find(&scope.family);
        let Some(holdings) = found.scope(scope) else { return SeatSet::EMPTY };
        let (mut jumped, mut walked) = (Matches::default(), Matches::default());
        {
            let _writers = holdings.lock();
            holdings.lookup(names, seats, SeatSet(self.linear.load(Acquire)), &mut jumped);
            holdings.lookup(names, seats, SeatSet::ALL, &mut walked);
        }
        let differ = jumped.seats().iter().filter(|&seat| jumped.held(seat) != walked.held(seat));
        let broken: SeatSet = differ.collect();
        self.linear.fetch_or(broken.0, AcqRel);
        self.totals.broken.fetch_add(broken.len() as u64, Relaxed);
        broken
    }

    pub fn seat(&self, seat: Seat) -> SeatView {
        let has = |set: &AtomicU64| SeatSet(set.load(Acquire)).has(seat);
        SeatView {
            memberships: self.totals.memberships[seat.index()].each_ref().map(|of| of.load(Relaxed)),
            is_incomplete: has(&self.totals.incomplete),
            is_leaf_first: !has(&self.linear),
        }
    }

    pub fn view(&self) -> IndexView {
        IndexView {
            bytes: self.budget.used(),
            bytes_max: self.budget.max(),
            scopes: self.registry.len(),
            refused_blocks: self.totals.refused.load(Relaxed),
            orphan_blocks: self.totals.orphans.load(Relaxed),
            broken_promises: self.totals.broken.load(Relaxed),
            incomplete: SeatSet(self.totals.incomplete.load(Acquire)),
            linear: SeatSet(self.linear.load(Acquire)),
        }
    }

    /// Runs with a scope's lock, made if it is not there; `None` if there is no room for it.
    fn with_scope<T>(&self, scope: &Scope, run: impl FnOnce(&Holdings, &mut Ledger) -> T) -> Option<T> {
        loop {
            let found = self.registry.find(&scope.family);
            let Some(holdings) = found.scope(scope) else {
                self.registry.open(scope, &self.budget)?;
                continue;
            };
            let mut ledger = holdings.lock();
            if !ledger.is_over {
                let result = run(holdings, &mut ledger);
                self.leave(holdings, ledger);
                return Some(result);
            }
            drop(ledger);
            self.registry.close(holdings);
        }
    }

    /// Lets go of a scope's lock, and ends the scope if nobody holds anything of it.
    fn leave(&self, holdings: &Arc<Holdings>, mut ledger: std::sync::MutexGuard<'_, Ledger>) {
        if ledger.is_empty() {
            ledger.is_over = true;
            drop(ledger);
            self.registry.close(holdings);
        }
    }

    fn drop_seat(&self, seat: Seat, scopes: &[Arc<Holdings>]) -> Dropped {
        let mut all = Dropped::default();
        for holdings in scopes {
            let mut ledger = holdings.lock();
            let mut dropped = holdings.drop_seat(&mut ledger, seat);
            dropped.scopes = u32::from(dropped.blocks > 0);
            dropped.scopes_freed = u32::from(dropped.blocks > 0 && ledger.is_empty());
            self.leave(holdings, ledger);
            all += dropped;
        }
        for (tier, had) in Tier::ALL.into_iter().zip(all.memberships) {
            self.total(seat, tier).fetch_sub(had, Relaxed);
        }
        all
    }

    /// Blocks of a replica were told of and could not be entered at all.
    fn miss(&self, seat: Seat, blocks: usize) {
        self.note(seat, Stored { refused: blocks as u32, ..Stored::default() });
    }

    fn note(&self, seat: Seat, outcome: Stored) {
        let bit = SeatSet::of(seat).0;
        if outcome.refused > 0 {
            self.totals.incomplete.fetch_or(bit, AcqRel);
        }
        self.linear.fetch_or(bit, AcqRel);
        self.totals.refused.fetch_add(u64::from(outcome.refused), Relaxed);
        self.totals.orphans.fetch_add(u64::from(outcome.orphans), Relaxed);
    }

    fn total(&self, seat: Seat, tier: Tier) -> &AtomicU64 {
        &self.totals.memberships[seat.index()][tier.index()]
    }
}
