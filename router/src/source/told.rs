//! What a source tells the index: a handful of operations on sets of names.
//!
//! A trait and not the index itself: the sources are tested against a naive set, the simulator counts what passes,
//! and neither needs the table. Operations of one seat come in order from one task; those of several seats come at
//! once from several, so the receiver takes `&self`.

use std::fmt;
use std::sync::Arc;

use base::{Generation, Tier};

use crate::Seat;

/// Blocks that can be confused with no others: one generation of a namespace. Names of two scopes never meet in one
/// table, so a purge drops tables and looks at no block.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Scope {
    pub namespace: Arc<str>,
    pub generation: Generation,
}

impl Scope {
    pub fn new(namespace: &str, generation: Generation) -> Self {
        Self { namespace: namespace.into(), generation }
    }

    /// That of engines which know no namespaces: their LoRA adapters and salts are part of the names.
    pub fn foreign() -> Self {
        Self::new("", Generation(0))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.namespace, self.generation)
    }
}

/// Several tiers at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tiers(u8);

impl Tiers {
    pub const NONE: Tiers = Tiers(0);

    pub fn of(tier: Tier) -> Self {
        Self(1 << tier.index())
    }
    pub fn bits(self) -> u8 {
        self.0
    }
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & 0xf)
    }
    pub fn with(self, other: Tiers) -> Self {
        Self(self.0 | other.0)
    }
    pub fn without(self, other: Tiers) -> Self {
        Self(self.0 & !other.0)
    }
    pub fn has(self, tier: Tier) -> bool {
        self.0 & Self::of(tier).0 != 0
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn iter(self) -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(move |&tier| self.has(tier))
    }
}

impl FromIterator<Tier> for Tiers {
    fn from_iter<I: IntoIterator<Item = Tier>>(tiers: I) -> Self {
        tiers.into_iter().fold(Self::NONE, |all, tier| all.with(Self::of(tier)))
    }
}

/// Receives what replicas hold.
pub trait Told: Send + Sync {
    /// `seat` holds these blocks of one prompt in each of `tiers`; each is the child of the one before, the first of
    /// `parent`, or of the root if there is none. What is known already is no news.
    fn stored(&self, seat: Seat, scope: &Scope, tiers: Tiers, parent: Option<u64>, names: &[u64]);

    /// `tier` of `seat` no longer holds these; children come before parents. Names that it did not hold are passed
    /// over: a source that cannot tell whose a block was names it in every scope where it may be.
    fn removed(&self, seat: Seat, scope: &Scope, tier: Tier, names: &[u64]);

    /// `seat` holds nothing, or nothing that is known: a new process, a snapshot that begins, a gap that cannot be
    /// mended.
    fn cleared(&self, seat: Seat);

    /// Nothing of the namespace up to this generation can be used at `seat`; the replica counted `blocks`.
    fn purged(&self, seat: Seat, namespace: &str, up_to: Generation, blocks: u64);
}
