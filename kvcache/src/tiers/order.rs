//! What the tiers ask of the outside, as values: moves inside a step, orders to other threads, notes
//! for the journal of a disk.

use base::{ChainHash, FrameId, Generation, NamespaceId, PageId, SlotId, Tier, TokenId};

use crate::TreeKey;

/// A copy between device and host, or an overwrite, done by the executor before a step's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageMove {
    /// Device to host.
    Save { page: PageId, frame: FrameId },
    /// Overwrite with zeros and read back.
    Scrub { page: PageId },
    /// Host to device.
    Restore { frame: FrameId, page: PageId },
}

/// Names an order until it is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// What a sealed page is bound to: it opens under this label or not at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label {
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub name: ChainHash,
    pub tier: Tier,
    pub slot: SlotId,
}

/// Nonce and tag of a sealed page, opaque here.
pub type Seal = [u8; 28];

/// One page's way to or from a cold tier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColdOrder {
    pub ticket: Ticket,
    pub tier: Tier,
    pub work: ColdWork,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ColdWork {
    Store {
        frame: FrameId,
        label: Label,
    },
    Load {
        frame: FrameId,
        label: Label,
        seal: Seal,
    },
    /// Make the contents of these slots unrecoverable.
    Erase {
        slots: Vec<SlotId>,
    },
    /// Overwrite these host frames and read them back.
    ScrubFrames {
        frames: Vec<FrameId>,
    },
}

/// How an order ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ColdOutcome {
    Stored(Seal),
    Loaded,
    /// `probed` of the places were read back and found empty.
    Erased {
        probed: u32,
    },
    Failed(Fault),
}

/// What a failure says of the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The bytes are not the page's, or cannot be read: forget the place.
    Wrong,
    /// Full, slow, overloaded, stopped: the place may be fine.
    Unavailable,
}

/// What the index of a tier that survives a restart must remember.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JournalNote {
    Page(SlotRecord),
    Drop {
        tier: Tier,
        slot: SlotId,
    },
    /// Nothing of `namespace` up to this generation may come back.
    Forget {
        namespace: NamespaceId,
        up_to: Generation,
    },
}

/// A page of a cold tier, as it is found again after a restart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotRecord {
    pub tier: Tier,
    pub slot: SlotId,
    pub key: TreeKey,
    /// The slot of the page before it, in the same tier; `None` for a first page.
    pub parent: Option<SlotId>,
    pub name: ChainHash,
    pub seal: Seal,
    pub tokens: Vec<TokenId>,
}
