//! The log of event batches: numbered, bounded, read by any number of subscribers.
//!
//! The scheduler hands a batch over with a `try_send` and goes on; encoding happens on the hub's own
//! thread. Past the bound of that hand-over a batch is lost and the next one says so.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use base::Clock;
use kvcache::{KvChange, Stored, TierEvent};
use tokio::sync::broadcast;

use super::msgpack::Writer;

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
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { buffer: 10_000, topic: String::new(), rank: 0 }
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
    inbox: SyncSender<Vec<TierEvent>>,
}

struct Shared {
    config: EventsConfig,
    log: Mutex<VecDeque<Batch>>,
    live: broadcast::Sender<Batch>,
}

impl EventHub {
    pub fn start(config: EventsConfig, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let (inbox, outbox) = sync_channel(HANDOVER);
        let (live, _) = broadcast::channel(config.buffer.clamp(16, 4096));
        let shared = Arc::new(Shared { config, log: Mutex::default(), live });
        let theirs = Arc::clone(&shared);
        base::spawn("events", move || theirs.run(&outbox, &*clock))?;
        Ok(Self { shared, inbox })
    }

    /// Takes a batch; false if it was lost because nobody kept up.
    pub(crate) fn publish(&self, events: Vec<TierEvent>) -> bool {
        match self.inbox.try_send(events) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Drops what could be replayed: it names tokens of pages that are to be forgotten.
    pub(crate) fn forget(&self) {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn topic(&self) -> &str {
        &self.shared.config.topic
    }

    /// Batches from now on.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.shared.live.subscribe()
    }

    /// Batches from `sequence` on, as far as they are still kept.
    pub(super) fn replay(&self, sequence: u64) -> Vec<Batch> {
        let log = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().filter(|batch| batch.sequence >= sequence).cloned().collect()
    }
}

impl Shared {
    fn run(&self, outbox: &Receiver<Vec<TierEvent>>, clock: &dyn Clock) {
        let mut sequence = 0;
        while let Ok(events) = outbox.recv() {
            let payload = encode(&events, clock.unix_ms() as f64 / 1e3, self.config.rank).into();
            let batch = Batch { sequence, payload };
            sequence += 1;
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() >= self.config.buffer.max(1) {
                log.pop_front();
            }
            log.push_back(batch.clone());
            drop(log);
            // Nobody listening is no error.
            let _ = self.live.send(batch);
        }
    }
}

/// `[time, events, rank]`, each event a map with its type.
fn encode(events: &[TierEvent], time: f64, rank: u64) -> Vec<u8> {
    let mut out = Writer::default();
    out.array(3);
    out.float(time);
    out.array(events.len());
    for event in events {
        match &event.change {
            KvChange::Stored(stored) => stored_map(&mut out, stored, event.tier.medium()),
            KvChange::Removed { names } => {
                out.map(3);
                out.text("type");
                out.text("BlockRemoved");
                out.text("block_hashes");
                out.array(names.len());
                names.iter().for_each(|name| out.uint(name.low64()));
                out.text("medium");
                out.text(event.tier.medium());
            }
            KvChange::Cleared | KvChange::Lost { .. } => {
                out.map(1);
                out.text("type");
                out.text("AllBlocksCleared");
            }
        }
    }
    out.uint(rank);
    out.0
}

fn stored_map(out: &mut Writer, stored: &Stored, medium: &str) {
    out.map(7);
    out.text("type");
    out.text("BlockStored");
    out.text("block_hashes");
    out.array(stored.names.len());
    stored.names.iter().for_each(|name| out.uint(name.low64()));
    out.text("parent_block_hash");
    match stored.parent {
        Some(parent) => out.uint(parent.low64()),
        None => out.nil(),
    }
    out.text("token_ids");
    out.array(stored.tokens.len());
    stored.tokens.iter().for_each(|&token| out.uint(u64::from(token)));
    out.text("block_size");
    out.uint(u64::from(stored.page_tokens));
    out.text("lora_id");
    match stored.adapter.0 {
        0 => out.nil(),
        adapter => out.uint(u64::from(adapter)),
    }
    out.text("medium");
    out.text(medium);
}

#[cfg(test)]
mod tests {
    use base::{AdapterId, ChainHash, Generation, ManualClock, NamespaceId, Tier};

    use super::*;

    fn removed(n: u8) -> Vec<TierEvent> {
        let names = vec![ChainHash([n; 32])];
        vec![TierEvent { sequence: 1, tier: Tier::Nvme, change: KvChange::Removed { names } }]
    }

    #[test]
    fn a_batch_is_what_subscribers_of_the_field_expect() {
        let stored = Stored {
            namespace: NamespaceId(0),
            generation: Generation(0),
            adapter: AdapterId(0),
            parent: None,
            names: vec![ChainHash([1; 32])],
            tokens: vec![7, 8],
            page_tokens: 2,
        };
        let event = TierEvent { sequence: 1, tier: Tier::Host, change: KvChange::Stored(stored) };
        let bytes = encode(&[event], 0.0, 3);
        assert_eq!(bytes[0], 0x93);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for word in ["BlockStored", "block_hashes", "parent_block_hash", "token_ids", "CPU_PINNED"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert_eq!(bytes.last(), Some(&3));
    }

    #[test]
    fn what_was_missed_can_be_replayed_as_far_as_it_is_kept() {
        let config = EventsConfig { buffer: 3, ..EventsConfig::default() };
        let hub = EventHub::start(config, Arc::new(ManualClock::default())).unwrap();
        let mut live = hub.subscribe();
        for n in 0..5 {
            assert!(hub.publish(removed(n)));
        }
        let heard: Vec<u64> = (0..5).map(|_| live.blocking_recv().unwrap().sequence).collect();
        assert_eq!(heard, [0, 1, 2, 3, 4]);
        let kept: Vec<u64> = hub.replay(1).iter().map(|batch| batch.sequence).collect();
        assert_eq!(kept, [2, 3, 4]);
    }
}
