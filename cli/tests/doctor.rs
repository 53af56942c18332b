//! `quire doctor` for people and for scripts.

use serde_json::Value;

use crate::binary::{run, stdout};

#[test]
fn every_check_has_a_status_and_what_is_not_ok_says_what_to_do() {
    let output = run(&["doctor", "--json", "--port", "0"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        let is_ok = check["status"] == "ok";
        assert!(is_ok || check["status"] == "warn", "{check}");
        assert_eq!(check["todo"].is_null(), is_ok, "{check}");
    }
    let names: Vec<&str> = checks.iter().map(|c| c["name"].as_str().unwrap()).collect();
    let expected =
        ["cpu", "instructions", "memory", "huge pages", "open files", "port", "disk", "cuda", "model"];
    assert_eq!(names, expected);
    assert_eq!(output.status.code(), Some(0));
}
