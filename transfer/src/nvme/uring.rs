//! The fast way of moving bytes: an io_uring per worker, its lanes' buffers registered once.
//!
//! The worker seals and opens between submissions, so the cipher runs while the disk works. It sleeps
//! in the ring and nowhere else; an eventfd that is always being read there is how a submitter wakes
//! it. One thread per ring, because the kernel then needs no locks around it (single issuer, deferred
//! task work) and a completion is handled by the core that asked.
//!
//! Limits: an operation in the kernel cannot be called back; the worker's end waits for it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base::FrameId;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::core::{Core, Op, Waiting};
use super::disk::{Direction, Place};
use crate::arena::{HostArena, OwnedWrite};

/// Marks the completion of the read that wakes the worker.
const WAKE: u64 = u64::MAX;
/// Prepared bytes after which the kernel is told before more is sealed.
const SUBMIT_BYTES: usize = 512 << 10;
/// Attempts to get buffers back from a ring that only fails.
const DRAIN_TRIES: usize = 10_000;

/// Ends a worker's sleep.
pub(crate) struct Waker {
    file: File,
    asleep: AtomicBool,
}

impl Waker {
    pub fn new() -> io::Result<Self> {
        let fd: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { file: File::from(fd), asleep: AtomicBool::new(false) })
    }

    /// Wakes the worker if it waits for work; whether it did.
    pub fn wake(&self) -> bool {
        let asleep = self.asleep.swap(false, Ordering::AcqRel);
        if asleep {
            self.ring_bell();
        }
        asleep
    }

    /// Wakes the worker in any case.
    pub fn ring_bell(&self) {
        // Fails only if the counter is full, and then the worker has been woken.
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }
}

/// Whether this machine lets us use io_uring.
pub(crate) fn probe() -> io::Result<()> {
    build(2).map(drop)
}

fn build(entries: u32) -> io::Result<IoUring> {
    let best = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    best.or_else(|_| IoUring::new(entries))
}

/// A worker's lanes within the tier's staging memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    pub first: usize,
    pub count: usize,
}

/// Serves many operations at a time until the tier stops.
pub(crate) fn work(
    core: &Core,
    waker: &Arc<Waker>,
    staging: &Arc<HostArena>,
    lanes: Lanes,
) -> io::Result<()> {
    let mut engine = Engine::new(core, Arc::clone(waker), staging, lanes)?;
    let mut taken = Vec::with_capacity(lanes.count);
    loop {
        if engine.fill(&mut taken) {
            break;
        }
        engine.wait()?;
        engine.reap(&mut taken);
    }
    engine.drain();
    Ok(())
}

struct Engine<'a> {
    core: &'a Core,
    waker: Arc<Waker>,
    ring: IoUring,
    first_lane: usize,
    /// `None` only after the ring failed for good: the kernel may still write there, so it is leaked.
    buffers: Vec<OwnedWrite>,
    flying: Vec<Option<(Op, Place<'a>)>>,
    free: Vec<usize>,
    registered: bool,
    unsubmitted: usize,
    bell: Box<[u8; 8]>,
    bell_armed: bool,
}

impl<'a> Engine<'a> {
    fn new(core: &'a Core, waker: Arc<Waker>, staging: &Arc<HostArena>, lanes: Lanes) -> io::Result<Self> {
        let take = |lane| staging.write_owned(FrameId(lane as u32)).map_err(io::Error::other);
        let mut buffers: Vec<OwnedWrite> =
            (lanes.first..lanes.first + lanes.count).map(take).collect::<io::Result<_>>()?;
        let ring = build((lanes.count as u32 + 1).next_power_of_two())?;
        let vectors: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
            .collect();
        // SAFETY: the buffers outlive the ring: `Engine::drop` waits for the kernel or leaks them.
        let registered = unsafe { ring.submitter().register_buffers(&vectors) }.is_ok();
        core.registered.fetch_add(usize::from(registered), Ordering::Relaxed);
        Ok(Self {
            core,
            waker,
            ring,
            first_lane: lanes.first,
            flying: buffers.iter().map(|_| None).collect(),
            free: (0..buffers.len()).rev().collect(),
            buffers,
            registered,
            unsubmitted: 0,
            bell: Box::new([0; 8]),
            bell_armed: false,
        })
    }

