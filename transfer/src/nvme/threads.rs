//! The way of moving bytes that works everywhere: a blocking thread per operation in flight.
//!
//! The fallback where a container's policy refuses io_uring, and the way that faults are injected.

use super::core::{Core, Line};
use super::disk::Direction;

/// Serves one operation at a time until the tier stops.
pub(crate) fn work(core: &Core, lane: usize, staging: &mut [u8]) {
    while let Some(waiting) = core.take(Line::Moves) {
        let Some((op, place)) = core.prepare(lane, waiting, staging) else { continue };
        let bytes = &mut staging[..op.io_bytes];
        let moved = match op.direction {
            Direction::Read => core.disk.read_at(place, bytes),
            Direction::Write => core.disk.write_at(place, bytes),
        };
        core.complete(lane, op, staging, moved);
    }
}
