//! The bytes behind the tiers of one replica: host memory, disk, object store, their index and keys.
//!
//! ```text
//!  scheduler ── orders, notes ──▶ Storage ──▶ NvmeTier, ObjectTier (own threads)
//!      ▲                             ├──────▶ scrubber (host frames)
//!      └──── ticket, outcome ────────┘ └────▶ Journal
//! ```
//!
//! Nothing here decides which page lies where, and nothing blocks the scheduler's thread: what cannot be
//! queued is answered as failed at once. Without a key store the keys of this process are its own and a
//! restart finds nothing, which is the default: memory that forgets by itself needs no promise.

mod index;
mod keys;
mod orders;
mod recorder;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use base::{Clock, FrameId, Tier, bytes_human};
use kvcache::{
    ColdOrder, ColdOutcome, ColdWork, EvictionKind, JournalNote, LowerConfig, SlotRecord, Ticket, WritePolicy,
};
use transfer::{
    ArenaError, DoneSink, HostArena, Journal, JournalConfig, JournalError, JournalStats, KeyRing, NvmeConfig,
    NvmeTier, ObjectConfig, ObjectTier, OpenError, PageTier, StartWith, TierIoStats,
};

use crate::executor::ExecutorShape;
use index::Index;
pub use keys::{DEFAULT, Keys, KeysError, Namespace, NamespaceSpec, Retention};
use recorder::Recorder;

/// Jobs that may wait in a cold tier: more than the cache has in flight.
const QUEUE_MAX: usize = 16_384;
/// Erase and scrub orders that may wait for the scrubber.
const SCRUBS_MAX: usize = 1024;

/// What a replica keeps below the device, as meant.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    pub host: TierRoom,
    pub nvme: Option<(PathBuf, TierRoom)>,
    pub object: Option<(PathBuf, TierRoom)>,
    pub eviction: EvictionKind,
    /// Where keys survive a restart; `None` keeps them in memory only.
    pub key_store: Option<KeyStorePaths>,
    pub namespaces: Vec<NamespaceSpec>,
}

/// How much of a tier, and when it is written.
#[derive(Clone, Copy, Debug)]
pub struct TierRoom {
    pub bytes: u64,
    pub write: WritePolicy,
}

/// The file of wrapped keys, and the file of the key that wraps them.
#[derive(Clone, Debug)]
pub struct KeyStorePaths {
    pub store: PathBuf,
    pub node_key: PathBuf,
}

impl StorageConfig {
    /// Nothing below the device.
    pub fn device_only() -> Self {
        Self {
            host: TierRoom { bytes: 0, write: WritePolicy::default() },
            nvme: None,
            object: None,
            eviction: EvictionKind::default(),
            key_store: None,
            namespaces: Vec::new(),
        }
    }
}

/// Why storage could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("a cold tier needs host memory to pass through: give the host tier room for {needed} or more")]
    NoHost { needed: String },
    #[error("the {tier} tier has room for {bytes}, but one page takes {page}")]
    TooSmall { tier: Tier, bytes: String, page: String },
    #[error("host memory: {0}")]
    Host(#[from] ArenaError),
    #[error("the {tier} tier in {dir}: {source}")]
    Tier { tier: Tier, dir: PathBuf, source: OpenError },
    #[error("the index in {dir}: {source}")]
    Journal { dir: PathBuf, source: JournalError },
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("threads: {0}")]
    Thread(#[from] std::io::Error),
}

/// Where answers go; called on the tiers' threads.
pub type OutcomeSink = Arc<dyn Fn(Ticket, ColdOutcome) + Send + Sync>;

/// See the module's header.
pub struct Storage {
    host: Option<Arc<HostArena>>,
    tiers: Vec<Arc<dyn PageTier>>,
    journal: Option<(Arc<Journal>, Recorder)>,
    scrubber: Option<SyncSender<(Ticket, Vec<FrameId>)>>,
    shape: StorageShape,
    sink: OutcomeSink,
}

/// What the scheduler must know of it.
#[derive(Debug, Default)]
pub struct Opened {
    pub lower: Vec<LowerConfig>,
    /// Pages of an earlier run.
    pub records: Vec<SlotRecord>,
    pub recovery_ns: u64,
    /// An earlier run used the cold tiers.
    pub has_past: bool,
}

#[derive(Clone, Debug)]
struct StorageShape {
    page_bytes: usize,
    layout: [u8; 32],
}

/// Counters for metrics and reports.
#[derive(Clone, Debug, Default)]
pub struct StorageStats {
    pub tiers: Vec<(Tier, TierIoStats)>,
    pub journal: Option<JournalStats>,
    pub unrecorded: u64,
    /// Stores not made because the index could not be written, and whether it cannot now.
    pub refused_stores: u64,
    pub is_failing: bool,
    pub host_is_pinned: bool,
}

