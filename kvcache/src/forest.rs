//! The radix trees, one per [`TreeKey`], over one pool of pages.
//!
//! Edges are runs of whole pages, since only whole pages can be shared, and nodes live in an arena.
//! Children are found through one hash table for all nodes, keyed by the fingerprint of parent path
//! and first page and decided by comparing tokens: a wide root costs no more than a narrow one, and
//! a collision costs a comparison. Cost of a match of n pages over d nodes: d lookups and one
//! comparison of n pages of tokens.
//!
//! A match that ends inside a node splits it, so that leases and frequencies are exact by node. The
//! new node is the upper part: the lower keeps its index, so leases that end there stay right without
//! being told. Nodes are not merged again; a sequence that publishes page by page extends its own leaf.

use std::collections::HashMap;

use base::{ChainHash, NamespaceId, PageId, TokenId};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::TreeKey;
use crate::eviction::{Evictor, Usage, Use};
use crate::node::{Node, NodeId, Tree, TreeId};
use crate::slab::Slab;
use crate::spans::Spans;
use crate::store::PageStore;

pub(crate) struct Forest {
    nodes: Slab<Node>,
    trees: Slab<Tree>,
    keys: HashMap<TreeKey, TreeId>,
    children: HashTable<NodeId>,
    pub store: PageStore,
    pub evictor: Evictor,
    /// Pages in trees, and those of them that a lease holds.
    pages: usize,
    held: usize,
    /// Counts uses, as time for the policies.
    tick: u64,
    /// In hundredths of a second, as far as it was told.
    pub now: u32,
    pub spans: Spans,
}

/// How far a walk came.
#[derive(Clone, Copy)]
pub(crate) struct Reach {
    pub node: NodeId,
    /// Pages of `node` that matched; all of them, or the walk ended inside.
    within: usize,
}

/// A page taken out of its tree.
pub(crate) struct Dropped {
    pub page: PageId,
    pub namespace: NamespaceId,
    pub name: Option<ChainHash>,
}

impl Forest {
    pub fn new(store: PageStore, evictor: Evictor) -> Self {
        Self {
            nodes: Slab::new(),
            trees: Slab::new(),
            keys: HashMap::new(),
            children: HashTable::new(),
            store,
            evictor,
            pages: 0,
            held: 0,
            tick: 0,
            now: 0,
            spans: Spans::default(),
        }
    }

    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Pages on the path of a lease.
    pub fn held(&self) -> usize {
        self.held
    }

    pub fn evictable(&self) -> usize {
        self.pages - self.held
    }

    pub fn nodes(&self) -> &Slab<Node> {
        &self.nodes
    }

