//! Making slots unreadable, and looking afterwards.
//!
//! Own thread, because returning thousands of blocks to a file system takes its time and restores must
//! not queue behind it. Holes first: they cost no writes and no reader of the file sees the bytes
//! again. Where holes are refused, or reading back still shows something, zeros are written and synced,
//! and the answer says so. Every slot is read back, not a sample: a hole costs no disk access.
//!
//! Limits: what a drive keeps in blocks that it has remapped is beyond a file system's reach; the
//! destroyed key is what makes that noise.

use base::SlotId;

use super::core::{Core, Line, Waiting};
use super::disk::Place;
use super::segment::Missing;
use crate::error::TierError;
use crate::job::{EraseMethod, Finished, Job};

/// Bytes of one hole.
const RUN_BYTES_MAX: u64 = 64 << 20;

/// Serves erase jobs until the tier stops.
pub(crate) fn work(core: &Core, lane: usize, staging: &mut [u8]) {
    while let Some(waiting) = core.take(Line::Erases) {
        serve(core, lane, staging, waiting);
    }
}

fn serve(core: &Core, lane: usize, staging: &mut [u8], waiting: Waiting) {
    let Waiting { job: Job::Erase { ticket, mut slots }, since } = waiting else { return };
    slots.sort_unstable();
    slots.dedup();
    if let Err(error) = check(core, &slots) {
        return core.fail(ticket, since, error);
    }
    core.begin(lane, ticket, since, slots.clone());
    let outcome = erase(core, lane, staging, &slots);
    if !core.settle(lane) {
        return;
    }
    let bytes = slots.len() as u64 * core.segments.slot_bytes() as u64;
    let outcome = outcome.map(|(method, probed)| Finished::Erased { method, probed });
    core.answer(ticket, since, outcome, bytes);
}

fn check(core: &Core, slots: &[SlotId]) -> Result<(), TierError> {
    if let Some(slot) = slots.iter().find(|slot| !core.segments.holds(**slot)) {
        return Err(TierError::BadJob { slot: *slot, bytes: 0 });
    }
    core.stuck_among(slots).map_or(Ok(()), |slot| Err(TierError::SlotStuck { slot }))
}

fn erase(
    core: &Core,
    lane: usize,
    staging: &mut [u8],
    slots: &[SlotId],
) -> Result<(EraseMethod, u32), TierError> {
    let mut method = EraseMethod::Punched;
    let mut rest = slots;
    while let Some(first) = rest.first() {
        let run = run_length(core, rest);
        let (now, later) = rest.split_at(run);
        rest = later;
        let place = core.segments.place(*first, Missing::Leave, &*core.disk);
        let Some(place) = place.map_err(|e| TierError::from_io(*first, e))? else { continue };
        let bytes = run as u64 * core.segments.slot_bytes() as u64;
        if core.disk.punch(place, bytes).is_err() {
            method = EraseMethod::Overwritten;
            for slot in now {
                overwrite(core, staging, *slot)?;
            }
        }
        core.disk.sync(place.file).map_err(|e| TierError::from_io(*first, e))?;
        for slot in now {
            if !is_gone(core, staging, *slot)? {
                method = EraseMethod::Overwritten;
                overwrite(core, staging, *slot)?;
                core.disk.sync(place.file).map_err(|e| TierError::from_io(*slot, e))?;
                if !is_gone(core, staging, *slot)? {
                    return Err(TierError::NotErased { slot: *slot });
                }
            }
            core.progress(lane);
        }
    }
    Ok((method, slots.len() as u32))
}

/// How many slots at the front lie side by side in one file.
fn run_length(core: &Core, slots: &[SlotId]) -> usize {
    let first = slots[0];
    let most = (RUN_BYTES_MAX / core.segments.slot_bytes() as u64).max(1);
    let most = most.min(u64::from(core.segments.run_max(first))) as usize;
    let adjacent = slots.iter().enumerate().take(most).take_while(|(i, slot)| slot.0 - first.0 == *i as u32);
    adjacent.count()
}

fn overwrite(core: &Core, staging: &mut [u8], slot: SlotId) -> Result<(), TierError> {
    let Some(place) = at(core, slot)? else { return Ok(()) };
    let zeros = &mut staging[..core.segments.slot_bytes()];
    zeros.fill(0);
    let wanted = zeros.len();
    let got = core.disk.write_at(place, zeros).map_err(|e| TierError::from_io(slot, e))?;
    if got == wanted { Ok(()) } else { Err(TierError::ShortWrite { slot, got, wanted }) }
}

fn is_gone(core: &Core, staging: &mut [u8], slot: SlotId) -> Result<bool, TierError> {
    let Some(place) = at(core, slot)? else { return Ok(true) };
    let bytes = &mut staging[..core.segments.slot_bytes()];
    // What a lying disk does not touch must not look like zeros.
    bytes.fill(0xA5);
    let wanted = bytes.len();
    let got = core.disk.read_at(place, bytes).map_err(|e| TierError::from_io(slot, e))?;
    if got != wanted {
        return Err(TierError::ShortRead { slot, got, wanted });
    }
    Ok(bytes.iter().fold(0, |seen, byte| seen | byte) == 0)
}

fn at(core: &Core, slot: SlotId) -> Result<Option<Place<'_>>, TierError> {
    let place = core.segments.place(slot, Missing::Leave, &*core.disk);
    place.map_err(|e| TierError::from_io(slot, e))
}
