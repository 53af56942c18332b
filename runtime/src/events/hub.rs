//! Event batches: numbered, kept in a bounded log, mirrored, read by any number of subscribers.
//!
//! The scheduler hands a batch over with a `try_send` and goes on; numbering, the mirror and encoding happen on
//! the hub's own thread. Past the bound of that hand-over a batch is lost and the next one says so.
//!
//! A purge is told here too, for two reasons: readers that can hear of it drop the namespace at once, and the
//! log must forget the tokens that it names. What was stored before a purge and comes through the hand-over
//! after it is dropped, whatever is behind it in the queue.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::{Clock, Generation, NamespaceId};
use kvcache::{KvChange, TierEvent};
use tokio::sync::{broadcast, watch};

use super::log::{Log, Read};
use super::mirror::{Mirror, Snapshot};
use super::record::{Change, Record, Run};
use super::schema::encode;
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

/// One batch as it goes over the wire.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub sequence: u64,
    pub payload: Arc<[u8]>,
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
    live: broadcast::Sender<Batch>,
    head: watch::Sender<u64>,
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    OnItsWay,
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
            live: broadcast::channel(config.buffer.clamp(16, 4096)).0,
            head: watch::channel(0).0,
            config,
        });
        let theirs = Arc::clone(&shared);
        base::spawn("events", move || theirs.run(&outbox))?;
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
                Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => {
                    lock(&self.shared.log).drop_tokens_of(namespace, up_to);
                    newest.stage = Stage::Done;
                }
            }
        }
        if newest.stage == Stage::Done { Forgotten::Done } else { Forgotten::NotYet }
    }

    pub(super) fn topic(&self) -> &str {
        &self.shared.config.topic
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.shared.config.incarnation
    }

    /// Encoded batches from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.shared.live.subscribe()
    }

    /// Encoded batches from `sequence` on, as far as they are still kept.
    pub(super) fn replay(&self, sequence: u64) -> Vec<Batch> {
        let log = lock(&self.shared.log);
        let Read::Records(records) = log.read(sequence.max(log.oldest()), usize::MAX) else {
            return Vec::new();
        };
        drop(log);
        records.iter().map(|record| self.shared.batch(record)).collect()
    }

    pub(crate) fn extent(&self) -> Extent {
        let log = lock(&self.shared.log);
        Extent { oldest: log.oldest(), next: log.next() }
    }

    /// At most `most` records from `sequence` on.
    pub(crate) fn read(&self, sequence: u64, most: usize) -> Read {
        lock(&self.shared.log).read(sequence, most)
    }

    /// Changes whenever there is more to read.
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

impl Shared {
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
        let changes: Vec<Change> = match &mut mirrored.mirror {
            Some(mirror) => events.iter().filter(is_current).flat_map(|event| mirror.apply(event)).collect(),
            None => events.iter().filter(is_current).map(plain).collect(),
        };
        if !changes.is_empty() {
            self.record(mirrored, changes);
        }
    }

    fn forget(&self, namespace: NamespaceId, up_to: Generation) {
        let mut mirrored = lock(&self.mirror);
        let blocks = mirrored.mirror.as_mut().map_or(0, |mirror| mirror.purge(namespace, up_to));
        self.record(mirrored, vec![Change::Purged { namespace, up_to, blocks }]);
        lock(&self.log).drop_tokens_of(namespace, up_to);
        if let Some(purge) = lock(&self.purges).get_mut(&namespace)
            && purge.up_to == up_to
        {
            purge.stage = Stage::Done;
        }
    }

    /// Appends what the mirror has taken in.
    fn record(&self, mut mirrored: MutexGuard<'_, Mirrored>, changes: Vec<Change>) {
        let record = lock(&self.log).append(self.clock.unix_ms(), changes);
        mirrored.next = record.sequence + 1;
        drop(mirrored);
        // Nobody listening is no error.
        if self.live.receiver_count() > 0 {
            let _ = self.live.send(self.batch(&record));
        }
        self.head.send_replace(record.sequence + 1);
    }

    fn batch(&self, record: &Record) -> Batch {
        Batch { sequence: record.sequence, payload: encode(record, self.config.rank).into() }
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
        let mut head = hub.head();
        let wait = async move { head.wait_for(|at| *at >= next).await.map(|_| ()) };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(wait).unwrap();
    }

    #[test]
    fn what_was_missed_can_be_replayed_as_far_as_it_is_kept() {
        let hub = hub(EventsConfig { buffer: 3, ..EventsConfig::default() });
        let mut live = hub.subscribe();
        for n in 0..5 {
            assert!(hub.publish(removed(n)));
        }
        let heard: Vec<u64> = (0..5).map(|_| live.blocking_recv().unwrap().sequence).collect();
        assert_eq!(heard, [0, 1, 2, 3, 4]);
        let kept: Vec<u64> = hub.replay(1).iter().map(|batch| batch.sequence).collect();
        assert_eq!(kept, [2, 3, 4]);
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
        while hub.purge(namespace, up_to) == Forgotten::NotYet {
            std::thread::yield_now();
        }
        // What was on its way meanwhile comes too late, what is of the next generation does not.
        hub.publish(stored(5, 0, 3));
        hub.publish(stored(5, 1, 4));
        until(&hub, 4);
        let Read::Records(records) = hub.read(0, 9) else { panic!() };
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
