//! The host tier's memory: one mapping cut into equal frames, and the right to touch one of them.
//!
//! One mapping and not a box per page, because a fixed array gives huge pages, one `mlock`, one place
//! to scan after a purge and a frame number that fits a message. Who may look at a frame is decided
//! here by one atomic per frame (readers counted, writer as a bit), so that guards can travel to I/O
//! threads and a mistake in the bookkeeping above is a refused guard, never a torn page.
//!
//! Limits: a guard never waits; a busy frame is the caller's to retry. Locking into memory and huge
//! pages are asked for and their outcome reported, since a container may refuse both.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base::FrameId;
use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};

/// What frames and slots are rounded up to: the page of the machine and the block of O_DIRECT.
pub const ALIGN: usize = 4096;
const HUGE: usize = 2 << 20;
/// The writer's bit; the bits below it count readers.
const WRITER: u32 = 1 << 31;

/// Bytes rounded up to whole blocks.
pub(crate) fn round_up(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// Page-aligned host memory in equal frames.
pub struct HostArena {
    map: MmapRaw,
    /// From the mapping's start to the first frame.
    lead: usize,
    frames: u32,
    frame_bytes: usize,
    stride: usize,
    state: Box<[AtomicU32]>,
    pinned: bool,
    huge: bool,
}

/// Why an arena could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    #[error("an arena of {frames} frames of {frame_bytes} bytes is empty or too large to address")]
    Shape { frames: u32, frame_bytes: usize },
    #[error("cannot map {bytes} bytes of host memory: {source}")]
    Map { bytes: usize, source: std::io::Error },
}

impl ArenaError {
    pub fn kind(&self) -> &'static str {
        match self {
            ArenaError::Shape { .. } => "shape",
            ArenaError::Map { .. } => "map",
        }
    }
}

/// Somebody else holds the frame in a way that excludes this one, or there is no such frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("frame {0} is held by somebody else or does not exist")]
pub struct FrameBusy(pub FrameId);

impl HostArena {
    /// Maps `frames` frames of `frame_bytes`; the distance between two is rounded up to 4096.
    pub fn new(frames: u32, frame_bytes: usize) -> Result<Self, ArenaError> {
        let shape = || ArenaError::Shape { frames, frame_bytes };
        if frames == 0 || frame_bytes == 0 || frame_bytes > isize::MAX as usize / 2 {
            return Err(shape());
        }
        let stride = round_up(frame_bytes);
        let bytes =
            stride.checked_mul(frames as usize).and_then(|b| b.checked_add(HUGE)).ok_or_else(shape)?;
        let map = MmapOptions::new().len(bytes).map_anon();
        let map = map.map_err(|source| ArenaError::Map { bytes, source })?;
        let lead = map.as_ptr().align_offset(HUGE);
        // A frame of less than a huge page gains as well: the frames lie side by side.
        let huge = advise_huge(&map);
        let pinned = map.lock().is_ok();
        let state = (0..frames).map(|_| AtomicU32::new(0)).collect();
        Ok(Self { map: MmapRaw::from(map), lead, frames, frame_bytes, stride, state, pinned, huge })
    }

