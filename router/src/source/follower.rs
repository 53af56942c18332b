//! A follower of `quire.v1` `Cache.KvEvents`.
//!
//! The stream is one reliable connection, yet nothing is taken on trust: numbers must count up by one, a snapshot must
//! have as many blocks as its end says, a heartbeat must name the place that was reached. Whatever does not fit ends
//! the stream ([`Verdict::Reconnect`]); the next one begins where the last proven position was, or with a snapshot
//! where there is none. Resuming and not repairing in place: there is one way back to EXACT, and it is the one that a
//! lost connection takes every day.
//!
//! Limits: a page of a snapshot that came twice in place of another of the same length would pass; TCP does not do
//! that. Memory is one scope per (namespace, generation) heard of, bounded by [`Limits::scopes_max`].

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Generation, Nanos, Tier};
use proto::v1::event::Event as Kind;
use proto::v1::kv_events_response::Message;
use proto::v1::{
    EventBatch, Gap, Heartbeat, Hello, KvEventsRequest, KvEventsResponse, LoadRecord, Position, Purged,
    Removed, SnapshotEnd, SnapshotPage, SnapshotPolicy, StoredRun,
};

use super::{Scope, State, Tiers, Told};
use crate::Seat;

/// What bounds a source.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Silence after which a stream is not believed any more: some heartbeats must have been missed.
    pub silence: Duration,
    /// Generations of namespaces of one replica.
    pub scopes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { silence: Duration::from_secs(25), scopes_max: 1 << 17 }
    }
}

/// What the stream's owner does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    GoOn,
    /// End this stream and begin another with [`Follower::request`].
    Reconnect(Why),
}

/// Why a stream was given up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Why {
    /// Numbers were left out.
    Missed { expected: u64, got: u64 },
    /// A snapshot had not the blocks that it should have.
    Miscounted { expected: u64, got: u64 },
    /// A message where it may not be, or without what it must have.
    Disorder(&'static str),
    /// More namespaces than there is room for.
    TooManyScopes,
    /// Nothing came for too long.
    Silent,
}

impl Why {
    /// The label in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Why::Missed { .. } => "missed",
            Why::Miscounted { .. } => "miscounted",
            Why::Disorder(_) => "disorder",
            Why::TooManyScopes => "too_many_scopes",
            Why::Silent => "silent",
        }
    }
}

/// What happened so far, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub batches: u64,
    pub blocks_stored: u64,
    pub blocks_removed: u64,
    pub duplicates: u64,
    pub gaps: u64,
    pub snapshots: u64,
    pub incarnations: u64,
    pub purges: u64,
    pub blocks_purged: u64,
}

/// See the module's header.
pub struct Follower {
    seat: Seat,
    limits: Limits,
    state: State,
    incarnation: Option<u64>,
    /// The next batch; what is held is the replica's at this number.
    next: Option<u64>,
    stage: Stage,
    scopes: Scopes,
    heard: Nanos,
    load: Option<LoadRecord>,
    block_tokens: u32,
    counts: Counts,
}

/// How far the present stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    None,
    /// Asked for, and nothing heard.
    Asked,
    /// After its first message, or after the end of something.
    Between,
    /// In the midst of a snapshot that has told so many blocks.
    Pages {
        blocks: u64,
    },
}

