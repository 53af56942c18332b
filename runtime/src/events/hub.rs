//! Event batches: numbered, kept in a bounded log, mirrored, read by any number of subscribers.
//!
//! The scheduler hands a batch over with a `try_send` and goes on; numbering, the mirror and encoding happen on
//! the hub's own thread. Past the bound of that hand-over a batch is lost and the next one says so.
//!
//! A purge is told here too, for two reasons: readers that can hear of it drop the namespace at once, and the
//! log must forget the tokens that it names. What was stored before a purge and comes through the hand-over
//! after it is dropped, whatever is behind it in the queue. It is told to be done once no reader has such tokens
//! in hand either: readers take one record at a time, only when it can be sent, and let it go then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{Clock, Generation, NamespaceId};
use kvcache::{KvChange, TierEvent};
use tokio::sync::watch;

use super::log::{Log, Read};
use super::mirror::{Mirror, Snapshot};
use super::record::{Change, Owner, RECORD_BYTES_MAX, Run};
use crate::api::os_entropy;

/// Batches on their way from the scheduler.
const HANDOVER: usize = 1024;

/// How events are kept.
#[derive(Clone, Debug)]
pub struct EventsConfig {
    /// Batches that can be replayed.
    pub buffer: usize,
    /// First frame of every message.
    pub topic: String,
    /// Data-parallel rank that batches carry.
    pub rank: u64,
    /// Whether new readers can be told all that is there.
    pub snapshots: Snapshots,
    /// Names this stream of sequence numbers.
    pub incarnation: u64,
}

/// Whether the hub keeps track of what every tier holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshots {
    Off,
    On,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            buffer: 10_000,
            topic: String::new(),
            rank: 0,
            snapshots: Snapshots::Off,
            incarnation: os_entropy(),
        }
    }
}

/// What the engine says of its pages, to whoever asks.
#[derive(Clone)]
pub struct EventHub {
    shared: Arc<Shared>,
    inbox: SyncSender<Note>,
}

/// What crosses the hand-over.
enum Note {
    Events(Vec<TierEvent>),
    Purged(NamespaceId, Generation),
}

struct Shared {
    config: EventsConfig,
    clock: Arc<dyn Clock>,
    log: Mutex<Log>,
    mirror: Mutex<Mirrored>,
    purges: Mutex<BTreeMap<NamespaceId, Purge>>,
    head: watch::Sender<u64>,
    /// Counts purges; readers in the midst of sending look whether it is theirs.
    purged: watch::Sender<u64>,
    is_alive: AtomicBool,
}

/// The mirror, and the first record that is not in it.
#[derive(Default)]
struct Mirrored {
    mirror: Option<Mirror>,
    next: u64,
}

/// The newest purge of a namespace.
#[derive(Clone, Copy)]
struct Purge {
    up_to: Generation,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stage {
    Asked,
    OnItsWay,
    /// The log has forgotten; readers may not have.
    Dropped,
    Done,
}

/// Whether the log still names tokens of what is purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgotten {
    Done,
    NotYet,
}

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first record kept.
    pub oldest: u64,
    /// The first yet to come.
    pub next: u64,
}

impl EventHub {
    pub fn start(config: EventsConfig, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let (inbox, outbox) = sync_channel(HANDOVER);
        let mirror = (config.snapshots == Snapshots::On).then(Mirror::default);
        let shared = Arc::new(Shared {
            clock,
            log: Mutex::new(Log::new(config.buffer)),
            mirror: Mutex::new(Mirrored { mirror, next: 0 }),
            purges: Mutex::default(),
            head: watch::channel(0).0,
            purged: watch::channel(0).0,
            is_alive: AtomicBool::new(true),
            config,
        });
        let theirs = Arc::clone(&shared);
        base::spawn("events", move || {
            let life = Life(theirs);
            life.0.run(&outbox);
        })?;
        Ok(Self { shared, inbox })
    }

    /// Takes a batch; false if it was lost because nobody kept up.
    pub(crate) fn publish(&self, events: Vec<TierEvent>) -> bool {
        self.inbox.try_send(Note::Events(events)).is_ok()
    }

