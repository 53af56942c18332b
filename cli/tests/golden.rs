//! Help and reference pages as users see them. After a change that is meant:
//! `UPDATE_EXPECT=1 cargo test -p quire --test main golden`.

use std::process::Output;

use expect_test::expect_file;

use crate::binary::{root, run, stdout};

const COMMANDS: [&[&str]; 15] = [
    &[],
    &["up"],
    &["serve"],
    &["route"],
    &["replay"],
    &["chat"],
    &["bench"],
    &["bench", "serve"],
    &["cache"],
    &["purge"],
    &["verify"],
    &["doctor"],
    &["config"],
    &["config", "show"],
    &["config", "check"],
];

fn text(output: &Output) -> String {
    assert!(output.status.success());
    stdout(output).lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[test]
fn golden_help_pages() {
    for command in COMMANDS {
        let name = [&["quire"], command].concat().join("-");
        let page = text(&run(&[command, &["--help"]].concat()));
        expect_file![root().join(format!("cli/tests/golden/{name}.txt"))].assert_eq(&page);
    }
}

#[test]
fn golden_reference_pages() {
    for page in ["cli", "config"] {
        let text = text(&run(&["reference", page]));
        expect_file![root().join(format!("docs/reference/{page}.md"))].assert_eq(&text);
    }
}

/// Whoever types the short form gets every flag on one line.
#[test]
fn the_short_help_names_every_setting() {
    let short = stdout(&run(&["serve", "-h"]));
    for flag in ["--host", "--max-num-seqs", "--kv-pages", "QUIRE_BLOCK_SIZE", "[default: 8000]"] {
        assert!(short.contains(flag), "{flag}");
    }
}
