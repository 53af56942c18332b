//! The cache as text, for tests, `quire cache` and bug reports.
//!
//! Shows structure, never tokens or salts: those are a tenant's. Trees come in key order, children
//! in the order of their first page, so two caches in the same state give the same text.

use std::collections::BTreeMap;
use std::fmt::Write;

use base::PageId;

use crate::node::{Node, NodeId, Tree};
use crate::{Cache, CacheStats};

type Children = BTreeMap<NodeId, Vec<NodeId>>;

impl Cache {
    /// The trees with their runs of pages, frequencies and holds, then the order of eviction.
    pub fn dump(&self) -> String {
        let mut text = law(&self.stats());
        let children = self.children();
        let mut trees: Vec<&Tree> = self.forest.trees().iter().map(|(_, tree)| tree).collect();
        trees.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        for tree in trees {
            let key = &tree.key;
            let (ns, generation, model, adapter) = (key.namespace, key.generation, key.model, key.adapter);
            let salt = if key.salt.is_empty() { "" } else { " salted" };
            let holds = held(self.forest.node(tree.root));
            let _ = writeln!(
                text,
                "namespace {ns} generation {generation} model {model} adapter {adapter}{salt}{holds}"
            );
            self.dump_below(tree.root, &children, &mut text);
        }
        let order: Vec<String> =
            self.forest.evictor.candidates().map(|(_, id)| runs(&self.forest.node(id).pages)).collect();
        let _ = writeln!(text, "evict {} | {}", order.join(", "), self.forest.evictor.dump());
        text
    }

    /// Depth first with an own stack: a path may be as long as the longest prompt has pages.
    fn dump_below(&self, root: NodeId, children: &Children, text: &mut String) {
        let mut stack: Vec<(usize, NodeId)> = Vec::new();
        let push = |stack: &mut Vec<(usize, NodeId)>, depth: usize, of: NodeId| {
            stack.extend(children.get(&of).into_iter().flatten().rev().map(|&child| (depth, child)));
        };
        push(&mut stack, 1, root);
        while let Some((depth, id)) = stack.pop() {
            let node = self.forest.node(id);
            let (pad, pages, frequency) = ("  ".repeat(depth), runs(&node.pages), node.frequency);
            let _ = writeln!(text, "{pad}[{pages}] x{frequency}{}", held(node));
            push(&mut stack, depth + 1, id);
        }
    }

    fn children(&self) -> Children {
        let mut children = Children::new();
        for (id, node) in self.forest.nodes().iter() {
            if let Some(parent) = node.parent {
                children.entry(parent).or_default().push(NodeId(id));
            }
        }
        for siblings in children.values_mut() {
            siblings.sort_unstable_by_key(|&id| self.forest.node(id).pages[0]);
        }
        children
    }
}

fn law(s: &CacheStats) -> String {
    format!(
        "pages {} = {} free + {} private + {} leased + {} cached + {} fenced\n",
        s.pages_total, s.pages_free, s.pages_private, s.pages_leased, s.pages_cached, s.pages_fenced
    )
}

fn held(node: &Node) -> String {
    match (node.ends, node.holds) {
        (0, 0) => String::new(),
        (0, _) => " held".into(),
        (ends, _) => format!(" held, {ends} end here"),
    }
}

/// `3-5 9`: consecutive ids as ranges.
fn runs(pages: &[PageId]) -> String {
    let mut text = String::new();
    for run in pages.chunk_by(|a, b| a.0 + 1 == b.0) {
        let space = if text.is_empty() { "" } else { " " };
        let (first, last) = (run[0], run[run.len() - 1]);
        let _ = if first == last {
            write!(text, "{space}{first}")
        } else {
            write!(text, "{space}{first}-{last}")
        };
    }
    text
}
