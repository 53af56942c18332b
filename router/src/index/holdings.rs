//! What is held of one scope: a table for each tier, and what its writers count.
//!
//! Writers take the scope's lock and change tables in place; readers find the tables through one atomic
//! pointer, which moves only when a table is replaced. `visible` hides a replica in one store before its bits
//! are swept, so that a purge is instant for readers however large the table is.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use base::Tier;

use super::budget::{Budget, Charge, Full};
use super::matches::Matches;
use super::outcome::{Dropped, Stored};
use super::scope::Scope;
use super::table::Table;
use super::walk::Walk;
use super::writer::{CHUNK, Writer};
use crate::{Seat, SeatSet};

const TIERS: usize = Tier::ALL.len();

pub(super) struct Holdings {
    pub scope: Scope,
    visible: AtomicU64,
    tables: ArcSwap<Tables>,
    ledger: Mutex<Ledger>,
    budget: Arc<Budget>,
    _charge: Charge,
}

#[derive(Clone, Default)]
struct Tables([Option<Arc<Table>>; TIERS]);

/// The writers' side.
#[derive(Default)]
pub(super) struct Ledger {
    shelves: [Option<Box<Shelf>>; TIERS],
    /// Taken out of the registry: whoever still has it must ask there again.
    pub is_over: bool,
}

/// A table and how many of its names each replica holds.
struct Shelf {
    writer: Writer,
    counts: [u32; Seat::MAX],
    charge: Charge,
}

