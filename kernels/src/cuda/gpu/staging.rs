//! Pinned memory between host and device: a ring for uploads, a small buffer for downloads.
//!
//! What is uploaded in a step (tokens, page tables, work lists) is small and must not be read by the copy
//! engine after its owner changed it, so it is copied once more, into memory that the device reads
//! directly. When the ring is full the stream is waited for: a step fills a small part of it.

use cudarc::driver::sys as cu;

use super::{GpuError, check, expect};
use crate::cuda::driver::DevicePtr;

const RING: usize = 64 << 20;
/// Larger downloads go straight to their place.
const DOWN: usize = 256 << 10;
/// Uploads start on cache lines of their own.
const ALIGN: usize = 256;

pub(super) struct Staging {
    stream: cu::CUstream,
    ring: *mut u8,
    next: usize,
    down: *mut u8,
}

impl Staging {
    pub fn new(stream: cu::CUstream) -> Result<Self, GpuError> {
        Ok(Self { stream, ring: host_memory(RING)?, next: 0, down: host_memory(DOWN)? })
    }

    pub fn upload(&mut self, to: DevicePtr, bytes: &[u8]) {
        for (i, part) in bytes.chunks(RING / 2).enumerate() {
            if self.next + part.len() > RING {
                self.synchronize();
                self.next = 0;
            }
            // SAFETY: `next + len <= RING`, and nothing in flight reads this part of the ring: it was waited
            // for at the last wrap.
            let place = unsafe {
                let place = self.ring.add(self.next);
                std::ptr::copy_nonoverlapping(part.as_ptr(), place, part.len());
                place
            };
            let at = to.plus(i * (RING / 2));
            // SAFETY: the ring is pinned and the part stays unchanged until the next wrap.
            let copied = unsafe { cu::cuMemcpyHtoDAsync_v2(at.0, place.cast(), part.len(), self.stream) };
            expect("cuMemcpyHtoDAsync", copied);
            self.next = (self.next + part.len()).next_multiple_of(ALIGN);
        }
    }

    /// True if `out` was small enough to go through here.
    pub fn download(&mut self, from: DevicePtr, out: &mut [u8]) -> bool {
        if out.len() > DOWN {
            return false;
        }
        // SAFETY: `down` holds DOWN bytes and nobody else uses it.
        let copied = unsafe { cu::cuMemcpyDtoHAsync_v2(self.down.cast(), from.0, out.len(), self.stream) };
        expect("cuMemcpyDtoHAsync", copied);
        self.synchronize();
        // SAFETY: the copy has ended.
        unsafe { std::ptr::copy_nonoverlapping(self.down, out.as_mut_ptr(), out.len()) };
        true
    }

    fn synchronize(&self) {
        // SAFETY: the stream outlives the staging.
        expect("cuStreamSynchronize", unsafe { cu::cuStreamSynchronize(self.stream) });
    }
}

/// Pinned, cached memory (write-combined would be slow to read back). It lives as long as the process: a
/// process has one device.
fn host_memory(bytes: usize) -> Result<*mut u8, GpuError> {
    let mut memory = std::ptr::null_mut();
    // SAFETY: `memory` is writable and a context is current.
    check("cuMemHostAlloc", unsafe { cu::cuMemHostAlloc(&mut memory, bytes, 0) })?;
    Ok(memory.cast())
}
