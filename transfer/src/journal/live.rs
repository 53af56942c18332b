//! Which records still count: the state that replay and the writer build in the same way.
//!
//! Only where a record lies is kept, with the page's name, so that the index of 10 GiB costs a few MB;
//! compaction and recovery read the rest from the file.

use std::collections::HashMap;

use base::{ChainHash, Generation, NamespaceId};

use super::record::{At, Record};

/// Where a record's body lies in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub offset: u64,
    pub bytes: u32,
}

/// A tree that has not been dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveTree {
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub span: Span,
    /// Counts the trees that had this number: pages of an earlier one are not this one's.
    pub epoch: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LivePage {
    pub name: ChainHash,
    pub tree: u64,
    pub epoch: u32,
    pub span: Span,
}

#[derive(Default, Debug)]
pub(crate) struct Live {
    pub trees: HashMap<u64, LiveTree>,
    pub pages: HashMap<At, LivePage>,
    /// Bytes of records that compaction would keep.
    pub bytes: u64,
    epochs: u32,
}

impl Live {
    pub fn apply(&mut self, record: &Record<'_>, span: Span) {
        match record {
            Record::Tree { tree, namespace, generation, .. } => {
                self.epochs += 1;
                let (namespace, generation) = (*namespace, *generation);
                let tree_now = LiveTree { namespace, generation, span, epoch: self.epochs };
                self.bytes += u64::from(span.bytes);
                if let Some(old) = self.trees.insert(*tree, tree_now) {
                    self.bytes -= u64::from(old.span.bytes);
                }
            }
            Record::Page(page) => {
                let Some(tree) = self.trees.get(&page.tree) else { return self.drop_page(page.at) };
                let live = LivePage { name: page.name, tree: page.tree, epoch: tree.epoch, span };
                self.bytes += u64::from(span.bytes);
                if let Some(old) = self.pages.insert(page.at, live) {
                    self.bytes -= u64::from(old.span.bytes);
                }
            }
            Record::Drop(at) => self.drop_page(*at),
            Record::DropNamespace { namespace, up_to } => {
                self.drop_trees(|tree| tree.namespace == *namespace && tree.generation <= *up_to);
            }
            Record::DropTree { tree } => {
                let Some(epoch) = self.trees.get(tree).map(|t| t.epoch) else { return };
                self.drop_trees(|tree| tree.epoch == epoch);
            }
        }
    }

    pub fn drop_page(&mut self, at: At) {
        if let Some(old) = self.pages.remove(&at) {
            self.bytes -= u64::from(old.span.bytes);
        }
    }

    fn drop_trees(&mut self, dies: impl Fn(&LiveTree) -> bool) {
        let mut bytes = 0;
        self.trees.retain(|_, tree| {
            let dies = dies(tree);
            bytes += if dies { u64::from(tree.span.bytes) } else { 0 };
            !dies
        });
        self.bytes -= bytes;
        self.sweep();
    }

    /// Forgets pages whose tree is gone or another.
    pub fn sweep(&mut self) {
        let (trees, mut bytes) = (&self.trees, 0);
        self.pages.retain(|_, page| {
            let stays = trees.get(&page.tree).is_some_and(|tree| tree.epoch == page.epoch);
            bytes += if stays { 0 } else { u64::from(page.span.bytes) };
            stays
        });
        self.bytes -= bytes;
    }

    /// Forgets what was never written: everything from `offset` on.
    pub fn cut(&mut self, offset: u64) {
        self.trees.retain(|_, tree| tree.span.offset < offset);
        self.pages.retain(|_, page| page.span.offset < offset);
        self.sweep();
        let trees = self.trees.values().map(|t| u64::from(t.span.bytes));
        self.bytes = trees.chain(self.pages.values().map(|p| u64::from(p.span.bytes))).sum();
    }

    /// The live page at `at`, if it belongs to the tree as it is now.
    pub fn page(&self, at: At, tree: u64) -> Option<&LivePage> {
        let epoch = self.trees.get(&tree)?.epoch;
        self.pages.get(&at).filter(|page| page.tree == tree && page.epoch == epoch)
    }
}
