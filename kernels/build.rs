//! Puts machine code of the CUDA kernels into the binary, if `QUIRE_CUBINS` names a folder of it.
//!
//! `scripts/cuda-check --out DIR` makes such a folder. Without one the kernels are compiled where they run, by
//! NVRTC: nobody needs a CUDA compiler to build. A file's name carries the hash of the sources it was built from; a
//! folder with a kernel of other sources stops the build, since the binary would not find it when it starts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[expect(dead_code, reason = "the crate uses the rest")]
#[path = "src/cuda/source.rs"]
mod source;

fn main() {
    println!("cargo:rerun-if-env-changed=QUIRE_CUBINS");
    println!("cargo:rerun-if-changed=cu");
    let mut table = String::from("&[\n");
    if let Some(folder) = std::env::var_os("QUIRE_CUBINS").filter(|v| !v.is_empty()).map(PathBuf::from) {
        println!("cargo:rerun-if-changed={}", folder.display());
        let folder =
            folder.canonicalize().unwrap_or_else(|e| panic!("QUIRE_CUBINS: {}: {e}", folder.display()));
        for (name, path) in cubins(&folder) {
            let _ = writeln!(table, "({name:?}, include_bytes!({path:?})),");
        }
    }
    table += "]";
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("embedded.rs"), table).expect("the build's own folder is writable");
}

/// Those of the folder that a server launches, sorted.
fn cubins(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|e| panic!("QUIRE_CUBINS: {}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    let mut found: Vec<_> = paths.filter_map(|path| Some((own(&path)?, path))).collect();
    found.sort();
    found
}

/// The name of a cubin of these sources; panics if it is one of others.
fn own(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let mut parts = name.strip_suffix(".cubin")?.splitn(2, '.');
    let (stem, rest) = (parts.next()?, parts.next()?);
    let target = rest.split('.').next()?;
    let unit = source::UNITS.iter().find(|unit| unit.name == stem);
    let wanted = unit.map(|unit| unit.file(target));
    assert!(
        wanted.as_deref() == Some(name),
        "QUIRE_CUBINS: {} was built from other kernel sources; these want {}",
        path.display(),
        wanted.unwrap_or_else(|| "no such file".into()),
    );
    unit.is_some_and(|unit| unit.serves_on(true) || unit.serves_on(false)).then(|| name.to_owned())
}
