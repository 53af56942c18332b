//! The disk tier: what comes back is what went in, or a typed miss.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use base::{ChainHash, FrameId, Generation, NamespaceId, SlotId, Tier};
use quire_transfer::{
    Direction, DiskIo, EraseMethod, Finished, IoChoice, Job, NvmeConfig, NvmeTier, OpenError, PageLabel,
    PageSeal, Place, StartWith, TierError,
};

use crate::common::{Bench, PAGE, label, page};

fn config(dir: &Path, io: IoChoice) -> NvmeConfig {
    NvmeConfig { io, segment_bytes: 8 * PAGE as u64, depth: 8, ..NvmeConfig::new(dir, 20, PAGE) }
}

/// Both ways of moving bytes, unless the machine refuses one.
fn ways() -> Vec<IoChoice> {
    vec![IoChoice::Threads, IoChoice::Auto]
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, TierError>) -> &'static str {
    outcome.expect_err("a miss").kind()
}

fn segment(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("segment-{index:05}.pages"))
}

fn open_segment(dir: &Path, index: u32) -> File {
    File::options().read(true).write(true).open(segment(dir, index)).unwrap()
}

#[test]
fn what_was_stored_comes_back() {
    for io in ways() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::nvme(config(dir.path(), io));
        let mut seals = Vec::new();
        for slot in 0..20 {
            seals.push(bench.store(u64::from(slot), label(slot, slot.into())).unwrap());
        }
        for slot in (0..20).rev() {
            let got = bench.load(label(slot, slot.into()), seals[slot as usize]).unwrap();
            assert_eq!(got, page(slot.into(), PAGE), "{io:?}");
        }
        let stats = bench.tier().stats();
        assert_eq!((stats.stores, stats.loads, stats.queued, stats.in_flight), (20, 20, 0, 0));
        assert_eq!(stats.load_bytes, 20 * PAGE as u64);
    }
}

#[test]
fn many_at_once_do_not_mix() {
    for io in ways() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::nvme(config(dir.path(), io));
        let mut jobs = Vec::new();
        for slot in 0..20u32 {
            bench.fill(slot, slot.into());
            jobs.push(Job::Store {
                ticket: slot.into(),
                frame: FrameId(slot),
                label: label(slot, slot.into()),
            });
        }
        bench.send(jobs);
        let mut seals = Vec::new();
        for slot in 0..20 {
            match bench.answer(slot).outcome.unwrap() {
                Finished::Stored(seal) => seals.push(seal),
                other => panic!("{other:?}"),
            }
        }
        // Back into other frames than they came from.
        let loads = |(slot, seal): (usize, &PageSeal)| Job::Load {
            ticket: 100 + slot as u64,
            frame: FrameId(19 - slot as u32),
            label: label(slot as u32, slot as u64),
            seal: *seal,
        };
        bench.send(seals.iter().enumerate().map(loads).collect());
        for slot in 0..20 {
            assert_eq!(bench.answer(100 + slot).outcome.unwrap(), Finished::Loaded);
        }
        for slot in 0..20 {
            assert_eq!(bench.frame(19 - slot), page(slot.into(), PAGE), "{io:?} {slot}");
        }
    }
}

#[test]
fn pages_smaller_than_a_slot_and_not_whole_blocks_come_back() {
    for io in ways() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::nvme(config(dir.path(), io));
        for bytes in [1, 15, 16, 4095, 4096, 4097, PAGE as u32 - 1] {
            let label = PageLabel { bytes, ..label(3, 5) };
            let seal = bench.store(5, label).unwrap();
            assert_eq!(bench.load(label, seal).unwrap(), page(5, PAGE)[..bytes as usize]);
        }
        let large = PageLabel { bytes: PAGE as u32 + 1, ..label(3, 5) };
        assert_eq!(kind(bench.store(5, large)), "bad_job");
        assert_eq!(kind(bench.store(5, PageLabel { bytes: 0, ..large })), "bad_job");
        assert_eq!(kind(bench.store(5, label(20, 5))), "bad_job");
    }
}

