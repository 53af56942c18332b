//! One follower of KV events: a snapshot where it needs one, then the log, record by record.
//!
//! ```text
//!  Hello ─▶ start known? ──yes──▶ log from there ◀─────────────┐
//!                │ no                  │ the log has moved on   │
//!                └──▶ (Gap) snapshot ◀─┘ (Gap)                  │
//!                         └────────── its first sequence ───────┘
//! ```
//!
//! The follower's place in the log is all that is kept for it; it reads at its own pace and a follower that
//! the log overtakes is told so. A snapshot is a copy of the mirror, so only a few are made at a time, and one
//! that is read too slowly is taken back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base::NamespaceId;
use proto::v1::kv_events_response::Message;
use proto::v1::{
    Cleared, Event, EventBatch, Gap, Hello, KvEventsResponse, Position, Purged, Removed, SnapshotEnd,
    SnapshotPage, SnapshotPolicy, event,
};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use super::status::status;
use super::stream::Outlet;
use super::wire::{self, Names};
use crate::api::App;
use crate::api::error::ApiError;
use crate::events::{Change, EventHub, Read, Record, Run, Snapshot};

/// Snapshots being told at once; further followers wait.
pub(super) const SNAPSHOTS_MAX: usize = 4;
/// A snapshot must be read within this time.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(60);
/// Blocks of one message: with 64 tokens each it stays well below the 4 MiB that clients accept.
const BLOCKS_MAX: usize = 4096;
/// Records looked at under one lock.
const RECORDS_MAX: usize = 16;

/// Where a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It knows nothing.
    Unknown,
    /// In another stream.
    Elsewhere,
    /// It has all before this.
    At(u64),
}

/// Whether a follower is told the tokens of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tokens {
    Told,
    Kept,
}

pub(super) struct Feed {
    pub app: App,
    pub hub: EventHub,
    pub names: Names,
    pub start: Start,
    pub policy: SnapshotPolicy,
    /// None: all.
    pub namespaces: Vec<NamespaceId>,
    pub tokens: Tokens,
    pub snapshots: Arc<Semaphore>,
}

type Out = Outlet<KvEventsResponse>;

impl Feed {
    pub async fn run(self, out: Out) -> Result<Infallible, Status> {
        let mut head = self.hub.head();
        let mut next = self.begin(&out).await?;
        loop {
            head.borrow_and_update();
            match self.hub.read(next, RECORDS_MAX) {
                Read::Records(records) => {
                    for record in records {
                        self.tell(&out, &record).await?;
                        next = record.sequence + 1;
                    }
                }
                Read::Missed { oldest } => next = self.mend(&out, next, oldest).await?,
                Read::Nothing => {
                    let ended = |_| Status::from(ApiError::unavailable("the engine has stopped", "engine"));
                    head.changed().await.map_err(ended)?;
                }
            }
        }
    }

    /// Says hello; where the log is read from.
    async fn begin(&self, out: &Out) -> Result<u64, Status> {
        let extent = self.hub.extent();
        let shape = self.app.replica()?.engine.shape();
        let hello = Hello {
            incarnation: self.hub.incarnation(),
            block_tokens: shape.page_tokens,
            model_digest: shape.model.0.to_vec(),
            oldest_sequence: extent.oldest,
            next_sequence: extent.next,
        };
        send(out, Message::Hello(hello)).await?;
        match (self.start, self.policy) {
            (Start::Elsewhere, _) => self.mend(out, 0, extent.oldest).await,
            (Start::At(next), SnapshotPolicy::Never | SnapshotPolicy::IfNeeded) => Ok(next),
            (Start::At(next), SnapshotPolicy::Unspecified) => Ok(next),
            (Start::Unknown, SnapshotPolicy::Never) => Ok(extent.next),
            (Start::Unknown | Start::At(_), _) => self.snapshot(out).await,
        }
    }

    /// What is missing cannot be had: says so, and what is there instead.
    async fn mend(&self, out: &Out, first_missing: u64, oldest: u64) -> Result<u64, Status> {
        send(out, Message::Gap(Gap { first_missing, next_sequence: oldest })).await?;
        match self.policy {
            SnapshotPolicy::Never => Ok(oldest),
            _ => self.snapshot(out).await,
        }
    }

    /// All that is there, and the first record that is not in it.
    async fn snapshot(&self, out: &Out) -> Result<u64, Status> {
        let seat = self.snapshots.acquire().await;
        let _seat = seat.map_err(|_| ApiError::internal("snapshots are closed"))?;
        let (hub, namespaces) = (self.hub.clone(), self.namespaces.clone());
        let taken = tokio::task::spawn_blocking(move || hub.snapshot(&namespaces)).await;
        let taken = taken.map_err(|_| ApiError::internal("the snapshot failed"))?;
        let Some((snapshot, next)) = taken else {
            let message = "this server keeps no snapshot of its blocks";
            return Err(status(Code::FailedPrecondition, "no_snapshot", message));
        };
        let told = self.tell_snapshot(out, snapshot, next);
        tokio::time::timeout(SNAPSHOT_PATIENCE, told).await.map_err(|_| {
            status(Code::ResourceExhausted, "slow_reader", "the snapshot was read too slowly")
        })??;
        Ok(next)
    }