    pub fn trees(&self) -> &Slab<Tree> {
        &self.trees
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    pub fn tree_of(&self, id: NodeId) -> &Tree {
        &self.trees[self.node(id).tree.0]
    }

    pub fn root(&self, key: &TreeKey) -> Option<NodeId> {
        Some(self.trees[self.keys.get(key)?.0].root)
    }

    /// A tree for `key`, which has none; `name` is that of the empty prefix.
    pub fn plant(&mut self, key: TreeKey, identity: u64, name: Option<ChainHash>) -> NodeId {
        let print = self.store.hasher.root(identity);
        let tree = TreeId(self.trees.insert(Tree {
            key: key.clone(),
            root: NodeId(0),
            print,
            name,
            nodes: Vec::new(),
            pages: 0,
        }));
        let root = NodeId(self.nodes.insert(Node::root(tree)));
        self.trees[tree.0].root = root;
        self.keys.insert(key, tree);
        root
    }

    /// Fingerprint of the path to the end of `node`.
    pub fn print_of(&self, node: NodeId) -> u64 {
        match self.node(node).pages.last() {
            Some(&page) => self.store.print(page),
            None => self.tree_of(node).print,
        }
    }

    /// Name of the path to the end of `node`, if names are kept for its tree.
    pub fn name_of(&self, node: NodeId) -> Option<ChainHash> {
        let root = self.tree_of(node).name?;
        self.node(node).pages.last().map_or(Some(root), |&page| self.store.name(page))
    }

    /// The child of `parent` that begins with `page`.
    pub fn child(&self, parent: NodeId, page: &[TokenId]) -> Option<NodeId> {
        if self.node(parent).children == 0 {
            return None;
        }
        let print = self.store.hasher.after(self.print_of(parent), page);
        let same = |&id: &NodeId| {
            let node = self.node(id);
            node.parent == Some(parent) && self.store.tokens(node.pages[0]) == page
        };
        self.children.find(print, same).copied()
    }

    /// Follows whole pages of `tokens` below `from`, showing the pages met; `None` if there are none.
    pub fn walk(
        &self,
        from: NodeId,
        mut tokens: &[TokenId],
        mut met: impl FnMut(&[PageId]),
    ) -> Option<Reach> {
        let size = self.store.page_tokens();
        let mut reach = None;
        let mut at = from;
        while tokens.len() >= size {
            let Some(child) = self.child(at, &tokens[..size]) else { break };
            let pages = &self.node(child).pages;
            let within = 1 + self.store.matching(&pages[1..], &tokens[size..]);
            met(&pages[..within]);
            reach = Some(Reach { node: child, within });
            if within < pages.len() {
                break;
            }
            tokens = &tokens[within * size..];
            at = child;
        }
        reach
    }

    /// The node that ends exactly where the walk did, made by a split if need be.
    pub fn settle(&mut self, reach: Reach) -> NodeId {
        if reach.within == self.node(reach.node).pages.len() {
            return reach.node;
        }
        self.split(reach.node, reach.within)
    }

    /// Cuts `lower` after `at` pages and returns the new node above it.
    fn split(&mut self, lower: NodeId, at: usize) -> NodeId {
        let node = &mut self.nodes[lower.0];
        let tail = node.pages.split_off(at);
        let head = std::mem::replace(&mut node.pages, tail);
        let upper = Node {
            parent: node.parent,
            tree: node.tree,
            start: node.start,
            pages: head,
            children: 1,
            ends: 0,
            holds: u32::from(node.holds > 0),
            rank: self.evictor.inner(node.rank, node.frequency),
            ..*node
        };
        node.start += at as u32;
        let first = upper.pages[0];
        let upper = NodeId(self.nodes.insert(upper));
        self.list(upper);
        let print = self.store.print(first);
        *self.children.find_mut(print, |&id| id == lower).expect("a node is found by its parent") = upper;
        self.nodes[lower.0].parent = Some(upper);
        self.enlist(lower);
        upper
    }

    /// Enters a node into its tree's list.
    fn list(&mut self, id: NodeId) {
        let tree = self.nodes[id.0].tree;
        let listed = &mut self.trees[tree.0].nodes;
        self.nodes[id.0].place = listed.len() as u32;
        listed.push(id);
    }

    fn unlist(&mut self, id: NodeId) {
        let (tree, place) = (self.nodes[id.0].tree, self.nodes[id.0].place);
        let listed = &mut self.trees[tree.0].nodes;
        listed.swap_remove(place as usize);
        if let Some(&moved) = listed.get(place as usize) {
            self.nodes[moved.0].place = place;
        }
    }

    /// Makes `node` findable from its parent.
    fn enlist(&mut self, node: NodeId) {
        let (nodes, store) = (&self.nodes, &self.store);
        let print = |id: &NodeId| store.print(nodes[id.0].pages[0]);
        self.children.insert_unique(print(&node), node, print);
    }

    /// A lease ends at `node` from now on.
    pub fn hold(&mut self, node: NodeId) {
        self.nodes[node.0].ends += 1;
        let mut at = Some(node);
        while let Some(id) = at {
            let node = &mut self.nodes[id.0];
            node.holds += 1;
            if node.holds > 1 {
                return;
            }
            self.held += node.pages.len();
            self.evictor.withdraw(node.rank, id);
            at = node.parent;
        }
    }

    /// A lease no longer ends at `node`.
    pub fn unhold(&mut self, node: NodeId) {
        self.nodes[node.0].ends -= 1;
        let mut at = Some(node);
        while let Some(id) = at {
            let node = &mut self.nodes[id.0];
            node.holds -= 1;
            if node.holds > 0 {
                return;
            }
            self.held -= node.pages.len();
            at = node.parent;
            self.free_up(id);
        }
    }

    /// `node` has lost a child or its last hold: it may now be a candidate, or an empty tree to fell.
    fn free_up(&mut self, id: NodeId) {
        let node = &self.nodes[id.0];
        if node.is_candidate() {
            self.evictor.offer(node.rank, id);
        } else if node.is_root() && node.children == 0 && node.holds == 0 {
            let tree = self.nodes.remove(id.0).tree;
            let tree = self.trees.remove(tree.0);
            self.keys.remove(&tree.key);
        }
    }

    /// Counts a use of the path from below `above` down to `tip`, which a lease holds.
    pub fn touch(&mut self, tip: NodeId, above: NodeId) {
        self.tick += 1;
        let mut at = tip;
        while at != above {
            let node = &mut self.nodes[at.0];
            debug_assert!(node.holds > 0, "a held node is no candidate, so its rank may change");
            let Some(parent) = node.parent else { break };
            node.frequency = node.frequency.saturating_add(1);
            node.tick = self.tick;
            self.spans.reuse.note(self.now.wrapping_sub(node.used), node.pages.len());
            node.used = self.now;
            node.rank = self.evictor.rank(Usage {
                frequency: node.frequency,
                tick: self.tick,
                pages: node.pages.len() as u32,
                tail: false,
                event: Use::Hit(node.rank),
            });
            at = parent;
        }
    }

    /// Adds `pages` filled with `tokens` below `tip`, where one lease of the caller ends and no child
    /// begins like them. Returns where they end; the caller moves its hold there.
    pub fn grow(&mut self, tip: NodeId, pages: &[PageId], tokens: &[TokenId]) -> NodeId {
        self.tick += 1;
        let mut runs = self.fill(tip, pages, tokens);
        let mut at = tip;
        runs.reverse();
        while let Some((frequency, run)) = runs.pop() {
            at = if self.extends(at, frequency) {
                self.append(at, run, runs.is_empty())
            } else {
                self.attach(at, frequency, run, runs.is_empty())
            };
        }
        at
    }

    /// Writes what is known of new pages, and cuts them where their remembered frequency changes.
    fn fill(&mut self, tip: NodeId, pages: &[PageId], tokens: &[TokenId]) -> Vec<(u32, Vec<PageId>)> {
        let mut print = self.print_of(tip);
        let mut name = self.name_of(tip);
        let mut runs: Vec<(u32, Vec<PageId>)> = Vec::new();
        for (&page, tokens) in pages.iter().zip(tokens.chunks_exact(self.store.page_tokens())) {
            print = self.store.hasher.after(print, tokens);
            name = name.map(|name| name.next(tokens));
            self.store.write(page, tokens, print, name);
            let frequency = 1 + self.evictor.recall(print, self.tick);
            match runs.last_mut() {
                Some((of_run, run)) if *of_run == frequency => run.push(page),
                _ => runs.push((frequency, vec![page])),
            }
        }
        runs
    }

    /// Whether a run may join `tip` itself: it is a leaf whose pages have been used as often, and
    /// where no lease but the caller's ends.
    fn extends(&self, tip: NodeId, frequency: u32) -> bool {
        let node = self.node(tip);
        !node.is_root() && node.children == 0 && node.ends == 1 && node.frequency == frequency
    }

    fn append(&mut self, tip: NodeId, run: Vec<PageId>, tail: bool) -> NodeId {
        let node = &mut self.nodes[tip.0];
        self.pages += run.len();
        self.trees[node.tree.0].pages += run.len();
        self.held += run.len();
        node.tick = self.tick;
        node.used = self.now;
        let by = run.len() as u32;
        node.pages.extend(run);
        node.rank = self.evictor.rank(Usage {
            frequency: node.frequency,
            tick: self.tick,
            pages: node.pages.len() as u32,
            tail,
            event: Use::Grown(node.rank, by),
        });
        tip
    }

    fn attach(&mut self, parent: NodeId, frequency: u32, pages: Vec<PageId>, tail: bool) -> NodeId {
        self.pages += pages.len();
        let above = &mut self.nodes[parent.0];
        above.children += 1;
        let node = Node {
            parent: Some(parent),
            start: above.end(),
            frequency,
            tick: self.tick,
            born: self.now,
            used: self.now,
            rank: self.evictor.rank(Usage {
                frequency,
                tick: self.tick,
                pages: pages.len() as u32,
                tail,
                event: Use::New,
            }),
            pages,
            ..Node::root(above.tree)
        };
        let tree = node.tree;
        let count = node.pages.len();
        let id = NodeId(self.nodes.insert(node));
        self.trees[tree.0].pages += count;
        self.list(id);
        self.enlist(id);
        id
    }

    /// Takes up to `n` pages from the leaves that the policy puts first.
    pub fn evict(&mut self, n: usize) -> Vec<Dropped> {
        let mut dropped = Vec::with_capacity(n.min(self.evictable()));
        while dropped.len() < n {
            let Some(id) = self.evictor.first() else { break };
            self.evict_leaf(id, n, &mut dropped);
        }
        dropped
    }

    /// As [`Forest::evict`], but only from the trees that `of` picks. Scans the order, so it is for a
    /// namespace at its quota, not for every day.
    pub fn evict_of(&mut self, n: usize, of: impl Fn(&TreeKey) -> bool) -> Vec<Dropped> {
        let mut dropped = Vec::with_capacity(n);
        while dropped.len() < n {
            let is_meant = |id: &NodeId| of(&self.tree_of(*id).key);
            let Some(id) = self.evictor.candidates().map(|(_, id)| id).find(is_meant) else { break };
            self.evict_leaf(id, n, &mut dropped);
        }
        dropped
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

    /// Page `at` of the path of `tokens` below `root` and all that lies below it.
    pub fn pages_below(&self, root: NodeId, tokens: &[TokenId], at: usize) -> Vec<PageId> {
        let Some((node, within)) = self.node_of(root, tokens, at) else { return Vec::new() };
        let below = self.below(node).into_iter().filter(|&(_, id)| id != node);
        let under = below.flat_map(|(_, id)| self.node(id).pages.iter().copied());
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

    /// Bytes of the trees themselves, without the page store.
    pub fn bytes(&self) -> usize {
        let table = self.children.capacity() * (size_of::<NodeId>() + 1);
        let runs = self.pages * size_of::<PageId>();
        self.nodes.bytes() + self.trees.bytes() + table + runs + self.evictor.bytes()
    }
}

/// Deepest first, as removals are told.
fn push_dropped(store: &PageStore, pages: &[PageId], of: &Tree, dropped: &mut Vec<Dropped>) {
    let name = |page| of.name.and_then(|_| store.name(page));
    let namespace = of.key.namespace;
    dropped.extend(pages.iter().rev().map(|&page| Dropped { page, namespace, name: name(page) }));
}

#[cfg(test)]
mod tests {
    use crate::fingerprint::Fingerprint;
    use crate::naive::config;
    use crate::{Cache, EvictionKind, soak};

    /// Under GDSF, so that pages are also given each other's frequencies.
    #[test]
    fn colliding_fingerprints_never_give_a_wrong_page() {
        for bits in [0, 1, 3] {
            let cache = Cache::with_fingerprint(config(32, EvictionKind::Gdsf), Fingerprint::weak(bits));
            assert!(soak::run(cache, 10_000, 3).counters.hits > 100);
        }
    }
}
