//! What must hold in every run, whatever goes wrong.
//!
//! 1. Every call ends exactly once.
//! 2. Nothing is given to a replica that its router has known to be dead for more than a second.
//! 3. Nothing is placed in a generation that its router knows to be purged, and nothing is found of one.
//! 4. What an index says of a replica whose source is EXACT is the truth at the source's position: not a block more.
//! 5. Caches, books, breakers and admission keep their own laws.
//! 6. When the faults are over, everything is as it was: no place reserved, no request left, every source EXACT and
//!    its position the replica's.
//!
//! The truth of law 4 is kept apart from the code under test: each pair of router and replica has a plain set
//! that is brought forward along the replica's own log to where the source says it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Generation, NamespaceId, Nanos};

use super::clients::Unheard;
use super::message::End;
use crate::replica::{Batch, Change, Owner, Position};

/// How long a router may go on with a replica that it knows to be dead.
pub const DEAD_MAX: Duration = Duration::from_secs(1);

/// A law that was broken.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Violation {
    #[error(transparent)]
    Unheard(#[from] Unheard),
    #[error("call {call} has no end {after_s} s after the last thing that happened to it")]
    Lost { call: usize, after_s: u64 },
    #[error(
        "router {router} gave call {call} to replica {replica}, which it had known to be dead for {known_ms} ms"
    )]
    GivenToTheDead { router: usize, replica: usize, call: usize, known_ms: u64 },
    #[error(
        "router {router} placed a call of namespace {namespace} in generation {generation}, purged before"
    )]
    PlacedPurged { router: usize, namespace: NamespaceId, generation: Generation },
    #[error("router {router} is exact about replica {replica} and says {said} blocks; it holds {truth}")]
    AboveTruth { router: usize, replica: usize, said: u32, truth: u32 },
    #[error(
        "router {router} is exact about replica {replica} and says {said} blocks; it holds {truth} \
         (of {known} and {all} in all, generation {generation})"
    )]
    BelowTruth {
        router: usize,
        replica: usize,
        said: u32,
        truth: u32,
        known: u64,
        all: u64,
        generation: Generation,
    },
    #[error("replica {replica}: {problem}")]
    Replica { replica: usize, problem: String },
    #[error("router {router}: {problem}")]
    Router { router: usize, problem: String },
    #[error("call {call} started after its deadline: {late_ms} ms")]
    Late { call: usize, late_ms: u64 },
}

impl Violation {
    /// For counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Violation::Unheard(_) => "ended_twice",
            Violation::Lost { .. } => "lost",
            Violation::GivenToTheDead { .. } => "given_to_the_dead",
            Violation::PlacedPurged { .. } => "placed_purged",
            Violation::AboveTruth { .. } => "above_truth",
            Violation::BelowTruth { .. } => "below_truth",
            Violation::Replica { .. } => "replica",
            Violation::Router { .. } => "router",
            Violation::Late { .. } => "late",
        }
    }
}

/// How closely a run is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    /// Every placement, and every cache after so many steps of its replica.
    Closely { cache_every: u64 },
    /// The ledger of calls alone: for replays, which are long and have no faults.
    Ends,
}

/// All that one process of a replica ever told.
#[derive(Default)]
pub struct Told {
    pub incarnation: u64,
    /// What it had when it started.
    pub found: HashMap<u64, Owner>,
    pub batches: Vec<Arc<Batch>>,
}

/// What a router should believe of a replica.
#[derive(Default)]
pub struct Belief {
    at: Option<Position>,
    held: HashMap<u64, Owner>,
}

impl Belief {
    /// Brings the belief to `position` along what was told; `None` if that was never told.
    pub fn advance(&mut self, position: Position, told: &[Told]) -> Option<()> {
        let told = told.iter().find(|told| told.incarnation == position.incarnation)?;
        let goes_on = self.at.filter(|at| at.incarnation == position.incarnation && at.next <= position.next);
        if goes_on.is_none() {
            self.held = told.found.clone();
        }
        let from = goes_on.map_or(1, |at| at.next);
        for batch in told.batches.get(from as usize - 1..position.next as usize - 1)? {
            batch.changes.iter().for_each(|change| self.apply(change));
        }
        self.at = Some(position);
        Some(())
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Stored(run) => self.held.extend(run.names.iter().map(|&name| (name, run.owner))),
            Change::Removed { names, .. } => names.iter().for_each(|name| {
                self.held.remove(name);
            }),
            Change::Cleared => self.held.clear(),
            Change::Purged { namespace, up_to, .. } => {
                self.held.retain(|_, owner| owner.namespace != *namespace || owner.generation > *up_to);
            }
        }
    }

    /// Blocks of the prompt that are held, from its first.
    pub fn holds(&self, names: &[u64]) -> u32 {
        names.iter().take_while(|name| self.held.contains_key(name)).count() as u32
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// When a router learned that a replica's process is dead, and that it is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    pub dead_since: Option<Nanos>,
}

/// Whether an end is one that a client may be given when things go wrong.
pub fn is_typed(end: End) -> bool {
    !matches!(end, End::Failed { code: "" } | End::Refused { code: "", .. })
}