impl Holdings {
    pub fn new(scope: Scope, budget: &Arc<Budget>) -> Result<Self, Full> {
        let charge = budget.charge(size_of::<Self>() as u64)?;
        Ok(Self {
            scope,
            visible: AtomicU64::new(0),
            tables: ArcSwap::default(),
            ledger: Mutex::default(),
            budget: budget.clone(),
            _charge: charge,
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For readers: no lock.
    #[inline]
    pub fn lookup(&self, names: &[u64], seats: SeatSet, linear: SeatSet, into: &mut Matches) {
        let seats = seats.0 & self.visible.load(Acquire);
        if seats == 0 {
            return;
        }
        let tables = self.tables.load();
        for (tier, table) in Tier::ALL.into_iter().zip(&tables.0) {
            if let Some(table) = table {
                Walk { table, tier, names, seats, into }.run(linear.0);
            }
        }
    }

    pub fn store(
        &self,
        ledger: &mut Ledger,
        seat: Seat,
        tier: Tier,
        parent: Option<u64>,
        names: &[u64],
    ) -> Stored {
        let mut outcome = Stored::default();
        let (mut is_moved, slot) = (false, &mut ledger.shelves[tier.index()]);
        if slot.is_none() {
            match Shelf::new(&self.budget) {
                Ok(shelf) => *slot = Some(Box::new(shelf)),
                Err(_) => return Stored { refused: names.len() as u32, ..outcome },
            }
            is_moved = true;
        }
        let shelf = slot.as_mut().expect("made above");
        if parent.is_some_and(|parent| !shelf.has(seat, parent)) {
            outcome.orphans = names.len() as u32;
        }
        is_moved |= shelf.store(seat, names, &self.budget, &mut outcome);
        if shelf.writer.live() == 0 {
            *slot = None; // made for names that were all refused
        }
        if is_moved {
            self.show(ledger);
        }
        if outcome.added > 0 && self.visible.load(Acquire) & SeatSet::of(seat).0 == 0 {
            self.visible.fetch_or(SeatSet::of(seat).0, AcqRel);
        }
        outcome
    }

    /// How many of the names the replica held there.
    pub fn remove(&self, ledger: &mut Ledger, seat: Seat, tier: Tier, names: &[u64]) -> u32 {
        let Some(shelf) = &mut ledger.shelves[tier.index()] else { return 0 };
        let removed = shelf.remove(seat, names);
        if removed > 0 {
            self.tidy(ledger);
        }
        removed
    }

    /// Everything of a replica. Readers see none of it from the first moment.
    pub fn drop_seat(&self, ledger: &mut Ledger, seat: Seat) -> Dropped {
        let bit = SeatSet::of(seat).0;
        let mut dropped = Dropped::default();
        if self.visible.fetch_and(!bit, AcqRel) & bit == 0 {
            return dropped;
        }
        // Farthest first: a block counts where no nearer tier has it.
        for tier in (0..TIERS).rev() {
            let (nearer, rest) = ledger.shelves.split_at_mut(tier);
            let Some(shelf) = &mut rest[0] else { continue };
            let had = std::mem::take(&mut shelf.counts[seat.index()]);
            dropped.memberships[tier] += u64::from(had);
            if had > 0 {
                let nearer = || nearer.iter().flatten();
                shelf.writer.sweep(
                    bit,
                    |_| true,
                    |name| dropped.blocks += u64::from(!nearer().any(|shelf| shelf.has(seat, name))),
                );
            }
        }
        self.tidy(ledger);
        dropped
    }

    /// Frees tables that hold nothing and shrinks those that hold little.
    fn tidy(&self, ledger: &mut Ledger) {
        let mut is_moved = false;
        for slot in &mut ledger.shelves {
            let Some(shelf) = slot else { continue };
            if shelf.writer.live() == 0 {
                *slot = None;
                is_moved = true;
            } else {
                is_moved |= shelf.writer.shrink(&self.budget);
            }
        }
        if is_moved {
            self.show(ledger);
        }
    }

    fn show(&self, ledger: &Ledger) {
        let table = |shelf: &Option<Box<Shelf>>| shelf.as_ref().map(|shelf| shelf.writer.table().clone());
        self.tables.store(Arc::new(Tables(ledger.shelves.each_ref().map(table))));
    }

    /// What the tables hold of a replica, by the counts.
    pub fn counts(&self, ledger: &Ledger, seat: Seat) -> [u64; TIERS] {
        let count = |shelf: &Option<Box<Shelf>>| shelf.as_ref().map_or(0, |s| s.counts[seat.index()]);
        ledger.shelves.each_ref().map(|shelf| u64::from(count(shelf)))
    }

    /// The bytes charged for what is in use.
    pub fn bytes(&self, ledger: &Ledger) -> u64 {
        let shelf = |shelf: &Shelf| shelf.writer.table().bytes() + shelf.charge.bytes();
        self._charge.bytes() + ledger.shelves.iter().flatten().map(|s| shelf(s)).sum::<u64>()
    }

    /// Counts equal bits, and readers are shown the tables that writers change.
    pub fn check(&self, ledger: &Ledger) -> Result<(), String> {
        let shown = self.tables.load();
        for (shelf, table) in ledger.shelves.iter().zip(&shown.0) {
            match (shelf, table) {
                (None, None) => (),
                (Some(shelf), Some(table)) if Arc::ptr_eq(shelf.writer.table(), table) => {
                    shelf.check(self.visible.load(Acquire))?;
                }
                _ => return Err("readers are shown another table than writers change".into()),
            }
        }
        Ok(())
    }
}

impl Ledger {
    pub fn is_empty(&self) -> bool {
        self.shelves.iter().all(Option::is_none)
    }
}

impl Shelf {
    fn new(budget: &Arc<Budget>) -> Result<Self, Full> {
        let charge = budget.charge(size_of::<Self>() as u64)?;
        Ok(Self { writer: Writer::new(budget)?, counts: [0; Seat::MAX], charge })
    }

    fn has(&self, seat: Seat, name: u64) -> bool {
        SeatSet(self.writer.table().get(name)).has(seat)
    }

    /// Whether there is a new table.
    fn store(&mut self, seat: Seat, names: &[u64], budget: &Arc<Budget>, outcome: &mut Stored) -> bool {
        let (bit, mut is_moved, mut added) = (SeatSet::of(seat).0, false, 0);
        for chunk in names.chunks(CHUNK) {
            is_moved |= self.writer.make_room(chunk.len(), budget);
            self.writer.set_all(chunk, bit, |was| match was {
                Ok(word) if word & bit == 0 => added += 1,
                Ok(_) => outcome.repeated += 1,
                Err(_) => outcome.refused += 1,
            });
        }
        self.counts[seat.index()] += added;
        outcome.added += added;
        is_moved
    }

    fn remove(&mut self, seat: Seat, names: &[u64]) -> u32 {
        let (bit, mut removed) = (SeatSet::of(seat).0, 0);
        self.writer.take_all(names, bit, |word| removed += u32::from(word & bit != 0));
        self.counts[seat.index()] -= removed;
        removed
    }

    fn check(&self, visible: u64) -> Result<(), String> {
        self.writer.check()?;
        let mut counts = [0; Seat::MAX];
        for (_, word) in self.writer.table().iter() {
            SeatSet(word).iter().for_each(|seat| counts[seat.index()] += 1);
            if word & !visible != 0 {
                return Err(format!("names of hidden seats {:x}", word & !visible));
            }
        }
        if counts != self.counts {
            return Err(format!("{counts:?} names by seat, {:?} counted", self.counts));
        }
        Ok(())
    }
}
