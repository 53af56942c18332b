//! From a file that may end anywhere to the pages that can be trusted.
//!
//! Replay stops at the first record that is not whole; what follows is cut off. Of what remains a page
//! counts if its tree does, its parent does (the same page, not another in that slot), and its tokens
//! open under the key of its namespace generation. Nothing is repaired: a page left out is computed
//! again.

use std::collections::HashMap;

use base::{ChainHash, Generation, NamespaceId, SlotId, Tier};

use super::live::{Live, Span};
use super::record::{At, FRAME_BYTES, HEADER_BYTES, PageRecord, Record, decode, frame_at, tree_label};
use crate::keyring::KeyRing;
use crate::seal::PageSeal;

/// What outlived the restart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Trees with at least one page.
    pub trees: Vec<RecoveredTree>,
    /// Parents before children.
    pub pages: Vec<RecoveredPage>,
    pub dropped: Dropped,
    /// Above every number that a tree in the file had.
    pub next_tree: u64,
    /// Bytes of index read.
    pub read_bytes: u64,
    pub took_ns: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredTree {
    pub tree: u64,
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub key: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredPage {
    pub tier: Tier,
    pub slot: SlotId,
    pub tree: u64,
    pub parent: Option<(Tier, SlotId)>,
    pub name: ChainHash,
    pub seal: PageSeal,
    pub tokens: Vec<u32>,
}

/// Pages (and bytes) that were left out, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// The key of their namespace generation is gone.
    pub key_gone: u32,
    /// Their parent is not there, or was left out.
    pub orphans: u32,
    /// Their tokens, or their tree's key, do not open.
    pub bad_seal: u32,
    /// Bytes after the last whole record.
    pub torn_bytes: u64,
    /// The file was of another layout, or no index at all: nothing was kept.
    pub other_layout: u32,
}

/// The records of a file that are whole, and where they end.
pub(crate) fn replay(file: &[u8]) -> (Live, u64, u64) {
    let mut live = Live::default();
    let (mut end, mut next_tree) = (HEADER_BYTES, 1);
    // Every record is at least a frame long, so this ends.
    while let Some(body) = frame_at(file, end) {
        let Some(record) = decode(body) else { break };
        let span = Span { offset: end as u64, bytes: (FRAME_BYTES + body.len()) as u32 };
        if let Record::Tree { tree, .. } = record {
            next_tree = next_tree.max(tree.saturating_add(1));
        }
        live.apply(&record, span);
        end += span.bytes as usize;
    }
    live.sweep();
    (live, end as u64, next_tree)
}

/// Opens what is live, and takes out of `live` what does not open.
pub(crate) fn open(file: &[u8], live: &mut Live, keys: &KeyRing) -> Recovered {
    let mut out = Recovered::default();
    let mut trees = open_trees(file, live, keys);
    let order = parents_first(file, live);
    let mut kept: HashMap<At, ChainHash> = HashMap::with_capacity(order.len());
    let mut used: HashMap<u64, ()> = HashMap::new();
    for page in order {
        let parent_is_kept = page.parent.is_none_or(|(at, name)| kept.get(&at) == Some(&name));
        let opened = match trees.get(&page.tree) {
            _ if !parent_is_kept => Err(&mut out.dropped.orphans),
            None => Err(&mut out.dropped.orphans),
            Some(Err(TreeLost::KeyGone)) => Err(&mut out.dropped.key_gone),
            Some(Err(TreeLost::BadSeal)) => Err(&mut out.dropped.bad_seal),
            Some(Ok(tree)) => match open_tokens(&page, tree, keys) {
                Some(tokens) => Ok(tokens),
                None => Err(&mut out.dropped.bad_seal),
            },
        };
        match opened {
            Ok(tokens) => {
                kept.insert(page.at, page.name);
                used.insert(page.tree, ());
                out.pages.push(recovered(&page, tokens));
            }
            Err(count) => *count += 1,
        }
    }
    out.dropped.orphans += (live.pages.len() - kept.len()) as u32
        - (out.dropped.orphans + out.dropped.key_gone + out.dropped.bad_seal);
    live.pages.retain(|at, _| kept.contains_key(at));
    live.trees.retain(|tree, _| used.contains_key(tree));
    live.cut(u64::MAX);
    trees.retain(|tree, _| used.contains_key(tree));
    out.trees = trees.into_values().flatten().collect();
    out.trees.sort_by_key(|tree| tree.tree);
    out
}

enum TreeLost {
    KeyGone,
    BadSeal,
}

fn open_trees(file: &[u8], live: &Live, keys: &KeyRing) -> HashMap<u64, Result<RecoveredTree, TreeLost>> {
    let open = |(tree, at): (&u64, &super::live::LiveTree)| {
        let (namespace, generation) = (at.namespace, at.generation);
        let Some(Record::Tree { sealed, .. }) = record_at(file, at.span) else {
            return (*tree, Err(TreeLost::BadSeal));
        };
        let label = tree_label(*tree, namespace, generation);
        let opened = match keys.with(namespace, generation, |key| key.open_vec(&label, sealed)) {
            None => Err(TreeLost::KeyGone),
            Some(None) => Err(TreeLost::BadSeal),
            Some(Some(key)) => Ok(RecoveredTree { tree: *tree, namespace, generation, key }),
        };
        (*tree, opened)
    };
    live.trees.iter().map(open).collect()
}

fn open_tokens(page: &PageRecord<'_>, tree: &RecoveredTree, keys: &KeyRing) -> Option<Vec<u32>> {
    let label = page.label(tree.namespace, tree.generation);
    let plain = keys.with(tree.namespace, tree.generation, |key| key.open_vec(&label, page.sealed))??;
    let (tokens, rest) = plain.as_chunks::<4>();
    rest.is_empty().then(|| tokens.iter().map(|t| u32::from_le_bytes(*t)).collect())
}

/// Live pages, each after its parent; pages whose parent is not there do not appear.
fn parents_first<'a>(file: &'a [u8], live: &Live) -> Vec<PageRecord<'a>> {
    let mut order: Vec<PageRecord<'a>> = Vec::with_capacity(live.pages.len());
    let mut children: HashMap<At, Vec<PageRecord<'a>>> = HashMap::new();
    let mut spans: Vec<Span> = live.pages.values().map(|page| page.span).collect();
    spans.sort_unstable_by_key(|span| span.offset);
    for span in spans {
        let Some(Record::Page(page)) = record_at(file, span) else { continue };
        match page.parent {
            None => order.push(page),
            Some((at, name)) => {
                if live.page(at, page.tree).is_some_and(|parent| parent.name == name) {
                    children.entry(at).or_default().push(page);
                }
            }
        }
    }
    let mut next = 0;
    while let Some(page) = order.get(next) {
        next += 1;
        if let Some(below) = children.remove(&page.at) {
            order.extend(below);
        }
    }
    order
}

fn recovered(page: &PageRecord<'_>, tokens: Vec<u32>) -> RecoveredPage {
    let (tier, slot) = page.at;
    RecoveredPage {
        tier,
        slot,
        tree: page.tree,
        parent: page.parent.map(|(at, _)| at),
        name: page.name,
        seal: page.seal,
        tokens,
    }
}

/// The record that replay found at `span`.
pub(crate) fn record_at(file: &[u8], span: Span) -> Option<Record<'_>> {
    let start = span.offset as usize;
    decode(file.get(start + FRAME_BYTES..start + span.bytes as usize)?)
}
