//! A step's page moves, for any executor whose pages the processor can reach.
//!
//! Saves before scrubs before restores, as the plan lists them: a page may be saved, overwritten and
//! handed to somebody else by one plan. A frame that cannot be written is reported and its copy lost; a
//! frame that cannot be read when a sequence counts on it fails the step.

use std::sync::Arc;

use base::PageId;
use kvcache::PageMove;
use transfer::{HostArena, OwnedRead, OwnedWrite};

use crate::plan::Moved;

/// Pages by number, as bytes.
pub(super) trait PageBytes {
    /// Copies a page to the frame's front, and lets go of the frame when it is there.
    fn save(&mut self, page: PageId, frame: OwnedWrite);
    /// Copies the frame's front to a page, and lets go of the frame when it is there.
    fn restore(&mut self, page: PageId, frame: OwnedRead);
    /// Overwrites `pages` with zeros, reads them back, and names those that are not zero.
    fn scrub(&mut self, pages: &[PageId]) -> Vec<PageId>;
}

/// Carries out `moves`, or begins to where pages are copied beside the steps; bytes and time are the caller's to fill
/// in.
pub(super) fn carry_out(
    moves: &[PageMove],
    pages: &mut dyn PageBytes,
    host: Option<&Arc<HostArena>>,
) -> Moved {
    let mut moved = Moved::default();
    // Scrubs that follow each other are one piece of work: on a device two launches, not two a page.
    for run in moves.chunk_by(|a, b| is_scrub(a) && is_scrub(b)) {
        match run[0] {
            PageMove::Save { page, frame } => match host_of(host).write_owned(frame) {
                Ok(out) => pages.save(page, out),
                Err(_) => moved.unsaved.push(frame),
            },
            PageMove::Scrub { .. } => moved.scrubbed.unclean.extend(pages.scrub(&scrubbed(run))),
            PageMove::Restore { frame, page } => match host_of(host).read_owned(frame) {
                Ok(bytes) => pages.restore(page, bytes),
                Err(busy) => panic!("a page to be restored is not there: {busy}"),
            },
        }
    }
    moved
}

fn is_scrub(page_move: &PageMove) -> bool {
    matches!(page_move, PageMove::Scrub { .. })
}

fn scrubbed(run: &[PageMove]) -> Vec<PageId> {
    let page = |m: &PageMove| match m {
        PageMove::Scrub { page } => Some(*page),
        _ => None,
    };
    run.iter().filter_map(page).collect()
}

fn host_of(host: Option<&Arc<HostArena>>) -> &Arc<HostArena> {
    host.expect("moves to and from the host need host memory")
}

/// Bytes that moves copy either way.
pub(super) fn bytes_of(moves: &[PageMove], page_bytes: usize) -> u64 {
    moves.iter().filter(|of| !is_scrub(of)).count() as u64 * page_bytes as u64
}
