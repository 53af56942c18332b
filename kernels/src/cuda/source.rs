//! The kernels' sources, embedded: what a compiler at run time is given.
//!
//! Each `.cu` includes files of its own folder only. They are put in textually here, each once, so that
//! NVRTC needs no include path and one hash covers everything a kernel was built from.

use sha2::{Digest, Sha256};

/// One translation unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// File name without `.cu`.
    pub name: &'static str,
    text: &'static str,
    serves: Serves,
}

/// Which devices a unit's kernels are launched on by a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serves {
    All,
    /// Uses instructions that only Hopper has.
    Hopper,
    /// Where Hopper's own kernels do the same work.
    ButHopper,
    /// Holds a device against the emulator, or nothing calls it yet.
    None,
    /// As `None`, with instructions that only Hopper has.
    NoneOnHopper,
}

impl Unit {
    /// Whether it has instructions for such a device.
    pub fn runs_on(&self, is_hopper: bool) -> bool {
        is_hopper || !matches!(self.serves, Serves::Hopper | Serves::NoneOnHopper)
    }

    /// Whether a server on such a device launches any of its kernels: the others need not be compiled there, which
    /// is a third of the first start.
    pub fn serves_on(&self, is_hopper: bool) -> bool {
        match self.serves {
            Serves::All => true,
            Serves::Hopper => is_hopper,
            Serves::ButHopper => !is_hopper,
            Serves::None | Serves::NoneOnHopper => false,
        }
    }
}

macro_rules! unit {
    ($name:literal) => {
        unit!($name, All)
    };
    ($name:literal, $serves:ident) => {
        Unit { name: $name, text: include_str!(concat!("../../cu/", $name, ".cu")), serves: Serves::$serves }
    };
}

macro_rules! header {
    ($name:literal) => {
        ($name, include_str!(concat!("../../cu/", $name)))
    };
}

/// Every `.cu` of the folder.
pub const UNITS: &[Unit] = &[
    unit!("act"),
    unit!("attend_e4m3_sm90", Hopper),
    unit!("attend_mma"),
    unit!("attend_mma_e4m3"),
    unit!("attend_sm90", Hopper),
    unit!("conformance", None),
    unit!("conformance_sm90", NoneOnHopper),
    unit!("linear_fp8"),
    unit!("linear_row", ButHopper),
    unit!("linear_sm90", Hopper),
    unit!("linear_tile", ButHopper),
    unit!("merge"),
    unit!("norm"),
    unit!("pages"),
    unit!("rope_store"),
    unit!("rows"),
    unit!("sample"),
    unit!("sample_draw"),
];

const HEADERS: &[(&str, &str)] = &[
    header!("attend.cuh"),
    header!("attend_mma.cuh"),
    header!("attend_sm90.cuh"),
    header!("conformance.cuh"),
    header!("hopper.cuh"),
    header!("linear.cuh"),
    header!("linear_tiles.cuh"),
    header!("ptx.cuh"),
    header!("sample.cuh"),
    header!("types.cuh"),
    header!("wgmma.cuh"),
];

impl Unit {
    /// The source with its includes put in.
    pub fn source(&self) -> String {
        let mut out = String::new();
        expand(self.text, &mut Vec::new(), &mut out);
        out
    }

    /// The file of its machine code. It carries what it was built from, so that code of other sources is never
    /// taken for it.
    pub fn file(&self, target: &str) -> String {
        format!("{}.{target}.{}.cubin", self.name, self.hash(target))
    }

    /// Names it together with what it was built from.
    pub fn hash(&self, target: &str) -> String {
        let digest =
            Sha256::new().chain_update(target).chain_update([0]).chain_update(self.source()).finalize();
        hex(&digest[..16])
    }
}

/// One hash over all sources, for bench results: stale when a kernel changed.
pub fn hash_of_all() -> String {
    let mut digest = Sha256::new();
    for unit in UNITS {
        digest.update(unit.source());
    }
    hex(&digest.finalize()[..16])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn expand(text: &str, seen: &mut Vec<&'static str>, out: &mut String) {
    for line in text.lines() {
        match included(line) {
            None if line.trim() == "#pragma once" => {}
            None => {
                out.push_str(line);
                out.push('\n');
            }
            Some(name) => {
                // Headers of the emulator are not embedded: they are behind CUSIM.
                let Some(&(name, text)) = HEADERS.iter().find(|(n, _)| *n == name) else { continue };
                if !seen.contains(&name) {
                    seen.push(name);
                    expand(text, seen, out);
                }
            }
        }
    }
}

fn included(line: &str) -> Option<&str> {
    line.trim().strip_prefix("#include")?.trim().strip_prefix('"')?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_and_header_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cu");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder of kernels")
            .map(|f| f.expect("an entry").file_name().into_string().expect("a plain name"))
            .filter(|f| f.ends_with(".cu") || f.ends_with(".cuh"))
            .collect();
        let mut known: Vec<String> = UNITS.iter().map(|u| format!("{}.cu", u.name)).collect();
        known.extend(HEADERS.iter().map(|(name, _)| (*name).to_string()));
        files.sort();
        known.sort();
        assert_eq!(known, files, "units.rs lists every file of kernels/cu");
    }

    #[test]
    fn sources_stand_alone() {
        for unit in UNITS {
            let source = unit.source();
            let left: Vec<&str> = source.lines().filter(|l| l.trim().starts_with("#include")).collect();
            assert!(left.is_empty(), "{}: {left:?}", unit.name);
            assert!(source.contains("__global__"), "{} has no kernel", unit.name);
        }
    }

    #[test]
    fn a_hash_knows_source_and_target() {
        let unit = &UNITS[0];
        assert_ne!(unit.hash("sm_80"), unit.hash("sm_90a"));
        assert_eq!(unit.hash("sm_80"), unit.hash("sm_80"));
    }
}