    pub fn frames(&self) -> u32 {
        self.frames
    }
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }
    /// Where the frames lie, for a device that registers them.
    pub fn range(&self) -> (*const u8, usize) {
        (self.start(FrameId(0)).cast_const(), self.stride * self.frames as usize)
    }
    /// Whether the kernel agreed never to swap the frames out.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }
    /// Whether the kernel took the advice of huge pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// The right to read a frame, shared with other readers.
    pub fn read(&self, frame: FrameId) -> Result<FrameRead<'_>, FrameBusy> {
        self.take_read(frame)?;
        Ok(FrameRead { arena: self, frame })
    }
    /// The right to write a frame, alone.
    pub fn write(&self, frame: FrameId) -> Result<FrameWrite<'_>, FrameBusy> {
        self.take_write(frame)?;
        Ok(FrameWrite { arena: self, frame })
    }
    /// As [`HostArena::read`], for a guard that outlives the caller's borrow.
    pub fn read_owned(self: &Arc<Self>, frame: FrameId) -> Result<OwnedRead, FrameBusy> {
        self.take_read(frame)?;
        Ok(OwnedRead { arena: Arc::clone(self), frame })
    }
    /// As [`HostArena::write`], for a guard that outlives the caller's borrow.
    pub fn write_owned(self: &Arc<Self>, frame: FrameId) -> Result<OwnedWrite, FrameBusy> {
        self.take_write(frame)?;
        Ok(OwnedWrite { arena: Arc::clone(self), frame })
    }

    /// Overwrites the frame with zeros, padding included, and reads it back; true if nothing is left.
    pub fn scrub(&self, frame: FrameId) -> Result<bool, FrameBusy> {
        let _held = self.write(frame)?;
        let start = self.start(frame);
        // SAFETY: the frame lies inside the mapping and the writer's bit makes this access the only one.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, self.stride) };
        Ok(wipe(bytes))
    }

    fn start(&self, frame: FrameId) -> *mut u8 {
        debug_assert!(frame.0 < self.frames);
        let at = self.lead + frame.0 as usize * self.stride;
        // SAFETY: lead < HUGE and frame < frames, so the offset is inside the mapping.
        unsafe { self.map.as_mut_ptr().add(at) }
    }

    fn take_read(&self, frame: FrameId) -> Result<(), FrameBusy> {
        let state = self.state.get(frame.0 as usize).ok_or(FrameBusy(frame))?;
        let more = |held: u32| (held < WRITER - 1).then(|| held + 1);
        state.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).map_err(|_| FrameBusy(frame))?;
        Ok(())
    }
    fn take_write(&self, frame: FrameId) -> Result<(), FrameBusy> {
        let state = self.state.get(frame.0 as usize).ok_or(FrameBusy(frame))?;
        let taken = state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed);
        taken.map(|_| ()).map_err(|_| FrameBusy(frame))
    }
    fn leave_read(&self, frame: FrameId) {
        self.state[frame.0 as usize].fetch_sub(1, Ordering::Release);
    }
    fn leave_write(&self, frame: FrameId) {
        self.state[frame.0 as usize].store(0, Ordering::Release);
    }
    fn bytes(&self, frame: FrameId) -> &[u8] {
        // SAFETY: inside the mapping; only guards call this, and theirs is the right to look.
        unsafe { std::slice::from_raw_parts(self.start(frame), self.frame_bytes) }
    }
    #[expect(
        clippy::mut_from_ref,
        reason = "the writer's guard, taken by the caller, is the exclusive borrow"
    )]
    fn bytes_mut(&self, frame: FrameId) -> &mut [u8] {
        // SAFETY: inside the mapping; only the one writer's guard calls this, through its own `&mut`.
        unsafe { std::slice::from_raw_parts_mut(self.start(frame), self.frame_bytes) }
    }
}

impl fmt::Debug for HostArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostArena({} x {} bytes, pinned {})", self.frames, self.frame_bytes, self.pinned)
    }
}

fn advise_huge(map: &MmapMut) -> bool {
    map.advise(Advice::HugePage).is_ok()
}

/// Zeros that the compiler may not leave out, and a look at what is there afterwards.
pub(crate) fn wipe(bytes: &mut [u8]) -> bool {
    bytes.fill(0);
    opaque(bytes);
    bytes.iter().fold(0, |seen, byte| seen | byte) == 0
}

/// Makes the compiler believe that the bytes are read and changed here.
fn opaque(bytes: &mut [u8]) {
    let at = bytes.as_mut_ptr();
    // SAFETY: no instruction runs; the pointer is passed so that memory behind it counts as touched.
    unsafe { std::arch::asm!("/* {0} */", in(reg) at, options(nostack, preserves_flags)) };
}

