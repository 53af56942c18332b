//! The policies that can be compared here, by name.

/// Who places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The simulator's own round robin: what ours has to equal, or nothing here says anything.
    PeerRoundRobin,
    /// Dynamo's default cost.
    Dynamo,
    /// Ours, by `router::decide`.
    KvAware,
    RoundRobin,
    LeastLoaded,
    PrefixHash,
}

impl Kind {
    const ALL: [Kind; 6] = [
        Kind::PeerRoundRobin,
        Kind::Dynamo,
        Kind::KvAware,
        Kind::RoundRobin,
        Kind::LeastLoaded,
        Kind::PrefixHash,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::PeerRoundRobin => "peer-round-robin",
            Kind::Dynamo => "dynamo-default",
            Kind::KvAware => "kv-aware",
            Kind::RoundRobin => "round-robin",
            Kind::LeastLoaded => "least-loaded",
            Kind::PrefixHash => "prefix-hash",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}
