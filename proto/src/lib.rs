//! The gRPC contract as Rust: messages, servers and clients of `quire.v1`.
//!
//! The contract itself is `base/proto`, for every language. This crate is what Rust makes of it, and no more:
//! apart from `base`, so that caches and kernels do not build a gRPC stack to know what a page is. The code is
//! generated while building and never committed; what is committed and reviewed is the golden descriptor in
//! `tests/`, which changes when the contract does.

pub mod envoy;

/// `quire.v1`.
pub mod v1 {
    #![expect(
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code is not written for reading"
    )]
    tonic::include_proto!("quire.v1");
}

/// Name of the contract's current version.
pub const PACKAGE: &str = "quire.v1";

/// All files of the contract as an encoded `FileDescriptorSet`, comments included: for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
