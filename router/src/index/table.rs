//! A flat table of names and words that many may read while one writes.
//!
//! Open addressing over 16-byte slots, so that a probe is one cache line. A name's home is its share of the
//! table, not its low bits: the capacity is then any number, and going through a table in order fills the
//! next one in order, which makes growing as cheap as copying.
//!
//! Readers take no lock and never wait. A removed name's slot is closed by moving up what follows, under rules
//! that make a reader beside it sound:
//! - a slot changes its name only while its word is 0: word to 0, name, word. A reader believes a word only if
//!   the name is the same before and after reading it, and passes by a name whose word is 0.
//! - a name that moves is whole in its new place before its old one changes.
//! - a reader that does not find a name looks once more: the name may have moved past it, towards its home.
//!
//! Dead slots instead of moves would save the second look, which is near, and cost what they occupy and a table
//! rebuilt, with room for two, for every half of it that is evicted. As fast, measured, and a fifth larger.
//!
//! Limits: a name that moves twice, past both looks, is taken for absent once; a reader that is stopped for as
//! long as a slot needs to be given to another name and back, and reads the word just in between, takes one word
//! for the other. Both need two coincidences within nanoseconds.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::budget::{Budget, Charge, Full};

/// Stands for the name 0, which marks an empty slot. As likely to meet another name as any other.
const ZERO: u64 = 0x9E6C_63D0_876A_3F4B;
/// Odd, and without a pattern: spreads names that are not hashes.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// How many slots are loaded side by side: several times as many as a core fetches at a time, so that the wait
/// for the last of them counts for little.
const ABREAST: usize = 128;

/// Two words of one cache line.
#[derive(Default)]
#[repr(align(16))]
pub(super) struct Slot {
    pub name: AtomicU64,
    pub word: AtomicU64,
}

pub(super) struct Table {
    slots: Box<[Slot]>,
    _charge: Charge,
}

/// Names as they stand in slots.
pub(super) fn real(name: u64) -> u64 {
    if name == 0 { ZERO } else { name }
}

impl Table {
    pub fn new(slots: usize, budget: &Arc<Budget>) -> Result<Self, Full> {
        let charge = budget.charge(Self::bytes_of(slots))?;
        Ok(Self { slots: (0..slots).map(|_| Slot::default()).collect(), _charge: charge })
    }

    pub fn bytes_of(slots: usize) -> u64 {
        (slots * size_of::<Slot>()) as u64
    }

    pub fn bytes(&self) -> u64 {
        self._charge.bytes()
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Where the search for a name begins.
    #[inline(always)]
    pub fn home(&self, name: u64) -> usize {
        let spread = u128::from(name.wrapping_mul(SPREAD));
        ((spread * self.slots.len() as u128) >> 64) as usize
    }

    #[inline(always)]
    pub fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// Slots from one to another, forwards.
    #[inline(always)]
    pub fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }

    /// The word of a name, 0 if it is not here.
    #[inline]
    pub fn get(&self, name: u64) -> u64 {
        let name = real(name);
        match self.look(name) {
            0 => self.look(name),
            word => word,
        }
    }

    #[inline(always)]
    fn look(&self, name: u64) -> u64 {
        let slots = &*self.slots;
        let mut at = self.home(name);
        loop {
            let slot = &slots[at];
            let seen = slot.name.load(Acquire);
            if seen == name {
                let word = slot.word.load(Acquire);
                let is_same = slot.name.load(Relaxed) == name;
                if is_same && word != 0 {
                    return word;
                }
                if !is_same {
                    continue; // taken over just now: look at it again
                }
            }
            if seen == 0 {
                return 0; // the writer keeps one slot empty
            }
            at = self.after(at);
        }
    }

    /// Loads the homes of some names side by side, so that what is done to them next finds them near. There
    /// is no prefetch in safe Rust; loads that do not wait for each other come to the same.
    #[inline(always)]
    pub fn touch(&self, names: impl Iterator<Item = u64>) {
        let load = |name| self.slots[self.home(real(name))].name.load(Relaxed);
        std::hint::black_box(names.fold(0, |sum, name| sum ^ load(name)));
    }

    /// Runs with the place and the home of each name, some names at a time whose slots were loaded before.
    #[inline(always)]
    pub fn each(&self, names: &[u64], mut run: impl FnMut(usize, usize)) {
        let mut homes = [0; ABREAST];
        for (chunk, names) in names.chunks(ABREAST).enumerate() {
            let mut sum = 0;
            for (home, &name) in homes.iter_mut().zip(names) {
                *home = self.home(real(name));
                sum ^= self.slots[*home].name.load(Relaxed);
            }
            std::hint::black_box(sum);
            for (at, &home) in homes[..names.len()].iter().enumerate() {
                run(chunk * ABREAST + at, home);
            }
        }
    }

    /// The names that have a word, with it.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.slots.iter().filter_map(|slot| {
            let word = slot.word.load(Relaxed);
            (word != 0).then(|| (slot.name.load(Relaxed), word))
        })
    }

    /// Gives a slot whose word is 0 to a name.
    #[inline(always)]
    pub fn fill(&self, at: usize, name: u64, word: u64) {
        let slot = &self.slots[at];
        if slot.name.load(Relaxed) != name {
            slot.name.store(name, Release);
        }
        slot.word.store(word, Release);
    }
}
