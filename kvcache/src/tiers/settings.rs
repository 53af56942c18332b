//! What the tiers are made with.

use std::fmt;
use std::str::FromStr;

use base::Tier;

use crate::{CacheConfig, EvictionKind};

/// Fixed for the life of a replica.
#[derive(Clone, Debug)]
pub struct TiersConfig {
    pub device: CacheConfig,
    /// Nearest first; a cold tier needs the host tier.
    pub lower: Vec<LowerConfig>,
    /// Pages that may be on their way to or from cold tiers; past it copies are shed and counted.
    pub orders_max: usize,
}

impl TiersConfig {
    /// The device alone.
    pub fn device(device: CacheConfig) -> Self {
        Self { device, lower: Vec::new(), orders_max: 4096 }
    }

    pub(super) fn assert_sound(&self) {
        let tiers: Vec<Tier> = self.lower.iter().map(|lower| lower.tier).collect();
        assert!(tiers.is_sorted_by(|a, b| a < b), "tiers come once, nearest first");
        assert!(tiers.first().is_none_or(|first| *first == Tier::Host), "cold tiers need the host tier");
    }
}

#[derive(Clone, Debug)]
pub struct LowerConfig {
    pub tier: Tier,
    /// Frames or slots.
    pub pages: u32,
    pub policy: EvictionKind,
    pub write: WritePolicy,
    /// Under write-back: copy down the coldest once fewer than this share of the tier above is free.
    pub watermark: f32,
    /// An earlier run has used these places, and free ones may hold what it left.
    pub has_past: bool,
}

impl LowerConfig {
    pub fn new(tier: Tier, pages: u32) -> Self {
        Self {
            tier,
            pages,
            policy: EvictionKind::default(),
            write: WritePolicy::default(),
            watermark: 0.1,
            has_past: false,
        }
    }
}

/// When a page is copied to the next tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WritePolicy {
    /// As soon as it is there.
    #[default]
    WriteThrough,
    /// Once it has been used this often.
    WriteThroughSelective { uses: u32 },
    /// When it is about to be evicted.
    WriteBack,
}

impl WritePolicy {
    /// The usual number of uses that make a page worth writing.
    pub const SELECTIVE_USES: u32 = 2;

    pub fn name(self) -> &'static str {
        match self {
            Self::WriteThrough => "write_through",
            Self::WriteThroughSelective { .. } => "write_through_selective",
            Self::WriteBack => "write_back",
        }
    }
}

impl fmt::Display for WritePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a write policy that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown write policy {0:?}: write_through, write_through_selective or write_back")]
pub struct UnknownWritePolicy(pub String);

impl FromStr for WritePolicy {
    type Err = UnknownWritePolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let selective = Self::WriteThroughSelective { uses: Self::SELECTIVE_USES };
        [Self::WriteThrough, selective, Self::WriteBack]
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or_else(|| UnknownWritePolicy(name.to_owned()))
    }
}
