//! The two streams of a device and the events by which they wait for each other.
//!
//! Events keep time: what a copy took is read off the device's clock, since the host looks only now and then.

use std::cell::RefCell;

use cudarc::driver::sys as cu;

use super::{GpuError, check, expect, words};
use crate::cuda::driver::{Event, Stream};

pub(super) struct Streams {
    work: cu::CUstream,
    copies: cu::CUstream,
    /// By number; made at load, never destroyed.
    events: RefCell<Vec<cu::CUevent>>,
}

impl Streams {
    /// A context must be current, here and in every other call.
    pub fn new() -> Result<Self, GpuError> {
        Ok(Self { work: stream()?, copies: stream()?, events: RefCell::default() })
    }

    pub fn of(&self, stream: Stream) -> cu::CUstream {
        match stream {
            Stream::Work => self.work,
            Stream::Copies => self.copies,
        }
    }

    pub fn event(&self) -> Event {
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` is writable.
        expect("cuEventCreate", unsafe { cu::cuEventCreate(&mut event, 0) });
        let mut events = self.events.borrow_mut();
        events.push(event);
        Event(events.len() as u32 - 1)
    }

    pub fn mark(&self, event: Event, stream: Stream) {
        // SAFETY: both exist.
        expect("cuEventRecord", unsafe { cu::cuEventRecord(self.get(event), self.of(stream)) });
    }

    pub fn follow(&self, stream: Stream, event: Event) {
        // SAFETY: both exist.
        expect("cuStreamWaitEvent", unsafe { cu::cuStreamWaitEvent(self.of(stream), self.get(event), 0) });
    }

    pub fn has_passed(&self, event: Event) -> bool {
        // SAFETY: it exists.
        match unsafe { cu::cuEventQuery(self.get(event)) } {
            cu::CUresult::CUDA_SUCCESS => true,
            cu::CUresult::CUDA_ERROR_NOT_READY => false,
            failed => panic!("cuEventQuery failed: {}", words(failed)),
        }
    }

    pub fn pass(&self, event: Event) {
        // SAFETY: it exists.
        expect("cuEventSynchronize", unsafe { cu::cuEventSynchronize(self.get(event)) });
    }

    pub fn between_ns(&self, from: Event, to: Event) -> u64 {
        let mut ms = 0.0f32;
        // SAFETY: both exist and `ms` is writable.
        let told = unsafe { cu::cuEventElapsedTime_v2(&mut ms, self.get(from), self.get(to)) };
        expect("cuEventElapsedTime", told);
        (f64::from(ms) * 1e6) as u64
    }

    fn get(&self, event: Event) -> cu::CUevent {
        self.events.borrow()[event.0 as usize]
    }
}

fn stream() -> Result<cu::CUstream, GpuError> {
    let mut stream = std::ptr::null_mut();
    let flags = cu::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: `stream` is writable and a context is current.
    check("cuStreamCreate", unsafe { cu::cuStreamCreate(&mut stream, flags) })?;
    Ok(stream)
}
