//! Compiles the emulator (`cpp/`), every kernel source (`../cu/*.cu`), and kernels that are wrong on purpose
//! (`wrong/`, for the tests of this crate), with the C++ compiler.
//!
//! Each kernel file is wrapped into a namespace of its own, since nvcc would keep two files' helpers of the same
//! name apart and a linker would not. Objects are kept by what went into them, so that a change to one kernel
//! compiles one file. `QUIRE_CUSIM_SANITIZE=address|undefined` adds a sanitizer, whose runtime must then be
//! preloaded (scripts/cusim-sanitize does); `QUIRE_CUSIM_FLAGS` adds flags; `QUIRE_CUSIM_SOURCES` is a folder to take in
//! place of `kernels/` (scripts/cuda-mutants breaks copies).

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    for name in ["QUIRE_CUSIM_SOURCES", "QUIRE_CUSIM_SANITIZE", "QUIRE_CUSIM_FLAGS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let house = match std::env::var("QUIRE_CUSIM_SOURCES") {
        Ok(elsewhere) => PathBuf::from(elsewhere),
        Err(_) => PathBuf::from(variable("CARGO_MANIFEST_DIR")).parent().expect("kernels/").to_owned(),
    };
    let [kernels, emulator, wrong] = ["cu", "sim/cpp", "sim/wrong"].map(|folder| house.join(folder));

    let mut base = cc::Build::new();
    base.cpp(true).std("c++20").define("CUSIM", None).include(&emulator).include(&kernels).warnings(false);
    // A kernel's arithmetic is IEEE as written; a fused multiply-add appears where the source says fmaf.
    base.debug(false)
        .flag("-g1")
        .flag("-ffp-contract=off")
        .flag("-Wno-psabi")
        .flag("-fno-strict-aliasing")
        .flag("-pthread");
    let flags = add_flags(&mut base);

    let folders = [emulator.clone(), kernels.clone()];
    let mut archive = base.clone();
    for source in sources(&emulator, "cpp") {
        archive.object(object(base.clone().opt_level(3), &source, &source, &folders, &flags, &out));
    }
    let kernel_sources = [sources(&kernels, "cu"), sources(&wrong, "cu")].concat();
    for source in kernel_sources {
        let wrapper = wrapped(&source, &out);
        archive.object(object(base.clone().opt_level(2), &source, &wrapper, &folders, &flags, &out));
    }
    // Kernels register themselves from static constructors; nothing refers to their objects.
    archive.link_lib_modifier("+whole-archive").compile("cusim");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Adds what the environment asks for; returns it for the objects' keys.
fn add_flags(build: &mut cc::Build) -> String {
    let extra = std::env::var("QUIRE_CUSIM_FLAGS").unwrap_or_default();
    let kind = std::env::var("QUIRE_CUSIM_SANITIZE").unwrap_or_default();
    println!("cargo:rustc-check-cfg=cfg(cusim_sanitize, values(\"address\", \"undefined\"))");
    for flag in extra.split_whitespace() {
        build.flag(flag);
    }
    if !kind.is_empty() {
        build
            .flag(format!("-fsanitize={kind}"))
            .flag("-fno-sanitize-recover=all")
            .flag("-fno-omit-frame-pointer");
        let runtime = if kind == "address" { "asan" } else { "ubsan" };
        println!("cargo:rustc-link-lib=dylib={runtime}");
        println!("cargo:rustc-cfg=cusim_sanitize=\"{kind}\"");
    }
    format!("{extra} {kind}")
}

/// The files of one folder, which are watched from now on (as is the folder).
fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    println!("cargo:rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

fn wrapped(source: &Path, out: &Path) -> PathBuf {
    let stem = source.file_stem().expect("a file name").to_string_lossy();
    let wrapper = out.join(format!("{stem}.cpp"));
    let text =
        format!("#include \"cusim.hpp\"\nnamespace cu_{stem} {{\n#include \"{}\"\n}}\n", source.display());
    fs::write(&wrapper, text).unwrap_or_else(|e| panic!("{}: {e}", wrapper.display()));
    wrapper
}

/// The object of `unit`, compiled unless one lies there from the same text, headers and flags.
fn object(
    build: &mut cc::Build,
    source: &Path,
    unit: &Path,
    folders: &[PathBuf; 2],
    flags: &str,
    out: &Path,
) -> PathBuf {
    let mut files = BTreeSet::new();
    collect(source, folders, &mut files);
    collect(&folders[0].join("cusim.hpp"), folders, &mut files);
    let mut key = DefaultHasher::new();
    (flags, include_str!("build.rs")).hash(&mut key);
    for file in &files {
        (file, fs::read(file).unwrap_or_default()).hash(&mut key);
    }
    let kept = out.join("objects").join(source.file_name().expect("a file name"));
    let folder = kept.join(format!("{:016x}", key.finish()));
    if let Some(path) = object_in(&folder) {
        return path;
    }
    forget_old(&kept);
    build.out_dir(&folder).file(unit).compile_intermediates();
    object_in(&folder).unwrap_or_else(|| panic!("no object in {}", folder.display()))
}

fn object_in(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    entries.filter(|path| path.extension().is_some_and(|e| e == "o")).min()
}

/// Keeps the few newest objects of a source: edits and mutants come and go, the original comes back.
fn forget_old(kept: &Path) {
    const KEPT: usize = 4;
    let Ok(entries) = fs::read_dir(kept) else { return };
    let dated = |path: PathBuf| Some((fs::metadata(&path).ok()?.modified().ok()?, path));
    let mut folders: Vec<_> = entries.filter_map(|entry| dated(entry.ok()?.path())).collect();
    folders.sort();
    for (_, folder) in folders.iter().rev().skip(KEPT) {
        // A folder that stays costs space only.
        let _ = fs::remove_dir_all(folder);
    }
}

/// `file` and everything that it includes from our folders.
fn collect(file: &Path, folders: &[PathBuf; 2], files: &mut BTreeSet<PathBuf>) {
    let Ok(text) = fs::read_to_string(file) else { return };
    if !files.insert(file.to_owned()) {
        return;
    }
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")?.split('"').next());
    for name in names {
        for folder in folders {
            collect(&folder.join(name), folders, files);
        }
    }
}
