//! Which unleased leaf goes first.
//!
//! A policy is a ranking: when a node is used it says where the node stands, lowest first, and it
//! learns what was evicted. That is all the policies here differ in, so the order itself (`Evictor`)
//! and the memory of evicted pages (`Ghosts`) are written once. Only leaves stand in the order, so
//! no policy can evict a trunk before its branches.

mod gdsf;
mod ghost;
mod lru;
mod slru;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::node::NodeId;
pub(crate) use ghost::Ghosts;

/// The policy of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EvictionKind {
    /// Greedy-dual with size and frequency, over leaves.
    #[default]
    Gdsf,
    /// Least recently used leaf.
    Lru,
    /// Segmented: pages used once go before pages used again.
    Slru,
}

impl EvictionKind {
    pub const ALL: [EvictionKind; 3] = [Self::Gdsf, Self::Lru, Self::Slru];

    pub fn name(self) -> &'static str {
        match self {
            Self::Gdsf => "gdsf",
            Self::Lru => "lru",
            Self::Slru => "slru",
        }
    }

    pub(crate) fn build(self) -> Box<dyn Eviction> {
        match self {
            Self::Gdsf => Box::new(gdsf::Gdsf::default()),
            Self::Lru => Box::new(lru::Lru),
            Self::Slru => Box::new(slru::Slru),
        }
    }
}

impl fmt::Display for EvictionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a policy that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown eviction policy {0:?}: gdsf, lru or slru")]
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
}

/// A policy: see the module's header.
pub(crate) trait Eviction: Send {
    /// Where a node stands that is used now.
    fn rank(&self, usage: Usage) -> Rank;
    /// A page that stood at `rank` was evicted.
    fn evicted(&mut self, _rank: Rank) {}
    /// Evicted pages whose frequency is to be remembered, per page of the pool.
    fn ghosts_per_page(&self) -> usize;
    /// The policy's own state, for dumps.
    fn dump(&self) -> String;
}

/// The order of the candidates, and what is remembered of those that went.
pub(crate) struct Evictor {
    policy: Box<dyn Eviction>,
    order: BTreeSet<(Rank, NodeId)>,
    pub ghosts: Ghosts,
}

impl Evictor {
    pub fn new(policy: Box<dyn Eviction>, pages: usize) -> Self {
        let ghosts = Ghosts::new(pages * policy.ghosts_per_page());
        Self { policy, order: BTreeSet::new(), ghosts }
    }

    pub fn rank(&self, usage: Usage) -> Rank {
        self.policy.rank(usage)
    }

    /// `node` may be evicted from now on.
    pub fn offer(&mut self, rank: Rank, node: NodeId) {
        self.order.insert((rank, node));
    }

    /// `node` may not be evicted any more; nothing happens if it could not be.
    pub fn withdraw(&mut self, rank: Rank, node: NodeId) {
        self.order.remove(&(rank, node));
    }

    pub fn first(&self) -> Option<NodeId> {
        self.order.first().map(|&(_, node)| node)
    }

    pub fn evicted(&mut self, rank: Rank, print: u64, frequency: u32) {
        self.policy.evicted(rank);
        self.ghosts.put(print, frequency);
    }

    /// In the order of eviction.
    pub fn candidates(&self) -> impl Iterator<Item = (Rank, NodeId)> {
        self.order.iter().copied()
    }

    pub fn dump(&self) -> String {
        self.policy.dump()
    }

    pub fn bytes(&self) -> usize {
        // A B-tree is two thirds full on average.
        self.order.len() * size_of::<(Rank, NodeId)>() * 3 / 2 + self.ghosts.bytes()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A policy alone, driven by a script and shown as text.

    use super::*;

    /// Each letter is a use of the node of that name (`a` = node 0); `!` evicts. Returns the victims,
    /// then what is left in order with values and frequencies, then the policy's state.
    pub fn run(policy: Box<dyn Eviction>, script: &str) -> String {
        let mut evictor = Evictor::new(policy, 64);
        let mut ranks = [Rank::default(); 26];
        let mut frequency = [0u32; 26];
        let mut victims = String::new();
        for (tick, op) in script.chars().filter(|c| !c.is_whitespace()).enumerate() {
            if op == '!' {
                let Some(node) = evictor.first() else { continue };
                let i = node.0 as usize;
                evictor.withdraw(ranks[i], node);
                evictor.evicted(ranks[i], 1 + u64::from(node.0), frequency[i]);
                frequency[i] = 0;
                victims.push(name(node));
                continue;
            }
            let i = (op as u8 - b'a') as usize;
            let node = NodeId(i as u32);
            evictor.withdraw(ranks[i], node);
            if frequency[i] == 0 {
                frequency[i] = evictor.ghosts.take(1 + i as u64);
            }
            frequency[i] += 1;
            ranks[i] = evictor.rank(Usage { frequency: frequency[i], tick: tick as u64 });
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