    /// Tells that blocks of a namespace up to a generation are of no use any more, and forgets tokens of it.
    /// Never waits: ask again until it is done.
    pub(crate) fn purge(&self, namespace: NamespaceId, up_to: Generation) -> Forgotten {
        let mut purges = lock(&self.shared.purges);
        let newest = purges.entry(namespace).or_insert(Purge { up_to, stage: Stage::Asked });
        if newest.up_to < up_to {
            *newest = Purge { up_to, stage: Stage::Asked };
        }
        if newest.stage == Stage::Asked {
            match self.inbox.try_send(Note::Purged(namespace, newest.up_to)) {
                Ok(()) => newest.stage = Stage::OnItsWay,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
            self.shared.purged.send_modify(|purges| *purges += 1);
        }
        if !self.shared.is_alive() && newest.stage < Stage::Dropped {
            lock(&self.shared.log).drop_tokens_of(namespace, newest.up_to);
            newest.stage = Stage::Dropped;
        }
        if newest.stage == Stage::Dropped
            && !lock(&self.shared.log).has_outdated_reader(namespace, newest.up_to)
        {
            newest.stage = Stage::Done;
        }
        if newest.stage == Stage::Done { Forgotten::Done } else { Forgotten::NotYet }
    }

    /// Whether a block's tokens may still be told.
    pub(crate) fn is_purged(&self, owner: &Owner) -> bool {
        let purges = lock(&self.shared.purges);
        purges.get(&owner.namespace).is_some_and(|purge| owner.generation <= purge.up_to)
    }

    /// Changes with every purge that is asked for.
    pub(super) fn purges(&self) -> watch::Receiver<u64> {
        self.shared.purged.subscribe()
    }

    pub(super) fn topic(&self) -> &str {
        &self.shared.config.topic
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.shared.config.incarnation
    }

    pub(super) fn rank(&self) -> u64 {
        self.shared.config.rank
    }

    pub(crate) fn extent(&self) -> Extent {
        let log = lock(&self.shared.log);
        Extent { oldest: log.oldest(), next: log.next() }
    }

    /// The record of this number. Whoever has it in hand holds up a purge of what it names: take it when it can be
    /// sent, and let it go.
    pub(crate) fn read(&self, sequence: u64) -> Read {
        // Looked at first: what was recorded before the end is read before it is told.
        let is_alive = self.shared.is_alive();
        match lock(&self.shared.log).read(sequence) {
            Read::Nothing if !is_alive => Read::Ended,
            read => read,
        }
    }

    /// Whether more may follow.
    pub(crate) fn is_alive(&self) -> bool {
        self.shared.is_alive()
    }

    /// Changes whenever there is more to read, or to end.
    pub(crate) fn head(&self) -> watch::Receiver<u64> {
        self.shared.head.subscribe()
    }

    /// All blocks of these namespaces (all if there are none) and the first record that is not in it; `None`
    /// if nobody keeps track. Copies under a lock, then sorts: not for a thread that others wait for.
    pub(crate) fn snapshot(&self, namespaces: &[NamespaceId]) -> Option<(Snapshot, u64)> {
        let mirrored = lock(&self.shared.mirror);
        let mut snapshot = mirrored.mirror.as_ref()?.snapshot(namespaces)?;
        let next = mirrored.next;
        drop(mirrored);
        snapshot.sort();
        Some((snapshot, next))
    }
}

/// Tells readers when the hub's thread is gone, however it went.
struct Life(Arc<Shared>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.is_alive.store(false, Ordering::Release);
        self.0.head.send_modify(|_| ());
    }
}

impl Shared {
    fn is_alive(&self) -> bool {
        self.is_alive.load(Ordering::Acquire)
    }

    fn run(&self, outbox: &Receiver<Note>) {
        while let Ok(note) = outbox.recv() {
            match note {
                Note::Events(events) => self.take(&events),
                Note::Purged(namespace, up_to) => self.forget(namespace, up_to),
            }
        }
    }

    fn take(&self, events: &[TierEvent]) {
        let floors: BTreeMap<NamespaceId, Generation> =
            lock(&self.purges).iter().map(|(&id, purge)| (id, purge.up_to)).collect();
        let is_current = |event: &&TierEvent| match &event.change {
            KvChange::Stored(stored) => {
                floors.get(&stored.namespace).is_none_or(|floor| stored.generation > *floor)
            }
            _ => true,
        };
        let mut mirrored = lock(&self.mirror);
        let mut parts = Parts::default();
        for event in events.iter().filter(is_current) {
            let changes = match &mut mirrored.mirror {
                Some(mirror) => mirror.apply(event),
                None => vec![plain(event)],
            };
            for change in changes.into_iter().flat_map(|change| change.split(RECORD_BYTES_MAX)) {
                if let Some(full) = parts.push(change) {
                    self.append(&mut mirrored, full);
                }
            }
        }
        if !parts.changes.is_empty() {
            self.append(&mut mirrored, parts.changes);
        }
    }