#[test]
fn the_disk_holds_no_plaintext_and_nobody_else_may_look() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tier");
    let mut bench = Bench::nvme(config(&root, IoChoice::Auto));
    bench.arena.write(FrameId(0)).unwrap().fill(0x5A);
    let ticket = bench.begin_store(0, label(0, 1));
    assert!(bench.answer(ticket).outcome.is_ok());
    let raw = std::fs::read(segment(&root, 0)).unwrap();
    assert!(!raw.windows(8).any(|w| w == [0x5A; 8]));
    assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(&root).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_flip_of_any_bit_of_the_slot_is_a_bad_seal() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    // Not a whole number of blocks: the padding counts as well.
    let label = PageLabel { bytes: 4096 + 100, ..label(2, 9) };
    let seal = bench.store(9, label).unwrap();
    let file = open_segment(dir.path(), 0);
    let start = 2 * PAGE as u64;
    // Every bit of the edges, and a stride over the rest that meets every bit of a byte.
    let edges = (0..256).chain((4096 - 16) * 8..(4096 + 116) * 8).chain(8192 * 8 - 64..8192 * 8);
    for bit in edges.chain((256..8192 * 8).step_by(331)) {
        let mut byte = [0];
        let at = start + bit / 8;
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] ^= 1 << (bit % 8);
        file.write_all_at(&byte, at).unwrap();
        assert_eq!(kind(bench.load(label, seal)), "bad_seal", "bit {bit}");
        assert!(bench.frame(1)[..label.bytes as usize].iter().all(|b| *b == 0), "nothing is left behind");
        byte[0] ^= 1 << (bit % 8);
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(bench.load(label, seal).is_ok());
}

#[test]
fn another_label_or_seal_is_a_bad_seal() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    let good = label(2, 9);
    let seal = bench.store(9, good).unwrap();
    let other = bench.store(9, label(3, 9)).unwrap();
    let wrong = [
        PageLabel { namespace: NamespaceId(2), ..good },
        PageLabel { generation: Generation(2), ..good },
        PageLabel { name: ChainHash([9; 32]), ..good },
        PageLabel { layout: [8; 32], ..good },
        PageLabel { tier: Tier::Object, ..good },
        PageLabel { slot: SlotId(3), ..good },
        PageLabel { bytes: good.bytes - 1, ..good },
    ];
    for label in wrong {
        assert_eq!(kind(bench.load(label, seal)), "bad_seal", "{label:?}");
    }
    assert_eq!(kind(bench.load(good, other)), "bad_seal");
    let mut nonce = seal;
    nonce.nonce[11] ^= 1;
    assert_eq!(kind(bench.load(good, nonce)), "bad_seal");
    let mut tag = seal;
    tag.tag[0] ^= 128;
    assert_eq!(kind(bench.load(good, tag)), "bad_seal");
    assert!(bench.load(good, seal).is_ok());
}

#[test]
fn an_overwritten_slot_does_not_open_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    let old = bench.store(1, label(4, 1)).unwrap();
    let new = bench.store(2, label(4, 2)).unwrap();
    assert_eq!(kind(bench.load(label(4, 1), old)), "bad_seal");
    assert_eq!(bench.load(label(4, 2), new).unwrap(), page(2, PAGE));
}

#[test]
fn a_destroyed_key_ends_its_pages_and_no_others() {
    for io in ways() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::nvme(config(dir.path(), io));
        let mine = bench.store(1, label(4, 1)).unwrap();
        let theirs = PageLabel { namespace: NamespaceId(2), ..label(5, 1) };
        let their_seal = bench.store(1, theirs).unwrap();
        assert_eq!(bench.keys.destroy(NamespaceId(1), Generation(2)), 2);
        assert_eq!(kind(bench.load(label(4, 1), mine)), "key_gone");
        assert_eq!(kind(bench.store(1, label(4, 1))), "key_gone");
        assert!(bench.load(theirs, their_seal).is_ok());
    }
}

#[test]
fn a_frame_in_use_is_refused_and_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    let seal = bench.store(1, label(4, 1)).unwrap();
    let arena = Arc::clone(&bench.arena);
    let held = arena.read(FrameId(1)).unwrap();
    let ticket = bench.begin_load(1, label(4, 1), seal);
    assert_eq!(kind(bench.answer(ticket).outcome), "frame_busy");
    drop(held);
    let _held = arena.write(FrameId(0)).unwrap();
    let ticket = bench.begin_store(0, label(4, 1));
    assert_eq!(kind(bench.answer(ticket).outcome), "frame_busy");
}

