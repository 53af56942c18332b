//! The one that changes a table: how full it is and when a larger or smaller one takes its place.
//!
//! A table is rebuilt to a load of `FRESH` when it passes `MOST`, and when names have become few. The old table
//! stays whole for its readers. Where the budget refuses the new one, the old one is filled up to `BRIM`, beyond
//! which new names are refused.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};

use super::budget::{Budget, Full};
use super::table::{Table, real};

/// Names per slot after a rebuild, and at most, in hundredths. Fuller is slower, emptier is larger: a name costs
/// from 16 / 0.65 to 16 / 0.45 bytes.
const FRESH: usize = 45;
const MOST: usize = 65;
const BRIM: usize = 94;
/// Below this load of names a table is rebuilt smaller.
const FEW: usize = 12;
pub(super) const SLOTS_MIN: usize = 8;
/// Names for which room is made at a time.
pub(super) const CHUNK: usize = 128;

pub(super) struct Writer {
    table: Arc<Table>,
    live: usize,
}

/// The table is full to the brim and may not grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoRoom;

impl Writer {
    pub fn new(budget: &Arc<Budget>) -> Result<Self, Full> {
        Ok(Self { table: Arc::new(Table::new(SLOTS_MIN, budget)?), live: 0 })
    }

    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Names that have a word.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Before up to `CHUNK` names are set: whether there is a new table that readers must be shown. A refusal
    /// of the budget is no failure yet.
    #[inline]
    pub fn make_room(&mut self, names: usize, budget: &Arc<Budget>) -> bool {
        (self.live + names) * 100 > self.table.slots().len() * MOST && self.rebuild(names, budget).is_ok()
    }

    /// After names were removed: whether there is a new table.
    pub fn shrink(&mut self, budget: &Arc<Budget>) -> bool {
        let slots = self.table.slots().len();
        slots > SLOTS_MIN && self.live * 100 < slots * FEW && self.rebuild(0, budget).is_ok()
    }

    fn rebuild(&mut self, more: usize, budget: &Arc<Budget>) -> Result<(), Full> {
        let slots = ((self.live + more) * 100).div_ceil(FRESH).max(SLOTS_MIN);
        let fresh = Table::new(slots, budget)?;
        for (name, word) in self.table.iter() {
            let mut at = fresh.home(name);
            while fresh.slots()[at].name.load(Relaxed) != 0 {
                at = fresh.after(at);
            }
            fresh.fill(at, name, word);
        }
        self.table = Arc::new(fresh);
        Ok(())
    }

    /// Adds bits to each name's word and says what it was. Room has been made.
    #[inline]
    pub fn set_all(&mut self, names: &[u64], bits: u64, mut was: impl FnMut(Result<u64, NoRoom>)) {
        let table = self.table.clone();
        table.each(names, |at, home| was(self.change(&table, home, names[at], |word| word | bits)));
    }

    /// Gives each name a word, which is not 0, and says what it was, until there is no room.
    #[inline]
    pub fn put_all(
        &mut self,
        names: &[u64],
        word: impl Fn(usize) -> u64,
        mut was: impl FnMut(usize, u64),
    ) -> usize {
        let (table, mut done) = (self.table.clone(), names.len());
        table.each(names, |at, home| {
            if at > done {
                return;
            }
            match self.change(&table, home, names[at], |_| word(at)) {
                Ok(old) => was(at, old),
                Err(NoRoom) => done = at,
            }
        });
        done
    }

    #[inline(always)]
    fn change(
        &mut self,
        table: &Table,
        home: usize,
        name: u64,
        to: impl Fn(u64) -> u64,
    ) -> Result<u64, NoRoom> {
        let name = real(name);
        let slots = table.slots();
        let mut at = home;
        loop {
            let slot = &slots[at];
            let seen = slot.name.load(Relaxed);
            if seen == name {
                let word = slot.word.load(Relaxed);
                slot.word.store(to(word), Release);
                return Ok(word);
            }
            if seen == 0 {
                break;
            }
            at = table.after(at);
        }
        if self.live * 100 >= slots.len() * BRIM || self.live + 1 >= slots.len() {
            return Err(NoRoom);
        }
        self.live += 1;
        table.fill(at, name, to(0));
        Ok(0)
    }

    /// Takes bits from each name's word and says what it was.
    #[inline]
    pub fn take_all(&mut self, names: &[u64], bits: u64, mut was: impl FnMut(u64)) {
        let table = self.table.clone();
        table.each(names, |at, home| was(self.take_at(&table, home, names[at], bits)));
    }

    /// Takes bits from a name's word and says what it was.
    pub fn take(&mut self, name: u64, bits: u64) -> u64 {
        let table = self.table.clone();
        self.take_at(&table, table.home(real(name)), name, bits)
    }

    #[inline(always)]
    fn take_at(&mut self, table: &Table, home: usize, name: u64, bits: u64) -> u64 {
        let (name, slots) = (real(name), table.slots());
        let mut at = home;
        loop {
            let seen = slots[at].name.load(Relaxed);
            if seen == name {
                break;
            }
            if seen == 0 {
                return 0;
            }
            at = table.after(at);
        }
        let word = slots[at].word.load(Relaxed);
        if word & bits != 0 {
            slots[at].word.store(word & !bits, Release);
            if word & !bits == 0 {
                self.close(table, at);
            }
        }
        word
    }

    /// A slot's word has become 0: names that follow move up, as far as their homes allow, so that no search ends
    /// before its name.
    #[inline(always)]
    fn close(&mut self, table: &Table, hole: usize) {
        let slots = table.slots();
        self.live -= 1;
        let (mut hole, mut at) = (hole, hole);
        loop {
            at = table.after(at);
            let name = slots[at].name.load(Relaxed);
            if name == 0 {
                break;
            }
            if table.distance(table.home(name), at) >= table.distance(hole, at) {
                table.fill(hole, name, slots[at].word.load(Relaxed));
                hole = at;
                slots[hole].word.store(0, Release);
            }
        }
        slots[hole].name.store(0, Release);
    }

    /// Takes bits from every word that `wanted` says yes to; calls `gone` with each name that had any.
    pub fn sweep(&mut self, bits: u64, wanted: impl Fn(u64) -> bool, mut gone: impl FnMut(u64)) {
        let table = self.table.clone();
        for slot in table.slots() {
            let word = slot.word.load(Relaxed);
            if word & bits != 0 && wanted(word) {
                slot.word.store(word & !bits, Release);
                gone(slot.name.load(Relaxed));
            }
        }
        // Closing a slot may bring the next such name into it.
        for (at, slot) in table.slots().iter().enumerate() {
            while slot.name.load(Relaxed) != 0 && slot.word.load(Relaxed) == 0 {
                self.close(&table, at);
            }
        }
    }

    /// The table is as this says it is.
    pub fn check(&self) -> Result<(), String> {
        let slots = self.table.slots();
        let occupied = slots.iter().filter(|slot| slot.name.load(Relaxed) != 0).count();
        let live = self.table.iter().count();
        if (live, occupied) != (self.live, self.live) {
            return Err(format!("{live} names in {occupied} slots, {} counted", self.live));
        }
        if occupied >= slots.len() {
            return Err(format!("all {} slots are occupied", slots.len()));
        }
        if self.table.bytes() != Table::bytes_of(slots.len()) {
            return Err(format!("{} bytes charged for {} slots", self.table.bytes(), slots.len()));
        }
        match self.table.iter().find(|&(name, word)| self.table.get(name) != word) {
            Some((name, _)) => Err(format!("{name:016x} cannot be found")),
            None => Ok(()),
        }
    }
}
