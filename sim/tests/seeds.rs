//! The laws, over many seeds.
//!
//! `QUIRE_SIM_SEEDS=10000 cargo test -p quire-sim --release seeds` is the long run; `QUIRE_SIM_SEED=n` plays one.

use quire_sim::fleet::router::Plant;
use quire_sim::sweep::{play, story};

/// Of the run that every build makes.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

#[test]
fn seeds_break_no_law() {
    let seeds = match number("QUIRE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUIRE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let shows = seeds.end - seeds.start == 1;
    let (mut failed, mut events) = (Vec::new(), 0);
    let mut ends = std::collections::BTreeMap::<&str, u64>::new();
    for seed in seeds.clone() {
        let end = play(seed, Plant::None);
        events += end.events;
        end.tally.ends.iter().for_each(|(code, count)| *ends.entry(code).or_default() += count);
        if !end.violations.is_empty() || shows {
            println!("{}", story(seed, &end));
        }
        if !end.violations.is_empty() {
            failed.push(seed);
        }
        if failed.len() >= 5 {
            break;
        }
    }
    println!("{} seeds, {events} events, {ends:?}", seeds.end - seeds.start);
    assert!(shows || ends["answered"] * 2 > ends.values().sum(), "a sweep that hardly serves: {ends:?}");
    assert!(failed.is_empty(), "laws broken by seeds {failed:?}");
}

#[test]
fn a_seed_is_one_run_exactly() {
    for seed in 0..40 {
        let (first, second) = (play(seed, Plant::None), play(seed, Plant::None));
        assert_eq!(
            first.hash, second.hash,
            "seed {seed} gave two runs of {} and {} events",
            first.events, second.events
        );
        assert_eq!(first.tally.ends, second.tally.ends);
    }
}

#[test]
fn other_seeds_are_other_runs() {
    let hashes: std::collections::BTreeSet<u64> = (0..20).map(|seed| play(seed, Plant::None).hash).collect();
    assert_eq!(hashes.len(), 20);
}

/// The first seed at which a bug put in on purpose is found, and as what.
fn found(plant: Plant, most: u64) -> Option<(u64, &'static str)> {
    (0..most).find_map(|seed| play(seed, plant).violations.first().map(|violation| (seed, violation.kind())))
}

#[test]
fn planted_bugs_are_found() {
    let cases = [
        (Plant::AnswersTwice, "ended_twice"),
        (Plant::ForgetsTheDead, "lost"),
        (Plant::RoutesToTheDead, "given_to_the_dead"),
        (Plant::BelievesGaps, "above_truth"),
        (Plant::KeepsPurged, "placed_purged"),
        (Plant::LeaksPlaces, "router"),
    ];
    for (plant, kind) in cases {
        let all: Vec<_> =
            (0..60).filter_map(|seed| play(seed, plant).violations.first().map(|v| v.kind())).collect();
        assert!(all.contains(&kind), "{plant:?} is not found as {kind}, but as {all:?}");
    }
    assert_eq!(found(Plant::None, 60), None);
}
