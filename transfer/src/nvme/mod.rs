//! The tier on a local disk: sealed pages in equal slots, moved past the page cache.
//!
//! ```text
//! submit ─▶ bounded queue ─▶ worker: seal ─▶ io_uring ─▶ worker: open ─▶ sink
//!                        └─▶ eraser: punch, read back ─▶ sink
//!                            watchdog: answers what takes too long
//! ```
//!
//! The obvious other way, `tokio::fs` or a thread per page, copies through the page cache: the memory
//! that the host tier wants, and plaintext-free only by luck. Sealing happens on the threads that wait
//! for the disk, between its completions.
//!
//! Limits: one process per directory (a lock file). An operation that the kernel never finishes keeps
//! its lane, its slot and the tier's end waiting; its job is answered in time.

mod core;
mod disk;
mod erase;
mod segment;
mod threads;
mod uring;

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use base::{Clock, FrameId, Tier};

pub(crate) use self::core::lock;
use self::core::{Core, Parts};
use self::segment::Segments;
use self::uring::{Lanes, Waker};
pub use disk::{Direction, DiskIo, Place, SystemDisk};

use crate::arena::{ALIGN, HostArena, round_up};
use crate::error::OpenError;
use crate::job::{DoneSink, Job, PageTier, TierIoStats};
use crate::keyring::KeyRing;

/// How often a directory's lock is tried, and how long between.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// How a tier on disk is made.
#[derive(Clone)]
pub struct NvmeConfig {
    /// Made with mode 0700 if it is not there.
    pub dir: PathBuf,
    pub slots: u32,
    /// Largest page, in plaintext bytes.
    pub page_bytes: usize,
    /// Distance of two slots; rounded up to 4096, and to `page_bytes` if smaller.
    pub slot_bytes: usize,
    /// 64–256 MiB is sensible; at least one slot.
    pub segment_bytes: u64,
    /// Operations in flight over all workers.
    pub depth: usize,
    /// Threads that drive rings; blocking I/O takes `depth` threads.
    pub workers: usize,
    pub io: IoChoice,
    /// Jobs that may wait.
    pub queue_max: usize,
    /// After this long an operation is answered as timed out.
    pub op_timeout: Duration,
    /// After this long in the queue a job is answered as timed out.
    pub queue_timeout: Duration,
    pub start: StartWith,
    /// Where faults are injected; [`SystemDisk`] otherwise.
    pub disk: Arc<dyn DiskIo>,
}

impl NvmeConfig {
    pub fn new(dir: &Path, slots: u32, page_bytes: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            slots,
            page_bytes,
            slot_bytes: round_up(page_bytes),
            segment_bytes: 128 << 20,
            depth: 16,
            workers: 2,
            io: IoChoice::Auto,
            queue_max: 4096,
            op_timeout: Duration::from_secs(5),
            queue_timeout: Duration::from_secs(20),
            start: StartWith::WhatIsThere,
            disk: Arc::new(SystemDisk),
        }
    }
}

/// How bytes are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoChoice {
    /// io_uring where the machine lets us, blocking threads otherwise.
    #[default]
    Auto,
    Uring,
    Threads,
}

/// What to do with slots of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StartWith {
    #[default]
    WhatIsThere,
    /// Remove them: no index will name them.
    Nothing,
}

/// Sealed pages on a local disk.
pub struct NvmeTier {
    core: Arc<Core>,
    wakers: Vec<Arc<Waker>>,
    threads: Vec<JoinHandle<()>>,
    watchdog: Arc<Watchdog>,
    uring: bool,
    _lock: DirLock,
}

impl NvmeTier {
    /// Takes the directory and starts the threads.
    pub fn open(
        config: NvmeConfig,
        arena: Arc<HostArena>,
        keys: Arc<KeyRing>,
        clock: Arc<dyn Clock>,
        sink: DoneSink,
    ) -> Result<Self, OpenError> {
        let slot_bytes = check(&config)?;
        let lock = DirLock::take(&config.dir, "nvme.lock")?;
        if config.start == StartWith::Nothing {
            Segments::remove_all(&config.dir)?;
        }
        let uring = match (config.io, uring::probe()) {
            (IoChoice::Threads, _) => false,
            (IoChoice::Auto, probed) => probed.is_ok(),
            (IoChoice::Uring, probed) => probed.map(|()| true).map_err(OpenError::NoUring)?,
        };
        // A lane's buffer has room for the tag that the cipher puts behind a page.
        let staging = HostArena::new(config.depth as u32 + 1, slot_bytes + ALIGN);
        let staging = staging.map_err(|e| OpenError::io(&config.dir, std::io::Error::other(e)))?;
        let core = Arc::new(Core::new(Parts {
            arena,
            keys,
            clock,
            disk: Arc::clone(&config.disk),
            segments: Segments::new(&config.dir, config.slots, slot_bytes, config.segment_bytes),
            sink,
            lanes: config.depth + 1,
            page_bytes: config.page_bytes,
            queue_max: config.queue_max,
            op_timeout: config.op_timeout,
            queue_timeout: config.queue_timeout,
        }));
        let watchdog = Arc::new(Watchdog::default());
        let mut tier = Self { core, wakers: Vec::new(), threads: Vec::new(), watchdog, uring, _lock: lock };
        tier.start(&config, &Arc::new(staging)).map_err(|e| OpenError::io(&config.dir, e))?;
        Ok(tier)
    }

