//! A replica of ours as its followers see it: a set, a bounded log, snapshots cut between batches.

use std::collections::{BTreeMap, VecDeque};

use base::{Generation, SplitMix, Tier};
use proto::v1::event::Event as Kind;
use proto::v1::kv_events_response::Message;
use proto::v1::{
    self, Cleared, Event, EventBatch, Gap, Heartbeat, Hello, KvEventsRequest, KvEventsResponse, Position,
    Purged, Removed, SnapshotEnd, SnapshotPage, StoredRun,
};
use quire_router::source::{Scope, Tiers};

use super::held::Set;

const NAMESPACES: [&str; 2] = ["acme", "zen"];
const PAGE_BLOCKS: usize = 3;

pub struct Replica {
    rng: SplitMix,
    pub incarnation: u64,
    log: VecDeque<EventBatch>,
    log_max: usize,
    pub next: u64,
    set: Set,
    generations: [u64; 2],
    /// What was held before each batch, of every process there was.
    pub history: BTreeMap<(u64, u64), Set>,
}

/// A stream as it is served.
pub struct Feed {
    at: Option<u64>,
    ready: VecDeque<KvEventsResponse>,
}

impl Replica {
    pub fn new(seed: u64, log_max: usize) -> Self {
        let mut replica = Self {
            rng: SplitMix::new(seed),
            incarnation: 1,
            log: VecDeque::new(),
            log_max,
            next: 0,
            set: Set::new(),
            generations: [0; 2],
            history: BTreeMap::new(),
        };
        replica.history.insert((1, 0), Set::new());
        replica
    }

    pub fn truth(&self) -> &Set {
        &self.set
    }

    /// Another process, with nothing.
    pub fn restart(&mut self) {
        self.incarnation += 1;
        self.log.clear();
        self.next = 0;
        self.set.clear();
        self.generations = [0; 2];
        self.history.insert((self.incarnation, 0), Set::new());
    }

    /// One step's changes.
    pub fn publish(&mut self) {
        let events = (0..1 + self.rng.below(3)).map(|_| self.change()).collect::<Vec<_>>();
        let events = events.into_iter().map(|event| Event { event: Some(event) }).collect();
        self.log.push_back(EventBatch { sequence: self.next, events, ..EventBatch::default() });
        if self.log.len() > self.log_max {
            self.log.pop_front();
        }
        self.next += 1;
        self.history.insert((self.incarnation, self.next), self.set.clone());
    }

    fn change(&mut self) -> Kind {
        let which = self.rng.below(2) as usize;
        match self.rng.below(20) {
            0 => {
                self.set.clear();
                Kind::Cleared(Cleared {})
            }
            1 => self.purge(which),
            2..=8 => self.remove().unwrap_or_else(|| self.store(which)),
            _ => self.store(which),
        }
    }

    fn scope(&self, which: usize) -> Scope {
        Scope::new(NAMESPACES[which], Generation(self.generations[which]))
    }

    fn store(&mut self, which: usize) -> Kind {
        let scope = self.scope(which);
        let tier = Tier::ALL[self.rng.below(4) as usize];
        let hashes: Vec<u64> = (0..1 + self.rng.below(4)).map(|_| self.rng.below(40)).collect();
        for hash in &hashes {
            *self.set.entry((scope.clone(), *hash)).or_default() |= Tiers::of(tier).bits();
        }
        let (namespace, generation) = (scope.namespace.to_string(), scope.generation.0);
        Kind::Stored(StoredRun {
            namespace,
            generation,
            tiers: vec![wire(tier)],
            hashes,
            ..Default::default()
        })
    }

    fn remove(&mut self) -> Option<Kind> {
        let at = self.rng.below(self.set.len().max(1) as u64) as usize;
        let ((scope, hash), tiers) = self.set.iter().nth(at)?;
        let (key, tier) = ((scope.clone(), *hash), Tiers::from_bits(*tiers).iter().next()?);
        let left = tiers & !Tiers::of(tier).bits();
        match left {
            0 => self.set.remove(&key),
            left => self.set.insert(key.clone(), left),
        };
        // A replica that keeps no track of whose blocks are whose leaves the name out.
        let namespace = if self.rng.below(8) == 0 { String::new() } else { key.0.namespace.to_string() };
        // Then it may be anyone's block of that name.
        if namespace.is_empty() {
            for which in 0..2 {
                let other = (self.scope(which), key.1);
                if let Some(tiers) = self.set.get_mut(&other) {
                    *tiers &= !Tiers::of(tier).bits();
                    if *tiers == 0 {
                        self.set.remove(&other);
                    }
                }
            }
        }
        Some(Kind::Removed(Removed { namespace, tier: wire(tier), hashes: vec![key.1] }))
    }