#[test]
fn erased_slots_are_read_back_and_gone() {
    for io in ways() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::nvme(config(dir.path(), io));
        let seals: Vec<_> =
            (0..20).map(|slot| bench.store(u64::from(slot), label(slot, slot.into())).unwrap()).collect();
        let slots: Vec<u32> = (0..20).filter(|s| *s != 6).collect();
        let erased = bench.erase(&slots).unwrap();
        assert!(matches!(erased, Finished::Erased { probed: 19, .. }), "{erased:?}");
        for slot in slots {
            assert_eq!(kind(bench.load(label(slot, slot.into()), seals[slot as usize])), "bad_seal");
        }
        assert_eq!(
            bench.load(label(6, 6), seals[6]).unwrap(),
            page(6, PAGE),
            "its neighbours' end is not its"
        );
        let file = std::fs::read(segment(dir.path(), 0)).unwrap();
        assert!(file[..6 * PAGE].iter().all(|b| *b == 0));
    }
}

#[test]
fn slots_never_written_are_gone_already() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    assert!(matches!(bench.erase(&[1, 2, 2]).unwrap(), Finished::Erased { probed: 2, .. }));
    assert_eq!(kind(bench.erase(&[20])), "bad_job");
    assert_eq!(kind(bench.load(label(0, 0), PageSeal { nonce: [0; 12], tag: [0; 16] })), "short_read");
    assert!(std::fs::read_dir(dir.path()).unwrap().all(|e| e.unwrap().file_name() == "nvme.lock"));
}

#[test]
fn a_full_queue_gives_the_batch_back() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::nvme(NvmeConfig { queue_max: 2, ..config(dir.path(), IoChoice::Auto) });
    let jobs: Vec<_> =
        (0..3).map(|ticket| Job::Store { ticket, frame: FrameId(0), label: label(0, 0) }).collect();
    let back = bench.tier().submit(jobs.clone()).unwrap_err();
    assert_eq!(back, jobs);
    assert_eq!(bench.tier().stats().refused, 1);
}

#[test]
fn one_process_per_directory() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    let again = NvmeTier::open(
        config(dir.path(), IoChoice::Auto),
        Arc::clone(&bench.arena),
        Arc::clone(&bench.keys),
        crate::common::system_clock(),
        Box::new(|_| ()),
    );
    assert!(matches!(again, Err(OpenError::Locked { .. })));
}

#[test]
fn pages_outlive_the_tier_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    let seal = bench.store(1, label(9, 1)).unwrap();
    bench.end();
    let mut bench = Bench::nvme(config(dir.path(), IoChoice::Auto));
    assert_eq!(bench.load(label(9, 1), seal).unwrap(), page(1, PAGE));
    bench.end();
    let mut bench =
        Bench::nvme(NvmeConfig { start: StartWith::Nothing, ..config(dir.path(), IoChoice::Auto) });
    assert_eq!(kind(bench.load(label(9, 1), seal)), "short_read");
}

/// What a [`Faulty`] disk does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    ShortRead,
    ShortWrite,
    /// Says that all was written and wrote half.
    Torn,
    FlipOnRead,
    Error(i32),
    /// Punching holes is refused.
    NoHoles,
    /// Punching says yes and does nothing.
    LyingPunch,
    /// Neither holes nor zeros leave a trace.
    LyingErase,
    /// Nothing moves until the fault is cleared.
    Stall,
}

/// A disk with a switch.
struct Faulty {
    fault: Mutex<Fault>,
    changed: Condvar,
    waiting: AtomicU32,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self { fault: Mutex::new(Fault::None), changed: Condvar::new(), waiting: AtomicU32::new(0) })
    }
    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.changed.notify_all();
    }
    /// The fault in force, after any stall.
    fn now(&self) -> Fault {
        let mut fault = self.fault.lock().unwrap();
        while *fault == Fault::Stall {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            self.changed.notify_all();
            fault = self.changed.wait(fault).unwrap();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        *fault
    }
    /// Waits until so many are stalled.
    fn await_stall(&self, count: u32) {
        let mut fault = self.fault.lock().unwrap();
        while self.waiting.load(Ordering::SeqCst) < count {
            fault = self.changed.wait(fault).unwrap();
        }
    }
}

