//! The x86-64 tiles; elsewhere a stand-in that is never selected, so that dispatch reads the same.

#[cfg(target_arch = "x86_64")]
#[path = "activations_avx512.rs"]
pub mod activations_avx512;
#[cfg(target_arch = "x86_64")]
#[path = "avx2.rs"]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
#[path = "avx512.rs"]
pub mod avx512;

#[cfg(not(target_arch = "x86_64"))]
pub mod avx512 {
    pub const ROWS_INT: usize = 1;
    pub const ROWS_FLOAT: usize = 1;
    pub fn select(
        _: super::form::Form,
        _: usize,
        _: super::super::tile::Reuse,
    ) -> super::super::tile::TileFn {
        unreachable!("not an x86-64 processor")
    }
}
#[cfg(not(target_arch = "x86_64"))]
pub mod avx2 {
    pub const ROWS: usize = 1;
    pub fn select(_: super::super::form::Form, _: usize) -> super::super::tile::TileFn {
        unreachable!("not an x86-64 processor")
    }
}
