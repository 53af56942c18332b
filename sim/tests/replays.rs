//! What a replay says, as people and programs read it.

use quire_sim::trace::{Generator, Talk};
use quire_sim::{Replay, ReplayError, Report, replay};

fn small() -> Report {
    let trace = Generator::new(7, [Talk::chat(120, 4.0), Talk::agents(12, 0.4)]).trace();
    replay(&Replay { seed: 7, replicas: 4, ..Replay::default() }, trace).unwrap()
}

#[test]
fn every_policy_answers_the_same_calls_and_the_kv_aware_one_reuses_most() {
    let report = small();
    println!("{}", report.table());
    let answered: Vec<u64> = report.rows.iter().map(|row| row.tally.answered).collect();
    assert_eq!(answered, [report.calls; 5]);
    let hit = |policy: &str| report.rows.iter().find(|row| row.policy == policy).unwrap().figures().hit_rate;
    for other in ["round-robin", "random", "least-loaded"] {
        assert!(hit("kv-aware") > hit(other), "{} against {other}'s {}", hit("kv-aware"), hit(other));
    }
    assert!(report.rows.iter().all(|row| row.figures().hit_rate <= report.reusable + 1e-9));
}

#[test]
fn the_same_replay_gives_the_same_json() {
    assert_eq!(small().json().to_string(), small().json().to_string());
}

#[test]
fn the_drawing_is_well_formed_and_names_every_policy() {
    let report = small();
    let svg = report.svg();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    for row in &report.rows {
        assert!(svg.contains(&row.policy), "{}", row.policy);
    }
}

#[test]
fn what_cannot_be_played_is_refused() {
    let trace = || Generator::new(7, [Talk::chat(3, 4.0)]).trace();
    let refusal = |replay_of: Replay| replay(&replay_of, trace()).unwrap_err();
    assert_eq!(
        refusal(Replay { replicas: 65, ..Replay::default() }),
        ReplayError::Replicas { asked: 65, most: 64 }
    );
    assert_eq!(refusal(Replay { policies: Vec::new(), ..Replay::default() }), ReplayError::NoPolicy);
    assert!(matches!(refusal(Replay { speed: 0.0, ..Replay::default() }), ReplayError::Speed { .. }));
}
