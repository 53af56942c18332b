//! What a reader who has heard every event believes: the fold of the stream.
//!
//! Debug builds keep one beside the tiers and hold it against the trees after each drain, for a follower that
//! believes more than there is sends requests to pages that are not there. It is strict where followers in
//! the field are forgiving: a child before its parent, a page told twice and a removal of what was never told
//! are errors.

use std::collections::{BTreeMap, HashMap};

use base::{ChainHash, Tier};

use super::TierEvent;
use crate::{KvChange, Stored};

/// The names that each tier is believed to hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Follower {
    /// Name to parent.
    held: BTreeMap<Tier, HashMap<ChainHash, Option<ChainHash>>>,
    /// Events were lost: nothing is known until all is told anew.
    is_lost: bool,
}

/// An event that does not follow from those before it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Misheard {
    #[error("the {tier} tier stored a page below {parent:?}, of which nothing was told")]
    Orphan { tier: Tier, parent: ChainHash },
    #[error("the {tier} tier stored {name:?} twice")]
    Twice { tier: Tier, name: ChainHash },
    #[error("the {tier} tier removed {name:?}, which it did not hold")]
    Unknown { tier: Tier, name: ChainHash },
}

impl Follower {
    /// What a reader of a snapshot believes.
    pub fn of(snapshot: &[(Tier, Stored)]) -> Result<Self, Misheard> {
        let mut follower = Self::default();
        snapshot.iter().try_for_each(|(tier, stored)| follower.store(*tier, stored))?;
        Ok(follower)
    }

    pub fn hear(&mut self, event: &TierEvent) -> Result<(), Misheard> {
        match &event.change {
            KvChange::Cleared => *self = Self::default(),
            KvChange::Lost { .. } => *self = Self { is_lost: true, ..Self::default() },
            _ if self.is_lost => {}
            KvChange::Stored(stored) => self.store(event.tier, stored)?,
            KvChange::Removed { names } => self.remove(event.tier, names)?,
        }
        Ok(())
    }

    /// Events were lost and not told anew since.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    pub fn holds(&self, tier: Tier, name: &ChainHash) -> bool {
        self.held.get(&tier).is_some_and(|held| held.contains_key(name))
    }

    /// How many of the leading `names` a tier is believed to hold.
    pub fn prefix(&self, tier: Tier, names: &[ChainHash]) -> usize {
        names.iter().take_while(|name| self.holds(tier, name)).count()
    }

    pub fn names(&self, tier: Tier) -> Vec<ChainHash> {
        let mut names: Vec<ChainHash> =
            self.held.get(&tier).into_iter().flat_map(|held| held.keys().copied()).collect();
        names.sort_unstable();
        names
    }

    fn store(&mut self, tier: Tier, stored: &Stored) -> Result<(), Misheard> {
        let held = self.held.entry(tier).or_default();
        let mut parent = stored.parent;
        if let Some(parent) = parent.filter(|parent| !held.contains_key(parent)) {
            return Err(Misheard::Orphan { tier, parent });
        }
        for &name in &stored.names {
            if held.insert(name, parent).is_some() {
                return Err(Misheard::Twice { tier, name });
            }
            parent = Some(name);
        }
        Ok(())
    }

    fn remove(&mut self, tier: Tier, names: &[ChainHash]) -> Result<(), Misheard> {
        let held = self.held.entry(tier).or_default();
        for &name in names {
            if held.remove(&name).is_none() {
                return Err(Misheard::Unknown { tier, name });
            }
        }
        if held.is_empty() {
            self.held.remove(&tier);
        }
        Ok(())
    }
}
