//! The worker pool of the CPU backend: fork and join over a few pinned threads.
//!
//! Not rayon: an op of a decode step lasts 50 µs, and stealing deques, a global registry and wake-ups
//! through a condition variable cost a good part of that. Here a step's ops follow each other while the
//! workers spin on one epoch word, so a fork and join costs well under a microsecond; between steps they
//! park. Work is split by the caller ([`share`] statically, [`Tickets`] and [`Lots`] dynamically); which worker computes
//! what never changes a result, because no reduction crosses workers.
//!
//! ```text
//! caller   begin ─ run(op) ─── run(op) ─ … ─ end          worker 0 is the caller itself
//! worker   wake … spin ▒ op ▒ spin ▒ op ▒ spin … park     spinning is bounded, then a futex
//! ```
//!
//! Limits: one caller at a time and no nesting, which the compiler checks ([`Pool`] is not `Sync`, so a job
//! cannot capture it). A panic inside a job is carried to the caller after all workers have finished.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::cores;

/// Pauses before a worker parks: 50–200 µs on current cores (a pause is 15–50 ns).
const SPINS: u32 = 4_000;
/// Pauses before the joining caller starts to yield its core.
const JOIN_SPINS: u32 = 20_000;

/// A few threads that run one job at a time, together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Where the caller is pinned when a step begins; `None` leaves it alone.
    home: Option<usize>,
    /// One caller, no nesting.
    _not_sync: PhantomData<Cell<()>>,
}

impl Pool {
    /// A pool of `threads` workers: the caller and `threads - 1` new threads, each pinned to a core of its
    /// own if there are enough cores.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.clamp(1, 1024);
        let cores = cores::allowed();
        let pinned = threads > 1 && cores.len() >= threads;
        let shared = Arc::new(Shared::new(threads, cores.len() < threads));
        let mut pool = Self {
            shared: Arc::clone(&shared),
            threads: Vec::with_capacity(threads - 1),
            home: pinned.then(|| cores[0]),
            _not_sync: PhantomData,
        };
        for worker in 1..threads {
            let core = cores.get(worker).copied().filter(|_| pinned);
            let shared = Arc::clone(&shared);
            let thread = base::spawn(&format!("cpu{worker}"), move || {
                cores::pin(core);
                shared.work(worker);
            });
            pool.threads.push(thread?); // dropping the pool stops those already started
        }
        Ok(pool)
    }

    pub fn workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// A step starts: pins the caller and wakes the workers, so that the first op finds them spinning.
    pub fn begin(&self) {
        cores::pin_once(self.home);
        self.shared.active.store(true, Ordering::Relaxed);
        self.shared.nudge.fetch_add(1, Ordering::SeqCst);
        self.shared.wake();
    }

    /// A step ends: workers may park at once.
    pub fn end(&self) {
        self.shared.active.store(false, Ordering::Relaxed);
    }

    /// Runs `job(worker, workers)` on every worker and returns when all have finished.
    pub fn run(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        let shared = &*self.shared;
        if self.threads.is_empty() {
            return job(0, 1);
        }
        // SAFETY: only the lifetime is erased; `run` does not return or unwind before every worker is done
        // with the job, so the borrow outlives all uses.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Job>(job) };
        // SAFETY: no worker reads the slot now: `pending` is 0 and the epoch has not moved.
        unsafe { *shared.job.get() = Some(erased) };
        shared.pending.0.store(self.threads.len() as u32, Ordering::Relaxed);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        shared.wake();
        let mine = catch_unwind(AssertUnwindSafe(|| job(0, self.workers())));
        shared.join();
        if shared.panicked.swap(false, Ordering::Relaxed)
            && let Some(payload) = lock(&shared.payload).take()
        {
            resume_unwind(payload);
        }
        if let Err(payload) = mine {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a worker catches its job's panics, so it cannot have died of one
        }
    }
}

/// The part of `0..items` that `worker` takes: whole chunks of `grain` (the last may be short), contiguous,
/// as even as that allows.
pub fn share(items: usize, grain: usize, worker: usize, workers: usize) -> Range<usize> {
    let chunks = items.div_ceil(grain);
    let cut = |w: usize| (chunks * w / workers * grain).min(items);
    cut(worker)..cut(worker + 1)
}

/// Hands out chunks of `0..items` to whoever asks first, for work whose pieces differ in cost.
#[derive(Debug)]
pub struct Tickets {
    next: AtomicUsize,
    items: usize,
    grain: usize,
}

impl Tickets {
    pub fn new(items: usize, grain: usize) -> Self {
        Self { next: AtomicUsize::new(0), items, grain }
    }
    /// The next chunk, or `None` when all are taken.
    pub fn take(&self) -> Option<Range<usize>> {
        let start = self.next.fetch_add(self.grain, Ordering::Relaxed);
        (start < self.items).then(|| start..(start + self.grain).min(self.items))
    }
}