    async fn tell_snapshot(&self, out: &Out, snapshot: Snapshot, next: u64) -> Result<(), Status> {
        let page_tokens = self.app.replica()?.engine.shape().page_tokens;
        // One page also where there is nothing: the follower must forget what it had.
        for at in (0..snapshot.len().max(1)).step_by(BLOCKS_MAX) {
            let runs = snapshot.page(at, BLOCKS_MAX, page_tokens);
            let runs = runs.iter().map(|run| wire::run(run, &self.names)).collect();
            send(out, Message::SnapshotPage(SnapshotPage { runs })).await?;
        }
        let next = Position { incarnation: self.hub.incarnation(), next_sequence: next };
        let end = SnapshotEnd { next: Some(next), blocks: snapshot.len() as u64 };
        send(out, Message::SnapshotEnd(end)).await
    }

    /// One record, in as many messages as it takes.
    async fn tell(&self, out: &Out, record: &Record) -> Result<(), Status> {
        let mut parts = Parts::default();
        record.changes.iter().for_each(|change| self.cut(change, &mut parts));
        let Parts { mut full, last, .. } = parts;
        full.push(last);
        let count = full.len();
        for (at, events) in full.into_iter().enumerate() {
            let more = at + 1 < count;
            let load = if more { None } else { Some(wire::load(&self.app)?) };
            let (sequence, unix_ms) = (record.sequence, record.unix_ms);
            send(out, Message::Batch(EventBatch { sequence, unix_ms, events, more, load })).await?;
        }
        Ok(())
    }

    fn is_meant(&self, namespace: NamespaceId) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(&namespace)
    }

    /// Appends a change, cut where a message is full.
    fn cut(&self, change: &Change, parts: &mut Parts) {
        match change {
            Change::Stored(run) if self.is_meant(run.owner.namespace) => self.cut_run(run, parts),
            Change::Removed { tier, namespace, hashes } if namespace.is_none_or(|id| self.is_meant(id)) => {
                let name = namespace.map(|id| self.names.of(id)).unwrap_or_default();
                for hashes in hashes.chunks(BLOCKS_MAX) {
                    let tier = wire::tier(*tier).into();
                    let removed = Removed { namespace: name.clone(), tier, hashes: hashes.to_vec() };
                    parts.push(event::Event::Removed(removed), hashes.len());
                }
            }
            Change::Purged { namespace, up_to, blocks } if self.is_meant(*namespace) => {
                let (namespace, up_to_generation) = (self.names.of(*namespace), up_to.0);
                parts.push(event::Event::Purged(Purged { namespace, up_to_generation, blocks: *blocks }), 1);
            }
            Change::Cleared => parts.push(event::Event::Cleared(Cleared {}), 1),
            Change::Stored(_) | Change::Removed { .. } | Change::Purged { .. } | Change::Swept { .. } => {}
        }
    }

    fn cut_run(&self, run: &Run, parts: &mut Parts) {
        let head = wire::run_head(run, &self.names);
        let has_tokens = self.tokens == Tokens::Told && !run.tokens.is_empty();
        let mut parent = run.parent;
        for (at, hashes) in run.hashes.chunks(BLOCKS_MAX).enumerate() {
            let size = run.page_tokens as usize;
            let tokens = at * BLOCKS_MAX * size..(at * BLOCKS_MAX + hashes.len()) * size;
            let token_ids = if has_tokens { run.tokens[tokens].to_vec() } else { Vec::new() };
            let part = proto::v1::StoredRun { parent, hashes: hashes.to_vec(), token_ids, ..head.clone() };
            parts.push(event::Event::Stored(part), hashes.len());
            parent = hashes.last().copied();
        }
    }
}

/// Events by message.
#[derive(Default)]
struct Parts {
    full: Vec<Vec<Event>>,
    last: Vec<Event>,
    blocks: usize,
}

impl Parts {
    fn push(&mut self, event: event::Event, blocks: usize) {
        if self.blocks + blocks > BLOCKS_MAX {
            self.full.push(std::mem::take(&mut self.last));
            self.blocks = 0;
        }
        self.blocks += blocks;
        self.last.push(Event { event: Some(event) });
    }
}

async fn send(out: &Out, message: Message) -> Result<(), Status> {
    out.send(KvEventsResponse { message: Some(message) }).await
}
