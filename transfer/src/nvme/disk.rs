//! The few things a tier asks of a disk, behind a seam where tests put short reads, torn writes,
//! flipped bits, full and read-only file systems and delays.
//!
//! A trait and not a fault-injecting device, because device mapper wants root and a test wants to
//! say which write is torn. io_uring moves bytes past this trait; its results pass through
//! [`DiskIo::settled`], so that faults reach both ways of doing I/O.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use base::SlotId;
use rustix::fs::{FallocateFlags, fallocate};

/// Where an operation works.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub file: &'a File,
    pub offset: u64,
    /// The (first) slot that it touches.
    pub slot: SlotId,
}

/// Which way the bytes went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Read,
    Write,
}

/// A disk; every method's default is the real one.
pub trait DiskIo: Send + Sync {
    fn read_at(&self, place: Place<'_>, into: &mut [u8]) -> io::Result<usize> {
        place.file.read_at(into, place.offset)
    }

    fn write_at(&self, place: Place<'_>, from: &[u8]) -> io::Result<usize> {
        place.file.write_at(from, place.offset)
    }

    /// Gives the blocks back to the file system.
    fn punch(&self, place: Place<'_>, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(place.file, flags, place.offset, bytes)?)
    }

    /// Reserves the file's blocks; a file system that cannot gets a sparse file.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
            other => Ok(other?),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// What became of an operation that io_uring did; `bytes` is what was read or written.
    fn settled(
        &self,
        _place: Place<'_>,
        _direction: Direction,
        _bytes: &mut [u8],
        result: io::Result<usize>,
    ) -> io::Result<usize> {
        result
    }
}

/// The machine's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl DiskIo for SystemDisk {}