impl Storage {
    /// Opens every tier; `sink` hears of every order exactly once.
    pub fn open(
        config: &StorageConfig,
        shape: &ExecutorShape,
        keys: &Keys,
        clock: &Arc<dyn Clock>,
        sink: OutcomeSink,
    ) -> Result<(Self, Opened), StorageError> {
        // Frames and slots begin at whole blocks.
        let page = (shape.page_bytes as u64).next_multiple_of(transfer::ALIGN as u64);
        let mut opened = Opened::default();
        let mut storage = Self {
            host: None,
            tiers: Vec::new(),
            journal: None,
            scrubber: None,
            shape: StorageShape { page_bytes: shape.page_bytes, layout: layout_of(shape) },
            sink,
        };
        let is_cold = config.nvme.is_some() || config.object.is_some();
        if config.host.bytes < page {
            return match is_cold {
                true => Err(StorageError::NoHost { needed: bytes_human(page * 64) }),
                false => Ok((storage, opened)),
            };
        }
        let frames = places(Tier::Host, &config.host, page)?;
        let host = Arc::new(HostArena::new(frames, shape.page_bytes)?);
        storage.scrubber = Some(scrubber(Arc::clone(&host), Arc::clone(&storage.sink))?);
        opened.lower.push(lower(Tier::Host, frames, &config.host, config.eviction));
        storage.host = Some(host);
        if let Some((dir, room)) = &config.nvme {
            let slots = storage.open_nvme(dir, room, page, keys, clock, &mut opened)?;
            let has_past = opened.has_past;
            opened.lower.push(LowerConfig { has_past, ..lower(Tier::Nvme, slots, room, config.eviction) });
        }
        if let Some((dir, room)) = &config.object {
            let slots = storage.open_object(dir, room, page, keys, clock, &mut opened)?;
            let has_past = opened.has_past;
            opened.lower.push(LowerConfig { has_past, ..lower(Tier::Object, slots, room, config.eviction) });
        }
        Ok((storage, opened))
    }

    fn open_nvme(
        &mut self,
        dir: &std::path::Path,
        room: &TierRoom,
        page: u64,
        keys: &Keys,
        clock: &Arc<dyn Clock>,
        opened: &mut Opened,
    ) -> Result<u32, StorageError> {
        let slots = places(Tier::Nvme, room, page)?;
        let config = NvmeConfig {
            start: if keys.is_kept() { StartWith::WhatIsThere } else { StartWith::Nothing },
            queue_max: QUEUE_MAX,
            ..NvmeConfig::new(dir, slots, self.shape.page_bytes)
        };
        let host = Arc::clone(self.host.as_ref().expect("opened before the cold tiers"));
        // The index first: one of another model or layout throws the slots away with it.
        if keys.is_kept() {
            self.open_index(dir, keys.ring(), clock, opened)?;
        }
        let tier = NvmeTier::open(config, host, keys.ring(), Arc::clone(clock), self.done_sink());
        let tier = tier.map_err(|source| StorageError::Tier { tier: Tier::Nvme, dir: dir.into(), source })?;
        self.tiers.push(Arc::new(tier));
        Ok(slots)
    }

    fn open_object(
        &mut self,
        dir: &std::path::Path,
        room: &TierRoom,
        page: u64,
        keys: &Keys,
        clock: &Arc<dyn Clock>,
        opened: &mut Opened,
    ) -> Result<u32, StorageError> {
        let slots = places(Tier::Object, room, page)?;
        // One index for all cold tiers; it lies with the nearest.
        if keys.is_kept() && self.journal.is_none() {
            self.open_index(dir, keys.ring(), clock, opened)?;
        }
        if !keys.is_kept() {
            // Nobody has their keys any more.
            let _ = std::fs::remove_dir_all(dir.join("objects"));
        }
        let config = ObjectConfig { queue_max: QUEUE_MAX, ..ObjectConfig::new(slots, self.shape.page_bytes) };
        let host = Arc::clone(self.host.as_ref().expect("opened before the cold tiers"));
        let sink = self.done_sink();
        let tier = ObjectTier::open_dir(dir.into(), config, host, keys.ring(), Arc::clone(clock), sink);
        let tier =
            tier.map_err(|source| StorageError::Tier { tier: Tier::Object, dir: dir.into(), source })?;
        self.tiers.push(Arc::new(tier));
        Ok(slots)
    }

    fn done_sink(&self) -> DoneSink {
        let sink = Arc::clone(&self.sink);
        Box::new(move |done| {
            let (ticket, outcome) = orders::outcome(done);
            sink(ticket, outcome);
        })
    }

    fn open_index(
        &mut self,
        dir: &std::path::Path,
        ring: Arc<KeyRing>,
        clock: &Arc<dyn Clock>,
        opened: &mut Opened,
    ) -> Result<(), StorageError> {
        let config = JournalConfig::new(dir, self.shape.layout);
        let (journal, recovered) = Journal::open(&config, ring, &**clock)
            .map_err(|source| StorageError::Journal { dir: dir.into(), source })?;
        opened.recovery_ns = recovered.took_ns;
        opened.has_past = recovered.next_tree > 1;
        let (index, records) = Index::recover(recovered);
        opened.records = records;
        self.journal = Some((Arc::new(journal), Recorder::new(index)));
        Ok(())
    }

