//! A node of the radix tree: a run of pages that always occur together.
//!
//! ```text
//! root ─ [p4 p5 p6] ─┬─ [p9]            a lease that ends here holds the whole path
//!                    └─ [p2 p3]  ← one parent, an index; children found through one hash table
//! ```
//!
//! `holds` counts the leases that end in the node plus the children that are held themselves, so a
//! lease is taken and given back by walking up only as far as the path is not held by others, and
//! `holds == 0` says that no lease needs any page of the node or below. A reference count of whole
//! paths, as elsewhere, would say the same and walk to the root each time.

use base::{ChainHash, PageId};

use crate::TreeKey;
use crate::eviction::Rank;

/// Index of a node; `NodeId` of a removed node is reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NodeId(pub u32);

/// Index of a tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TreeId(pub u32);

pub(crate) struct Node {
    /// `None` for the root of a tree, which has no pages.
    pub parent: Option<NodeId>,
    pub tree: TreeId,
    /// Its place in the tree's list of nodes.
    pub place: u32,
    /// Pages before the first page of this node.
    pub start: u32,
    pub pages: Vec<PageId>,
    pub children: u32,
    /// Leases whose last page is this node's last page.
    pub ends: u32,
    /// `ends` + children with `holds > 0`.
    pub holds: u32,
    /// Times a request has used the pages, counted over evictions as far as ghosts remember.
    pub frequency: u32,
    /// When last used, in uses.
    pub tick: u64,
    /// When made and when last used, in hundredths of a second.
    pub born: u32,
    pub used: u32,
    pub rank: Rank,
}

impl Node {
    pub fn root(tree: TreeId) -> Self {
        Self {
            parent: None,
            tree,
            place: 0,
            start: 0,
            pages: Vec::new(),
            children: 0,
            ends: 0,
            holds: 0,
            frequency: 0,
            tick: 0,
            born: 0,
            used: 0,
            rank: Rank::default(),
        }
    }

    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// Pages from the root to the end of this node.
    pub fn end(&self) -> u32 {
        self.start + self.pages.len() as u32
    }

    /// An unleased leaf: all that eviction may take from.
    pub fn is_candidate(&self) -> bool {
        self.children == 0 && self.holds == 0 && !self.is_root()
    }
}

/// One root per [`TreeKey`] that has pages or leases.
pub(crate) struct Tree {
    pub key: TreeKey,
    pub root: NodeId,
    /// Fingerprint of the empty prefix.
    pub print: u64,
    /// Name of the empty prefix, when events are on and the namespace's key is known.
    pub name: Option<ChainHash>,
    /// All its nodes but the root, in no order, and their pages: what a purge looks at, and no other.
    pub nodes: Vec<NodeId>,
    pub pages: usize,
}
