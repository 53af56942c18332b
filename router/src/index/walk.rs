//! How far along a prompt each replica holds all blocks.
//!
//! A replica that evicts leaves first holds a beginning of every prompt. Then holding is monotone, and instead
//! of looking at every name it is enough to jump ahead in growing steps until holders drop out, and to bisect
//! for each group of them where. All holders are asked at once: a word of the table is a set of replicas.
//! Whoever does not keep that promise is walked linearly, name by name, and the score is as exact.

use base::Tier;

use super::matches::Matches;
use super::table::Table;

const FIRST_STEP: usize = 16;
/// Names whose slots are loaded side by side by a linear walk.
const ABREAST: usize = 8;

pub(super) struct Walk<'a> {
    pub table: &'a Table,
    pub tier: Tier,
    pub names: &'a [u64],
    /// Replicas that are asked about and may be shown.
    pub seats: u64,
    pub into: &'a mut Matches,
}

/// Where a jump lands, each farther than the one before, up to the last name.
fn steps(last: usize) -> impl Iterator<Item = usize> {
    let (mut at, mut step) = (0, FIRST_STEP);
    std::iter::from_fn(move || {
        let next = (at + step).min(last);
        (next > at).then(|| {
            (at, step) = (next, step * 2);
            at
        })
    })
}

impl Walk<'_> {
    /// `linear` are the seats that did not promise anything.
    #[inline]
    pub fn run(&mut self, linear: u64) {
        if self.names.is_empty() {
            return;
        }
        // All steps side by side: one wait instead of one for each.
        self.table.touch(std::iter::once(0).chain(steps(self.names.len() - 1)).map(|at| self.names[at]));
        let holders = self.table.get(self.names[0]) & self.seats;
        if holders & !linear != 0 {
            self.gallop(holders & !linear);
        }
        if holders & linear != 0 {
            self.linear(holders & linear);
        }
    }

    /// All of `alive` hold the first name.
    #[inline]
    fn gallop(&mut self, mut alive: u64) {
        let mut low = 0;
        for high in steps(self.names.len() - 1) {
            let still = self.table.get(self.names[high]) & alive;
            if still != alive {
                self.narrow(low, high, alive & !still);
            }
            if still == 0 {
                return;
            }
            (alive, low) = (still, high);
        }
        self.end(alive, low);
    }

    /// All of `set` hold the name at `low`, none of them the one at `high`. Quarters instead of halves: three
    /// loads that do not wait for each other take the time of one.
    fn narrow(&mut self, mut low: usize, mut high: usize, mut set: u64) {
        while high - low > 1 {
            let cuts = [1, 2, 3].map(|quarter| low + (high - low) * quarter / 4);
            self.table.touch(cuts.iter().map(|&cut| self.names[cut]));
            let words = cuts.map(|cut| self.table.get(self.names[cut]));
            let (mut from, mut left) = (low, set);
            let bounds = cuts.into_iter().zip(words).chain([(high, 0)]);
            (low, set) = (high, 0);
            for (to, word) in bounds {
                let still = if to == from { left } else { word & left };
                let ended = left & !still;
                if ended != 0 && set != 0 {
                    self.narrow(from, to, ended);
                } else if ended != 0 {
                    (low, high, set) = (from, to, ended);
                }
                (from, left) = (to, still);
            }
        }
        self.end(set, low);
    }

    /// All of `alive` hold the first name.
    fn linear(&mut self, mut alive: u64) {
        for (chunk, names) in self.names.chunks(ABREAST).enumerate() {
            self.table.touch(names.iter().copied());
            for (offset, &name) in names.iter().enumerate() {
                let still = self.table.get(name) & alive;
                if still != alive {
                    // None is here only if names changed since the first was seen: then they hold nothing.
                    let at = chunk * ABREAST + offset;
                    if at > 0 {
                        self.end(alive & !still, at - 1);
                    }
                }
                if still == 0 {
                    return;
                }
                alive = still;
            }
        }
        self.end(alive, self.names.len() - 1);
    }

    #[inline(always)]
    fn end(&mut self, seats: u64, last_held: usize) {
        self.into.put(seats, self.tier, last_held as u32 + 1);
    }
}