    /// Where moves between device and host go.
    pub fn host(&self) -> Option<Arc<HostArena>> {
        self.host.clone()
    }

    /// Hands orders to the threads that carry them out; answers with those that could not be queued. As a
    /// value and not through the sink: the caller is who reads what the sink writes.
    pub fn submit(&mut self, mut orders: Vec<ColdOrder>) -> Vec<Ticket> {
        let mut refused = Vec::new();
        if let Some((journal, recorder)) = &mut self.journal {
            recorder.look(journal.stats());
            refused = recorder.sift(&mut orders);
        }
        let mut by_tier: Vec<(Tier, Vec<ColdOrder>)> = Vec::new();
        for order in orders {
            match by_tier.last_mut() {
                Some((tier, batch)) if *tier == order.tier => batch.push(order),
                _ => by_tier.push((order.tier, vec![order])),
            }
        }
        for (tier, batch) in by_tier {
            match tier {
                Tier::Device | Tier::Host => {
                    refused.extend(batch.into_iter().filter_map(|order| self.scrub(order)));
                }
                _ => self.submit_cold(tier, batch, &mut refused),
            }
        }
        refused
    }

    fn scrub(&self, order: ColdOrder) -> Option<Ticket> {
        let refused = match (order.work, &self.scrubber) {
            (ColdWork::ScrubFrames { frames }, Some(scrubber)) => {
                scrubber.try_send((order.ticket, frames)).is_err()
            }
            _ => true,
        };
        refused.then_some(order.ticket)
    }

    fn submit_cold(&self, tier: Tier, batch: Vec<ColdOrder>, refused: &mut Vec<Ticket>) {
        let jobs =
            batch.into_iter().map(|order| orders::job(order, &self.shape.layout, self.shape.page_bytes));
        let jobs: Vec<transfer::Job> = jobs.collect();
        let left = match self.tiers.iter().find(|of| of.tier() == tier) {
            Some(of) => of.submit(jobs).err().unwrap_or_default(),
            None => jobs,
        };
        refused.extend(left.iter().map(|job| Ticket(job.ticket())));
    }

    /// Records what the index must know after a restart.
    pub fn record(&mut self, notes: Vec<JournalNote>) {
        if let Some((journal, recorder)) = &mut self.journal {
            recorder.record(notes, |entries| journal.submit(entries));
        }
    }

    /// Whether the journal has been told of every purge.
    pub fn has_told_all(&self) -> bool {
        self.recorder().is_none_or(Recorder::has_told_all)
    }

    fn recorder(&self) -> Option<&Recorder> {
        self.journal.as_ref().map(|(_, recorder)| recorder)
    }

    /// The cold tiers, for whoever counts what they do.
    pub fn cold(&self) -> Vec<Arc<dyn PageTier>> {
        self.tiers.clone()
    }

    /// The index, to be waited for by whoever must know that it is on the disk.
    pub fn journal(&self) -> Option<Arc<Journal>> {
        self.journal.as_ref().map(|(journal, _)| Arc::clone(journal))
    }

    pub fn stats(&self) -> StorageStats {
        StorageStats {
            tiers: self.tiers.iter().map(|tier| (tier.tier(), tier.stats())).collect(),
            journal: self.journal.as_ref().map(|(journal, _)| journal.stats()),
            unrecorded: self.recorder().map_or(0, Recorder::unrecorded),
            refused_stores: self.recorder().map_or(0, Recorder::refused),
            is_failing: self.recorder().is_some_and(Recorder::is_failing),
            host_is_pinned: self.host.as_ref().is_some_and(|host| host.is_pinned()),
        }
    }
}

/// The device pool's layout and the model's arithmetic together: a page of either is another page.
fn layout_of(shape: &ExecutorShape) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    Sha256::new().chain_update(shape.model.0).chain_update(shape.layout).finalize().into()
}

fn places(tier: Tier, room: &TierRoom, page: u64) -> Result<u32, StorageError> {
    match u32::try_from(room.bytes / page) {
        Ok(0) => {
            Err(StorageError::TooSmall { tier, bytes: bytes_human(room.bytes), page: bytes_human(page) })
        }
        places => Ok(places.unwrap_or(u32::MAX)),
    }
}

fn lower(tier: Tier, pages: u32, room: &TierRoom, policy: EvictionKind) -> LowerConfig {
    LowerConfig { policy, write: room.write, ..LowerConfig::new(tier, pages) }
}

/// A thread that overwrites host frames and reads them back.
fn scrubber(host: Arc<HostArena>, sink: OutcomeSink) -> std::io::Result<SyncSender<(Ticket, Vec<FrameId>)>> {
    let (send, inbox) = sync_channel::<(Ticket, Vec<FrameId>)>(SCRUBS_MAX);
    base::spawn("scrub", move || {
        while let Ok((ticket, frames)) = inbox.recv() {
            // A busy frame is still being read or written: it is not clean, and the report will say so.
            let clean = frames.iter().filter(|&&frame| host.scrub(frame).unwrap_or(false)).count();
            sink(ticket, ColdOutcome::Erased { probed: clean as u32 });
        }
    })?;
    Ok(send)
}
