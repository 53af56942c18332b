//! Puts machine code of the CUDA kernels into the binary, if `QUIRE_CUBINS` names a folder of it.
//!
//! `scripts/cuda-check --out DIR` makes such a folder. Without one the kernels are compiled where they run, by
//! NVRTC: nobody needs a CUDA compiler to build.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=QUIRE_CUBINS");
    let mut table = String::from("&[\n");
    if let Some(folder) = std::env::var_os("QUIRE_CUBINS").filter(|v| !v.is_empty()).map(PathBuf::from) {
        println!("cargo:rerun-if-changed={}", folder.display());
        let folder =
            folder.canonicalize().unwrap_or_else(|e| panic!("QUIRE_CUBINS: {}: {e}", folder.display()));
        for (unit, target, path) in cubins(&folder) {
            let _ = writeln!(table, "({unit:?}, {target:?}, include_bytes!({path:?})),");
        }
    }
    table += "]";
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("embedded.rs"), table).expect("the build's own folder is writable");
}

/// `UNIT.TARGET.cubin`, sorted.
fn cubins(folder: &Path) -> Vec<(String, String, PathBuf)> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|e| panic!("QUIRE_CUBINS: {}: {e}", folder.display()));
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.expect("a directory entry").path();
            let name = path.file_name()?.to_str()?.strip_suffix(".cubin")?.to_owned();
            let (unit, target) = name.split_once('.')?;
            Some((unit.to_owned(), target.to_owned(), path.clone()))
        })
        .filter(|(unit, ..)| !unit.starts_with("conformance"))
        .collect();
    found.sort();
    found
}
