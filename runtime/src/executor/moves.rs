//! A step's page moves, for any executor whose pages the processor can reach.
//!
//! Saves before scrubs before restores, as the plan lists them: a page may be saved, overwritten and
//! handed to somebody else by one plan. A frame that cannot be written is reported and its copy lost; a
//! frame that cannot be read when a sequence counts on it fails the step.

use base::PageId;
use kvcache::PageMove;
use transfer::HostArena;

use crate::plan::Moved;

/// Pages by number, as bytes.
pub(super) trait PageBytes {
    fn read(&self, page: PageId, out: &mut [u8]);
    fn write(&mut self, page: PageId, bytes: &[u8]);
    fn zero(&mut self, page: PageId);
    fn is_zero(&self, page: PageId) -> bool;
}

/// Carries out `moves`; `took_ns` is the caller's to fill in.
pub(super) fn carry_out(
    moves: &[PageMove],
    pages: &mut dyn PageBytes,
    page_bytes: usize,
    host: Option<&HostArena>,
) -> Moved {
    let mut moved = Moved::default();
    for &page_move in moves {
        match page_move {
            PageMove::Save { page, frame } => match host_of(host).write(frame) {
                Ok(mut out) => pages.read(page, &mut out[..page_bytes]),
                Err(_) => moved.unsaved.push(frame),
            },
            PageMove::Scrub { page } => {
                pages.zero(page);
                if !pages.is_zero(page) {
                    moved.scrubbed.unclean.push(page);
                }
            }
            PageMove::Restore { frame, page } => match host_of(host).read(frame) {
                Ok(bytes) => pages.write(page, &bytes[..page_bytes]),
                Err(busy) => panic!("a page to be restored is not there: {busy}"),
            },
        }
        if !matches!(page_move, PageMove::Scrub { .. }) {
            moved.bytes += page_bytes as u64;
        }
    }
    moved
}

fn host_of(host: Option<&HostArena>) -> &HostArena {
    host.expect("moves to and from the host need host memory")
}
