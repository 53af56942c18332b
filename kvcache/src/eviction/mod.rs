//! Which unleased leaf goes first.
//!
//! A policy is a ranking: when a node is used it says where the node stands, lowest first, and it
//! learns what was evicted. One whose values change with age ranks within queues, each by last use,
//! and compares the heads when a page must go, so nothing is ever ranked anew. That is all the
//! policies here differ in, so the order itself (`Evictor`) and the memory of evicted pages (`Ghosts`)
//! are written once. Only leaves stand in the order, so no policy can evict a trunk before its
//! branches.

mod gdsf;
mod ghost;
mod lru;
mod reuse;
mod shadow;
mod slru;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::node::NodeId;
use ghost::{Ghosts, Memory};

/// The policy of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EvictionKind {
    /// By learned rates of reuse, held to LRU.
    #[default]
    Reuse,
    /// Greedy-dual with size and frequency, over leaves.
    Gdsf,
    /// Least recently used leaf.
    Lru,
    /// Segmented: pages used once go before pages used again.
    Slru,
}

impl EvictionKind {
    pub const ALL: [EvictionKind; 4] = [Self::Reuse, Self::Gdsf, Self::Lru, Self::Slru];

    pub fn name(self) -> &'static str {
        match self {
            Self::Reuse => "reuse",
            Self::Gdsf => "gdsf",
            Self::Lru => "lru",
            Self::Slru => "slru",
        }
    }

    /// For a pool of `pages`.
    pub(crate) fn build(self, pages: usize) -> Box<dyn Eviction> {
        match self {
            Self::Reuse => Box::new(reuse::Reuse::new(pages)),
            Self::Gdsf => Box::new(gdsf::Gdsf::default()),
            Self::Lru => Box::new(lru::Lru),
            Self::Slru => Box::new(slru::Slru),
        }
    }
}

impl fmt::Display for EvictionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name of a policy that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown eviction policy {0:?}: reuse, gdsf, lru or slru")]
pub struct UnknownEviction(pub String);

impl FromStr for EvictionKind {
    type Err = UnknownEviction;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| UnknownEviction(name.to_owned()))
    }
}

/// Where a node stands: lowest is evicted first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Rank {
    pub value: u64,
    /// Breaks ties: the longer unused goes first.
    pub tick: u64,
}

/// What a policy may know of a node at the moment it is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub frequency: u32,
    pub tick: u64,
    /// Pages of the node, which share its rank.
    pub pages: u32,
    /// The node's last page is the last of the sequence that published it.
    pub tail: bool,
    pub event: Use,
}

/// How a node came to be used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    /// A request matched all of it; it stood at this rank.
    Hit(Rank),
    /// It is new.
    New,
    /// The sequence that published it adds so many pages; it stood at this rank.
    Grown(Rank, u32),
}

/// A policy: see the module's header.
pub(crate) trait Eviction: Send {
    /// Where a node stands that is used now.
    fn rank(&mut self, usage: Usage) -> Rank;
    /// Where the pages before its last stand, of a node used `frequency` times that stands at `rank`.
    fn inner(&self, rank: Rank, _frequency: u32) -> Rank {
        rank
    }
    /// Pages that stood at `rank` were evicted.
    fn evicted(&mut self, _rank: Rank, _pages: usize) {}
    /// A page that was evicted is wanted again.
    fn recalled(&mut self, _memory: Memory, _now: u64) {}
    /// Pages that stood at `rank` were removed, not by choice.
    fn dropped(&mut self, _rank: Rank, _pages: usize) {}
    /// What is known of single evicted pages is to be forgotten.
    fn forget_evicted(&mut self) {}
    /// The order is kept apart for each [`Rank::value`] below this; 1: there is one order.
    fn queues(&self) -> usize {
        1
    }
    /// Which of the heads of the queues goes first.
    fn choose(&self, heads: &mut dyn Iterator<Item = Rank>) -> Option<Rank> {
        heads.min()
    }
    /// Evicted pages whose frequency is to be remembered, per page of the pool.
    fn ghosts_per_page(&self) -> usize;
    /// The policy's own state, for dumps.
    fn dump(&self) -> String;
}

/// The order of the candidates, and what is remembered of those that went.
pub(crate) struct Evictor {
    policy: Box<dyn Eviction>,
    queues: Vec<BTreeSet<(Rank, NodeId)>>,
    /// The first of each queue: every eviction looks at all of them.
    heads: Vec<Option<(Rank, NodeId)>>,
    ghosts: Ghosts,
}

impl Evictor {
    pub fn new(kind: EvictionKind, pages: usize) -> Self {
        let policy = kind.build(pages);
        let ghosts = Ghosts::new(pages * policy.ghosts_per_page());
        let queues = vec![BTreeSet::new(); policy.queues()];
        let heads = vec![None; policy.queues()];
        Self { policy, queues, heads, ghosts }
    }

