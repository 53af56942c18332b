//! What a replica tells routers: `quire.v1`'s messages as plain values.

use std::sync::Arc;

use base::{AdapterId, Generation, NamespaceId};
use kvcache::Stored;
use proto::v1;

use super::{Counters, MODEL};

/// A place in a stream: the next batch that has not been applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    pub incarnation: u64,
    pub next: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    Ready,
    Draining,
}

/// How busy a replica is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    pub ready: Ready,
    pub in_flight: u64,
    pub running: u64,
    pub waiting: u64,
    pub in_flight_max: u64,
    pub pages_total: u64,
    pub pages_free: u64,
    pub pages_cached: u64,
    pub counters: Counters,
}

/// Whose a block is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner {
    pub namespace: NamespaceId,
    pub generation: Generation,
    pub adapter: AdapterId,
}

/// Blocks of one prompt, each the child of the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub owner: Owner,
    pub parent: Option<u64>,
    pub names: Vec<u64>,
}

impl Run {
    pub fn of(stored: &Stored) -> Self {
        Self {
            owner: Owner {
                namespace: stored.namespace,
                generation: stored.generation,
                adapter: stored.adapter,
            },
            parent: stored.parent.map(|name| name.low64()),
            names: stored.names.iter().map(|name| name.low64()).collect(),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    Stored(Run),
    /// Children before parents; all of one namespace.
    Removed {
        namespace: NamespaceId,
        names: Vec<u64>,
    },
    Cleared,
    Purged {
        namespace: NamespaceId,
        up_to: Generation,
        blocks: u64,
    },
}

/// One step's changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    pub sequence: u64,
    pub unix_ms: u64,
    pub changes: Vec<Change>,
    pub load: Load,
}

/// One message of the stream to a follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    Hello { incarnation: u64, oldest: u64, next: u64 },
    Page { runs: Vec<Run> },
    End { next: Position, blocks: u64 },
    Batch(Arc<Batch>),
    Gap { first_missing: u64, next: u64 },
    Heartbeat { next: Position, load: Load, unix_ms: u64 },
}

impl Load {
    /// As `quire.v1` says it.
    pub fn proto(&self, unix_ms: u64) -> v1::LoadRecord {
        v1::LoadRecord {
            unix_ms,
            readiness: match self.ready {
                Ready::Ready => v1::Readiness::Ready,
                Ready::Draining => v1::Readiness::Draining,
            }
            .into(),
            in_flight: self.in_flight,
            running: self.running,
            waiting: self.waiting,
            in_flight_max: self.in_flight_max,
            pages_total: self.pages_total,
            pages_free: self.pages_free,
            pages_cached: self.pages_cached,
            prefix_query_tokens: self.counters.query_tokens,
            prefix_hit_tokens: self.counters.hit_tokens,
            computed_tokens: self.counters.computed_tokens,
            generated_tokens: self.counters.generated_tokens,
            steps: self.counters.steps,
            step_ns: self.counters.step_ns,
            preemptions: self.counters.preemptions,
        }
    }
}

impl Run {
    fn proto(&self, name: &impl Fn(NamespaceId) -> String) -> v1::StoredRun {
        v1::StoredRun {
            namespace: name(self.owner.namespace),
            generation: self.owner.generation.0,
            adapter: self.owner.adapter.0,
            tiers: vec![v1::Tier::Device.into()],
            parent: self.parent,
            hashes: self.names.clone(),
            token_ids: Vec::new(),
        }
    }
}

impl Change {
    fn proto(&self, name: &impl Fn(NamespaceId) -> String) -> v1::Event {
        use v1::event::Event;
        let event = match self {
            Change::Stored(run) => Event::Stored(run.proto(name)),
            Change::Removed { namespace, names } => Event::Removed(v1::Removed {
                namespace: name(*namespace),
                tier: v1::Tier::Device.into(),
                hashes: names.clone(),
            }),
            Change::Cleared => Event::Cleared(v1::Cleared {}),
            Change::Purged { namespace, up_to, blocks } => Event::Purged(v1::Purged {
                namespace: name(*namespace),
                up_to_generation: up_to.0,
                blocks: *blocks,
            }),
        };
        v1::Event { event: Some(event) }
    }
}

impl Position {
    fn proto(self) -> v1::Position {
        v1::Position { incarnation: self.incarnation, next_sequence: self.next }
    }
}

impl Message {
    /// As `quire.v1` says it; `name` gives the names of namespaces.
    pub fn proto(&self, name: impl Fn(NamespaceId) -> String, block_tokens: u32) -> v1::KvEventsResponse {
        use v1::kv_events_response::Message as Says;
        let message = match self {
            Message::Hello { incarnation, oldest, next } => Says::Hello(v1::Hello {
                incarnation: *incarnation,
                block_tokens,
                model_digest: MODEL.0.to_vec(),
                oldest_sequence: *oldest,
                next_sequence: *next,
            }),
            Message::Page { runs } => Says::SnapshotPage(v1::SnapshotPage {
                runs: runs.iter().map(|run| run.proto(&name)).collect(),
            }),
            Message::End { next, blocks } => {
                Says::SnapshotEnd(v1::SnapshotEnd { next: Some(next.proto()), blocks: *blocks })
            }
            Message::Batch(batch) => Says::Batch(v1::EventBatch {
                sequence: batch.sequence,
                unix_ms: batch.unix_ms,
                events: batch.changes.iter().map(|change| change.proto(&name)).collect(),
                more: false,
                load: Some(batch.load.proto(batch.unix_ms)),
            }),
            Message::Gap { first_missing, next } => {
                Says::Gap(v1::Gap { first_missing: *first_missing, next_sequence: *next })
            }
            Message::Heartbeat { next, load, unix_ms } => {
                Says::Heartbeat(v1::Heartbeat { next: Some(next.proto()), load: Some(load.proto(*unix_ms)) })
            }
        };
        v1::KvEventsResponse { message: Some(message) }
    }
}
