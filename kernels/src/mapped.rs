//! Read-only memory-mapped files behind a safe type.
//!
//! The map lives here because mapping is `unsafe`: the bytes change if another process writes the
//! file. Weights are replaced by rename, not in place, and a truncated file is caught by the header
//! check before any access; a file truncated *while mapped* would raise SIGBUS, which is documented.

use std::{fs::File, io, ops::Deref, path::Path};

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is private and read-only; see the module text for writes by others.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}
