//! What each kernel is launched with: one plain struct, byte for byte the kernel's own.
//!
//! Eight-byte members first, padding written out. The emulator compares the length with `sizeof` of the
//! kernel's struct at every launch; a field in the wrong place gives wrong results in its tests.