/// A frame being read.
pub struct FrameRead<'a> {
    arena: &'a HostArena,
    frame: FrameId,
}
/// A frame being written.
pub struct FrameWrite<'a> {
    arena: &'a HostArena,
    frame: FrameId,
}
/// A frame being read by somebody who keeps the arena alive.
pub struct OwnedRead {
    arena: Arc<HostArena>,
    frame: FrameId,
}
/// A frame being written by somebody who keeps the arena alive.
pub struct OwnedWrite {
    arena: Arc<HostArena>,
    frame: FrameId,
}

macro_rules! guard {
    ($name:ty, $leave:ident) => {
        impl Deref for $name {
            type Target = [u8];
            fn deref(&self) -> &[u8] {
                self.arena.bytes(self.frame)
            }
        }
        impl Drop for $name {
            fn drop(&mut self) {
                self.arena.$leave(self.frame);
            }
        }
        impl fmt::Debug for $name {
            /// Never shows the bytes: they are a tenant's.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.frame)
            }
        }
    };
}
guard!(FrameRead<'_>, leave_read);
guard!(OwnedRead, leave_read);
guard!(FrameWrite<'_>, leave_write);
guard!(OwnedWrite, leave_write);

impl DerefMut for FrameWrite<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.arena.bytes_mut(self.frame)
    }
}
impl DerefMut for OwnedWrite {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.arena.bytes_mut(self.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let arena = HostArena::new(2, 5000).unwrap();
        let first = arena.read(FrameId(0)).unwrap();
        let second = arena.read(FrameId(0)).unwrap();
        assert!(arena.write(FrameId(0)).is_err());
        drop((first, second));
        let writer = arena.write(FrameId(0)).unwrap();
        assert!(arena.read(FrameId(0)).is_err());
        assert!(arena.scrub(FrameId(0)).is_err());
        assert!(arena.write(FrameId(1)).is_ok(), "frames are independent");
        drop(writer);
        assert!(arena.read(FrameId(0)).is_ok());
    }

    #[test]
    fn a_frame_that_does_not_exist_is_refused() {
        let arena = HostArena::new(2, 4096).unwrap();
        assert_eq!(arena.read(FrameId(2)).unwrap_err(), FrameBusy(FrameId(2)));
        assert!(HostArena::new(0, 4096).is_err());
        assert!(HostArena::new(u32::MAX, usize::MAX / 4).is_err());
    }

    #[test]
    fn frames_do_not_overlap_and_start_on_a_block() {
        let arena = HostArena::new(5, 4097).unwrap();
        for frame in 0..5 {
            arena.write(FrameId(frame)).unwrap().fill(frame as u8 + 1);
        }
        for frame in 0..5 {
            let bytes = arena.read(FrameId(frame)).unwrap();
            assert_eq!(bytes.as_ptr() as usize % ALIGN, 0);
            assert_eq!(bytes.len(), 4097);
            assert!(bytes.iter().all(|b| *b == frame as u8 + 1));
        }
    }

    #[test]
    fn a_scrubbed_frame_holds_nothing_of_before() {
        let arena = HostArena::new(1, 9000).unwrap();
        arena.write(FrameId(0)).unwrap().fill(7);
        assert!(arena.scrub(FrameId(0)).unwrap());
        assert!(arena.read(FrameId(0)).unwrap().iter().all(|b| *b == 0));
    }

    #[test]
    fn guards_count_right_across_threads() {
        let arena = Arc::new(HostArena::new(1, 4096).unwrap());
        let work = |arena: Arc<HostArena>| {
            move || {
                let mut written = 0u64;
                for _ in 0..20_000 {
                    if let Ok(mut frame) = arena.write_owned(FrameId(0)) {
                        let next = frame[0].wrapping_add(1);
                        frame.fill(next);
                        written += 1;
                    }
                    if let Ok(frame) = arena.read_owned(FrameId(0)) {
                        assert!(frame.iter().all(|b| *b == frame[0]), "torn frame");
                    }
                }
                written
            }
        };
        let threads: Vec<_> =
            (0..3).map(|n| base::spawn(&format!("arena{n}"), work(Arc::clone(&arena))).unwrap()).collect();
        let written: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
        assert_eq!(u64::from(arena.read(FrameId(0)).unwrap()[0]), written % 256);
    }
}