impl DiskIo for Faulty {
    fn read_at(&self, place: Place<'_>, into: &mut [u8]) -> io::Result<usize> {
        match self.now() {
            Fault::ShortRead => place.file.read_at(&mut into[..4096], place.offset),
            Fault::Error(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::FlipOnRead => {
                let got = place.file.read_at(into, place.offset)?;
                into[77] ^= 4;
                Ok(got)
            }
            _ => place.file.read_at(into, place.offset),
        }
    }
    fn write_at(&self, place: Place<'_>, from: &[u8]) -> io::Result<usize> {
        match self.now() {
            Fault::ShortWrite => place.file.write_at(&from[..4096], place.offset),
            Fault::Torn => place.file.write_at(&from[..4096], place.offset).map(|_| from.len()),
            Fault::Error(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::LyingErase => Ok(from.len()),
            _ => place.file.write_at(from, place.offset),
        }
    }
    fn punch(&self, place: Place<'_>, bytes: u64) -> io::Result<()> {
        match self.now() {
            Fault::NoHoles => Err(io::Error::from_raw_os_error(libc_code::EOPNOTSUPP)),
            Fault::LyingPunch | Fault::LyingErase => Ok(()),
            Fault::Error(code) => Err(io::Error::from_raw_os_error(code)),
            _ => quire_transfer::SystemDisk.punch(place, bytes),
        }
    }
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        match self.now() {
            Fault::Error(code) => Err(io::Error::from_raw_os_error(code)),
            _ => quire_transfer::SystemDisk.allocate(file, bytes),
        }
    }
    fn settled(
        &self,
        _: Place<'_>,
        direction: Direction,
        bytes: &mut [u8],
        result: io::Result<usize>,
    ) -> io::Result<usize> {
        match (self.now(), direction) {
            (Fault::ShortRead, Direction::Read) | (Fault::ShortWrite, Direction::Write) => Ok(4096),
            (Fault::Error(code), _) => Err(io::Error::from_raw_os_error(code)),
            (Fault::FlipOnRead, Direction::Read) => {
                bytes[77] ^= 4;
                result
            }
            _ => result,
        }
    }
}

/// The codes that the tests inject.
mod libc_code {
    pub const EIO: i32 = 5;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const EOPNOTSUPP: i32 = 95;
}

fn faulty(dir: &Path, io: IoChoice) -> (Arc<Faulty>, Bench) {
    let disk = Faulty::new();
    let bench = Bench::nvme(NvmeConfig { disk: Arc::clone(&disk) as Arc<dyn DiskIo>, ..config(dir, io) });
    (disk, bench)
}

#[test]
fn every_fault_of_a_disk_is_a_typed_miss() {
    use libc_code::{EIO, ENOSPC, EROFS};
    for io in ways() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut bench) = faulty(dir.path(), io);
        let seal = bench.store(1, label(1, 1)).unwrap();
        let loads =
            [(Fault::ShortRead, "short_read"), (Fault::FlipOnRead, "bad_seal"), (Fault::Error(EIO), "io")];
        for (fault, expected) in loads {
            disk.set(fault);
            assert_eq!(kind(bench.load(label(1, 1), seal)), expected, "{io:?} {fault:?}");
            disk.set(Fault::None);
            assert_eq!(bench.load(label(1, 1), seal).unwrap(), page(1, PAGE), "after {fault:?}");
        }
        let stores = [
            (Fault::ShortWrite, "short_write"),
            (Fault::Error(EIO), "io"),
            (Fault::Error(ENOSPC), "full"),
            (Fault::Error(EROFS), "read_only"),
        ];
        // Slot 1's file exists, slot 9's is to be made.
        for slot in [1, 9] {
            for (fault, expected) in stores {
                disk.set(fault);
                assert_eq!(kind(bench.store(2, label(slot, 2))), expected, "{io:?} {fault:?} {slot}");
            }
        }
        disk.set(Fault::None);
        let seal = bench.store(3, label(9, 3)).unwrap();
        assert_eq!(bench.load(label(9, 3), seal).unwrap(), page(3, PAGE));
        let failures = bench.tier().stats().failures;
        assert_eq!(failures.iter().map(|(_, n)| n).sum::<u64>(), 11);
    }
}

#[test]
fn a_torn_write_that_said_yes_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut bench) = faulty(dir.path(), IoChoice::Threads);
    bench.store(1, label(1, 1)).unwrap();
    disk.set(Fault::Torn);
    let seal = bench.store(2, label(1, 2)).unwrap();
    assert_eq!(kind(bench.load(label(1, 2), seal)), "bad_seal");
}

#[test]
fn erasure_that_needs_more_than_holes_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut bench) = faulty(dir.path(), IoChoice::Auto);
    for (fault, method) in [(Fault::NoHoles, "overwritten"), (Fault::LyingPunch, "overwritten")] {
        let seal = bench.store(1, label(1, 1)).unwrap();
        disk.set(fault);
        match bench.erase(&[1, 2, 3]).unwrap() {
            Finished::Erased { method: EraseMethod::Overwritten, probed: 3 } => (),
            other => panic!("{fault:?}: {other:?}, not {method}"),
        }
        assert_eq!(kind(bench.load(label(1, 1), seal)), "bad_seal");
        disk.set(Fault::None);
    }
    bench.store(1, label(1, 1)).unwrap();
    disk.set(Fault::LyingErase);
    assert_eq!(kind(bench.erase(&[1])), "not_erased");
    disk.set(Fault::Error(libc_code::EROFS));
    assert_eq!(kind(bench.erase(&[1])), "read_only");
}

