//! kill -9 of a real process in the middle of its stores: what the index recovers opens to what was
//! written.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use base::{ChainHash, Generation, ManualClock, NamespaceId, SlotId, SplitMix, Tier};
use quire_transfer::{DataKey, Entry, Journal, JournalConfig, KeyRing, NvmeConfig, Recovered};

use crate::common::{Bench, PAGE, label, page};

const DIR: &str = "QUIRE_CRASH_DIR";
const SEED: &str = "QUIRE_CRASH_SEED";
const SLOTS: u32 = 64;
const ROUNDS: u64 = 6;

fn config(dir: &Path) -> NvmeConfig {
    NvmeConfig { segment_bytes: 8 * PAGE as u64, depth: 8, ..NvmeConfig::new(dir, SLOTS, PAGE) }
}

fn index(dir: &Path) -> (Journal, Recovered) {
    let keys = KeyRing::new();
    keys.insert(NamespaceId(1), Generation(1), DataKey::new(&mut [17; 32]));
    Journal::open(&JournalConfig::new(dir, [7; 32]), Arc::new(keys), &ManualClock::default()).unwrap()
}

/// Does nothing in a test run; in the process that is to be killed it stores pages until it is.
#[test]
fn the_process_that_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let mut rng = SplitMix::new(seed);
    let (journal, recovered) = index(&dir);
    let mut bench = Bench::nvme(config(&dir));
    if recovered.pages.is_empty() {
        let tree = Entry::Tree {
            tree: 1,
            namespace: NamespaceId(1),
            generation: Generation(1),
            key: b"tree".to_vec(),
        };
        journal.submit(vec![tree]).unwrap();
        journal.flush().unwrap();
    }
    let mut last: Option<u32> = None;
    for count in 0.. {
        let (slot, number) = (rng.below(SLOTS.into()) as u32, rng.next_u64());
        let label = label(slot, number);
        let seal = bench.store(number, label).unwrap();
        let parent = last.filter(|above| *above != slot).map(|above| (Tier::Nvme, SlotId(above)));
        let tokens = vec![number as u32, (number >> 32) as u32];
        let name = label.name;
        let entry = Entry::Page { tier: Tier::Nvme, slot: SlotId(slot), tree: 1, parent, name, seal, tokens };
        let before = entered(&journal);
        journal.submit(vec![entry]).unwrap();
        // So that at most one slot is ahead of the index when we are killed.
        while entered(&journal) == before {
            std::thread::yield_now();
        }
        // A new chain now and then: the slots of old ones are overwritten, orphaning what hung below.
        last = (rng.below(6) > 0).then_some(slot);
        println!("stored {count}");
    }
}

/// Entries that the index's thread is done with.
fn entered(journal: &Journal) -> u64 {
    let stats = journal.stats();
    stats.written + stats.lost
}

#[test]
fn every_page_recovered_after_kill_9_opens_to_what_was_written() {
    let mut recovered_in_all = 0;
    for round in 0..ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        // Killed twice over: the second life starts from what the first left.
        for life in 0..2 {
            kill_after(dir.path(), round * 2 + life, 20 + round * 61 + life * 17);
            recovered_in_all += verify(dir.path());
        }
    }
    assert!(recovered_in_all > 100, "{recovered_in_all} pages are too few to show anything");
}

fn kill_after(dir: &Path, seed: u64, stores: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::the_process_that_is_killed", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let stored =
        lines.map_while(Result::ok).filter(|line| line.contains("stored")).take(stores as usize).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(stored as u64, stores, "the child was killed, it did not end");
}

/// How many pages came back.
fn verify(dir: &Path) -> usize {
    let (journal, recovered) = index(dir);
    drop(journal);
    let mut bench = Bench::nvme(config(dir));
    let mut overwritten = 0;
    for found in &recovered.pages {
        let number = u64::from(found.tokens[0]) | u64::from(found.tokens[1]) << 32;
        let expected = label(found.slot.0, number);
        assert_eq!(ChainHash(expected.name.0), found.name, "tokens and name belong together");
        match bench.load(expected, found.seal) {
            Ok(bytes) => assert_eq!(bytes, page(number, PAGE), "a wrong page"),
            // Its slot was written again when the process died: one store at a time, so one at most.
            Err(error) => {
                assert_eq!(error.kind(), "bad_seal");
                overwritten += 1;
            }
        }
    }
    assert!(overwritten <= 1, "{overwritten} pages did not open");
    recovered.pages.len() - overwritten
}
