//! One follower of KV events: a snapshot where it needs one, then the log, record by record.
//!
//! ```text
//!  Hello ─▶ start known? ──yes──▶ log from there ◀─────────────┐
//!                │ no                  │ the log has moved on   │
//!                └──▶ (Gap) snapshot ◀─┘ (Gap)                  │
//!                         └────────── its first sequence ───────┘
//! ```
//!
//! The follower's place in the log is all that is kept for it. It reads at its own pace: a record is looked up
//! when there is room to send it and let go when it is sent, so tokens that a purge takes out of the log are not told
//! by a follower that stalls. One that the log overtakes is told so.
//!
//! A snapshot is a copy of the mirror, so only a few are there at a time; a follower that finds no place within
//! seconds is told to come back, and one that is read too slowly is taken back. A follower that needs one snapshot
//! after the other, because the log is gone again each time, waits longer each time and is given up at last.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base::NamespaceId;
use proto::v1::kv_events_response::Message;
use proto::v1::{
    Cleared, Event, EventBatch, Gap, Heartbeat, Hello, KvEventsResponse, Position, Purged, Removed,
    SnapshotEnd, SnapshotPage, SnapshotPolicy, event,
};
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status};

use super::status::{busy, status};
use super::stream::Outlet;
use super::wire::{self, Names};
use crate::api::App;
use crate::api::error::ApiError;
use crate::events::{Change, EventHub, Read, Record, Run, Snapshot};

/// Snapshots being told at once; further followers wait.
pub(super) const SNAPSHOTS_MAX: usize = 8;
/// A follower waits for its snapshot to begin at most this long.
const SEAT_PATIENCE: Duration = Duration::from_secs(5);
/// A snapshot must be read within this time.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(60);
/// Snapshots in a row, each of which the log had moved past before it was read.
const REPEATS_MAX: u32 = 4;
/// Before the second of them; doubled for each further one.
const REPEAT_REST: Duration = Duration::from_millis(200);
/// Blocks of one page of a snapshot: well below the 4 MiB that clients accept.
const BLOCKS_MAX: usize = 4096;
/// A stream on which nothing happens says so this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

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
    /// Ascending; none: all.
    pub namespaces: Vec<NamespaceId>,
    pub tokens: Tokens,
    pub snapshots: Arc<Semaphore>,
}

type Out = Outlet<KvEventsResponse>;

/// Where a follower has got to.
struct Place {
    next: u64,
    /// Snapshots since it last had everything.
    repeats: u32,
}

impl Feed {
    pub async fn run(self, out: Out) -> Result<Infallible, Status> {
        let mut head = self.hub.head();
        let mut place = self.begin(&out).await?;
        loop {
            if self.hub.extent().next <= place.next {
                place.repeats = 0;
            }
            self.news(&mut head, place.next).await;
            let turn = out.turn().await?;
            match self.hub.read(place.next) {
                Read::Record(record) => {
                    place.next = record.sequence + 1;
                    let message = self.batch(&record)?;
                    drop(record);
                    turn.give_revised(message, self.forget_purged()).await?;
                }
                Read::Missed { oldest } => {
                    turn.give(gap(place.next, oldest)).await?;
                    place = self.mend(&out, place.repeats, oldest).await?;
                }
                Read::Nothing => turn.give(self.heartbeat(place.next)?).await?,
                Read::Ended => return Err(ApiError::unavailable("KV events have ended", "engine").into()),
            }
        }
    }

    /// Returns when there is something to read at `next`, or when it is time to say that there is nothing.
    async fn news(&self, head: &mut watch::Receiver<u64>, next: u64) {
        let is_news = |now: &u64| *now > next || !self.hub.is_alive();
        // The hub is kept by `self`: the channel does not close.
        let _ = tokio::time::timeout(HEARTBEAT, head.wait_for(is_news)).await;
    }

    /// Says hello; where the log is read from.
    async fn begin(&self, out: &Out) -> Result<Place, Status> {
        let extent = self.hub.extent();
        let shape = self.app.replica()?.engine.shape();
        let hello = Hello {
            incarnation: self.hub.incarnation(),
            block_tokens: shape.page_tokens,
            model_digest: shape.model.0.to_vec(),
            oldest_sequence: extent.oldest,
            next_sequence: extent.next,
        };
        out.send(wrap(Message::Hello(hello))).await?;
        let at = |next| Ok(Place { next, repeats: 0 });
        match (self.start, self.policy) {
            (Start::Elsewhere, _) => {
                out.send(gap(0, extent.oldest)).await?;
                self.mend(out, 0, extent.oldest).await
            }
            (Start::At(next), SnapshotPolicy::Never | SnapshotPolicy::IfNeeded) => at(next),
            (Start::At(next), SnapshotPolicy::Unspecified) => at(next),
            (Start::Unknown, SnapshotPolicy::Never) => at(extent.next),
            (Start::Unknown | Start::At(_), _) => self.snapshot(out, 0).await,
        }
    }

    /// After a gap: what is there instead of what is missing.
    async fn mend(&self, out: &Out, repeats: u32, oldest: u64) -> Result<Place, Status> {
        match self.policy {
            SnapshotPolicy::Never => Ok(Place { next: oldest, repeats: 0 }),
            _ => self.snapshot(out, repeats).await,
        }
    }

