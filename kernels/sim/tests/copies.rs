//! Pages that are copied beside the steps: whatever runs late, a page and a frame hold what the order of calls says.
//!
//! The emulated device runs copies last, first or by the toss of a coin, so that each wait that the backend leaves out
//! shows as a page that holds something else.

use base::SplitMix;
use cusim::{Options, SimDriver};
use kernels::cuda::driver::Arch;
use kernels::cuda::{CudaBackend, CudaOptions};
use kernels::{Backend, Batch, CopyBatch, KvShape, KvType, SeqSpan, StepLimits};

const PAGES: usize = 6;
const FRAMES: usize = 5;
const SHAPE: KvShape =
    KvShape { pages: PAGES, page_tokens: 16, layers: 1, kv_heads: 1, head_dim: 8, kind: KvType::Bf16 };
const PAGE_BYTES: usize = 2 * 16 * 8 * 2;

fn backend(seed: u64) -> CudaBackend {
    let driver = SimDriver::new(Arch(80), Options::seeded(seed));
    let mut backend = CudaBackend::new(Box::new(driver), CudaOptions::default());
    backend.limits(StepLimits { rows: 8, seqs: 4, positions: 64, heads: 1 }).expect("limits");
    backend.kv_pool(SHAPE).expect("a pool");
    backend
}

/// A pool and host frames; each page and frame is one repeated byte, so that a copy cut in half shows as well.
struct World {
    backend: CudaBackend,
    host: Box<[u8]>,
    /// What each must hold.
    pages: [u8; PAGES],
    frames: [u8; FRAMES],
    /// Frames that a copy has, and until when.
    held: [Option<(CopyBatch, Use)>; FRAMES],
    open: Vec<(usize, Use)>,
    next: u8,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Use {
    Read,
    Write,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut backend = backend(seed);
        let host = vec![0u8; FRAMES * PAGE_BYTES].into_boxed_slice();
        assert!(backend.pin_host(host.as_ptr(), host.len()));
        let (pages, frames) = ([0; PAGES], [0; FRAMES]);
        Self { backend, host, pages, frames, held: [None; FRAMES], open: Vec::new(), next: 1 }
    }

    fn frame(&mut self, frame: usize) -> &mut [u8] {
        &mut self.host[frame * PAGE_BYTES..][..PAGE_BYTES]
    }

    /// Whether a new copy may use the frame: readers share, a writer is alone.
    fn is_free(&mut self, frame: usize, wanted: Use) -> bool {
        if let Some((batch, _)) = self.held[frame]
            && self.backend.has_arrived(batch)
        {
            self.held[frame] = None;
        }
        let open = self.open.iter().filter(|(f, _)| *f == frame).map(|(_, of)| *of);
        let mut users = self.held[frame].map(|(_, of)| of).into_iter().chain(open);
        match wanted {
            Use::Read => users.all(|of| of == Use::Read),
            Use::Write => users.next().is_none(),
        }
    }

    fn act(&mut self, rng: &mut SplitMix) {
        let (page, other, frame) = (
            rng.below(PAGES as u64) as usize,
            rng.below(PAGES as u64) as usize,
            rng.below(FRAMES as u64) as usize,
        );
        match rng.below(12) {
            0..=2 if self.is_free(frame, Use::Write) => {
                let out: *mut [u8] = self.frame(frame);
                // SAFETY: the host's memory lives as long as the world, and the frame is this copy's until it arrives.
                self.backend.page_save(page as u32, unsafe { &mut *out });
                self.frames[frame] = self.pages[page];
                self.open.push((frame, Use::Write));
            }
            3..=5 if self.is_free(frame, Use::Read) => {
                let bytes: *const [u8] = self.frame(frame);
                // SAFETY: as above; nobody writes the frame until the copy has arrived.
                self.backend.page_restore(page as u32, unsafe { &*bytes });
                self.pages[page] = self.frames[frame];
                self.open.push((frame, Use::Read));
            }
            6 => {
                self.backend.page_zero(&[page as u32]);
                self.pages[page] = 0;
            }
            7 => {
                self.backend.page_write(page as u32, &[self.next; PAGE_BYTES]);
                self.pages[page] = self.next;
                self.next = self.next.wrapping_add(1).max(1);
            }
            8 if page != other => {
                self.backend.page_copy(&[(page as u32, other as u32)]);
                self.pages[other] = self.pages[page];
            }
            9 => self.end_batch(),
            10 => {
                let held = self.backend.page_read(page as u32);
                assert!(held.iter().all(|&byte| byte == self.pages[page]), "page {page}: {:?}", &held[..4]);
            }
            _ if self.is_free(frame, Use::Write) => self.look_at(frame),
            _ => {}
        }
    }

