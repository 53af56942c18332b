//! One router's side of the gossip.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use base::Nanos;

use super::load::{ReplicaKey, SeatLoad};
use super::peer::{Freshness, HeardUs, Peer, Total};
use super::wire::{Entry, Greeting, Incarnation, Keys, Message, ROUTERS_MAX, RouterId, Sequence, WireError};

#[derive(Clone, Debug)]
pub struct GossipConfig {
    pub router: RouterId,
    /// Higher than in any earlier life of this router.
    pub incarnation: Incarnation,
    pub keys: Keys,
    /// A total not repeated for so long is gone.
    pub ttl: Duration,
    /// An unchanged total is repeated after so long: a quarter of the TTL survives three losses in a row.
    pub repeat_after: Duration,
    /// Datagrams per tick; what does not fit waits for the next, the longest overdue first.
    pub datagrams_max: usize,
    /// Replicas a router may speak of, this one too.
    pub replicas_max: usize,
}

impl GossipConfig {
    pub fn new(router: RouterId, incarnation: Incarnation, keys: Keys) -> Self {
        Self {
            router,
            incarnation,
            keys,
            ttl: Duration::from_secs(2),
            repeat_after: Duration::from_millis(500),
            datagrams_max: 8,
            replicas_max: 1024,
        }
    }
}

#[derive(Debug)]
pub struct Gossip {
    config: GossipConfig,
    sequence: Sequence,
    own: HashMap<ReplicaKey, Own>,
    /// Own totals by when they are due: changed ones at once.
    due: BTreeSet<(Nanos, ReplicaKey)>,
    peers: BTreeMap<RouterId, Peer>,
    /// The sum of all peers' totals.
    others: HashMap<ReplicaKey, SeatLoad>,
    stats: GossipStats,
}

#[derive(Clone, Copy, Debug)]
struct Own {
    load: SeatLoad,
    due: Nanos,
    /// When a total of nothing need no longer be told.
    gone: Option<Nanos>,
}

/// What came in, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GossipStats {
    pub taken: u64,
    pub ignored: u64,
    pub refused: u64,
    pub totals_expired: u64,
    /// Totals of a peer that spoke of too many replicas.
    pub totals_refused: u64,
}

/// Why a well-made datagram changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Ignored {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("it came back to its sender, or two routers are numbered {router}")]
    OwnId { router: RouterId },
    #[error("datagram {sequence} of router {router} is older than what was taken")]
    Old { router: RouterId, sequence: Sequence },
    #[error("router {router} has not heard this one yet: perhaps a recording")]
    Unproven { router: RouterId },
    #[error("router {router} is one more than {routers_max}")]
    TooManyRouters { router: RouterId, routers_max: usize },
}

