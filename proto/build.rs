//! From `base/proto` to Rust, without `protoc`: protox parses, tonic-prost-build writes.

use std::error::Error;
use std::path::PathBuf;

/// What gateways speak to an endpoint picker: theirs, not ours.
const GATEWAY: [&str; 3] = ["envoy/core.proto", "envoy/http_status.proto", "envoy/ext_proc.proto"];

/// Every file of the contract.
const FILES: [&str; 3] = ["quire/v1/types.proto", "quire/v1/cache.proto", "quire/v1/replica.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").ok_or("no manifest")?);
    let root = here.join("../base/proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    println!("cargo::rerun-if-changed={}", root.display());
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_source_info(true).open_files(FILES)?;
    // With comments and whatever else the files say: reflection shows it, and the tests read it.
    std::fs::write(out.join("descriptor.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        // Servers and clients over any transport; who connects brings theirs.
        .build_transport(false)
        .compile_fds(compiler.file_descriptor_set())?;
    gateway(&here)
}

/// Beside the contract, so that neither its descriptor nor reflection speaks of it.
fn gateway(here: &std::path::Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", here.join("envoy").display());
    let mut compiler = protox::Compiler::new([here])?;
    compiler.open_files(GATEWAY)?;
    tonic_prost_build::configure().build_transport(false).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
