//! How pages leave the trees: by the policy's order, cut out because they are wrong, or cleared because
//! their tenant is gone. Always from the leaves up, and never what a lease holds.

use base::{ChainHash, NamespaceId, PageId, TokenId};
use hashbrown::hash_table::Entry;

use crate::TreeKey;
use crate::forest::Forest;
use crate::node::{NodeId, Tree};
use crate::store::PageStore;

/// Leaves at the front of the order that are looked at before a namespace's own.
const FRONT: usize = 64;

/// A page taken out of its tree.
pub(crate) struct Dropped {
    pub page: PageId,
    pub namespace: NamespaceId,
    pub name: Option<ChainHash>,
}

impl Forest {
    /// Takes up to `n` pages from the leaves that the policy puts first.
    pub fn evict(&mut self, n: usize) -> Vec<Dropped> {
        let mut dropped = Vec::with_capacity(n.min(self.evictable()));
        while dropped.len() < n {
            let Some(id) = self.evictor.first() else { break };
            self.evict_leaf(id, n, &mut dropped);
        }
        dropped
    }

    /// As [`Forest::evict`], but only from the trees that `of` picks: a namespace at its quota.
    pub fn evict_of(&mut self, n: usize, of: impl Fn(&TreeKey) -> bool) -> Vec<Dropped> {
        let mut dropped = Vec::with_capacity(n);
        while dropped.len() < n {
            let Some(id) = self.first_of(&of) else { break };
            self.evict_leaf(id, n, &mut dropped);
        }
        dropped
    }

    /// The leaf that the policy puts first among those of the trees that `of` picks. It is near the front of
    /// everyone's order, or is looked for among the trees' own nodes: a namespace whose leaves are all held
    /// must not make others wait for a walk over theirs.
    fn first_of(&self, of: impl Fn(&TreeKey) -> bool) -> Option<NodeId> {
        let is_meant = |id: &NodeId| of(&self.tree_of(*id).key);
        let front = self.evictor.candidates().take(FRONT).map(|(_, id)| id).find(is_meant);
        front.or_else(|| {
            let own = self.trees.iter().filter(|(_, tree)| tree.pages > 0 && of(&tree.key));
            let leaves = own.flat_map(|(_, tree)| tree.nodes.iter().copied());
            let leaves = leaves.filter(|&id| self.node(id).is_candidate());
            leaves.min_by_key(|&id| (self.node(id).rank, id))
        })
    }

    /// Takes pages off the end of a leaf until `dropped` has `n`.
    fn evict_leaf(&mut self, id: NodeId, n: usize, dropped: &mut Vec<Dropped>) {
        let (rank, frequency) = (self.node(id).rank, self.node(id).frequency);
        let (born, used) = (self.node(id).born, self.node(id).used);
        let inner = self.evictor.inner(rank, frequency);
        let from = dropped.len();
        // A last page that stands apart goes alone.
        let most = if inner == rank { n - from } else { 1 };
        if inner != rank && self.node(id).pages.len() > 1 {
            self.evictor.withdraw(rank, id);
            self.nodes[id.0].rank = inner;
            self.evictor.offer(inner, id);
        }
        self.trim(id, most, dropped);
        let gone = dropped.len() - from;
        self.spans.lifetime.note(self.now.wrapping_sub(born), gone);
        self.spans.idle.note(self.now.wrapping_sub(used), gone);
        let prints = dropped[from..].iter().map(|gone| self.store.print(gone.page));
        self.evictor.evicted(rank, frequency, prints);
    }

    /// Takes page `at` of the path of `tokens` below `root` and what lies below it, unless held.
    pub fn cut(&mut self, root: NodeId, tokens: &[TokenId], at: usize) -> Vec<Dropped> {
        let Some((node, within)) = self.node_of(root, tokens, at) else { return Vec::new() };
        if within > 0 {
            self.split(node, within);
        }
        let mut below = self.below(node);
        below.sort_unstable_by(|a, b| b.cmp(a));
        let mut dropped = Vec::new();
        for (_, id) in below {
            let node = self.node(id);
            if node.is_candidate() {
                self.evictor.dropped(node.rank, node.pages.len());
                self.trim(id, usize::MAX, &mut dropped);
            }
        }
        dropped
    }