/// Even contiguous shares of items, one item at a time, where who has finished takes from the others' ends.
///
/// Unlike [`Tickets`] a worker walks through neighbours, so the next item can be prefetched, and on a quiet
/// machine nobody steals.
#[derive(Debug, Default)]
pub struct Lots {
    /// First item left (high half) and end (low half) of each worker's share.
    left: Vec<LotLine>,
}

impl Lots {
    /// Deals `0..items` to `workers`; keeps its memory.
    pub fn deal(&mut self, items: usize, workers: usize) {
        assert!(u32::try_from(items).is_ok(), "{items} items");
        self.left.clear();
        self.left.extend((0..workers).map(|worker| {
            let part = share(items, 1, worker, workers);
            LotLine(AtomicU64::new((part.start as u64) << 32 | part.end as u64))
        }));
    }

    /// The next item for `worker`: its own first one, else the last one of somebody who has some.
    pub fn take(&self, worker: usize) -> Option<usize> {
        let workers = self.left.len();
        (0..workers).find_map(|hop| self.left[(worker + hop) % workers].take(hop == 0))
    }
}

/// A share on a cache line of its own.
#[repr(align(128))]
#[derive(Debug)]
struct LotLine(AtomicU64);

impl LotLine {
    fn take(&self, from_front: bool) -> Option<usize> {
        let split = |left: u64| (left >> 32, left & 0xffff_ffff);
        let step = |left: u64| {
            let (first, end) = split(left);
            match from_front {
                _ if first >= end => None,
                true => Some((first + 1) << 32 | end),
                false => Some(first << 32 | (end - 1)),
            }
        };
        let old = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).ok()?;
        let (first, end) = split(old);
        Some(if from_front { first } else { end - 1 } as usize)
    }
}

type Job = &'static (dyn Fn(usize, usize) + Sync);

/// A word on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU32);

struct Shared {
    /// Moves once per job; workers spin on it.
    epoch: Line,
    /// Workers that have not finished the job.
    pending: Line,
    job: UnsafeCell<Option<Job>>,
    workers: usize,
    /// More workers than cores: spinning would take the core from the one we wait for.
    crowded: bool,
    active: AtomicBool,
    stop: AtomicBool,
    /// Moves at each `begin`, so that a parked worker comes up and spins.
    nudge: AtomicU32,
    sleepers: AtomicU32,
    parking: Mutex<()>,
    unparked: Condvar,
    panicked: AtomicBool,
    payload: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the caller only while no worker runs (pending == 0) and read by workers only
// after they have seen the epoch move; everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the job reference is `Sync` behind it, so it may be used from any thread.
unsafe impl Send for Shared {}

impl Shared {
    fn new(workers: usize, crowded: bool) -> Self {
        Self {
            epoch: Line::default(),
            pending: Line::default(),
            job: UnsafeCell::new(None),
            workers,
            crowded,
            active: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            nudge: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            parking: Mutex::new(()),
            unparked: Condvar::new(),
            panicked: AtomicBool::new(false),
            payload: Mutex::new(None),
        }
    }

    /// A worker's life.
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_epoch(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: the epoch moved, so the caller has written the slot and waits for `pending`.
            let job = unsafe { *self.job.get() }.expect("an epoch has a job");
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(worker, self.workers))) {
                *lock(&self.payload) = Some(payload);
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.pending.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits until the epoch differs from `seen`: spinning first, then parked.
    fn next_epoch(&self, seen: u32) -> u32 {
        loop {
            let mut spins = if self.crowded { SPINS / 100 } else { SPINS };
            while spins > 0 {
                let epoch = self.epoch.0.load(Ordering::Acquire);
                if epoch != seen {
                    return epoch;
                }
                if !self.active.load(Ordering::Relaxed) {
                    spins = spins.min(SPINS / 4);
                }
                self.pause();
                spins -= 1;
            }
            self.park(seen);
        }
    }

    /// Sleeps until a job or a nudge. A worker counts itself before it looks and the caller looks after it
    /// has moved the epoch (both sequentially consistent), so one of them sees the other.
    fn park(&self, seen: u32) {
        let mut guard = lock(&self.parking);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let nudge = self.nudge.load(Ordering::SeqCst);
        while self.epoch.0.load(Ordering::SeqCst) == seen && self.nudge.load(Ordering::SeqCst) == nudge {
            guard = self.unparked.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.parking); // a worker between its look and its wait holds this
            self.unparked.notify_all();
        }
    }