    fn start(&mut self, config: &NvmeConfig, staging: &Arc<HostArena>) -> std::io::Result<()> {
        if self.uring {
            self.start_rings(config, staging)?;
        } else {
            for lane in 0..config.depth {
                let (core, staging) = (Arc::clone(&self.core), Arc::clone(staging));
                self.threads.push(base::spawn(&format!("nvme-{lane}"), move || {
                    if let Ok(mut bytes) = staging.write(FrameId(lane as u32)) {
                        threads::work(&core, lane, &mut bytes);
                    }
                })?);
            }
        }
        let (core, lane, staging) = (Arc::clone(&self.core), config.depth, Arc::clone(staging));
        self.threads.push(base::spawn("nvme-erase", move || {
            if let Ok(mut bytes) = staging.write(FrameId(lane as u32)) {
                erase::work(&core, lane, &mut bytes);
            }
        })?);
        let (core, watchdog) = (Arc::clone(&self.core), Arc::clone(&self.watchdog));
        let period = (config.op_timeout / 8).clamp(Duration::from_millis(2), Duration::from_millis(250));
        self.threads.push(base::spawn("nvme-watch", move || watchdog.work(&core, period))?);
        Ok(())
    }

    fn start_rings(&mut self, config: &NvmeConfig, staging: &Arc<HostArena>) -> std::io::Result<()> {
        let workers = config.workers.min(config.depth);
        for worker in 0..workers {
            let (first, end) = (worker * config.depth / workers, (worker + 1) * config.depth / workers);
            let lanes = Lanes { first, count: end - first };
            let waker = Arc::new(Waker::new()?);
            self.wakers.push(Arc::clone(&waker));
            let (core, staging) = (Arc::clone(&self.core), Arc::clone(staging));
            self.threads.push(base::spawn(&format!("nvme-{worker}"), move || {
                if uring::work(&core, &waker, &staging, lanes).is_err() {
                    // A ring that fails is not a disk that fails: nothing more can be moved.
                    core.stop();
                }
            })?);
        }
        Ok(())
    }

    /// Whether reads and writes pass the page cache by; known after the first store or load.
    pub fn is_direct(&self) -> bool {
        self.core.segments.is_direct()
    }
}

impl PageTier for NvmeTier {
    fn submit(&self, jobs: Vec<Job>) -> Result<(), Vec<Job>> {
        let mut moves = jobs.iter().filter(|job| !matches!(job, Job::Erase { .. })).count();
        self.core.submit(jobs)?;
        for waker in &self.wakers {
            if moves == 0 {
                break;
            }
            moves -= usize::from(waker.wake());
        }
        Ok(())
    }

    fn tier(&self) -> Tier {
        Tier::Nvme
    }

    fn stats(&self) -> TierIoStats {
        TierIoStats { uring: self.uring, ..self.core.stats() }
    }
}

impl Drop for NvmeTier {
    fn drop(&mut self) {
        self.core.stop();
        for waker in &self.wakers {
            waker.ring_bell();
        }
        // The watchdog goes last: what the kernel still holds is answered in time.
        let watch = self.threads.len().saturating_sub(1);
        for (index, thread) in self.threads.drain(..).enumerate() {
            if index == watch {
                self.watchdog.stop();
            }
            let _ = thread.join();
        }
    }
}

fn check(config: &NvmeConfig) -> Result<usize, OpenError> {
    let slot_bytes = round_up(config.slot_bytes.max(config.page_bytes));
    let shape = |what| Err(OpenError::Shape { what });
    if config.slots == 0 || config.page_bytes == 0 {
        return shape("no slots, or slots of no bytes");
    }
    if config.depth == 0 || config.workers == 0 || config.depth > 1024 {
        return shape("depth is 1 to 1024, and there is at least one worker");
    }
    if slot_bytes > 1 << 30 {
        return shape("a slot of more than 1 GiB");
    }
    Ok(slot_bytes)
}

/// Looks at the clock for everybody.
#[derive(Default)]
struct Watchdog {
    stopped: Mutex<bool>,
    bell: Condvar,
}

impl Watchdog {
    fn work(&self, core: &Core, period: Duration) {
        let mut stopped = lock(&self.stopped);
        while !*stopped {
            let woken = self.bell.wait_timeout(stopped, period).unwrap_or_else(PoisonError::into_inner);
            stopped = woken.0;
            core.expire();
        }
    }
    fn stop(&self) {
        *lock(&self.stopped) = true;
        self.bell.notify_all();
    }
}

/// The directory's lock, let go with the process.
pub(crate) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Makes the directory (0700) if need be and locks the file `name` in it.
    pub fn take(dir: &Path, name: &str) -> Result<Self, OpenError> {
        make_dir(dir)?;
        let path = dir.join(name);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).map_err(|e| OpenError::io(&path, e))?;
        // A predecessor that is being killed, and a child of ours between fork and exec, hold the lock
        // for a moment longer.
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(error)) => return Err(OpenError::io(&path, error)),
            }
        }
        Err(OpenError::Locked { path: dir.display().to_string() })
    }
}

/// Makes a directory that only we can look into.
pub(crate) fn make_dir(dir: &Path) -> Result<(), OpenError> {
    let fail = |e| OpenError::io(dir, e);
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    }
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(fail)
}

/// Removes the slots of an earlier run.
pub(crate) fn remove_segments(dir: &Path) -> Result<(), OpenError> {
    Segments::remove_all(dir)
}
