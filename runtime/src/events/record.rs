//! A batch of changes as the log keeps it, for readers of any schema.
//!
//! Names are cut to the 64 bits that leave the process, here and once: whoever keeps a set of them, inside or
//! outside, then keeps the same set.
//!
//! A record is bounded in size: a reader holds one at a time, so what readers hold is bounded too. A step that
//! tells of more, as one does that tells the whole cache anew, is cut into several.

use base::{AdapterId, Generation, NamespaceId, Tier, TokenId};
use kvcache::Stored;

/// Memory of one record, about: one message on any wire, well below the 4 MiB that clients accept.
pub(crate) const RECORD_BYTES_MAX: usize = 256 << 10;

/// What changed in one step, or in a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub sequence: u64,
    pub unix_ms: u64,
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Stored(Run),
    Removed {
        tier: Tier,
        /// `None` where nobody keeps track of whose blocks are whose.
        namespace: Option<NamespaceId>,
        hashes: Vec<u64>,
    },
    /// Blocks now gone that a purge had made useless before; news only to readers that cannot hear of purges.
    Swept {
        tier: Tier,
        hashes: Vec<u64>,
    },
    /// No tier holds anything any more.
    Cleared,
    /// Blocks of a namespace up to a generation can no longer be used.
    Purged {
        namespace: NamespaceId,
        up_to: Generation,
        blocks: u64,
    },
}

/// Blocks of one prompt, each the child of the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub owner: Owner,
    pub tiers: TierSet,
    pub parent: Option<u64>,
    pub hashes: Vec<u64>,
    /// Of all blocks, or none if they are not kept.
    pub tokens: Vec<TokenId>,
    pub page_tokens: u32,
}

/// Whose a block is, as far as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub adapter: AdapterId,
}

/// Several tiers at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TierSet(u8);

impl TierSet {
    pub fn of(tier: Tier) -> Self {
        Self(1 << tier.index())
    }

    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(move |&tier| self.0 & Self::of(tier).0 != 0)
    }
}

impl Run {
    pub fn new(stored: &Stored, tier: Tier) -> Self {
        let Stored { namespace, generation, adapter, .. } = *stored;
        Self {
            owner: Owner { namespace, generation, adapter },
            tiers: TierSet::of(tier),
            parent: stored.parent.map(|name| name.low64()),
            hashes: stored.names.iter().map(|name| name.low64()).collect(),
            tokens: stored.tokens.clone(),
            page_tokens: stored.page_tokens,
        }
    }

    fn split(self, bytes_max: usize) -> Vec<Run> {
        let tokens = if self.tokens.is_empty() { 0 } else { self.page_tokens as usize };
        let blocks = (bytes_max / (8 + 4 * tokens)).max(1);
        let mut parent = self.parent;
        let part = |(at, hashes): (usize, &[u64])| {
            let from = at * blocks * tokens;
            let tokens = self.tokens[from..from + hashes.len() * tokens].to_vec();
            let run = Run { parent, hashes: hashes.to_vec(), tokens, ..self };
            parent = hashes.last().copied();
            run
        };
        self.hashes.chunks(blocks).enumerate().map(part).collect()
    }
}

impl Owner {
    /// Whether a purge of `namespace` up to a generation covers it.
    pub fn is_within(&self, namespace: NamespaceId, up_to: Generation) -> bool {
        self.namespace == namespace && self.generation <= up_to
    }
}

impl Change {
    /// As it is, or in parts of about so many bytes each; at least one block each.
    pub fn split(self, bytes_max: usize) -> Vec<Change> {
        let too_large = self.bytes() > bytes_max;
        match self {
            Change::Stored(run) if too_large => {
                run.split(bytes_max).into_iter().map(Change::Stored).collect()
            }
            Change::Removed { tier, namespace, hashes } if too_large => {
                let parts = hashes.chunks((bytes_max / 8).max(1));
                parts.map(|part| Change::Removed { tier, namespace, hashes: part.to_vec() }).collect()
            }
            Change::Swept { tier, hashes } if too_large => {
                let parts = hashes.chunks((bytes_max / 8).max(1));
                parts.map(|part| Change::Swept { tier, hashes: part.to_vec() }).collect()
            }
            whole => vec![whole],
        }
    }

    /// Memory that it takes, about.
    pub fn bytes(&self) -> usize {
        /// The enum itself and the heads of its allocations.
        const FLAT: usize = 128;
        match self {
            Change::Stored(run) => FLAT + 8 * run.hashes.len() + 4 * run.tokens.len(),
            Change::Removed { hashes, .. } | Change::Swept { hashes, .. } => FLAT + 8 * hashes.len(),
            Change::Cleared | Change::Purged { .. } => FLAT,
        }
    }
}

impl Record {
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }

    /// Whether it names tokens of a namespace up to a generation.
    pub fn has_tokens_of(&self, namespace: NamespaceId, up_to: Generation) -> bool {
        self.changes.iter().any(|change| match change {
            Change::Stored(run) => !run.tokens.is_empty() && run.owner.is_within(namespace, up_to),
            _ => false,
        })
    }

    /// Forgets them.
    pub fn drop_tokens_of(&mut self, namespace: NamespaceId, up_to: Generation) {
        for change in &mut self.changes {
            if let Change::Stored(run) = change
                && run.owner.is_within(namespace, up_to)
            {
                run.tokens = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_cut_keeps_its_blocks_tokens_and_parents() {
        let owner = Owner { namespace: NamespaceId(1), generation: Generation(2), adapter: AdapterId(0) };
        let tiers = TierSet::of(Tier::Host);
        let hashes: Vec<u64> = (1..=25).collect();
        let tokens: Vec<TokenId> = (0..50).collect();
        let run = Run { owner, tiers, parent: Some(0), hashes, tokens, page_tokens: 2 };
        let parts = Change::Stored(run.clone()).split(64);
        assert!(parts.len() > 2);
        let (mut hashes, mut tokens, mut parent) = (Vec::new(), Vec::new(), Some(0));
        for part in parts {
            let Change::Stored(part) = part else { panic!("{part:?}") };
            assert_eq!((part.parent, part.owner), (parent, owner));
            parent = part.hashes.last().copied();
            hashes.extend(part.hashes);
            tokens.extend(part.tokens);
        }
        assert_eq!((hashes, tokens), (run.hashes, run.tokens));
        let removed = Change::Removed { tier: Tier::Host, namespace: None, hashes: vec![7; 100] };
        assert!(removed.split(256).iter().all(|part| part.bytes() <= 128 + 256));
        assert_eq!(Change::Cleared.split(1), [Change::Cleared]);
    }

    #[test]
    fn a_set_of_tiers_lists_what_was_put_in() {
        let set = TierSet::of(Tier::Object).with(TierSet::of(Tier::Device));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Tier::Device, Tier::Object]);
        assert_eq!(set.without(TierSet::of(Tier::Device)).iter().collect::<Vec<_>>(), [Tier::Object]);
        assert!(TierSet::default().is_empty() && TierSet::default().iter().next().is_none());
    }
}