    /// Page `at` of the path of `tokens` below `root` and all that lies below it, parents first.
    pub fn pages_below(&self, root: NodeId, tokens: &[TokenId], at: usize) -> Vec<PageId> {
        let Some((node, within)) = self.node_of(root, tokens, at) else { return Vec::new() };
        let mut below = self.below(node);
        below.sort_unstable();
        let under = below.into_iter().filter(|&(_, id)| id != node);
        let under = under.flat_map(|(_, id)| self.node(id).pages.iter().copied());
        self.node(node).pages[within..].iter().copied().chain(under).collect()
    }

    /// The node that holds page `at` of a path, and which of its pages that is.
    fn node_of(&self, root: NodeId, tokens: &[TokenId], at: usize) -> Option<(NodeId, usize)> {
        let end = (at + 1) * self.store.page_tokens();
        let reach = self.walk(root, tokens.get(..end)?, |_| {})?;
        let node = self.node(reach.node);
        let met = node.start as usize + reach.within;
        (met == at + 1).then(|| (reach.node, at - node.start as usize))
    }

    /// `top` and all nodes below it, with their depths. Children are not listed anywhere, so this looks
    /// at every node of the tree: a page that turns out wrong is rare.
    fn below(&self, top: NodeId) -> Vec<(u32, NodeId)> {
        let is_below = |mut at: NodeId| {
            while at != top {
                match self.node(at).parent {
                    Some(parent) => at = parent,
                    None => return false,
                }
            }
            true
        };
        let start = self.node(top).start;
        let in_tree = self.tree_of(top).nodes.iter().map(|&id| (self.node(id).start, id));
        in_tree.filter(|&(depth, id)| depth >= start && is_below(id)).collect()
    }

    /// Drops up to `most` pages that no lease holds from the trees that `of` picks, deepest first.
    pub fn clear(&mut self, of: impl Fn(&TreeKey) -> bool, most: usize) -> Vec<Dropped> {
        let picked = self.trees.iter().filter(|(_, tree)| tree.pages > 0 && of(&tree.key));
        let mut victims: Vec<(u32, NodeId)> = picked
            .flat_map(|(_, tree)| tree.nodes.iter().map(|&id| (self.node(id).start, id)))
            .filter(|&(_, id)| self.node(id).holds == 0)
            .collect();
        victims.sort_unstable_by(|a, b| b.cmp(a));
        let mut dropped = Vec::new();
        for (_, id) in victims {
            if dropped.len() == most {
                break;
            }
            let pages = self.node(id).pages.len().min(most - dropped.len());
            self.evictor.dropped(self.node(id).rank, pages);
            self.trim(id, pages, &mut dropped);
        }
        dropped
    }

    /// Takes up to `n` pages off the end of an unleased leaf, and the leaf itself when none is left.
    fn trim(&mut self, id: NodeId, n: usize, dropped: &mut Vec<Dropped>) {
        let node = &mut self.nodes[id.0];
        assert!(node.is_candidate(), "only unleased leaves are evicted");
        let keep = node.pages.len().saturating_sub(n);
        self.pages -= node.pages.len() - keep;
        self.trees[node.tree.0].pages -= node.pages.len() - keep;
        if keep == 0 {
            self.remove(id, dropped);
        } else {
            let (gone, tree) = (node.pages.split_off(keep), node.tree);
            push_dropped(&self.store, &gone, &self.trees[tree.0], dropped);
        }
    }

    fn remove(&mut self, id: NodeId, dropped: &mut Vec<Dropped>) {
        let print = self.store.print(self.node(id).pages[0]);
        let (nodes, store) = (&self.nodes, &self.store);
        let entry = self.children.entry(print, |&other| other == id, |o| store.print(nodes[o.0].pages[0]));
        let Entry::Occupied(entry) = entry else { panic!("a node is found by its parent") };
        entry.remove();
        self.unlist(id);
        let node = self.nodes.remove(id.0);
        self.evictor.withdraw(node.rank, id);
        push_dropped(&self.store, &node.pages, &self.trees[node.tree.0], dropped);
        let parent = node.parent.expect("a root is not evicted");
        self.nodes[parent.0].children -= 1;
        self.free_up(parent);
    }
}

/// Deepest first, as removals are told.
fn push_dropped(store: &PageStore, pages: &[PageId], of: &Tree, dropped: &mut Vec<Dropped>) {
    let name = |page| of.name.and_then(|_| store.name(page));
    let namespace = of.key.namespace;
    dropped.extend(pages.iter().rev().map(|&page| Dropped { page, namespace, name: name(page) }));
}