    /// Starts as many waiting jobs as there are lanes; true if the tier stops.
    fn fill(&mut self, taken: &mut Vec<Waiting>) -> bool {
        while !self.free.is_empty() {
            let waker = &self.waker;
            let after = |missing| waker.asleep.store(missing > 0, Ordering::Release);
            if self.core.take_many(self.free.len(), taken, after) {
                return true;
            }
            if taken.is_empty() {
                break;
            }
            for waiting in taken.drain(..) {
                self.start(waiting);
            }
        }
        false
    }

    fn start(&mut self, waiting: Waiting) {
        let Some(slot) = self.free.pop() else { return };
        let lane = self.first_lane + slot;
        let Some((op, place)) = self.core.prepare(lane, waiting, &mut self.buffers[slot]) else {
            self.free.push(slot);
            return;
        };
        let entry = self.entry(slot, &op, place).user_data(slot as u64);
        self.unsubmitted += op.io_bytes;
        self.flying[slot] = Some((op, place));
        self.push(&entry);
        if self.unsubmitted >= SUBMIT_BYTES {
            self.unsubmitted = 0;
            // What stays behind goes with the next wait.
            let _ = self.ring.submit();
        }
    }

    fn entry(&mut self, slot: usize, op: &Op, place: Place<'_>) -> squeue::Entry {
        let fd = types::Fd(place.file.as_raw_fd());
        let at = self.buffers[slot].as_mut_ptr();
        let (bytes, index) = (op.io_bytes as u32, slot as u16);
        match (op.direction, self.registered) {
            (Direction::Read, true) => {
                opcode::ReadFixed::new(fd, at, bytes, index).offset(place.offset).build()
            }
            (Direction::Read, false) => opcode::Read::new(fd, at, bytes).offset(place.offset).build(),
            (Direction::Write, true) => {
                opcode::WriteFixed::new(fd, at, bytes, index).offset(place.offset).build()
            }
            (Direction::Write, false) => opcode::Write::new(fd, at, bytes).offset(place.offset).build(),
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let mut queue = self.ring.submission();
        // SAFETY: the entry's buffer is a lane's (or the bell), which stays in place and untouched until
        // its completion has been seen.
        let pushed = unsafe { queue.push(entry) };
        debug_assert!(pushed.is_ok(), "as many entries as lanes and a bell");
    }

    fn arm_bell(&mut self) {
        if !self.bell_armed {
            let fd: RawFd = self.waker.file.as_raw_fd();
            let entry = opcode::Read::new(types::Fd(fd), self.bell.as_mut_ptr(), 8).build().user_data(WAKE);
            self.push(&entry);
            self.bell_armed = true;
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        self.arm_bell();
        self.unsubmitted = 0;
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends what the kernel has finished, starting new work in each freed lane at once.
    fn reap(&mut self, taken: &mut Vec<Waiting>) {
        for _ in 0..=self.flying.len() {
            let Some(event) = self.next_event() else { return };
            if event.user_data() == WAKE {
                self.bell_armed = false;
                continue;
            }
            self.finish(event.user_data() as usize, event.result());
            if self.core.take_many(1, taken, |_| ()) {
                return;
            }
            for waiting in taken.drain(..) {
                self.start(waiting);
            }
        }
    }

    fn finish(&mut self, slot: usize, result: i32) {
        let Some((op, place)) = self.flying.get_mut(slot).and_then(Option::take) else { return };
        let moved = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) };
        let bytes = &mut self.buffers[slot][..op.io_bytes];
        let moved = self.core.disk.settled(place, op.direction, bytes, moved);
        self.core.complete(self.first_lane + slot, op, bytes, moved);
        self.free.push(slot);
    }

    fn next_event(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    fn in_flight(&self) -> usize {
        self.flying.iter().flatten().count()
    }

    /// Waits until the kernel holds no buffer of ours.
    fn drain(&mut self) {
        for _ in 0..DRAIN_TRIES {
            if self.in_flight() == 0 {
                return;
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && !is_passing(&error)
            {
                return;
            }
            for _ in 0..=self.flying.len() {
                let Some(event) = self.next_event() else { break };
                match event.user_data() {
                    WAKE => self.bell_armed = false,
                    slot => self.finish(slot as usize, event.result()),
                }
            }
        }
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if self.in_flight() > 0 {
            self.drain();
        }
        if self.in_flight() > 0 {
            std::mem::forget(std::mem::take(&mut self.buffers));
        }
        if self.bell_armed {
            // The ring's end cancels the read, but not before this box would be gone.
            Box::leak(std::mem::replace(&mut self.bell, Box::new([0; 8])));
        }
    }
}

/// Errors of a wait after which waiting again is right.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ETIME];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}
