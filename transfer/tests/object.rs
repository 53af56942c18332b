//! The object tier: the same claims as the disk's, over objects.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::{FrameId, Generation, NamespaceId, SlotId, Tier};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use quire_transfer::{
    EraseMethod, Finished, Job, ObjectConfig, ObjectTier, OpenError, PageLabel, PageSeal, StartWith,
    TierError,
};

use crate::common::{self, Bench, PAGE, page};

fn label(slot: u32, number: u64) -> PageLabel {
    PageLabel { tier: Tier::Object, ..common::label(slot, number) }
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, TierError>) -> &'static str {
    outcome.expect_err("a miss").kind()
}

/// Every object's file.
fn objects(dir: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![dir.join("objects")];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files
}

#[test]
fn what_was_stored_comes_back_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::objects(dir.path());
    let seals: Vec<_> = (0..20).map(|s| bench.store(s.into(), label(s, s.into())).unwrap()).collect();
    let small = PageLabel { bytes: 100, ..label(3, 77) };
    let small_seal = bench.store(77, small).unwrap();
    bench.end();
    let mut bench = Bench::objects(dir.path());
    for slot in (0..20u32).filter(|s| *s != 3) {
        let got = bench.load(label(slot, slot.into()), seals[slot as usize]).unwrap();
        assert_eq!(got, page(slot.into(), PAGE));
    }
    assert_eq!(bench.load(small, small_seal).unwrap(), page(77, PAGE)[..100]);
    assert_eq!(kind(bench.load(label(3, 3), seals[3])), "short_read", "its slot was stored again");
    assert_eq!(objects(dir.path()).len(), 20, "no object without a slot is left");
}

#[test]
fn an_object_says_whose_it_is_and_nothing_of_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::objects(dir.path());
    bench.arena.write(FrameId(0)).unwrap().fill(0x5A);
    let ticket = bench.begin_store(0, label(4, 1));
    assert!(bench.answer(ticket).outcome.is_ok());
    let files = objects(dir.path());
    let name = format!("1/1/{}{}-4", "0100000000000000", "00".repeat(24));
    assert!(files[0].ends_with(name), "{files:?}");
    let body = std::fs::read(&files[0]).unwrap();
    assert_eq!(body.len(), 28 + PAGE);
    assert!(!body.windows(8).any(|w| w == [0x5A; 8]));
}

#[test]
fn a_flip_of_any_bit_of_an_object_is_a_bad_seal() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::objects(dir.path());
    let label = PageLabel { bytes: 64, ..label(2, 9) };
    let seal = bench.store(9, label).unwrap();
    let path = objects(dir.path()).remove(0);
    let good = std::fs::read(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, bad).unwrap();
        assert_eq!(kind(bench.load(label, seal)), "bad_seal", "bit {bit}");
    }
    for length in [0, 27, good.len() - 1] {
        std::fs::write(&path, &good[..length]).unwrap();
        assert_eq!(kind(bench.load(label, seal)), "short_read");
    }
    std::fs::write(&path, &good).unwrap();
    assert!(bench.load(label, seal).is_ok());
    let mut other = seal;
    other.tag[3] ^= 1;
    assert_eq!(kind(bench.load(label, other)), "bad_seal");
}

#[test]
fn a_destroyed_key_ends_its_pages() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::objects(dir.path());
    let seal = bench.store(1, label(4, 1)).unwrap();
    bench.keys.destroy(NamespaceId(1), Generation(1));
    assert_eq!(kind(bench.load(label(4, 1), seal)), "key_gone");
    assert_eq!(kind(bench.store(1, label(4, 1))), "key_gone");
}

#[test]
fn erased_objects_are_gone_whoever_stored_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::objects(dir.path());
    let seals: Vec<_> = (0..4).map(|s| bench.store(s.into(), label(s, s.into())).unwrap()).collect();
    bench.end();
    let mut bench = Bench::objects(dir.path());
    let erased = bench.erase(&[0, 1, 1, 9]).unwrap();
    assert_eq!(erased, Finished::Erased { method: EraseMethod::Deleted, probed: 3 });
    assert_eq!(objects(dir.path()).len(), 2);
    assert_eq!(kind(bench.load(label(1, 1), seals[1])), "short_read");
    assert!(bench.load(label(2, 2), seals[2]).is_ok());
    assert_eq!(kind(bench.erase(&[20])), "bad_job");
}

#[test]
fn a_tier_told_to_start_with_nothing_removes_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::objects(dir.path());
    let seal = bench.store(1, label(4, 1)).unwrap();
    bench.end();
    let root = dir.path().to_owned();
    let mut bench = Bench::start(&move |arena, keys, clock, sink| {
        let config = ObjectConfig { start: StartWith::Nothing, ..ObjectConfig::new(20, PAGE) };
        Box::new(ObjectTier::open_dir(root.clone(), config, arena, keys, clock, sink).unwrap())
    });
    assert!(objects(dir.path()).is_empty());
    assert_eq!(kind(bench.load(label(4, 1), seal)), "short_read");
}

#[test]
fn one_process_per_directory_and_a_bounded_queue() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::objects(dir.path());
    let again = ObjectTier::open_dir(
        dir.path().to_owned(),
        ObjectConfig::new(20, PAGE),
        Arc::clone(&bench.arena),
        Arc::clone(&bench.keys),
        common::system_clock(),
        Box::new(|_| ()),
    );
    assert!(matches!(again, Err(OpenError::Locked { .. })));
    let jobs: Vec<_> = (0..5000).map(|ticket| Job::Erase { ticket, slots: vec![SlotId(0)] }).collect();
    assert_eq!(bench.tier().submit(jobs.clone()).unwrap_err(), jobs);
}

#[test]
fn a_store_that_does_not_answer_is_answered_for() {
    let slow = Duration::from_secs(3600);
    let throttle = ThrottleConfig { wait_put_per_call: slow, wait_get_per_call: slow, ..Default::default() };
    let mut bench = Bench::start(&move |arena, keys, clock, sink| {
        let store = Arc::new(ThrottledStore::new(InMemory::new(), throttle));
        let config = ObjectConfig { op_timeout: Duration::from_millis(20), ..ObjectConfig::new(20, PAGE) };
        Box::new(ObjectTier::open(store, config, arena, keys, clock, sink).unwrap())
    });
    let seal = PageSeal { nonce: [0; 12], tag: [0; 16] };
    assert_eq!(kind(bench.load(label(1, 1), seal)), "timed_out");
    assert_eq!(kind(bench.store(1, label(1, 1))), "timed_out");
    assert_eq!(bench.tier().stats().stuck, 1);
    assert_eq!(kind(bench.store(1, label(1, 1))), "slot_stuck");
    assert_eq!(kind(bench.erase(&[1])), "slot_stuck");
    bench.end();
}
