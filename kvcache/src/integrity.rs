//! The integrity law: every page is in exactly one place, and all bookkeeping agrees with a recount.
//!
//! `free + private + leased + cached + fenced = total`, holds recomputed from the live leases, the
//! shape of the trees, the policy's order, and in debug builds every fingerprint and name. Costs a
//! walk over everything: the tests and the simulator call it at every step, a server when idle.

use std::collections::{HashMap, HashSet};

use base::{NamespaceId, PageId};

use crate::node::{Node, NodeId};
use crate::pool::PageState;
use crate::{Cache, Lease};

/// What the law found broken: the first of possibly many.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IntegrityError {
    #[error("{what}: the book says {book}, the recount {counted}")]
    Tally { what: &'static str, book: usize, counted: usize },
    #[error("page {page} is {state} by its state, but found {found}")]
    Place { page: PageId, state: String, found: String },
    #[error("node {node}, {what}: the book says {book}, the recount {counted}")]
    Node { node: u32, what: &'static str, book: usize, counted: usize },
    #[error("node {node} {problem}")]
    Shape { node: u32, problem: &'static str },
    #[error("page {page} has another {what} than its tokens give")]
    Identity { page: PageId, what: &'static str },
    #[error("lease over {leased:?}, but its path is {path:?}")]
    Lease { leased: Vec<PageId>, path: Vec<PageId> },
}

use IntegrityError as Broken;

impl Cache {
    /// Holds the cache against the integrity law.
    pub fn check(&self) -> Result<(), IntegrityError> {
        self.check_places()?;
        self.check_holds()?;
        self.check_shape()?;
        self.check_order()?;
        self.check_law()?;
        if cfg!(debug_assertions) {
            self.check_identity()?;
        }
        Ok(())
    }

    /// Holds a lease against the tree: its pages must be the path to where it ends.
    pub fn check_lease(&self, lease: &Lease) -> Result<(), IntegrityError> {
        let mut runs = Vec::new();
        let mut at = Some(self.leases.tip(lease.id));
        while let Some(id) = at {
            runs.push(self.forest.node(id).pages.as_slice());
            at = self.forest.node(id).parent;
        }
        let path: Vec<PageId> = runs.into_iter().rev().flatten().copied().collect();
        if path != lease.pages() {
            return Err(Broken::Lease { leased: lease.pages().to_vec(), path });
        }
        Ok(())
    }

    /// Every page is in one place, the one that its state says.
    fn check_places(&self) -> Result<(), Broken> {
        let mut found: Vec<Option<PageState>> = vec![None; self.pool.total()];
        let free = self.pool.free_pages().map(|page| (page, PageState::Free));
        let cached = self.forest.nodes().iter().flat_map(|(_, node)| &node.pages);
        let fenced = self.fences.iter().flat_map(|(_, waiting)| &waiting.pages);
        let cached = cached.map(|&page| (page, PageState::Cached));
        let fenced = fenced.map(|&page| (page, PageState::Fenced));
        for (page, place) in free.chain(cached).chain(fenced) {
            let slot = &mut found[page.0 as usize];
            if self.pool.state(page) != place || slot.replace(place).is_some() {
                let state = format!("{:?}", self.pool.state(page));
                return Err(Broken::Place { page, state, found: format!("{place:?}") });
            }
        }
        for (index, place) in found.iter().enumerate().filter(|(_, place)| place.is_none()) {
            let page = PageId(index as u32);
            if self.pool.state(page) != PageState::Private {
                let state = format!("{:?}", self.pool.state(page));
                return Err(Broken::Place { page, state, found: format!("{place:?}") });
            }
        }
        let counted = found.iter().filter(|place| place.is_none()).count();
        tally("private pages", self.pool.private(), counted)
    }

    /// Ends and holds follow from the live leases alone.
    fn check_holds(&self) -> Result<(), Broken> {
        let mut ends: HashMap<NodeId, usize> = HashMap::new();
        for (_, tip) in self.leases.iter() {
            *ends.entry(tip).or_default() += 1;
        }
        let mut held: HashSet<NodeId> = HashSet::new();
        for &tip in ends.keys() {
            let mut at = Some(tip);
            while let Some(id) = at.filter(|&id| held.insert(id)) {
                at = self.forest.node(id).parent;
            }
        }
        let mut holds = ends.clone();
        for parent in held.iter().filter_map(|&id| self.forest.node(id).parent) {
            *holds.entry(parent).or_default() += 1;
        }
        let count = |of: &HashMap<NodeId, usize>, id| of.get(&NodeId(id)).copied().unwrap_or(0);
        for (id, node) in self.forest.nodes().iter() {
            node_tally(id, "leases that end here", node.ends, count(&ends, id))?;
            node_tally(id, "holds", node.holds, count(&holds, id))?;
        }
        let held_pages = held.iter().map(|&id| self.forest.node(id).pages.len()).sum();
        tally("leased pages", self.forest.held(), held_pages)
    }

    /// Parents, depths, children, and that each node is found by its first page: siblings with the
    /// same first page could not both be.
    fn check_shape(&self) -> Result<(), Broken> {
        let mut children: HashMap<NodeId, usize> = HashMap::new();
        for (id, node) in self.forest.nodes().iter() {
            if let Some(parent) = node.parent {
                *children.entry(parent).or_default() += 1;
                self.check_edge(id, node, parent)?;
            } else if self.forest.trees().get(node.tree.0).is_none_or(|tree| tree.root != NodeId(id)) {
                return Err(Broken::Shape { node: id, problem: "has no parent and is no tree's root" });
            }
        }
        for (id, node) in self.forest.nodes().iter() {
            let counted = children.get(&NodeId(id)).copied().unwrap_or(0);
            node_tally(id, "children", node.children, counted)?;
            if node.is_root() && counted == 0 && node.holds == 0 {
                return Err(Broken::Shape { node: id, problem: "roots an empty tree that nobody holds" });
            }
        }
        for (_, tree) in self.forest.trees().iter() {
            if self.forest.root(&tree.key) != Some(tree.root) {
                return Err(Broken::Shape { node: tree.root.0, problem: "is not found by its tree's key" });
            }
        }
        for (id, tree) in self.forest.trees().iter() {
            let listed = |(place, node): (usize, &NodeId)| {
                let node = self.forest.nodes().get(node.0);
                node.filter(|node| node.tree.0 == id && node.place as usize == place)
                    .map(|node| node.pages.len())
            };
            let pages: Option<Vec<usize>> = tree.nodes.iter().enumerate().map(listed).collect();
            let Some(pages) = pages else {
                return Err(Broken::Shape { node: tree.root.0, problem: "lists a node that is not its own" });
            };
            tally("pages of a tree", tree.pages, pages.into_iter().sum())?;
        }
        let listed = self.forest.trees().iter().map(|(_, tree)| 1 + tree.nodes.len()).sum();
        tally("nodes in their trees' lists", self.forest.nodes().len(), listed)?;
        let pages = self.forest.nodes().iter().map(|(_, node)| node.pages.len()).sum();
        tally("pages in trees", self.forest.pages(), pages)
    }

    fn check_edge(&self, id: u32, node: &Node, parent: NodeId) -> Result<(), Broken> {
        let shape = |problem| Err(Broken::Shape { node: id, problem });
        let Some(above) = self.forest.nodes().get(parent.0) else {
            return shape("is a child of a node that is gone");
        };
        let Some(&first) = node.pages.first() else { return shape("has no pages") };
        node_tally(id, "depth", node.start, above.end() as usize)?;
        if above.tree != node.tree {
            return shape("is in another tree than its parent");
        }
        if self.forest.child(parent, self.forest.store.tokens(first)) != Some(NodeId(id)) {
            return shape("is not found by its first page");
        }
        Ok(())
    }

    /// The policy orders exactly the unleased leaves, each once and where its rank says.
    fn check_order(&self) -> Result<(), Broken> {
        let mut ordered = 0;
        for (rank, id) in self.forest.evictor.candidates() {
            ordered += 1;
            match self.forest.nodes().get(id.0) {
                Some(node) if node.is_candidate() && node.rank == rank => {}
                _ => return Err(Broken::Shape { node: id.0, problem: "is ordered, but no unleased leaf" }),
            }
        }
        let leaves = self.forest.nodes().iter().filter(|(_, node)| node.is_candidate()).count();
        tally("unleased leaves in order", ordered, leaves)
    }

    fn check_law(&self) -> Result<(), Broken> {
        let s = self.stats();
        let fenced = self.fences.iter().map(|(_, waiting)| waiting.pages.len()).sum();
        tally("fenced pages", s.pages_fenced, fenced)?;
        self.check_quotas()?;
        tally("free pages", s.pages_free, self.pool.free_pages().count())?;
        let sum = s.pages_free + s.pages_private + s.pages_leased + s.pages_cached + s.pages_fenced;
        tally("free + private + leased + cached + fenced", s.pages_total, sum)
    }

    /// Each namespace has as many pages as its account says.
    fn check_quotas(&self) -> Result<(), Broken> {
        let mut counted: HashMap<NamespaceId, usize> = HashMap::new();
        for (_, node) in self.forest.nodes().iter() {
            *counted.entry(self.forest.trees()[node.tree.0].key.namespace).or_default() += node.pages.len();
        }
        for (namespace, used, _) in self.quotas.iter() {
            tally("pages of a namespace", used, counted.remove(&namespace).unwrap_or(0))?;
        }
        tally("pages of namespaces without an account", 0, counted.into_values().sum())
    }

    /// Fingerprints and names, recomputed from the root.
    fn check_identity(&self) -> Result<(), Broken> {
        let store = &self.forest.store;
        for (_, node) in self.forest.nodes().iter() {
            let Some(parent) = node.parent else { continue };
            let mut print = self.forest.print_of(parent);
            let mut name = self.forest.name_of(parent);
            for &page in &node.pages {
                print = store.hasher.after(print, store.tokens(page));
                name = name.map(|name| name.next(store.tokens(page)));
                if print != store.print(page) {
                    return Err(Broken::Identity { page, what: "fingerprint" });
                }
                if name.is_some() && name != store.name(page) {
                    return Err(Broken::Identity { page, what: "name" });
                }
            }
        }
        Ok(())
    }
}

fn tally(what: &'static str, book: usize, counted: usize) -> Result<(), Broken> {
    if book == counted { Ok(()) } else { Err(Broken::Tally { what, book, counted }) }
}

fn node_tally(node: u32, what: &'static str, book: u32, counted: usize) -> Result<(), Broken> {
    if book as usize == counted {
        return Ok(());
    }
    Err(Broken::Node { node, what, book: book as usize, counted })
}
