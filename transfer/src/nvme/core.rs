//! What the threads of a tier share: the bounded queue, the lanes of work in progress, and what
//! happens to a job before and after its bytes move.
//!
//! A *lane* is one staging buffer and the operation that uses it. Blocking threads own one lane each,
//! an io_uring worker several; both call [`Core::prepare`] and [`Core::complete`], so a fault is
//! judged in one place. Whoever takes a lane's operation out of `Busy` first answers its job: the
//! worker when the disk is done, or the watchdog when it takes too long. The worker then gets the
//! lane back when the kernel is really done, and only then can its buffer and slot be used again.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{Clock, FrameId, Nanos, SlotId};

use super::disk::{Direction, DiskIo, Place};
use super::segment::{Missing, Segments};
use crate::answers::Answers;
use crate::arena::{HostArena, round_up};
use crate::error::TierError;
use crate::job::{DoneSink, Finished, Job, TierIoStats};
use crate::keyring::KeyRing;
use crate::seal::{PageLabel, PageSeal};

pub(crate) struct Core {
    pub arena: Arc<HostArena>,
    pub keys: Arc<KeyRing>,
    pub clock: Arc<dyn Clock>,
    pub disk: Arc<dyn DiskIo>,
    pub segments: Segments,
    pub op_timeout: Duration,
    pub queue_timeout: Duration,
    pub queue_max: usize,
    pub page_bytes: usize,
    answers: Answers,
    queue: Mutex<Queue>,
    /// For blocking threads.
    moves: Condvar,
    /// For the eraser, which must not be woken by every store.
    erases: Condvar,
    lanes: Box<[Mutex<Lane>]>,
    stuck: Mutex<HashSet<SlotId>>,
    /// Workers whose buffers the kernel has registered.
    pub registered: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    moves: VecDeque<Waiting>,
    erases: VecDeque<Waiting>,
    stopped: bool,
}

/// A job and when it came.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub job: Job,
    pub since: Nanos,
}

/// Who uses a lane.
enum Lane {
    Free,
    Busy {
        ticket: u64,
        since: Nanos,
        started: Nanos,
        writes: Vec<SlotId>,
    },
    /// Answered as timed out; the kernel still has it.
    GivenUp {
        writes: Vec<SlotId>,
    },
}

/// An operation whose bytes are to be moved.
#[derive(Debug)]
pub(crate) struct Op {
    pub ticket: u64,
    pub since: Nanos,
    pub label: PageLabel,
    pub direction: Direction,
    /// Whole blocks.
    pub io_bytes: usize,
    /// Of a store: the seal made. Of a load: the seal to check.
    seal: PageSeal,
    frame: FrameId,
}

/// Which queue a thread serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    Moves,
    Erases,
}

/// What a driver of the tier is made of.
pub(crate) struct Parts {
    pub arena: Arc<HostArena>,
    pub keys: Arc<KeyRing>,
    pub clock: Arc<dyn Clock>,
    pub disk: Arc<dyn DiskIo>,
    pub segments: Segments,
    pub sink: DoneSink,
    pub lanes: usize,
    pub page_bytes: usize,
    pub queue_max: usize,
    pub op_timeout: Duration,
    pub queue_timeout: Duration,
}

impl Core {
    pub fn new(parts: Parts) -> Self {
        let answers = Answers::new(Arc::clone(&parts.clock), parts.sink);
        Self {
            arena: parts.arena,
            keys: parts.keys,
            clock: parts.clock,
            disk: parts.disk,
            segments: parts.segments,
            op_timeout: parts.op_timeout,
            queue_timeout: parts.queue_timeout,
            queue_max: parts.queue_max,
            page_bytes: parts.page_bytes,
            answers,
            queue: Mutex::default(),
            moves: Condvar::new(),
            erases: Condvar::new(),
            lanes: (0..parts.lanes).map(|_| Mutex::new(Lane::Free)).collect(),
            stuck: Mutex::default(),
            registered: AtomicUsize::new(0),
        }
    }