#[test]
fn a_slow_disk_is_answered_in_time_and_its_late_bytes_reach_no_frame() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut bench) = faulty(dir.path(), IoChoice::Threads);
    let seal = bench.store(1, label(1, 1)).unwrap();
    disk.set(Fault::Stall);
    bench.arena.write(FrameId(1)).unwrap().fill(0xEE);
    let load = bench.begin_load(1, label(1, 1), seal);
    bench.fill(0, 2);
    let store = bench.begin_store(0, label(2, 2));
    disk.await_stall(2);
    bench.manual.advance(Duration::from_secs(6));
    assert_eq!(kind(bench.answer(load).outcome), "timed_out");
    assert_eq!(kind(bench.answer(store).outcome), "timed_out");
    assert_eq!(bench.tier().stats().stuck, 2);
    // The slot that may still be written takes nothing else, not even an erasure.
    assert_eq!(kind(bench.store(3, label(2, 3))), "slot_stuck");
    assert_eq!(kind(bench.erase(&[2])), "slot_stuck");
    disk.set(Fault::None);
    while bench.tier().stats().stuck > 0 {
        std::thread::yield_now();
    }
    assert!(bench.frame(1).iter().all(|b| *b == 0xEE), "the frame is its owner's again");
    let seal = bench.store(3, label(2, 3)).unwrap();
    assert_eq!(bench.load(label(2, 3), seal).unwrap(), page(3, PAGE));
}

#[test]
fn what_waits_behind_a_stuck_disk_is_answered_too() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut bench) = faulty(dir.path(), IoChoice::Threads);
    disk.set(Fault::Stall);
    bench.fill(0, 1);
    let tickets: Vec<u64> = (0..12).map(|slot| bench.begin_store(0, label(slot, 1))).collect();
    // The first makes its segment's file and stalls there, the others wait behind it or in the queue.
    disk.await_stall(1);
    while bench.tier().stats().in_flight < 8 {
        std::thread::yield_now();
    }
    bench.manual.advance(Duration::from_secs(30));
    for ticket in tickets {
        assert_eq!(kind(bench.answer(ticket).outcome), "timed_out");
    }
    disk.set(Fault::None);
    while bench.tier().stats().stuck > 0 {
        std::thread::yield_now();
    }
    assert!(bench.store(3, label(2, 3)).is_ok());
}

#[test]
fn a_key_destroyed_while_the_disk_works_fails_the_late_load_and_store() {
    for io in ways() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut bench) = faulty(dir.path(), io);
        let seal = bench.store(1, label(1, 1)).unwrap();
        disk.set(Fault::Stall);
        bench.arena.write(FrameId(1)).unwrap().fill(0xEE);
        let (load, store) = (bench.ticket(), bench.ticket());
        bench.send(vec![
            Job::Load { ticket: load, frame: FrameId(1), label: label(1, 1), seal },
            Job::Store { ticket: store, frame: FrameId(0), label: label(2, 1) },
        ]);
        disk.await_stall(1);
        while bench.tier().stats().in_flight < 2 {
            std::thread::yield_now();
        }
        bench.keys.destroy(NamespaceId(1), Generation(1));
        disk.set(Fault::None);
        assert_eq!(kind(bench.answer(load).outcome), "key_gone");
        assert_eq!(kind(bench.answer(store).outcome), "key_gone");
        // Untouched if the key went before the disk was asked.
        let frame = bench.frame(1);
        assert!(frame.iter().all(|b| *b == 0) || frame.iter().all(|b| *b == 0xEE), "nothing of the page");
    }
}

#[test]
fn what_is_queued_when_the_tier_ends_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, mut bench) = faulty(dir.path(), IoChoice::Threads);
    disk.set(Fault::Stall);
    let tickets: Vec<u64> = (0..20).map(|slot| bench.begin_store(0, label(slot, 1))).collect();
    disk.await_stall(1);
    let release = Arc::clone(&disk);
    let helper = base::spawn("release", move || release.set(Fault::None)).unwrap();
    bench.end();
    helper.join().unwrap();
    for ticket in tickets {
        if let Err(error) = bench.answer(ticket).outcome {
            assert_eq!(error.kind(), "stopped");
        }
    }
}