impl Follower {
    pub fn new(seat: Seat, limits: Limits) -> Self {
        Self {
            seat,
            limits,
            state: State::Cold,
            incarnation: None,
            next: None,
            stage: Stage::None,
            scopes: Scopes::default(),
            heard: Nanos(0),
            load: None,
            block_tokens: 0,
            counts: Counts::default(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The position up to which all is applied, if it is known.
    pub fn position(&self) -> Option<Position> {
        let (incarnation, next_sequence) = (self.incarnation?, self.next?);
        Some(Position { incarnation, next_sequence })
    }

    /// Tokens of a block, once the replica has said so; 0 before.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// The load that came with the last message, once.
    pub fn take_load(&mut self) -> Option<LoadRecord> {
        self.load.take()
    }

    /// Begins a stream: what to ask for.
    pub fn request(&mut self, now: Nanos) -> KvEventsRequest {
        self.stage = Stage::Asked;
        self.heard = now;
        KvEventsRequest {
            resume: self.position(),
            snapshot: SnapshotPolicy::IfNeeded.into(),
            namespaces: Vec::new(),
            with_token_ids: false,
        }
    }

    /// The stream has ended, or was given up.
    pub fn lost(&mut self) {
        if let Stage::Pages { .. } = self.stage {
            self.next = None;
        }
        self.stage = Stage::None;
        self.doubt();
    }

    /// When [`Follower::idle`] has something to say.
    pub fn deadline(&self) -> Nanos {
        self.heard.plus(self.limits.silence)
    }

    /// Looks whether the stream has been silent for too long.
    pub fn idle(&mut self, now: Nanos) -> Verdict {
        if self.stage == Stage::None || now < self.deadline() {
            return Verdict::GoOn;
        }
        self.lost();
        Verdict::Reconnect(Why::Silent)
    }

    /// The replica is gone for good: nothing of it is held any more.
    pub fn forget(&mut self, told: &dyn Told) {
        told.cleared(self.seat);
        *self = Self { counts: self.counts, ..Self::new(self.seat, self.limits) };
    }

    /// Takes one message.
    pub fn hear(&mut self, now: Nanos, response: KvEventsResponse, told: &dyn Told) -> Verdict {
        self.heard = now;
        let done = match (response.message, self.stage) {
            (None, _) => Ok(()),
            (_, Stage::None) => Err(Why::Disorder("a message after the end")),
            (Some(Message::Hello(hello)), Stage::Asked) => self.greet(hello, told),
            (Some(Message::Hello(_)), _) => Err(Why::Disorder("a second hello")),
            (_, Stage::Asked) => Err(Why::Disorder("a message before the hello")),
            (Some(Message::SnapshotPage(page)), _) => self.page(page, told),
            (Some(Message::SnapshotEnd(end)), Stage::Pages { blocks }) => self.end(end, blocks),
            (Some(Message::SnapshotEnd(_)), _) => Err(Why::Disorder("the end of no snapshot")),
            (Some(Message::Gap(gap)), _) => self.gap(gap),
            (Some(_), Stage::Pages { .. }) => Err(Why::Disorder("a change in the midst of a snapshot")),
            (Some(Message::Batch(batch)), _) => self.batch(batch, told),
            (Some(Message::Heartbeat(beat)), _) => self.beat(beat),
        };
        match done {
            Ok(()) => Verdict::GoOn,
            Err(why) => {
                self.lost();
                Verdict::Reconnect(why)
            }
        }
    }

    fn greet(&mut self, hello: Hello, told: &dyn Told) -> Result<(), Why> {
        self.stage = Stage::Between;
        self.block_tokens = hello.block_tokens;
        let is_same = self.incarnation == Some(hello.incarnation);
        if !is_same {
            // Another process: what the last one held is gone with it.
            self.counts.incarnations += u64::from(self.incarnation.is_some());
            self.restart(told);
            self.incarnation = Some(hello.incarnation);
        }
        let kept = hello.oldest_sequence..=hello.next_sequence;
        match self.next {
            // The log goes on from here: what is held is what was held then.
            Some(next) if kept.contains(&next) => self.state = State::Exact,
            Some(_) => {}
            None => self.state = State::Snapshot,
        }
        Ok(())
    }

    fn page(&mut self, page: SnapshotPage, told: &dyn Told) -> Result<(), Why> {
        let before = match self.stage {
            Stage::Pages { blocks } => blocks,
            _ => {
                self.restart(told);
                self.state = State::Snapshot;
                0
            }
        };
        let mut blocks = before;
        for run in &page.runs {
            self.store(run, told)?;
            blocks += run.hashes.len() as u64;
        }
        self.stage = Stage::Pages { blocks };
        Ok(())
    }

    fn end(&mut self, end: SnapshotEnd, got: u64) -> Result<(), Why> {
        let at = end.next.ok_or(Why::Disorder("a snapshot without a position"))?;
        if end.blocks != got {
            return Err(Why::Miscounted { expected: end.blocks, got });
        }
        if Some(at.incarnation) != self.incarnation {
            return Err(Why::Disorder("a snapshot of another process"));
        }
        self.stage = Stage::Between;
        self.next = Some(at.next_sequence);
        self.state = State::Exact;
        self.counts.snapshots += 1;
        Ok(())
    }

    /// What is held is unproven, and from where changes go on is not known until a snapshot has ended.
    fn gap(&mut self, _gap: Gap) -> Result<(), Why> {
        self.stage = Stage::Between;
        self.next = None;
        self.counts.gaps += 1;
        self.doubt();
        Ok(())
    }

    fn batch(&mut self, batch: EventBatch, told: &dyn Told) -> Result<(), Why> {
        let expected = self.next.ok_or(Why::Disorder("a batch without a position"))?;
        self.load = batch.load.or(self.load.take());
        if batch.sequence < expected {
            self.counts.duplicates += 1;
            return Ok(());
        }
        if batch.sequence > expected {
            return Err(Why::Missed { expected, got: batch.sequence });
        }
        for event in &batch.events {
            match &event.event {
                Some(Kind::Stored(run)) => self.store(run, told)?,
                Some(Kind::Removed(removed)) => self.remove(removed, told),
                Some(Kind::Cleared(_)) => self.clear(told),
                Some(Kind::Purged(purged)) => self.purge(purged, told),
                // Of a later version: what it does not say it cannot have changed.
                None => {}
            }
        }
        self.next = Some(expected + u64::from(!batch.more));
        self.state = State::Exact;
        self.counts.batches += 1;
        Ok(())
    }

    fn beat(&mut self, beat: Heartbeat) -> Result<(), Why> {
        self.load = beat.load.or(self.load.take());
        let at = beat.next.ok_or(Why::Disorder("a heartbeat without a position"))?;
        match self.next {
            Some(next) if next == at.next_sequence => self.state = State::Exact,
            Some(expected) => return Err(Why::Missed { expected, got: at.next_sequence }),
            None => return Err(Why::Disorder("a heartbeat without a position")),
        }
        Ok(())
    }

    fn store(&mut self, run: &StoredRun, told: &dyn Told) -> Result<(), Why> {
        let tiers: Tiers = run.tiers().filter_map(tier).collect();
        if tiers.is_empty() || run.hashes.is_empty() {
            return Ok(());
        }
        let generation = Generation(run.generation);
        let scope = self.scopes.get(&run.namespace, generation, self.limits.scopes_max)?;
        // Late news of what is purged is no news.
        let Some(scope) = scope else { return Ok(()) };
        told.stored(self.seat, scope, tiers, run.parent, &run.hashes);
        self.counts.blocks_stored += run.hashes.len() as u64;
        Ok(())
    }

    fn remove(&mut self, removed: &Removed, told: &dyn Told) {
        let Some(tier) = tier(removed.tier()) else { return };
        for scope in self.scopes.of(&removed.namespace) {
            told.removed(self.seat, scope, tier, &removed.hashes);
        }
        self.counts.blocks_removed += removed.hashes.len() as u64;
    }

    fn purge(&mut self, purged: &Purged, told: &dyn Told) {
        let up_to = Generation(purged.up_to_generation);
        self.scopes.purge(&purged.namespace, up_to);
        told.purged(self.seat, &purged.namespace, up_to, purged.blocks);
        self.counts.purges += 1;
        self.counts.blocks_purged += purged.blocks;
    }

    /// All blocks are gone; what was purged stays so.
    fn clear(&mut self, told: &dyn Told) {
        told.cleared(self.seat);
        self.scopes.clear();
    }

    /// Nothing is known of the replica.
    fn restart(&mut self, told: &dyn Told) {
        told.cleared(self.seat);
        self.scopes = Scopes::default();
        self.next = None;
    }

    fn doubt(&mut self) {
        if self.state != State::Cold {
            self.state = State::Degraded;
        }
    }
}

fn tier(of: proto::v1::Tier) -> Option<Tier> {
    match of {
        proto::v1::Tier::Device => Some(Tier::Device),
        proto::v1::Tier::Host => Some(Tier::Host),
        proto::v1::Tier::Nvme => Some(Tier::Nvme),
        proto::v1::Tier::Object => Some(Tier::Object),
        proto::v1::Tier::Unspecified => None,
    }
}

/// The generations in which a replica holds blocks. A removal names the namespace and not the generation: there is
/// one, but for the moments of a purge.
#[derive(Default)]
struct Scopes {
    live: BTreeMap<String, Namespace>,
    count: usize,
}

#[derive(Default)]
struct Namespace {
    scopes: Vec<Scope>,
    purged: Option<Generation>,
}

impl Scopes {
    /// `None` if the generation is purged.
    fn get(&mut self, name: &str, generation: Generation, most: usize) -> Result<Option<&Scope>, Why> {
        if self.live.len() >= most && !self.live.contains_key(name) {
            return Err(Why::TooManyScopes);
        }
        // Looked up twice, so that a name is copied when it is new and not for every run.
        let namespace = match self.live.contains_key(name) {
            true => self.live.get_mut(name).expect("it is there"),
            false => self.live.entry(name.to_owned()).or_default(),
        };
        if namespace.purged.is_some_and(|purged| generation <= purged) {
            return Ok(None);
        }
        let at = match namespace.scopes.iter().position(|scope| scope.generation == generation) {
            Some(at) => at,
            None if self.count >= most => return Err(Why::TooManyScopes),
            None => {
                self.count += 1;
                namespace.scopes.push(Scope::new(name, generation));
                namespace.scopes.len() - 1
            }
        };
        Ok(namespace.scopes.get(at))
    }

    /// A namespace's; all if it has no name.
    fn of(&self, name: &str) -> impl Iterator<Item = &Scope> {
        let (one, all) = match name {
            "" => (None, Some(self.live.values())),
            name => (self.live.get(name), None),
        };
        one.into_iter().chain(all.into_iter().flatten()).flat_map(|namespace| &namespace.scopes)
    }

    fn purge(&mut self, name: &str, up_to: Generation) {
        let namespace = self.live.entry(name.to_owned()).or_default();
        namespace.purged = namespace.purged.max(Some(up_to));
        let before = namespace.scopes.len();
        namespace.scopes.retain(|scope| scope.generation > up_to);
        self.count -= before - namespace.scopes.len();
    }

    fn clear(&mut self) {
        self.live.values_mut().for_each(|namespace| namespace.scopes.clear());
        self.count = 0;
    }
}