impl Ignored {
    pub fn kind(&self) -> &'static str {
        match self {
            Ignored::Wire(error) => error.kind(),
            Ignored::OwnId { .. } => "own_id",
            Ignored::Old { .. } => "old",
            Ignored::Unproven { .. } => "unproven",
            Ignored::TooManyRouters { .. } => "too_many_routers",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this router speaks of {replicas_max} replicas already")]
pub struct TableFull {
    pub replicas_max: usize,
}

impl Gossip {
    pub fn new(config: GossipConfig) -> Self {
        Self {
            config,
            sequence: Sequence(0),
            own: HashMap::new(),
            due: BTreeSet::new(),
            peers: BTreeMap::new(),
            others: HashMap::new(),
            stats: GossipStats::default(),
        }
    }

    /// This router's reservations on `replica` are now `load`.
    pub fn set_own(&mut self, now: Nanos, replica: ReplicaKey, load: SeatLoad) -> Result<(), TableFull> {
        let replicas_max = self.config.replicas_max;
        let full = self.own.len() >= replicas_max;
        let gone = (load == SeatLoad::NONE).then(|| now.plus(self.config.ttl));
        match self.own.entry(replica) {
            Slot::Occupied(slot) if slot.get().load == load => return Ok(()),
            Slot::Vacant(_) if load == SeatLoad::NONE => return Ok(()),
            Slot::Vacant(_) if full => return Err(TableFull { replicas_max }),
            Slot::Occupied(mut slot) => {
                self.due.remove(&(slot.get().due, replica));
                slot.insert(Own { load, due: now, gone });
            }
            Slot::Vacant(slot) => drop(slot.insert(Own { load, due: now, gone })),
        }
        self.due.insert((now, replica));
        Ok(())
    }

    /// What the other routers have sent to `replica`.
    pub fn others(&self, replica: ReplicaKey) -> SeatLoad {
        self.others.get(&replica).copied().unwrap_or_default()
    }

    /// All replicas that other routers have sent something to.
    pub fn others_all(&self) -> impl Iterator<Item = (ReplicaKey, SeatLoad)> + '_ {
        self.others.iter().map(|(replica, load)| (*replica, *load))
    }

    /// The routers heard within the TTL.
    pub fn routers_alive(&self, now: Nanos) -> usize {
        self.peers.values().filter(|peer| self.is_recent(now, peer)).count()
    }

    pub fn stats(&self) -> GossipStats {
        self.stats
    }

    /// Drops what is over its TTL and returns what to send to every other router: always at least one
    /// datagram, which says that this router lives and whom it has heard.
    pub fn tick(&mut self, now: Nanos) -> Vec<Vec<u8>> {
        self.drop_expired(now);
        let heard = self.greetings();
        let per_datagram = Message::entries_max(heard.len());
        let entries = self.take_due(now, per_datagram * self.config.datagrams_max.max(1));
        if entries.is_empty() {
            return vec![self.datagram(&heard, &[])];
        }
        entries.chunks(per_datagram).map(|chunk| self.datagram(&heard, chunk)).collect()
    }

    /// Takes one datagram. An error changed nothing that [`Gossip::others`] shows.
    pub fn receive(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Ignored> {
        let taken = self.take(now, bytes);
        match &taken {
            Ok(()) => self.stats.taken += 1,
            Err(Ignored::Wire(_)) => self.stats.refused += 1,
            Err(_) => self.stats.ignored += 1,
        }
        taken
    }

    fn take(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), Ignored> {
        let message = Message::decode(bytes, &self.config.keys)?;
        let Message { router, incarnation, sequence, .. } = message;
        if router == self.config.router {
            return Err(Ignored::OwnId { router });
        }
        self.outlive(&message.heard);
        self.make_room(now, router)?;
        let heard_us = self.heard_us(&message);
        let peer = self.peers.entry(router).or_default();
        peer.heard = peer.heard.max(incarnation);
        match peer.freshness(incarnation, sequence, heard_us) {
            Freshness::Old => return Err(Ignored::Old { router, sequence }),
            Freshness::Unproven => return Err(Ignored::Unproven { router }),
            Freshness::NewLife => self.forget_totals(router),
            Freshness::Next => {}
        }
        self.apply(now, &message);
        Ok(())
    }

    /// If others know a later life of this router than this one (its clock went back), it takes a still
    /// later one; otherwise they would ignore it as a recording.
    fn outlive(&mut self, heard: &[Greeting]) {
        let of_us = heard.iter().filter(|greeting| greeting.router == self.config.router);
        let latest = of_us.map(|greeting| greeting.incarnation).max();
        if let Some(latest) = latest.filter(|latest| *latest > self.config.incarnation) {
            self.begin_life(Incarnation(latest.0.saturating_add(1)));
        }
    }

    fn begin_life(&mut self, incarnation: Incarnation) {
        self.config.incarnation = incarnation;
        self.sequence = Sequence(0);
    }

    fn heard_us(&self, message: &Message) -> HeardUs {
        let us = Greeting { router: self.config.router, incarnation: self.config.incarnation };
        if message.heard.contains(&us) { HeardUs::Yes } else { HeardUs::No }
    }

    /// A place for `router`. When a silent one's place is given away, its sequence is forgotten, and this
    /// router takes a new incarnation, so that no recording that named the old one is believed.
    fn make_room(&mut self, now: Nanos, router: RouterId) -> Result<(), Ignored> {
        if self.peers.contains_key(&router) || self.peers.len() < ROUTERS_MAX {
            return Ok(());
        }
        let silent = self.peers.iter().filter(|(_, peer)| !self.is_recent(now, peer));
        let Some((&longest, _)) = silent.min_by_key(|(_, peer)| peer.last_heard) else {
            return Err(Ignored::TooManyRouters { router, routers_max: ROUTERS_MAX });
        };
        self.forget_totals(longest);
        self.peers.remove(&longest);
        self.begin_life(Incarnation(self.config.incarnation.0.saturating_add(1)));
        Ok(())
    }

    fn is_recent(&self, now: Nanos, peer: &Peer) -> bool {
        peer.taken.is_some() && now < peer.last_heard.plus(self.config.ttl)
    }

    fn apply(&mut self, now: Nanos, message: &Message) {
        let Some(peer) = self.peers.get_mut(&message.router) else { return };
        peer.taken = Some((message.incarnation, message.sequence));
        peer.last_heard = now;
        let expires = now.plus(self.config.ttl);
        for Entry { replica, load } in &message.entries {
            let known = peer.totals.contains_key(replica);
            if *load != SeatLoad::NONE && !known && peer.totals.len() >= self.config.replicas_max {
                self.stats.totals_refused += 1;
                continue;
            }
            let before = match *load {
                SeatLoad::NONE => peer.totals.remove(replica),
                load => peer.totals.insert(*replica, Total { load, expires }),
            };
            replace(&mut self.others, *replica, before.map_or(SeatLoad::NONE, |t| t.load), *load);
        }
    }

    fn forget_totals(&mut self, router: RouterId) {
        let Some(peer) = self.peers.get_mut(&router) else { return };
        for (replica, total) in peer.totals.drain() {
            replace(&mut self.others, replica, total.load, SeatLoad::NONE);
        }
    }

    fn drop_expired(&mut self, now: Nanos) {
        for peer in self.peers.values_mut() {
            for (replica, total) in peer.totals.extract_if(|_, total| total.expires <= now) {
                replace(&mut self.others, replica, total.load, SeatLoad::NONE);
                self.stats.totals_expired += 1;
            }
        }
    }

    fn greetings(&self) -> Vec<Greeting> {
        let greeting =
            |(router, peer): (&RouterId, &Peer)| Greeting { router: *router, incarnation: peer.heard };
        self.peers.iter().map(greeting).collect()
    }

    /// The own totals to tell now, the longest overdue first; each is due again later.
    fn take_due(&mut self, now: Nanos, entries_max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        while entries.len() < entries_max
            && let Some(&(due, replica)) = self.due.first()
            && due <= now
        {
            self.due.pop_first();
            let Some(own) = self.own.get_mut(&replica) else { continue };
            entries.push(Entry { replica, load: own.load });
            if own.gone.is_some_and(|gone| gone <= now) {
                self.own.remove(&replica);
                continue;
            }
            own.due = now.plus(self.config.repeat_after);
            self.due.insert((own.due, replica));
        }
        entries
    }

    fn datagram(&mut self, heard: &[Greeting], entries: &[Entry]) -> Vec<u8> {
        self.sequence.0 += 1;
        let GossipConfig { router, incarnation, .. } = self.config;
        let (heard, entries) = (heard.to_vec(), entries.to_vec());
        Message { router, incarnation, sequence: self.sequence, heard, entries }.encode(&self.config.keys)
    }

    /// # Panics
    /// If the sums are not the sums, or a bound is broken.
    pub fn check(&self) {
        let mut sums: HashMap<ReplicaKey, SeatLoad> = HashMap::new();
        for (replica, total) in self.peers.values().flat_map(|peer| &peer.totals) {
            let sum = sums.entry(*replica).or_default();
            *sum = *sum + total.load;
        }
        assert_eq!(sums, self.others, "the sum over peers");
        assert!(self.peers.len() <= ROUTERS_MAX && self.own.len() <= self.config.replicas_max);
        assert!(self.peers.values().all(|peer| peer.totals.len() <= self.config.replicas_max));
        assert!(!self.peers.contains_key(&self.config.router), "its own peer");
        let due: BTreeSet<_> = self.own.iter().map(|(replica, own)| (own.due, *replica)).collect();
        assert_eq!(due, self.due, "each own total is due once");
    }
}

/// One peer's total changed from `before` to `after`.
fn replace(
    others: &mut HashMap<ReplicaKey, SeatLoad>,
    replica: ReplicaKey,
    before: SeatLoad,
    after: SeatLoad,
) {
    let sum = others.entry(replica).or_default();
    *sum = *sum - before + after;
    if *sum == SeatLoad::NONE {
        others.remove(&replica);
    }
}
