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
    /// Overwrites `pages` with zeros, reads them back, and names those that are not zero.
    fn scrub(&mut self, pages: &[PageId]) -> Vec<PageId>;
}

/// Carries out `moves`; `took_ns` is the caller's to fill in.
pub(super) fn carry_out(
    moves: &[PageMove],
    pages: &mut dyn PageBytes,
    page_bytes: usize,
    host: Option<&HostArena>,
) -> Moved {
    let mut moved = Moved::default();
    // Scrubs that follow each other are one piece of work: on a device two launches, not two a page.
    for run in moves.chunk_by(|a, b| is_scrub(a) && is_scrub(b)) {
        match run[0] {
            PageMove::Save { page, frame } => {
                match host_of(host).write(frame) {
                    Ok(mut out) => pages.read(page, &mut out[..page_bytes]),
                    Err(_) => moved.unsaved.push(frame),
                }
                moved.bytes += page_bytes as u64;
            }
            PageMove::Scrub { .. } => moved.scrubbed.unclean.extend(pages.scrub(&scrubbed(run))),
            PageMove::Restore { frame, page } => {
                match host_of(host).read(frame) {
                    Ok(bytes) => pages.write(page, &bytes[..page_bytes]),
                    Err(busy) => panic!("a page to be restored is not there: {busy}"),
                }
                moved.bytes += page_bytes as u64;
            }
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

fn host_of(host: Option<&HostArena>) -> &HostArena {
    host.expect("moves to and from the host need host memory")
}
