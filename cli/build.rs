//! Puts the commit, the target and the demo model into the binary. Reads git if it is there; a build from
//! a source archive says `unknown`. No network, and no rebuild unless HEAD or the model changed.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What of `assets/demo` belongs into the binary.
const KINDS: [&str; 4] = ["json", "safetensors", "gguf", "jinja"];

fn main() {
    println!("cargo:rustc-env=QUIRE_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    println!("cargo:rustc-env=QUIRE_TARGET_FEATURES={features}");
    println!("cargo:rustc-env=QUIRE_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo:rerun-if-changed=build.rs");
    // The log of HEAD grows with every commit, whatever branch is checked out.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
    let demo = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../assets/demo");
    println!("cargo:rerun-if-changed={}", demo.display());
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo")).join("demo.rs");
    fs::write(out, embed(&demo)).expect("OUT_DIR can be written");
}

/// `FILES`: name and content of every file of the demo model.
fn embed(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().and_then(|e| e.to_str()).is_some_and(|e| KINDS.contains(&e)))
        .collect();
    files.sort();
    let mut code = String::from("static FILES: &[(&str, &[u8])] = &[\n");
    for path in files {
        let name = path.file_name().and_then(|n| n.to_str()).expect("names in the repository are text");
        let path = fs::canonicalize(&path).expect("it was just listed");
        writeln!(code, "    ({name:?}, include_bytes!({path:?})),").expect("writing to a string");
    }
    code + "];\n"
}

fn commit() -> Option<String> {
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
