//! The remote tier: a sealed page per object, in any store that `object_store` speaks to; a directory
//! until one is configured.
//!
//! An object is `nonce | tag | ciphertext` under `{namespace}/{generation}/{name}-{slot}`, so that a
//! person (or a store's own rules) can find and remove what belongs to a namespace. What it opens as is
//! still decided by the index: nonce and tag there must be these.
//!
//! One thread with a runtime of its own: the store's interface is asynchronous and nothing else here
//! is. A slot's older objects are deleted when it is stored again; at start the store is listed once,
//! so that an erasure knows what every slot has left behind.
//!
//! Limits: an operation that takes too long is answered as timed out and left running; it keeps its
//! place in the bound of concurrency, and its slot, until it ends.

use std::collections::{HashMap, HashSet, VecDeque};
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use base::{Clock, FrameId, Nanos, SlotId, Tier};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answers::Answers;
use crate::arena::HostArena;
use crate::error::{OpenError, TierError};
use crate::job::{DoneSink, EraseMethod, Finished, Job, PageTier, TierIoStats};
use crate::keyring::KeyRing;
use crate::nodekey::hex;
use crate::nvme::{DirLock, StartWith, lock};
use crate::seal::{NONCE_BYTES, PageLabel, PageSeal, TAG_BYTES};

/// Slots erased in the time that one operation has.
const ERASES_PER_TIMEOUT: u32 = 256;
const HEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// How a tier of objects is made.
#[derive(Clone, Debug)]
pub struct ObjectConfig {
    pub slots: u32,
    pub page_bytes: usize,
    /// Operations at a time.
    pub concurrency: usize,
    /// Jobs that may wait.
    pub queue_max: usize,
    pub op_timeout: Duration,
    pub queue_timeout: Duration,
    pub start: StartWith,
}

impl ObjectConfig {
    pub fn new(slots: u32, page_bytes: usize) -> Self {
        Self {
            slots,
            page_bytes,
            concurrency: 16,
            queue_max: 4096,
            op_timeout: Duration::from_secs(10),
            queue_timeout: Duration::from_secs(30),
            start: StartWith::WhatIsThere,
        }
    }
}

/// Sealed pages in an object store.
pub struct ObjectTier {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    _lock: Option<DirLock>,
}

struct Shared {
    config: ObjectConfig,
    store: Arc<dyn ObjectStore>,
    arena: Arc<HostArena>,
    keys: Arc<KeyRing>,
    clock: Arc<dyn Clock>,
    answers: Answers,
    line: Mutex<Line>,
    bell: Notify,
    /// Every object that may exist for a slot.
    objects: Mutex<HashMap<SlotId, Vec<Path>>>,
    /// Slots of operations that were given up on and still run.
    stuck: Mutex<HashSet<SlotId>>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<(Job, Nanos)>,
    in_flight: usize,
    stopped: bool,
}

impl ObjectTier {
    /// Objects as files below a directory, which is made with mode 0700 if it is not there.
    pub fn open_dir(
        dir: PathBuf,
        config: ObjectConfig,
        arena: Arc<HostArena>,
        keys: Arc<KeyRing>,
        clock: Arc<dyn Clock>,
        sink: DoneSink,
    ) -> Result<Self, OpenError> {
        let lock = DirLock::take(&dir, "object.lock")?;
        let fail = |e: object_store::Error| OpenError::io(&dir, io::Error::other(e));
        let objects = dir.join("objects");
        std::fs::create_dir_all(&objects).map_err(|e| OpenError::io(&objects, e))?;
        let store = LocalFileSystem::new_with_prefix(&objects).map_err(fail)?;
        let mut tier = Self::open(Arc::new(store), config, arena, keys, clock, sink)?;
        tier._lock = Some(lock);
        Ok(tier)
    }

