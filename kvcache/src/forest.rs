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

use base::{ChainHash, PageId, TokenId};
use hashbrown::HashTable;

use crate::TreeKey;
use crate::eviction::{Evictor, Usage, Use};
use crate::node::{Node, NodeId, Tree, TreeId};
use crate::slab::Slab;
use crate::spans::Spans;
use crate::store::PageStore;

pub(crate) struct Forest {
    pub(crate) nodes: Slab<Node>,
    pub(crate) trees: Slab<Tree>,
    pub(crate) keys: HashMap<TreeKey, TreeId>,
    pub(crate) children: HashTable<NodeId>,
    pub store: PageStore,
    pub evictor: Evictor,
    /// Pages in trees, and those of them that a lease holds.
    pub(crate) pages: usize,
    pub(crate) held: usize,
    /// Counts uses, as time for the policies.
    pub(crate) tick: u64,
    /// In hundredths of a second, as far as it was told.
    pub now: u32,
    pub spans: Spans,
}

/// How far a walk came.
#[derive(Clone, Copy)]
pub(crate) struct Reach {
    pub node: NodeId,
    /// Pages of `node` that matched; all of them, or the walk ended inside.
    pub(crate) within: usize,
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
    pub(crate) fn split(&mut self, lower: NodeId, at: usize) -> NodeId {
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
    pub(crate) fn list(&mut self, id: NodeId) {
        let tree = self.nodes[id.0].tree;
        let listed = &mut self.trees[tree.0].nodes;
        self.nodes[id.0].place = listed.len() as u32;
        listed.push(id);
    }

    pub(crate) fn unlist(&mut self, id: NodeId) {
        let (tree, place) = (self.nodes[id.0].tree, self.nodes[id.0].place);
        let listed = &mut self.trees[tree.0].nodes;
        listed.swap_remove(place as usize);
        if let Some(&moved) = listed.get(place as usize) {
            self.nodes[moved.0].place = place;
        }
    }

    /// Makes `node` findable from its parent.
    pub(crate) fn enlist(&mut self, node: NodeId) {
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
    pub(crate) fn free_up(&mut self, id: NodeId) {
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

    /// Bytes of the trees themselves, without the page store.
    pub fn bytes(&self) -> usize {
        let table = self.children.capacity() * (size_of::<NodeId>() + 1);
        let runs = self.pages * size_of::<PageId>();
        self.nodes.bytes() + self.trees.bytes() + table + runs + self.evictor.bytes()
    }
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