    pub fn rank(&mut self, usage: Usage) -> Rank {
        self.policy.rank(usage)
    }

    /// Where a node stands whose last page is no longer its own.
    pub fn inner(&self, rank: Rank, frequency: u32) -> Rank {
        self.policy.inner(rank, frequency)
    }

    /// The frequency remembered of a page that was evicted and is published again; 0 if there is none.
    pub fn recall(&mut self, print: u64, now: u64) -> u32 {
        let Some(memory) = self.ghosts.take(print, now) else { return 0 };
        self.policy.recalled(memory, now);
        memory.frequency
    }

    /// `node` may be evicted from now on.
    pub fn offer(&mut self, rank: Rank, node: NodeId) {
        let queue = self.queue(rank);
        self.queues[queue].insert((rank, node));
        let head = &mut self.heads[queue];
        if head.is_none_or(|head| (rank, node) < head) {
            *head = Some((rank, node));
        }
    }

    /// `node` may not be evicted any more; nothing happens if it could not be.
    pub fn withdraw(&mut self, rank: Rank, node: NodeId) {
        let queue = self.queue(rank);
        self.queues[queue].remove(&(rank, node));
        if self.heads[queue] == Some((rank, node)) {
            self.heads[queue] = self.queues[queue].first().copied();
        }
    }

    pub fn first(&self) -> Option<NodeId> {
        let mut heads = self.heads.iter().flatten().map(|&(rank, _)| rank);
        let rank = self.policy.choose(&mut heads)?;
        self.heads[self.queue(rank)].map(|(_, node)| node)
    }

    /// Pages of a node that stood at `rank` were evicted.
    pub fn evicted(&mut self, rank: Rank, frequency: u32, prints: impl ExactSizeIterator<Item = u64>) {
        self.policy.evicted(rank, prints.len());
        let queue = self.queue(rank) as u8;
        prints.for_each(|print| self.ghosts.put(print, Memory { frequency, queue, tick: rank.tick }));
    }

    /// Pages of a node that stood at `rank` were removed, not to make room.
    pub fn dropped(&mut self, rank: Rank, pages: usize) {
        self.policy.dropped(rank, pages);
    }

    /// Forgets every evicted page.
    pub fn forget_evicted(&mut self) {
        self.ghosts.clear();
        self.policy.forget_evicted();
    }

    /// Queue by queue, each in the order of eviction.
    pub fn candidates(&self) -> impl Iterator<Item = (Rank, NodeId)> {
        self.queues.iter().flatten().copied()
    }

    pub fn dump(&self) -> String {
        self.policy.dump()
    }

    pub fn bytes(&self) -> usize {
        // A B-tree is two thirds full on average.
        let candidates: usize = self.queues.iter().map(BTreeSet::len).sum();
        candidates * size_of::<(Rank, NodeId)>() * 3 / 2 + self.ghosts.bytes()
    }

    fn queue(&self, rank: Rank) -> usize {
        if self.queues.len() == 1 { 0 } else { rank.value as usize }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A policy alone, driven by a script and shown as text.

    use super::*;

    /// Each letter is a use of the node of that name (`a` = node 0), one page each; `!` evicts. Returns
    /// the victims, then what is left in order with values and frequencies, then the policy's state.
    pub fn run(kind: EvictionKind, script: &str) -> String {
        let mut evictor = Evictor::new(kind, 64);
        let mut ranks = [Rank::default(); 26];
        let mut frequency = [0u32; 26];
        let mut victims = String::new();
        for (tick, op) in script.chars().filter(|c| !c.is_whitespace()).enumerate() {
            if op == '!' {
                let Some(node) = evictor.first() else { continue };
                let i = node.0 as usize;
                evictor.withdraw(ranks[i], node);
                evictor.evicted(ranks[i], frequency[i], [1 + u64::from(node.0)].into_iter());
                frequency[i] = 0;
                victims.push(name(node));
                continue;
            }
            let i = (op as u8 - b'a') as usize;
            let (node, tick) = (NodeId(i as u32), tick as u64);
            evictor.withdraw(ranks[i], node);
            let event = if frequency[i] == 0 { Use::New } else { Use::Hit(ranks[i]) };
            if frequency[i] == 0 {
                frequency[i] = evictor.recall(1 + i as u64, tick);
            }
            frequency[i] += 1;
            let usage = Usage { frequency: frequency[i], tick, pages: 1, tail: false, event };
            ranks[i] = evictor.rank(usage);
            evictor.offer(ranks[i], node);
        }
        let left: Vec<String> = evictor
            .candidates()
            .map(|(rank, node)| format!("{}:{}x{}", name(node), rank.value, frequency[node.0 as usize]))
            .collect();
        format!("victims {victims} | left {} | {}", left.join(" "), evictor.dump())
    }

    fn name(node: NodeId) -> char {
        (b'a' + node.0 as u8) as char
    }
}