    /// Queues all jobs or none.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), Vec<Job>> {
        let since = self.clock.now();
        let mut queue = lock(&self.queue);
        let waiting = queue.moves.len() + queue.erases.len();
        if queue.stopped || waiting + jobs.len() > self.queue_max {
            drop(queue);
            self.answers.refuse();
            return Err(jobs);
        }
        let (moves, erases) = (queue.moves.len(), queue.erases.len());
        for job in jobs {
            let waiting = Waiting { job, since };
            match waiting.job {
                Job::Erase { .. } => queue.erases.push_back(waiting),
                _ => queue.moves.push_back(waiting),
            }
        }
        let (moves, erases) = (queue.moves.len() - moves, queue.erases.len() - erases);
        drop(queue);
        match moves {
            0 => (),
            1 => self.moves.notify_one(),
            _ => self.moves.notify_all(),
        }
        if erases > 0 {
            self.erases.notify_one();
        }
        Ok(())
    }

    /// Takes the next job, waiting for it; none when the tier stops.
    pub fn take(&self, line: Line) -> Option<Waiting> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.stopped {
                return None;
            }
            let (next, bell) = match line {
                Line::Moves => (queue.moves.pop_front(), &self.moves),
                Line::Erases => (queue.erases.pop_front(), &self.erases),
            };
            if next.is_some() {
                return next;
            }
            queue = bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes up to `most` jobs without waiting, then calls `after` with how many are still missing,
    /// under the queue's lock. Returns whether the tier stops.
    pub fn take_many(&self, most: usize, into: &mut Vec<Waiting>, after: impl FnOnce(usize)) -> bool {
        let mut queue = lock(&self.queue);
        if queue.stopped {
            return true;
        }
        let count = most.min(queue.moves.len());
        into.extend(queue.moves.drain(..count));
        after(most - count);
        false
    }

    /// Refuses new jobs and answers the waiting ones.
    pub fn stop(&self) {
        let mut queue = lock(&self.queue);
        queue.stopped = true;
        let mut left = std::mem::take(&mut queue.moves);
        left.append(&mut queue.erases);
        drop(queue);
        self.moves.notify_all();
        self.erases.notify_all();
        for waiting in left {
            self.fail(waiting.job.ticket(), waiting.since, TierError::Stopped);
        }
    }

    pub fn stats(&self) -> TierIoStats {
        let queue = lock(&self.queue);
        let queued = queue.moves.len() + queue.erases.len();
        drop(queue);
        let count = |pick: fn(&Lane) -> bool| self.lanes.iter().filter(|lane| pick(&lock(lane))).count();
        TierIoStats {
            queued,
            in_flight: count(|lane| matches!(lane, Lane::Busy { .. })),
            stuck: count(|lane| matches!(lane, Lane::GivenUp { .. })),
            direct: self.segments.is_direct(),
            registered: self.registered.load(Ordering::Relaxed) > 0,
            ..self.answers.stats()
        }
    }
}

/// Before and after the bytes move.
impl Core {
    /// Checks a job, seals what is to be stored, and says what to do; answers it if that is nothing.
    pub fn prepare(&self, lane: usize, waiting: Waiting, staging: &mut [u8]) -> Option<(Op, Place<'_>)> {
        let (ticket, since) = (waiting.job.ticket(), waiting.since);
        let writes = match &waiting.job {
            Job::Store { label, .. } => vec![label.slot],
            _ => Vec::new(),
        };
        if let Some(slot) = self.stuck_among(&writes) {
            self.fail(ticket, since, TierError::SlotStuck { slot });
            return None;
        }
        // From here on the watchdog sees it: making a segment's file may take as long as a write.
        self.begin(lane, ticket, since, writes);
        let error = match self.build(waiting, staging) {
            Ok(built) if self.is_awaited(lane) => return Some(built),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        if self.settle(lane)
            && let Some(error) = error
        {
            self.fail(ticket, since, error);
        }
        None
    }

    fn build(&self, waiting: Waiting, staging: &mut [u8]) -> Result<(Op, Place<'_>), TierError> {
        let op = self.seal_or_check(waiting, staging)?;
        let missing = match op.direction {
            Direction::Write => Missing::Create,
            Direction::Read => Missing::Leave,
        };
        let slot = op.label.slot;
        let place = self.segments.place(slot, missing, &*self.disk);
        let place = place.map_err(|error| TierError::from_io(slot, error))?;
        let none = TierError::ShortRead { slot, got: 0, wanted: op.io_bytes };
        Ok((op, place.ok_or(none)?))
    }

    fn seal_or_check(&self, waiting: Waiting, staging: &mut [u8]) -> Result<Op, TierError> {
        let (direction, frame, label, seal) = match waiting.job {
            Job::Store { frame, label, .. } => (Direction::Write, frame, label, None),
            Job::Load { frame, label, seal, .. } => (Direction::Read, frame, label, Some(seal)),
            Job::Erase { .. } => return Err(TierError::BadJob { slot: SlotId(0), bytes: 0 }),
        };
        let ticket = waiting.job.ticket();
        let bytes = label.bytes as usize;
        let fits = bytes > 0 && bytes <= self.page_bytes && bytes <= self.arena.frame_bytes();
        if !fits || !self.segments.holds(label.slot) {
            return Err(TierError::BadJob { slot: label.slot, bytes: label.bytes });
        }
        self.stuck_among(&[label.slot]).map_or(Ok(()), |slot| Err(TierError::SlotStuck { slot }))?;
        let seal = match seal {
            Some(seal) if self.keys.holds(label.namespace, label.generation) => seal,
            Some(_) => return Err(TierError::KeyGone),
            None => self.seal(frame, &label, staging)?,
        };
        let io_bytes = round_up(bytes);
        Ok(Op { ticket, since: waiting.since, label, direction, io_bytes, seal, frame })
    }

    fn seal(&self, frame: FrameId, label: &PageLabel, staging: &mut [u8]) -> Result<PageSeal, TierError> {
        let plain = self.arena.read(frame).map_err(|_| TierError::FrameBusy { frame })?;
        let bytes = label.bytes as usize;
        let seal = self.keys.seal(label, &plain[..bytes], staging)?;
        staging[bytes..round_up(bytes)].fill(0);
        Ok(seal)
    }

    /// Ends an operation whose bytes have moved, or did not.
    pub fn complete(&self, lane: usize, op: Op, staging: &mut [u8], moved: std::io::Result<usize>) {
        if !self.settle(lane) {
            return;
        }
        let slot = op.label.slot;
        let (got, wanted) = (moved.as_ref().map_or(0, |n| *n), op.io_bytes);
        let outcome = match (moved, op.direction) {
            (Err(error), _) => Err(TierError::from_io(slot, error)),
            (Ok(_), Direction::Read) if got != wanted => Err(TierError::ShortRead { slot, got, wanted }),
            (Ok(_), Direction::Write) if got != wanted => Err(TierError::ShortWrite { slot, got, wanted }),
            (Ok(_), Direction::Read) => self.open(&op, &staging[..wanted]),
            (Ok(_), Direction::Write) if self.keys.holds(op.label.namespace, op.label.generation) => {
                Ok(Finished::Stored(op.seal))
            }
            (Ok(_), Direction::Write) => Err(TierError::KeyGone),
        };
        self.answer(op.ticket, op.since, outcome, u64::from(op.label.bytes));
    }

    fn open(&self, op: &Op, staging: &[u8]) -> Result<Finished, TierError> {
        let label = &op.label;
        let bytes = label.bytes as usize;
        let frame = op.frame;
        let mut frame = self.arena.write(frame).map_err(|_| TierError::FrameBusy { frame })?;
        let plain = &mut frame[..bytes];
        self.keys.open(label, &op.seal, &staging[..bytes], plain)?;
        // The cipher does not cover what fills the last block.
        if staging[bytes..].iter().fold(0, |seen, byte| seen | byte) != 0 {
            plain.fill(0);
            return Err(TierError::BadSeal { slot: label.slot });
        }
        Ok(Finished::Loaded)
    }
}

/// Lanes and answers.
impl Core {
    pub fn begin(&self, lane: usize, ticket: u64, since: Nanos, writes: Vec<SlotId>) {
        let started = self.clock.now();
        *lock(&self.lanes[lane]) = Lane::Busy { ticket, since, started, writes };
    }

