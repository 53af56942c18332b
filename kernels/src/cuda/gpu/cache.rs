//! Compiled kernels on disk, named by what they were built from.
//!
//! A file is the SHA-256 of the code, then the code. It is written beside its place and renamed into it, so
//! that two processes may build the same kernel at once; it is checked when read, and a file that does not
//! agree with its digest counts as absent and is replaced.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cuda::source::{Unit, hex};

const DIGEST: usize = 32;

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct CubinCache {
    folder: PathBuf,
}

impl CubinCache {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// The code of `unit`, if it is there and whole.
    pub fn get(&self, unit: &Unit, target: &str) -> Option<Vec<u8>> {
        let mut file = fs::read(self.path(unit, target)).ok()?;
        if file.len() <= DIGEST {
            return None;
        }
        let code = file.split_off(DIGEST);
        (Sha256::digest(&code)[..] == file[..]).then_some(code)
    }

    /// Keeps `code`; a cache that cannot be written is only a slower start.
    pub fn put(&self, unit: &Unit, target: &str, code: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let path = self.path(unit, target);
        let fresh = self.folder.join(format!(".{}.{}", unit.name, unique()));
        let mut file = fs::File::create_new(&fresh)?;
        let written = file.write_all(&Sha256::digest(code)).and_then(|()| file.write_all(code));
        let kept = written.and_then(|()| file.sync_all()).and_then(|()| fs::rename(&fresh, &path));
        if kept.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        kept
    }

    fn path(&self, unit: &Unit, target: &str) -> PathBuf {
        self.folder.join(unit.file(target))
    }
}

/// Differs between processes and between calls.
fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    hex(&[std::process::id().to_le_bytes(), call.to_le_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::source::UNITS;

    fn cache() -> (tempfile::TempDir, CubinCache) {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = CubinCache::new(&folder.path().join("kernels"));
        (folder, cache)
    }

    #[test]
    fn what_was_put_comes_back_for_its_target_only() {
        let (_folder, cache) = cache();
        assert_eq!(cache.get(&UNITS[0], "sm_80"), None);
        cache.put(&UNITS[0], "sm_80", b"code").unwrap();
        assert_eq!(cache.get(&UNITS[0], "sm_80").as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get(&UNITS[0], "sm_90a"), None);
        assert_eq!(cache.get(&UNITS[1], "sm_80"), None);
    }

    #[test]
    fn a_damaged_file_counts_as_absent_and_is_replaced() {
        let (_folder, cache) = cache();
        cache.put(&UNITS[0], "sm_80", b"some code").unwrap();
        let path = cache.path(&UNITS[0], "sm_80");
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, DIGEST, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(cache.get(&UNITS[0], "sm_80"), None, "cut to {cut}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            assert_eq!(cache.get(&UNITS[0], "sm_80"), None, "bit {bit}");
        }
        cache.put(&UNITS[0], "sm_80", b"some code").unwrap();
        assert_eq!(cache.get(&UNITS[0], "sm_80").as_deref(), Some(&b"some code"[..]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_and_nothing_else() {
        let (folder, _) = cache();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let cache = CubinCache::new(&file.join("below"));
        assert!(cache.put(&UNITS[0], "sm_80", b"code").is_err());
        assert_eq!(cache.get(&UNITS[0], "sm_80"), None);
    }
}