    /// All that is there, and the first record that is not in it.
    async fn snapshot(&self, out: &Out, repeats: u32) -> Result<Place, Status> {
        if repeats >= REPEATS_MAX {
            return Err(busy("log_too_short", "the log moves on faster than snapshots are read"));
        }
        if repeats > 0 {
            tokio::time::sleep(REPEAT_REST * 2u32.pow(repeats - 1)).await;
        }
        let seat = tokio::time::timeout(SEAT_PATIENCE, self.snapshots.acquire()).await;
        let seat = seat.map_err(|_| busy("too_many_snapshots", "others read snapshots; try again later"))?;
        let _seat = seat.map_err(|_| ApiError::internal("snapshots are closed"))?;
        let _counted = self.app.metrics().rpc.snapshots.enter();
        let (hub, namespaces) = (self.hub.clone(), self.namespaces.clone());
        let taken = tokio::task::spawn_blocking(move || hub.snapshot(&namespaces)).await;
        let taken = taken.map_err(|_| ApiError::internal("the snapshot failed"))?;
        let Some((snapshot, next)) = taken else {
            let message = "this server keeps no snapshot of its blocks";
            return Err(status(Code::FailedPrecondition, "no_snapshot", message));
        };
        let told = self.tell_snapshot(out, snapshot, next);
        let told = tokio::time::timeout(SNAPSHOT_PATIENCE, told).await;
        told.map_err(|_| busy("slow_reader", "the snapshot was read too slowly"))??;
        Ok(Place { next, repeats: repeats + 1 })
    }

    async fn tell_snapshot(&self, out: &Out, snapshot: Snapshot, next: u64) -> Result<(), Status> {
        let page_tokens = self.app.replica()?.engine.shape().page_tokens;
        // One page also where there is nothing: the follower must forget what it had.
        for at in (0..snapshot.len().max(1)).step_by(BLOCKS_MAX) {
            let turn = out.turn().await?;
            let runs = snapshot.page(at, BLOCKS_MAX, page_tokens);
            let runs = runs.iter().map(|run| wire::run(run, &self.names)).collect();
            turn.give(wrap(Message::SnapshotPage(SnapshotPage { runs }))).await?;
        }
        let next = Position { incarnation: self.hub.incarnation(), next_sequence: next };
        let end = SnapshotEnd { next: Some(next), blocks: snapshot.len() as u64 };
        // Memory before the reader's leisure.
        drop(snapshot);
        out.send(wrap(Message::SnapshotEnd(end))).await
    }

    /// A record is one message: the log bounds its size.
    fn batch(&self, record: &Record) -> Result<KvEventsResponse, Status> {
        let events = record.changes.iter().filter_map(|change| self.event(change));
        let events = events.map(|event| Event { event: Some(event) }).collect();
        let load = Some(wire::load(&self.app)?);
        let Record { sequence, unix_ms, .. } = *record;
        Ok(wrap(Message::Batch(EventBatch { sequence, unix_ms, events, more: false, load })))
    }

    /// Takes tokens out of a message that are purged by the time it is taken.
    fn forget_purged(&self) -> Box<dyn FnOnce(&mut KvEventsResponse) + Send> {
        let (hub, names) = (self.hub.clone(), self.names.clone());
        Box::new(move |response| {
            let Some(Message::Batch(batch)) = &mut response.message else { return };
            for event in &mut batch.events {
                if let Some(event::Event::Stored(run)) = &mut event.event
                    && !run.token_ids.is_empty()
                    && names.owner(run).is_none_or(|owner| hub.is_purged(&owner))
                {
                    run.token_ids = Vec::new();
                }
            }
        })
    }

    fn heartbeat(&self, next_sequence: u64) -> Result<KvEventsResponse, Status> {
        let load = Some(wire::load(&self.app)?);
        let next = Some(Position { incarnation: self.hub.incarnation(), next_sequence });
        Ok(wrap(Message::Heartbeat(Heartbeat { next, load })))
    }

    fn is_meant(&self, namespace: NamespaceId) -> bool {
        self.namespaces.is_empty() || self.namespaces.binary_search(&namespace).is_ok()
    }

    /// A change as this follower is told of it, if it is.
    fn event(&self, change: &Change) -> Option<event::Event> {
        match change {
            Change::Stored(run) if self.is_meant(run.owner.namespace) => {
                Some(event::Event::Stored(self.stored(run)))
            }
            Change::Removed { tier, namespace, hashes } if namespace.is_none_or(|id| self.is_meant(id)) => {
                let namespace = namespace.map(|id| self.names.of(id)).unwrap_or_default();
                let tier = wire::tier(*tier).into();
                Some(event::Event::Removed(Removed { namespace, tier, hashes: hashes.clone() }))
            }
            Change::Purged { namespace, up_to, blocks } if self.is_meant(*namespace) => {
                let (namespace, up_to_generation) = (self.names.of(*namespace), up_to.0);
                Some(event::Event::Purged(Purged { namespace, up_to_generation, blocks: *blocks }))
            }
            Change::Cleared => Some(event::Event::Cleared(Cleared {})),
            Change::Stored(_) | Change::Removed { .. } | Change::Purged { .. } | Change::Swept { .. } => None,
        }
    }

    /// With its tokens, if they are asked for and no purge has been.
    fn stored(&self, run: &Run) -> proto::v1::StoredRun {
        let is_told = self.tokens == Tokens::Told && !self.hub.is_purged(&run.owner);
        let token_ids = if is_told { run.tokens.clone() } else { Vec::new() };
        proto::v1::StoredRun { token_ids, ..wire::run(run, &self.names) }
    }
}

fn gap(first_missing: u64, next_sequence: u64) -> KvEventsResponse {
    wrap(Message::Gap(Gap { first_missing, next_sequence }))
}

fn wrap(message: Message) -> KvEventsResponse {
    KvEventsResponse { message: Some(message) }
}