    fn purge(&mut self, which: usize) -> Kind {
        let scope = self.scope(which);
        let before = self.set.len();
        self.set.retain(|(of, _), _| *of != scope);
        self.generations[which] += 1;
        Kind::Purged(Purged {
            namespace: scope.namespace.to_string(),
            up_to_generation: scope.generation.0,
            blocks: (before - self.set.len()) as u64,
        })
    }

    pub fn serve(&self, request: &KvEventsRequest) -> Feed {
        let oldest = self.next - self.log.len() as u64;
        let hello = Hello {
            incarnation: self.incarnation,
            block_tokens: 16,
            oldest_sequence: oldest,
            next_sequence: self.next,
            ..Hello::default()
        };
        let mut feed = Feed { at: None, ready: [wrap(Message::Hello(hello))].into() };
        match request.resume {
            Some(at) if at.incarnation == self.incarnation => feed.at = Some(at.next_sequence),
            Some(_) => {
                feed.ready.push_back(gap(0, oldest));
                self.snapshot(&mut feed);
            }
            None => self.snapshot(&mut feed),
        }
        feed
    }

    fn snapshot(&self, feed: &mut Feed) {
        let blocks: Vec<_> = self.set.iter().collect();
        let mut pages: Vec<SnapshotPage> = blocks.chunks(PAGE_BLOCKS).map(page).collect();
        if pages.is_empty() {
            pages.push(SnapshotPage::default());
        }
        feed.ready.extend(pages.into_iter().map(|page| wrap(Message::SnapshotPage(page))));
        let end = SnapshotEnd { next: Some(self.position(self.next)), blocks: blocks.len() as u64 };
        feed.ready.push_back(wrap(Message::SnapshotEnd(end)));
        feed.at = Some(self.next);
    }

    fn position(&self, next_sequence: u64) -> Position {
        Position { incarnation: self.incarnation, next_sequence }
    }

    /// The stream's next message, if there is one to send.
    pub fn message(&self, feed: &mut Feed) -> Option<KvEventsResponse> {
        if let Some(ready) = feed.ready.pop_front() {
            return Some(ready);
        }
        let (at, oldest) = (feed.at?, self.next - self.log.len() as u64);
        if at >= self.next {
            return None;
        }
        if at < oldest {
            feed.ready.push_back(gap(at, oldest));
            self.snapshot(feed);
            return feed.ready.pop_front();
        }
        feed.at = Some(at + 1);
        Some(wrap(Message::Batch(self.log[(at - oldest) as usize].clone())))
    }

    pub fn heartbeat(&self, feed: &Feed) -> Option<KvEventsResponse> {
        let next = Some(self.position(feed.at?));
        feed.ready.is_empty().then(|| wrap(Message::Heartbeat(Heartbeat { next, load: None })))
    }
}

fn page(blocks: &[(&(Scope, u64), &u8)]) -> SnapshotPage {
    let runs = blocks.iter().map(|((scope, hash), tiers)| StoredRun {
        namespace: scope.namespace.to_string(),
        generation: scope.generation.0,
        tiers: Tiers::from_bits(**tiers).iter().map(wire).collect(),
        hashes: vec![*hash],
        ..StoredRun::default()
    });
    SnapshotPage { runs: runs.collect() }
}

fn gap(first_missing: u64, next_sequence: u64) -> KvEventsResponse {
    wrap(Message::Gap(Gap { first_missing, next_sequence }))
}

fn wrap(message: Message) -> KvEventsResponse {
    KvEventsResponse { message: Some(message) }
}

fn wire(tier: Tier) -> i32 {
    let of = match tier {
        Tier::Device => v1::Tier::Device,
        Tier::Host => v1::Tier::Host,
        Tier::Nvme => v1::Tier::Nvme,
        Tier::Object => v1::Tier::Object,
    };
    of.into()
}
