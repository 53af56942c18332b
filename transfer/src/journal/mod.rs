//! The index of the cold tiers as it survives a restart: an append-only file, written by a thread of
//! its own, rewritten when most of it no longer counts.
//!
//! Not a database: the whole index fits memory while we run, is read once at start and in one piece,
//! and losing its tail costs a few pages that are computed again. What must hold is that it never
//! names a wrong page, and that it says nothing to who lacks the keys: tokens and tree keys are sealed
//! under the data key of their namespace generation.
//!
//! Order matters to the caller in one way: a page's tree and parent are entered before it.
//!
//! Limits: entries may be given back when the queue is full. Losing one of any kind is safe (a stale
//! record's seal does not open its slot); `DropNamespace` should be tried again and flushed.

mod crc;
mod live;
mod record;
mod recover;
mod writer;

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use base::{ChainHash, Clock, Generation, NamespaceId, SlotId, Tier};

pub use recover::{Dropped, Recovered, RecoveredPage, RecoveredTree};

use self::record::{HEADER_BYTES, header};
use self::writer::Writer;
use crate::error::OpenError;
use crate::keyring::KeyRing;
use crate::nvme::{DirLock, lock, remove_segments};
use crate::seal::PageSeal;

const FILE: &str = "index.log";
/// Entries encoded before they are written.
const BATCH: usize = 1024;

/// How an index is opened.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    pub dir: PathBuf,
    /// Digest of model and page layout; an index of another one is thrown away, slots included.
    pub layout: [u8; 32],
    /// Entries that may wait.
    pub queue_max: usize,
}

impl JournalConfig {
    pub fn new(dir: &Path, layout: [u8; 32]) -> Self {
        Self { dir: dir.to_owned(), layout, queue_max: 1 << 16 }
    }
}

/// What the index is told.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry {
    /// A tree of pages: `key` is the caller's to understand and is sealed. Replaces a tree of the same
    /// number, pages and all.
    Tree {
        tree: u64,
        namespace: NamespaceId,
        generation: Generation,
        key: Vec<u8>,
    },
    /// A stored page. Replaces what the slot held.
    Page {
        tier: Tier,
        slot: SlotId,
        tree: u64,
        parent: Option<(Tier, SlotId)>,
        name: ChainHash,
        seal: PageSeal,
        tokens: Vec<u32>,
    },
    Drop {
        tier: Tier,
        slot: SlotId,
    },
    DropTree {
        tree: u64,
    },
    DropNamespace {
        namespace: NamespaceId,
        up_to: Generation,
    },
}

impl std::fmt::Debug for Entry {
    /// Without keys and tokens: they are a tenant's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Entry::Tree { tree, .. } => write!(f, "Tree({tree})"),
            Entry::Page { tier, slot, tree, .. } => write!(f, "Page({tier} {slot} of {tree})"),
            Entry::Drop { tier, slot } => write!(f, "Drop({tier} {slot})"),
            Entry::DropTree { tree } => write!(f, "DropTree({tree})"),
            Entry::DropNamespace { namespace, up_to } => write!(f, "DropNamespace({namespace} {up_to})"),
        }
    }
}

/// Why the index could not be opened or flushed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the index could not be written: {0}")]
    Write(#[from] io::Error),
    #[error("the index's queue is full")]
    Overloaded,
    #[error("the index has stopped")]
    Stopped,
}

impl JournalError {
    pub fn kind(&self) -> &'static str {
        match self {
            JournalError::Open(error) => error.kind(),
            JournalError::Write(_) => "io",
            JournalError::Overloaded => "overloaded",
            JournalError::Stopped => "stopped",
        }
    }
}

/// How the index stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalStats {
    pub written: u64,
    /// Entries that named a tree, parent or key that is not there.
    pub lost: u64,
    pub compactions: u64,
    pub failures: u64,
    pub file_bytes: u64,
    pub live_bytes: u64,
    pub pages: u64,
    pub queued: usize,
}

/// The index, open for writing. Dropping it writes and syncs what is queued.
pub struct Journal {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _lock: DirLock,
}

struct Shared {
    line: Mutex<Line>,
    bell: Condvar,
    queue_max: usize,
    seen: [AtomicU64; 7],
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Command>,
    stopped: bool,
}

enum Command {
    Enter(Entry),
    Flush(SyncSender<io::Result<()>>),
}

impl Journal {
    /// Reads what is there, then starts the thread that writes.
    pub fn open(
        config: &JournalConfig,
        keys: Arc<KeyRing>,
        clock: &dyn Clock,
    ) -> Result<(Journal, Recovered), JournalError> {
        let began = clock.now();
        let lock = DirLock::take(&config.dir, "index.lock")?;
        let path = config.dir.join(FILE);
        let (mut writer, mut recovered) = start(config, &path, keys)?;
        if recovered.dropped.key_gone > 0 {
            // Names of pages that nobody can open are not worth keeping.
            writer.compact()?;
        }
        recovered.took_ns = clock.now().since(began).as_nanos() as u64;
        let shared = Arc::new(Shared {
            line: Mutex::default(),
            bell: Condvar::new(),
            queue_max: config.queue_max,
            seen: Default::default(),
        });
        shared.see(&writer);
        let theirs = Arc::clone(&shared);
        let thread = base::spawn("index", move || theirs.work(&mut writer))?;
        Ok((Journal { shared, thread: Some(thread), _lock: lock }, recovered))
    }