    /// Objects in a store of the caller's.
    pub fn open(
        store: Arc<dyn ObjectStore>,
        config: ObjectConfig,
        arena: Arc<HostArena>,
        keys: Arc<KeyRing>,
        clock: Arc<dyn Clock>,
        sink: DoneSink,
    ) -> Result<Self, OpenError> {
        if config.slots == 0 || config.page_bytes == 0 || config.concurrency == 0 {
            return Err(OpenError::Shape { what: "no slots, no bytes or no concurrency" });
        }
        let name = store.to_string();
        let fail = move |source| OpenError::Io { path: name.clone(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(&fail)?;
        let shared = Arc::new(Shared {
            answers: Answers::new(Arc::clone(&clock), sink),
            config,
            store,
            arena,
            keys,
            clock,
            line: Mutex::default(),
            bell: Notify::new(),
            objects: Mutex::default(),
            stuck: Mutex::default(),
        });
        runtime.block_on(shared.list()).map_err(|e| fail(io::Error::other(e)))?;
        let theirs = Arc::clone(&shared);
        let work = move || {
            runtime.block_on(Arc::clone(&theirs).work());
            // What was given up on may never end.
            runtime.shutdown_timeout(Duration::from_millis(100));
        };
        let thread = base::spawn("object", work).map_err(&fail)?;
        Ok(Self { shared, thread: Some(thread), _lock: None })
    }
}

impl PageTier for ObjectTier {
    fn submit(&self, jobs: Vec<Job>) -> Result<(), Vec<Job>> {
        let since = self.shared.clock.now();
        let mut line = lock(&self.shared.line);
        if line.stopped || line.waiting.len() + jobs.len() > self.shared.config.queue_max {
            drop(line);
            self.shared.answers.refuse();
            return Err(jobs);
        }
        line.waiting.extend(jobs.into_iter().map(|job| (job, since)));
        drop(line);
        self.shared.bell.notify_one();
        Ok(())
    }

    fn tier(&self) -> Tier {
        Tier::Object
    }

    fn stats(&self) -> TierIoStats {
        let line = lock(&self.shared.line);
        let (queued, in_flight) = (line.waiting.len(), line.in_flight);
        drop(line);
        let stuck = lock(&self.shared.stuck).len();
        TierIoStats { queued, in_flight, stuck, ..self.shared.answers.stats() }
    }
}

impl Drop for ObjectTier {
    fn drop(&mut self) {
        lock(&self.shared.line).stopped = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Learns which objects exist, or removes them.
    async fn list(&self) -> object_store::Result<()> {
        let mut listing = self.store.list(None);
        let mut objects = HashMap::<SlotId, Vec<Path>>::new();
        while let Some(found) = next(&mut listing).await {
            let path = found?.location;
            if self.config.start == StartWith::Nothing {
                self.store.delete(&path).await?;
            } else if let Some(slot) = slot_of(&path) {
                objects.entry(slot).or_default().push(path);
            }
        }
        *lock(&self.objects) = objects;
        Ok(())
    }

    async fn work(self: Arc<Self>) {
        let places = Arc::new(Semaphore::new(self.config.concurrency));
        let mut running = JoinSet::new();
        while let Some((job, since)) = self.next().await {
            let ticket = job.ticket();
            let waited = self.clock.now().since(since);
            let left = self.config.queue_timeout.saturating_sub(waited);
            let place = timeout(left, Arc::clone(&places).acquire_owned()).await;
            match place {
                Ok(Ok(place)) => {
                    lock(&self.line).in_flight += 1;
                    running.spawn(Arc::clone(&self).serve(job, since, place));
                }
                _ => self.time_out(ticket, since, self.config.queue_timeout),
            }
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }

    /// The next job; none when the tier stops, after what waits has been answered.
    async fn next(&self) -> Option<(Job, Nanos)> {
        loop {
            let heard = self.bell.notified();
            let left = {
                let mut line = lock(&self.line);
                if !line.stopped {
                    if let Some(next) = line.waiting.pop_front() {
                        return Some(next);
                    }
                    None
                } else {
                    Some(std::mem::take(&mut line.waiting))
                }
            };
            if let Some(left) = left {
                for (job, since) in left {
                    self.answers.fail(job.ticket(), since, TierError::Stopped);
                }
                return None;
            }
            heard.await;
        }
    }

    async fn serve(self: Arc<Self>, job: Job, since: Nanos, place: OwnedSemaphorePermit) {
        let ticket = job.ticket();
        let (slots, patience) = match job {
            Job::Load { frame, label, seal, .. } => {
                let outcome = self.load(frame, label, seal).await;
                lock(&self.line).in_flight -= 1;
                return self.answers.give(ticket, since, outcome, label.bytes.into());
            }
            Job::Store { label, .. } => (vec![label.slot], self.config.op_timeout),
            Job::Erase { ref slots, .. } => {
                let times = 1 + slots.len() as u32 / ERASES_PER_TIMEOUT;
                (slots.clone(), self.config.op_timeout.saturating_mul(times))
            }
        };
        let mut work = tokio::spawn(Arc::clone(&self).perform(job));
        let done = timeout(patience, &mut work).await;
        lock(&self.line).in_flight -= 1;
        match done {
            Ok(Ok((outcome, bytes))) => self.answers.give(ticket, since, outcome, bytes),
            Ok(Err(_)) => self.answers.fail(ticket, since, TierError::Stopped),
            Err(_) => {
                lock(&self.stuck).extend(slots.iter().copied());
                self.time_out(ticket, since, patience);
                tokio::spawn(async move {
                    let _ = work.await;
                    let mut stuck = lock(&self.stuck);
                    stuck.retain(|slot| !slots.contains(slot));
                    drop(place);
                });
            }
        }
    }

    fn time_out(&self, ticket: u64, since: Nanos, after: Duration) {
        self.answers.fail(ticket, since, TierError::TimedOut { after_ms: after.as_millis() as u64 });
    }

    /// Stores and erases: what may go on after it was given up on. A load may not, since its frame is
    /// then somebody else's: its deadline is around the fetch alone.
    async fn perform(self: Arc<Self>, job: Job) -> (Result<Finished, TierError>, u64) {
        match job {
            Job::Store { frame, label, .. } => (self.store(frame, label).await, label.bytes.into()),
            Job::Erase { slots, .. } => (self.erase(&slots).await, 0),
            Job::Load { label, .. } => (Err(TierError::BadJob { slot: label.slot, bytes: label.bytes }), 0),
        }
    }

    fn check(&self, label: &PageLabel) -> Result<(), TierError> {
        let bytes = label.bytes as usize;
        let fits = bytes > 0 && bytes <= self.config.page_bytes && bytes <= self.arena.frame_bytes();
        if !fits || label.slot.0 >= self.config.slots {
            return Err(TierError::BadJob { slot: label.slot, bytes: label.bytes });
        }
        self.check_stuck(&[label.slot])
    }

    fn check_stuck(&self, slots: &[SlotId]) -> Result<(), TierError> {
        let stuck = lock(&self.stuck);
        let found = slots.iter().find(|slot| stuck.contains(slot));
        found.map_or(Ok(()), |slot| Err(TierError::SlotStuck { slot: *slot }))
    }

    async fn store(&self, frame: FrameId, label: PageLabel) -> Result<Finished, TierError> {
        self.check(&label)?;
        let (slot, bytes) = (label.slot, label.bytes as usize);
        let mut body = vec![0; HEAD_BYTES + bytes + TAG_BYTES];
        let seal = {
            let plain = self.arena.read(frame).map_err(|_| TierError::FrameBusy { frame })?;
            self.keys.seal(&label, &plain[..bytes], &mut body[HEAD_BYTES..])?
        };
        body.truncate(HEAD_BYTES + bytes);
        body[..NONCE_BYTES].copy_from_slice(&seal.nonce);
        body[NONCE_BYTES..HEAD_BYTES].copy_from_slice(&seal.tag);
        let path = path_of(&label);
        let older = {
            let mut objects = lock(&self.objects);
            let known = objects.entry(slot).or_default();
            let older: Vec<Path> = known.iter().filter(|p| **p != path).cloned().collect();
            if older.len() == known.len() {
                known.push(path.clone());
            }
            older
        };
        let put = self.store.put(&path, PutPayload::from(body)).await;
        put.map_err(|e| failed(slot, e))?;
        for old in older {
            if self.delete(slot, &old).await.is_ok() {
                self.forget(slot, &old);
            }
        }
        if self.keys.holds(label.namespace, label.generation) {
            Ok(Finished::Stored(seal))
        } else {
            Err(TierError::KeyGone)
        }
    }

    async fn load(&self, frame: FrameId, label: PageLabel, seal: PageSeal) -> Result<Finished, TierError> {
        self.check(&label)?;
        if !self.keys.holds(label.namespace, label.generation) {
            return Err(TierError::KeyGone);
        }
        let (slot, bytes) = (label.slot, label.bytes as usize);
        let wanted = HEAD_BYTES + bytes;
        let path = path_of(&label);
        let fetch = async { self.store.get(&path).await?.bytes().await };
        let body = match timeout(self.config.op_timeout, fetch).await {
            Ok(Ok(body)) => body,
            Ok(Err(object_store::Error::NotFound { .. })) => {
                return Err(TierError::ShortRead { slot, got: 0, wanted });
            }
            Ok(Err(error)) => return Err(failed(slot, error)),
            Err(_) => {
                return Err(TierError::TimedOut { after_ms: self.config.op_timeout.as_millis() as u64 });
            }
        };
        if body.len() != wanted {
            return Err(TierError::ShortRead { slot, got: body.len(), wanted });
        }
        if body[..NONCE_BYTES] != seal.nonce || body[NONCE_BYTES..HEAD_BYTES] != seal.tag {
            return Err(TierError::BadSeal { slot });
        }
        let mut frame = self.arena.write(frame).map_err(|_| TierError::FrameBusy { frame })?;
        self.keys.open(&label, &seal, &body[HEAD_BYTES..], &mut frame[..bytes])?;
        Ok(Finished::Loaded)
    }

    async fn erase(&self, slots: &[SlotId]) -> Result<Finished, TierError> {
        if let Some(slot) = slots.iter().find(|slot| slot.0 >= self.config.slots) {
            return Err(TierError::BadJob { slot: *slot, bytes: 0 });
        }
        self.check_stuck(slots)?;
        for slot in slots {
            let known = lock(&self.objects).get(slot).cloned().unwrap_or_default();
            for path in known {
                self.delete(*slot, &path).await?;
                match self.store.head(&path).await {
                    Err(object_store::Error::NotFound { .. }) => self.forget(*slot, &path),
                    Err(error) => return Err(failed(*slot, error)),
                    Ok(_) => return Err(TierError::NotErased { slot: *slot }),
                }
            }
        }
        let distinct: HashSet<&SlotId> = slots.iter().collect();
        Ok(Finished::Erased { method: EraseMethod::Deleted, probed: distinct.len() as u32 })
    }

    async fn delete(&self, slot: SlotId, path: &Path) -> Result<(), TierError> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(slot, error)),
        }
    }

    fn forget(&self, slot: SlotId, path: &Path) {
        let mut objects = lock(&self.objects);
        if let Some(known) = objects.get_mut(&slot) {
            known.retain(|p| p != path);
            if known.is_empty() {
                objects.remove(&slot);
            }
        }
    }
}

fn path_of(label: &PageLabel) -> Path {
    let file = format!("{}-{}", hex(&label.name.0), label.slot);
    Path::from_iter([label.namespace.to_string(), label.generation.to_string(), file])
}

/// The slot that an object's name ends in.
fn slot_of(path: &Path) -> Option<SlotId> {
    let (_, slot) = path.filename()?.rsplit_once('-')?;
    slot.parse().ok().map(SlotId)
}

async fn next<S: futures_core::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *stream).poll_next(context)).await
}

/// What the operating system said, if it was it.
fn failed(slot: SlotId, error: object_store::Error) -> TierError {
    if let object_store::Error::PermissionDenied { .. } = error {
        return TierError::ReadOnly { slot };
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(now) = cause {
        if let Some(found) = now.downcast_ref::<io::Error>() {
            let copy = found.raw_os_error().map_or_else(|| found.kind().into(), io::Error::from_raw_os_error);
            return TierError::from_io(slot, copy);
        }
        cause = now.source();
    }
    TierError::Io { slot, source: io::Error::other(error) }
}
