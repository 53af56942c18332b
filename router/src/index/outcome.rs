//! What became of what the index was told.

use base::Tier;

const TIERS: usize = Tier::ALL.len();

/// Of blocks that a replica stored, in each tier it named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Stored {
    /// New.
    pub added: u32,
    /// Known already.
    pub repeated: u32,
    /// Not entered: there is no room. The replica's score is too low from now on, and its seat is marked.
    pub refused: u32,
    /// Entered below a parent that the replica does not hold: events are missing, or the replica does not evict
    /// leaves first. Its seat is walked linearly from now on.
    pub orphans: u32,
}

impl std::ops::AddAssign for Stored {
    fn add_assign(&mut self, other: Self) {
        self.added += other.added;
        self.repeated += other.repeated;
        self.refused += other.refused;
        self.orphans += other.orphans;
    }
}

/// Of blocks that a tier no longer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    pub removed: u32,
    /// Not known, so nothing was changed: refused when stored, or told twice.
    pub unknown: u32,
}

/// What a replica had, and has no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// By tier.
    pub memberships: [u64; TIERS],
    /// Counted once whatever the number of tiers: to be compared with what the replica says it dropped.
    pub blocks: u64,
    /// Scopes in which it had something.
    pub scopes: u32,
    /// Of these, those in which nobody has anything now: their tables are freed.
    pub scopes_freed: u32,
}

impl std::ops::AddAssign for Dropped {
    fn add_assign(&mut self, other: Self) {
        self.memberships.iter_mut().zip(other.memberships).for_each(|(mine, more)| *mine += more);
        self.blocks += other.blocks;
        self.scopes += other.scopes;
        self.scopes_freed += other.scopes_freed;
    }
}
