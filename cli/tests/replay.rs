//! `quire replay`: one table, the same for the same seed.

use crate::binary::{run, stderr, stdout};

const SMALL: [&str; 7] =
    ["replay", "--requests", "60", "--replicas", "3", "--policy", "kv-aware,round-robin"];

#[test]
fn the_same_seed_gives_the_same_table_and_json_says_as_much() {
    let table = run(&SMALL);
    assert!(table.status.success(), "{}", stderr(&table));
    let shown = stdout(&table);
    assert!(shown.contains("kv-aware") && shown.contains("round-robin"), "{shown}");
    assert_eq!(stdout(&run(&SMALL)), shown);
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&run(&[&SMALL[..], &["--json"]].concat()))).unwrap();
    assert_eq!(json["calls"], 60, "{json}");
}

#[test]
fn a_drawing_is_written_and_a_bad_trace_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("policies.svg");
    assert!(run(&[&SMALL[..], &["--svg", svg.to_str().unwrap()]].concat()).status.success());
    assert!(std::fs::read_to_string(&svg).unwrap().starts_with("<svg"));
    let bad = dir.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"timestamp\": 1}\nnonsense\n").unwrap();
    let output = run(&["replay", "--trace", bad.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("bad.jsonl"), "{}", stderr(&output));
}