    fn end_batch(&mut self) {
        let batch = self.backend.end_batch();
        for (frame, of) in std::mem::take(&mut self.open) {
            self.held[frame] = Some((batch.expect("copies were begun"), of));
        }
    }

    fn look_at(&mut self, frame: usize) {
        let wanted = self.frames[frame];
        let held = self.frame(frame);
        assert!(
            held.iter().all(|&byte| byte == wanted),
            "frame {frame} holds {:?}, not {wanted}",
            &held[..4]
        );
    }

    fn end(mut self) {
        self.end_batch();
        for frame in 0..FRAMES {
            if let Some((batch, _)) = self.held[frame].take() {
                self.backend.wait_for(batch);
            }
            self.look_at(frame);
        }
        for page in 0..PAGES {
            let held = self.backend.page_read(page as u32);
            assert!(held.iter().all(|&byte| byte == self.pages[page]), "page {page}: {:?}", &held[..4]);
        }
    }
}

#[test]
fn pages_and_frames_hold_what_the_order_of_calls_says_however_late_copies_run() {
    for seed in 0..24 {
        let mut world = World::new(seed);
        let mut rng = SplitMix::new(seed / 3);
        for _ in 0..300 {
            world.act(&mut rng);
        }
        world.end();
    }
}

fn begin(backend: &mut CudaBackend, start: u32, pages: &[u32]) {
    let spans = [SeqSpan { row: 0, rows: 1, start, table: 0 }];
    backend.begin(&Batch { tokens: &[0], spans: &spans, page_table: pages });
}

/// Restores `page`, begins a step, and answers whether the copy had to arrive for it.
fn waits(saves: bool, start: u32, pages: &[u32]) -> bool {
    // Seed 0: copies run when somebody waits, or looks.
    let mut world = World::new(0);
    for frame in 0..FRAMES {
        let at: *mut [u8] = world.frame(frame);
        // SAFETY: the host's memory lives as long as the world.
        let bytes = unsafe { &mut *at };
        match saves {
            true => world.backend.page_save(3, bytes),
            false => world.backend.page_restore(3, bytes),
        }
    }
    let batch = world.backend.end_batch().expect("copies were begun");
    begin(&mut world.backend, start, pages);
    // What the step's launches would wait for has run when the work so far has.
    world.backend.page_read(5);
    let arrived = world.backend.has_arrived(batch);
    world.backend.wait_for(batch);
    arrived
}

#[test]
fn a_step_waits_for_restores_of_the_pages_that_it_reads_or_writes_and_for_no_other() {
    assert!(waits(false, 20, &[3, 1]), "read");
    assert!(waits(false, 20, &[1, 3]), "written");
    assert!(!waits(false, 20, &[1, 2]), "neither");
}

#[test]
fn a_step_waits_for_saves_only_of_the_page_that_it_writes() {
    assert!(waits(true, 20, &[1, 3]), "written");
    assert!(!waits(true, 20, &[3, 1]), "only read");
    assert!(!waits(true, 20, &[1, 2]), "neither");
}

#[test]
fn more_batches_than_there_is_room_for_wait_for_the_oldest() {
    let mut world = World::new(0);
    let mut last = None;
    for _ in 0..200 {
        let at: *const [u8] = world.frame(0);
        // SAFETY: only read, and the world outlives the copies.
        world.backend.page_restore(1, unsafe { &*at });
        last = world.backend.end_batch();
    }
    world.backend.wait_for(last.expect("a batch"));
    assert_eq!(world.backend.take_copied().bytes, 200 * PAGE_BYTES as u64);
}