    /// The lane made progress; false if it was given up on meanwhile.
    pub fn progress(&self, lane: usize) -> bool {
        match &mut *lock(&self.lanes[lane]) {
            Lane::Busy { started, .. } => {
                *started = self.clock.now();
                true
            }
            _ => false,
        }
    }

    /// Whether the lane's job has not been given up on.
    fn is_awaited(&self, lane: usize) -> bool {
        matches!(*lock(&self.lanes[lane]), Lane::Busy { .. })
    }

    /// The kernel is done with the lane; true if its job is still to be answered.
    pub fn settle(&self, lane: usize) -> bool {
        let was = std::mem::replace(&mut *lock(&self.lanes[lane]), Lane::Free);
        if let Lane::GivenUp { writes } = &was {
            let mut stuck = lock(&self.stuck);
            for slot in writes {
                stuck.remove(slot);
            }
        }
        matches!(was, Lane::Busy { .. })
    }

    /// Answers what has taken too long: operations in the kernel, and jobs that never got that far.
    pub fn expire(&self) {
        let now = self.clock.now();
        for lane in &self.lanes {
            let mut state = lock(lane);
            let Lane::Busy { ticket, since, started, writes } = &mut *state else { continue };
            if now.since(*started) <= self.op_timeout {
                continue;
            }
            let (ticket, since, writes) = (*ticket, *since, std::mem::take(writes));
            lock(&self.stuck).extend(writes.iter().copied());
            *state = Lane::GivenUp { writes };
            drop(state);
            self.time_out(ticket, since, self.op_timeout);
        }
        for waiting in self.overdue(now) {
            self.time_out(waiting.job.ticket(), waiting.since, self.queue_timeout);
        }
    }

    fn overdue(&self, now: Nanos) -> Vec<Waiting> {
        let mut queue = lock(&self.queue);
        let queue = &mut *queue;
        let mut late = Vec::new();
        for line in [&mut queue.moves, &mut queue.erases] {
            while line.front().is_some_and(|w| now.since(w.since) > self.queue_timeout) {
                late.extend(line.pop_front());
            }
        }
        late
    }

    fn time_out(&self, ticket: u64, since: Nanos, after: Duration) {
        self.fail(ticket, since, TierError::TimedOut { after_ms: after.as_millis() as u64 });
    }

    pub fn answer(&self, ticket: u64, since: Nanos, outcome: Result<Finished, TierError>, bytes: u64) {
        self.answers.give(ticket, since, outcome, bytes);
    }

    pub fn fail(&self, ticket: u64, since: Nanos, error: TierError) {
        self.answers.fail(ticket, since, error);
    }

    /// A stuck slot among these, if there is one.
    pub fn stuck_among(&self, slots: &[SlotId]) -> Option<SlotId> {
        let stuck = lock(&self.stuck);
        slots.iter().copied().find(|slot| stuck.contains(slot))
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