    /// Waits until every worker has finished the job.
    fn join(&self) {
        let mut spins = 0;
        while self.pending.0.load(Ordering::Acquire) > 0 {
            if spins < JOIN_SPINS {
                spins += 1;
                self.pause();
            } else {
                std::thread::yield_now(); // a worker has lost its core to somebody else
            }
        }
    }

    fn pause(&self) {
        if self.crowded {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_every_job_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            let hits: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
            for _ in 0..2_000 {
                pool.run(&|worker, workers| {
                    assert_eq!(workers, threads);
                    hits[worker].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 2_000), "{hits:?}");
        }
    }

    #[test]
    fn jobs_after_parking_are_not_lost() {
        let pool = Pool::new(3).unwrap();
        let done = AtomicU64::new(0);
        for round in 0..300 {
            pool.begin();
            pool.run(&|_, _| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            pool.end();
            if round % 3 == 0 {
                until_parked(&pool); // the next job finds all asleep
            }
        }
        assert_eq!(done.into_inner(), 900);
    }

    #[test]
    fn shares_cover_all_items_once_in_whole_grains() {
        for (items, grain, workers) in [(0, 4, 3), (1, 16, 2), (100, 16, 3), (4096, 16, 2), (7, 1, 4)] {
            let mut next = 0;
            for worker in 0..workers {
                let part = share(items, grain, worker, workers);
                assert_eq!(part.start, next);
                assert!(part.start.is_multiple_of(grain) || part.start == items);
                next = part.end;
            }
            assert_eq!(next, items);
        }
    }

    #[test]
    fn tickets_hand_out_each_item_once() {
        let pool = Pool::new(3).unwrap();
        let hits: Vec<AtomicU64> = (0..1_003).map(|_| AtomicU64::new(0)).collect();
        let tickets = Tickets::new(hits.len(), 8);
        pool.run(&|_, _| {
            while let Some(range) = tickets.take() {
                hits[range].iter().for_each(|h| {
                    h.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn lots_give_each_item_once_and_neighbours_in_order() {
        let mut lots = Lots::default();
        for (items, workers) in [(0, 2), (1, 3), (1_003, 3), (64, 2)] {
            lots.deal(items, workers);
            let alone: Vec<_> = std::iter::from_fn(|| lots.take(workers - 1)).collect();
            let own = share(items, 1, workers - 1, workers);
            assert!(alone.iter().copied().take(own.len()).eq(own));
            lots.deal(items, workers);
            let hits: Vec<AtomicU64> = (0..items).map(|_| AtomicU64::new(0)).collect();
            Pool::new(workers).unwrap().run(&|worker, _| {
                while let Some(item) = lots.take(worker) {
                    hits[item].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(alone.len(), items);
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_of_any_worker_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for culprit in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker, _| assert_ne!(worker, culprit, "worker {worker} fell"));
            }));
            let payload = caught.expect_err("the panic must come through");
            let text = payload.downcast_ref::<String>().expect("a formatted panic");
            assert!(text.contains(&format!("worker {culprit} fell")), "{text}");
            pool.run(&|_, _| {});
        }
    }

    #[test]
    fn idle_workers_park_and_use_no_time() {
        let pool = Pool::new(3).unwrap();
        pool.begin();
        pool.run(&|_, _| {});
        pool.end();
        until_parked(&pool);
        let clocks: Vec<libc::clockid_t> = pool.threads.iter().map(cpu_clock).collect();
        let before: Vec<u64> = clocks.iter().map(|&c| cpu_nanos(c)).collect();
        // The caller burns 20 ms of its own processor time; a spinning worker would burn as much.
        let start = cpu_nanos(libc::CLOCK_THREAD_CPUTIME_ID);
        while cpu_nanos(libc::CLOCK_THREAD_CPUTIME_ID) - start < 20_000_000 {
            std::hint::spin_loop();
        }
        for (clock, before) in clocks.into_iter().zip(before) {
            let used = cpu_nanos(clock) - before;
            assert!(used < 2_000_000, "a parked worker used {used} ns");
        }
    }

    fn until_parked(pool: &Pool) {
        while pool.shared.sleepers.load(Ordering::SeqCst) < pool.threads.len() as u32 {
            std::thread::yield_now();
        }
    }

    fn cpu_clock(thread: &JoinHandle<()>) -> libc::clockid_t {
        use std::os::unix::thread::JoinHandleExt;
        let mut clock = 0;
        // SAFETY: the thread is alive (its pool is), and `clock` is writable.
        let rc = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t() as _, &mut clock) };
        assert_eq!(rc, 0);
        clock
    }

    fn cpu_nanos(clock: libc::clockid_t) -> u64 {
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `at` is writable.
        assert_eq!(unsafe { libc::clock_gettime(clock, &mut at) }, 0);
        at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64
    }
}