    fn forget(&self, namespace: NamespaceId, up_to: Generation) {
        let mut mirrored = lock(&self.mirror);
        let blocks = mirrored.mirror.as_mut().map_or(0, |mirror| mirror.purge(namespace, up_to));
        self.append(&mut mirrored, vec![Change::Purged { namespace, up_to, blocks }]);
        drop(mirrored);
        lock(&self.log).drop_tokens_of(namespace, up_to);
        if let Some(purge) = lock(&self.purges).get_mut(&namespace)
            && purge.up_to == up_to
        {
            purge.stage = Stage::Dropped;
        }
    }

    /// Appends what the mirror takes in; its lock is kept until it has taken in all of it, so that nobody sees a
    /// snapshot between the parts of a step.
    fn append(&self, mirrored: &mut Mirrored, changes: Vec<Change>) {
        let record = lock(&self.log).append(self.clock.unix_ms(), changes);
        mirrored.next = record.sequence + 1;
        self.head.send_replace(record.sequence + 1);
    }
}

/// Changes of a step until a record is full.
#[derive(Default)]
struct Parts {
    changes: Vec<Change>,
    bytes: usize,
}

impl Parts {
    /// Takes a change; gives back the record that had no room for it.
    fn push(&mut self, change: Change) -> Option<Vec<Change>> {
        let bytes = change.bytes();
        let is_full = !self.changes.is_empty() && self.bytes + bytes > RECORD_BYTES_MAX;
        let full = is_full.then(|| std::mem::take(&mut self.changes));
        self.bytes = if is_full { bytes } else { self.bytes + bytes };
        self.changes.push(change);
        full
    }
}

