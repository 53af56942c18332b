//! `quire config`: where a value comes from, and what is refused.

use expect_test::expect;

use crate::binary::{quire, run, stderr, stdout};

fn file(content: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quire.toml");
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let (_dir, path) = file("port = 1\nmax-num-seqs = 2\nblock-size = 32\n");
    let output = quire(&["config", "show", "--json", "--port", "3"])
        .env("QUIRE_PORT", "4")
        .env("QUIRE_MAX_NUM_SEQS", "5")
        .env("QUIRE_CONFIG", &path)
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let of =
        |key: &str| format!("{} from {}", shown[key]["value"], shown[key]["source"]).replace(&path, "FILE");
    assert_eq!(of("port"), r#""3" from "flag""#);
    assert_eq!(of("max-num-seqs"), r#""5" from "env QUIRE_MAX_NUM_SEQS""#);
    assert_eq!(of("block-size"), r#""32" from "file FILE""#);
    assert_eq!(of("host"), r#""127.0.0.1" from "default""#);
}

#[test]
fn an_unknown_key_ends_with_code_2_and_a_suggestion() {
    let (_dir, path) = file("blok-size = 32\n");
    for args in [&["config", "check", &path][..], &["serve", "m", "--config", &path]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2));
        expect![[r#"
            error: FILE: unknown key `blok-size`
            hint: did you mean `block-size`?
        "#]]
        .assert_eq(&stderr(&output).replace(&path, "FILE"));
    }
}

#[test]
fn a_good_file_is_said_to_be_good() {
    let (_dir, path) = file("port = 9000\nserved-model-name = [\"a\", \"b\"]\n");
    let output = run(&["config", "check", &path]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert!(stdout(&output).ends_with(": ok, 2 settings\n"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = run(&["config", "check", "/no/such.toml"]);
    assert_eq!(output.status.code(), Some(2));
    expect![[r#"
        error: cannot read --config /no/such.toml: No such file or directory (os error 2)
    "#]]
    .assert_eq(&stderr(&output));
}

#[test]
fn a_mistyped_flag_is_one_clear_error() {
    let output = run(&["serve", "m", "--prot", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("a similar argument exists: '--port'"));
}
