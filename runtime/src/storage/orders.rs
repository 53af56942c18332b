//! Between the cache's orders and the tiers' jobs.

use kvcache::{ColdOrder, ColdOutcome, ColdWork, Fault, Label, Seal, Ticket};
use transfer::{Done, Finished, Job, NONCE_BYTES, PageLabel, PageSeal, TierError};

pub(super) fn job(order: ColdOrder, layout: &[u8; 32], page_bytes: usize) -> Job {
    let ticket = order.ticket.0;
    let full = |label: Label| PageLabel {
        namespace: label.namespace,
        generation: label.generation,
        name: label.name,
        layout: *layout,
        tier: label.tier,
        slot: label.slot,
        bytes: page_bytes as u32,
    };
    match order.work {
        ColdWork::Store { frame, label } => Job::Store { ticket, frame, label: full(label) },
        ColdWork::Load { frame, label, seal } => {
            Job::Load { ticket, frame, label: full(label), seal: unpack(&seal) }
        }
        ColdWork::Erase { slots } => Job::Erase { ticket, slots },
        // Frames are the host's; a cold tier has none and erases nothing.
        ColdWork::ScrubFrames { .. } => Job::Erase { ticket, slots: Vec::new() },
    }
}

pub(super) fn outcome(done: Done) -> (Ticket, ColdOutcome) {
    let outcome = match done.outcome {
        Ok(Finished::Stored(seal)) => ColdOutcome::Stored(pack(&seal)),
        Ok(Finished::Loaded) => ColdOutcome::Loaded,
        Ok(Finished::Erased { probed, .. }) => ColdOutcome::Erased { probed },
        Err(error) => {
            tracing::debug!(kind = error.kind(), %error, "a page did not travel");
            ColdOutcome::Failed(fault(&error))
        }
    };
    (Ticket(done.ticket), outcome)
}

/// Whether the place itself is bad, or only this attempt.
fn fault(error: &TierError) -> Fault {
    match error {
        TierError::BadSeal { .. }
        | TierError::ShortRead { .. }
        | TierError::Io { .. }
        | TierError::KeyGone => Fault::Wrong,
        _ => Fault::Unavailable,
    }
}

pub(super) fn pack(seal: &PageSeal) -> Seal {
    let mut packed = [0; 28];
    packed[..NONCE_BYTES].copy_from_slice(&seal.nonce);
    packed[NONCE_BYTES..].copy_from_slice(&seal.tag);
    packed
}

pub(super) fn unpack(seal: &Seal) -> PageSeal {
    let mut unpacked = PageSeal { nonce: [0; 12], tag: [0; 16] };
    unpacked.nonce.copy_from_slice(&seal[..NONCE_BYTES]);
    unpacked.tag.copy_from_slice(&seal[NONCE_BYTES..]);
    unpacked
}