    /// Queues all entries or, at the bound, gives all back. Never blocks.
    pub fn submit(&self, entries: Vec<Entry>) -> Result<(), Vec<Entry>> {
        let mut line = lock(&self.shared.line);
        if line.stopped || line.waiting.len() + entries.len() > self.shared.queue_max {
            return Err(entries);
        }
        line.waiting.extend(entries.into_iter().map(Command::Enter));
        drop(line);
        self.shared.bell.notify_one();
        Ok(())
    }

    /// Waits until everything submitted before is on the disk, and what was dropped is gone from the
    /// file.
    pub fn flush(&self) -> Result<(), JournalError> {
        let (send, answer) = sync_channel(1);
        let mut line = lock(&self.shared.line);
        if line.stopped {
            return Err(JournalError::Stopped);
        }
        // One more than the bound: who flushes waits, so there are few.
        line.waiting.push_back(Command::Flush(send));
        drop(line);
        self.shared.bell.notify_one();
        Ok(answer.recv().map_err(|_| JournalError::Stopped)??)
    }

    pub fn stats(&self) -> JournalStats {
        let queued = lock(&self.shared.line).waiting.len();
        let seen = |index: usize| self.shared.seen[index].load(Ordering::Relaxed);
        JournalStats {
            written: seen(0),
            lost: seen(1),
            compactions: seen(2),
            failures: seen(3),
            file_bytes: seen(4),
            live_bytes: seen(5),
            pages: seen(6),
            queued,
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        lock(&self.shared.line).stopped = true;
        self.shared.bell.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self, writer: &mut Writer) {
        let mut failed = None;
        while let Some(batch) = self.take() {
            let mut waiting = Vec::new();
            for command in batch {
                match command {
                    Command::Enter(entry) => writer.push(&entry),
                    Command::Flush(answer) => waiting.push(answer),
                }
            }
            let mut done = writer.write().and_then(|()| writer.compact_if_due());
            if !waiting.is_empty() {
                done = done.and_then(|()| writer.sync());
            }
            self.see(writer);
            // Entries lost since the last flush are that flush's to report.
            failed = failed.or(done.err());
            let mut has_told = false;
            for answer in waiting {
                let told = failed.as_ref().map(|e| io::Error::new(e.kind(), e.to_string()));
                let _ = answer.send(told.map_or(Ok(()), Err));
                has_told = true;
            }
            if has_told {
                failed = None;
            }
        }
        let _ = writer.sync();
    }

    /// The next batch; none when the journal is dropped and nothing waits.
    fn take(&self) -> Option<Vec<Command>> {
        let mut line = lock(&self.line);
        loop {
            if !line.waiting.is_empty() {
                let count = line.waiting.len().min(BATCH);
                return Some(line.waiting.drain(..count).collect());
            }
            if line.stopped {
                return None;
            }
            line = self.bell.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn see(&self, writer: &Writer) {
        let counts = writer.counts;
        let now = [
            counts.written,
            counts.lost,
            counts.compactions,
            counts.failures,
            writer.bytes(),
            writer.live.bytes,
            writer.live.pages.len() as u64,
        ];
        for (place, value) in self.seen.iter().zip(now) {
            place.store(value, Ordering::Relaxed);
        }
    }
}

fn start(
    config: &JournalConfig,
    path: &Path,
    keys: Arc<KeyRing>,
) -> Result<(Writer, Recovered), JournalError> {
    let _ = std::fs::remove_file(path.with_extension("new"));
    let file = writer::open_file(path).map_err(|e| OpenError::io(path, e))?;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    if bytes.get(..HEADER_BYTES) != Some(&header(&config.layout)[..]) {
        let mut recovered =
            Recovered { next_tree: 1, read_bytes: bytes.len() as u64, ..Recovered::default() };
        recovered.dropped.other_layout = u32::from(!bytes.is_empty());
        remove_segments(&config.dir)?;
        return Ok((Writer::fresh(path.to_owned(), file, config.layout, keys)?, recovered));
    }
    let (mut live, end, next_tree) = recover::replay(&bytes);
    let mut recovered = recover::open(&bytes, &mut live, &keys);
    recovered.dropped.torn_bytes = bytes.len() as u64 - end;
    recovered.next_tree = next_tree;
    recovered.read_bytes = bytes.len() as u64;
    let writer = Writer::resume(path.to_owned(), file, config.layout, keys, live, end)?;
    Ok((writer, recovered))
}
