//! Where a page's bytes may lie, nearest first.
//!
//! An enum and not a list made at start: every tier has its own medium, its own guarantees at a purge
//! and its own failures, so code that treats them alike does so by an array index, and code that does
//! not names them.

use std::fmt;

/// One level of the KV cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// The memory that kernels read.
    Device,
    /// Pinned host memory, plaintext like the device's.
    Host,
    /// Files on a local disk; sealed.
    Nvme,
    /// An object store; sealed.
    Object,
}

impl Tier {
    pub const ALL: [Tier; 4] = [Tier::Device, Tier::Host, Tier::Nvme, Tier::Object];

    pub fn name(self) -> &'static str {
        match self {
            Tier::Device => "device",
            Tier::Host => "host",
            Tier::Nvme => "nvme",
            Tier::Object => "object",
        }
    }

    /// The name of the medium in KV events as other routers read them.
    pub fn medium(self) -> &'static str {
        match self {
            Tier::Device => "GPU",
            Tier::Host => "CPU_PINNED",
            Tier::Nvme => "DISK",
            Tier::Object => "EXTERNAL",
        }
    }

    /// Its place in arrays over tiers.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The next farther tier.
    pub fn below(self) -> Option<Tier> {
        Tier::ALL.get(self.index() + 1).copied()
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