/// An event as it is, for readers that do not ask whose a removed block was.
fn plain(event: &TierEvent) -> Change {
    let tier = event.tier;
    match &event.change {
        KvChange::Stored(stored) => Change::Stored(Run::new(stored, tier)),
        KvChange::Removed { names } => {
            let hashes = names.iter().map(|name| name.low64()).collect();
            Change::Removed { tier, namespace: None, hashes }
        }
        KvChange::Cleared | KvChange::Lost { .. } => Change::Cleared,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use base::{AdapterId, ChainHash, ManualClock, Tier};
    use kvcache::Stored;

    use super::super::record::Record;

    use super::*;

    fn removed(n: u8) -> Vec<TierEvent> {
        let names = vec![ChainHash([n; 32])];
        vec![TierEvent { sequence: 1, tier: Tier::Nvme, change: KvChange::Removed { names } }]
    }

    fn stored(namespace: u64, generation: u64, n: u8) -> Vec<TierEvent> {
        let stored = Stored {
            namespace: NamespaceId(namespace),
            generation: Generation(generation),
            adapter: AdapterId(0),
            parent: None,
            names: vec![ChainHash([n; 32])],
            tokens: vec![7, 8],
            page_tokens: 2,
        };
        vec![TierEvent { sequence: 1, tier: Tier::Host, change: KvChange::Stored(stored) }]
    }

    fn hub(config: EventsConfig) -> EventHub {
        EventHub::start(config, Arc::new(ManualClock::default())).unwrap()
    }

    /// Waits until so many batches were recorded.
    fn until(hub: &EventHub, next: u64) {
        eventually(|| hub.extent().next >= next);
    }

    /// What hangs is a failure, not a test that never ends.
    fn eventually(is_so: impl Fn() -> bool) {
        let clock = base::SystemClock::new();
        while !is_so() {
            assert!(clock.now() < base::Nanos(60_000_000_000), "it does not come to pass");
            std::thread::yield_now();
        }
    }

    fn read(hub: &EventHub, sequence: u64) -> Arc<Record> {
        let Read::Record(record) = hub.read(sequence) else { panic!("no record {sequence}") };
        record
    }

    #[test]
    fn what_was_missed_can_be_read_as_far_as_it_is_kept() {
        let hub = hub(EventsConfig { buffer: 3, ..EventsConfig::default() });
        for n in 0..5 {
            assert!(hub.publish(removed(n)));
        }
        until(&hub, 5);
        assert_eq!(hub.read(1), Read::Missed { oldest: 2 });
        assert_eq!(read(&hub, 4).sequence, 4);
        assert_eq!(hub.read(5), Read::Nothing);
    }

    /// A cache told anew is a step as large as the cache.
    #[test]
    fn a_large_step_becomes_records_of_bounded_size_and_one_snapshot() {
        let hub = hub(EventsConfig { snapshots: Snapshots::On, ..EventsConfig::default() });
        let name = |n: u32| {
            let mut bytes = [1; 32];
            bytes[..4].copy_from_slice(&n.to_le_bytes());
            ChainHash(bytes)
        };
        let run = |of: u32| Stored {
            namespace: NamespaceId(1),
            generation: Generation(0),
            adapter: AdapterId(0),
            parent: None,
            names: (of * 5000..(of + 1) * 5000).map(name).collect(),
            tokens: vec![7; 5000 * 16],
            page_tokens: 16,
        };
        let told = |of| TierEvent { sequence: 1, tier: Tier::Device, change: KvChange::Stored(run(of)) };
        hub.publish((0..4).map(told).collect());
        hub.publish(removed(9));
        eventually(|| hub.snapshot(&[]).unwrap().1 > 0);
        let (snapshot, next) = hub.snapshot(&[]).unwrap();
        assert!(snapshot.len() == 20_000 && next > 4, "{next}");
        let records: Vec<_> = (0..next).map(|sequence| read(&hub, sequence)).collect();
        assert!(records.iter().all(|record| record.bytes() <= RECORD_BYTES_MAX + 128));
        let blocks = records.iter().flat_map(|record| &record.changes).map(|change| match change {
            Change::Stored(run) => run.hashes.len(),
            _ => 0,
        });
        assert_eq!(blocks.sum::<usize>(), 20_000);
    }

    #[test]
    fn readers_hear_that_the_hub_is_gone() {
        struct Broken;
        impl Clock for Broken {
            fn now(&self) -> base::Nanos {
                base::Nanos(0)
            }
            fn unix_ms(&self) -> u64 {
                panic!("the clock is broken")
            }
        }
        let hub = EventHub::start(EventsConfig::default(), Arc::new(Broken)).unwrap();
        hub.publish(removed(1));
        eventually(|| hub.read(0) == Read::Ended);
        assert_eq!(hub.purge(NamespaceId(1), Generation(0)), Forgotten::Done);
    }

    #[test]
    fn a_purge_is_not_done_while_a_reader_has_its_tokens_in_hand() {
        let hub = hub(EventsConfig::default());
        hub.publish(stored(5, 0, 1));
        until(&hub, 1);
        let in_hand = read(&hub, 0);
        let purge = || hub.purge(NamespaceId(5), Generation(0));
        assert_eq!(purge(), Forgotten::NotYet);
        until(&hub, 2);
        for _ in 0..1000 {
            assert_eq!(purge(), Forgotten::NotYet);
        }
        let Change::Stored(run) = &in_hand.changes[0] else { panic!() };
        assert!(hub.is_purged(&run.owner));
        drop(in_hand);
        eventually(|| purge() == Forgotten::Done);
    }

    #[test]
    fn a_snapshot_names_the_first_record_that_is_not_in_it() {
        let hub = hub(EventsConfig { snapshots: Snapshots::On, ..EventsConfig::default() });
        assert_eq!(hub.snapshot(&[]).unwrap().1, 0);
        hub.publish(stored(0, 0, 1));
        hub.publish(stored(0, 0, 2));
        until(&hub, 2);
        let (snapshot, next) = hub.snapshot(&[]).unwrap();
        assert_eq!((snapshot.len(), next), (2, 2));
    }

    #[test]
    fn a_purge_takes_tokens_out_of_the_log_and_blocks_out_of_the_mirror() {
        let hub = hub(EventsConfig { snapshots: Snapshots::On, ..EventsConfig::default() });
        hub.publish(stored(5, 0, 1));
        hub.publish(stored(6, 0, 2));
        until(&hub, 2); // what has not been taken in when a purge is asked for is never recorded
        let (namespace, up_to) = (NamespaceId(5), Generation(0));
        eventually(|| hub.purge(namespace, up_to) == Forgotten::Done);
        // What was on its way meanwhile comes too late, what is of the next generation does not.
        hub.publish(stored(5, 0, 3));
        hub.publish(stored(5, 1, 4));
        until(&hub, 4);
        let records: Vec<_> = (0..4).map(|sequence| read(&hub, sequence)).collect();
        let tokens = |record: &Record| match &record.changes[0] {
            Change::Stored(run) => run.tokens.len(),
            _ => 0,
        };
        assert_eq!(records.iter().map(|record| tokens(record)).collect::<Vec<_>>(), [0, 2, 0, 2]);
        assert_eq!(records[2].changes, [Change::Purged { namespace, up_to, blocks: 1 }]);
        assert_eq!(hub.snapshot(&[namespace]).unwrap().0.len(), 1);
        assert_eq!(hub.purge(namespace, up_to), Forgotten::Done);
        assert_eq!(hub.purge(namespace, Generation(1)), Forgotten::NotYet);
    }
}
