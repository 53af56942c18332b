//! A follower of KV events that keeps its set as the contract says it must, and minds every promise on the way.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1::event::Event as Kind;
use proto::v1::kv_events_response::Message;
use proto::v1::{EventBatch, KvEventsRequest, KvEventsResponse, Position};
use tonic::{Status, Streaming};

use super::client::{Channel, soon};

/// Follows a stream and keeps its set.
pub struct Follower {
    stream: Streaming<KvEventsResponse>,
    pub incarnation: u64,
    /// The next batch that has not been applied.
    pub next: Option<u64>,
    pub set: BTreeMap<u64, (String, BTreeSet<i32>)>,
    /// Set while pages of a snapshot come in.
    partial: bool,
    /// Whether the set is the cache's, and not a part that was heard of.
    is_whole: bool,
    pub gaps: Vec<(u64, u64)>,
    pub snapshots: usize,
    pub purged: Vec<(String, u64, u64)>,
    pub token_ids: usize,
}

impl Follower {
    pub async fn begin(channel: &Channel, request: KvEventsRequest) -> Result<Self, Status> {
        let resumes = request.resume.is_some();
        let mut stream = soon(channel.cache().kv_events(request)).await?.into_inner();
        let first = soon(stream.message()).await?.unwrap().message.unwrap();
        let Message::Hello(hello) = first else { panic!("{first:?}") };
        assert_eq!(hello.block_tokens, 16);
        Ok(Self {
            stream,
            incarnation: hello.incarnation,
            next: None,
            set: BTreeMap::new(),
            partial: false,
            is_whole: resumes,
            gaps: Vec::new(),
            snapshots: 0,
            purged: Vec::new(),
            token_ids: 0,
        })
    }

    /// One that knows nothing.
    pub async fn new(channel: &Channel) -> Self {
        Self::begin(channel, KvEventsRequest::default()).await.unwrap()
    }

    pub fn position(&self) -> Position {
        Position { incarnation: self.incarnation, next_sequence: self.next.unwrap() }
    }

    /// Takes one message.
    pub async fn step(&mut self) -> Result<(), Status> {
        let message = soon(self.stream.message()).await?.expect("a stream ends with a status");
        match message.message.unwrap() {
            Message::Hello(_) => panic!("twice"),
            Message::SnapshotPage(page) => {
                if !self.partial {
                    self.set.clear();
                    self.partial = true;
                }
                page.runs.iter().for_each(|run| self.store(run));
            }
            Message::SnapshotEnd(end) => {
                assert_eq!(end.blocks, self.set.len() as u64);
                self.partial = false;
                self.is_whole = true;
                self.snapshots += 1;
                self.next = Some(end.next.unwrap().next_sequence);
            }
            Message::Gap(gap) => {
                self.is_whole = false;
                self.gaps.push((gap.first_missing, gap.next_sequence));
                self.next = Some(gap.next_sequence);
            }
            Message::Batch(batch) => self.apply(batch),
            Message::Heartbeat(beat) => {
                let next = beat.next.unwrap().next_sequence;
                assert_eq!(self.next.unwrap_or(next), next);
                assert!(beat.load.is_some());
            }
        }
        Ok(())
    }

    fn store(&mut self, run: &proto::v1::StoredRun) {
        self.token_ids += run.token_ids.len();
        for hash in &run.hashes {
            let (namespace, tiers) = self.set.entry(*hash).or_default();
            *namespace = run.namespace.clone();
            tiers.extend(&run.tiers);
        }
    }

    fn apply(&mut self, batch: EventBatch) {
        assert_eq!(self.next.unwrap_or(batch.sequence), batch.sequence, "no number is left out");
        assert_eq!(batch.load.is_some(), !batch.more);
        for event in batch.events {
            match event.event.unwrap() {
                Kind::Stored(run) => self.store(&run),
                Kind::Removed(removed) => {
                    for hash in &removed.hashes {
                        let Some((namespace, tiers)) = self.set.get_mut(hash) else {
                            assert!(!self.is_whole, "only what is held is removed");
                            continue;
                        };
                        assert_eq!(*namespace, removed.namespace);
                        assert!(tiers.remove(&removed.tier));
                        if tiers.is_empty() {
                            self.set.remove(hash);
                        }
                    }
                }
                Kind::Cleared(_) => self.set.clear(),
                Kind::Purged(purged) => {
                    let before = self.set.len();
                    self.set.retain(|_, (namespace, _)| *namespace != purged.namespace);
                    assert!(!self.is_whole || purged.blocks == (before - self.set.len()) as u64);
                    self.purged.push((purged.namespace, purged.up_to_generation, purged.blocks));
                }
            }
        }
        self.next = Some(batch.sequence + u64::from(!batch.more));
    }

    /// Reads until all before `next` has been applied.
    pub async fn until(&mut self, next: u64) {
        while self.partial || self.next.is_none_or(|at| at < next) {
            self.step().await.unwrap();
        }
    }

    /// Blocks by (namespace, tier).
    pub fn counts(&self) -> BTreeMap<(String, i32), u64> {
        let mut counts = BTreeMap::new();
        for (namespace, tiers) in self.set.values() {
            for tier in tiers {
                *counts.entry((namespace.clone(), *tier)).or_default() += 1;
            }
        }
        counts
    }
}
