//! The slots' place in files: equal slots in a few preallocated files, made when first written.
//!
//! The design notes ask for a log of segments. All pages of a running model have one size, so a slot
//! is simply rewritten: no fragmentation, no compaction, no write amplification. What a log would
//! guard against, an old page read for a new one, cannot open: nonce and tag live in the index.
//! Several files and not one, so that a tier grows as it fills and a file system with a bound on file
//! sizes does not matter.
//!
//! Limits: data is not synced. A completed O_DIRECT write survives kill -9; after a power cut a page may
//! be missing, and then does not open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use base::SlotId;

use super::disk::{DiskIo, Place};
use crate::error::OpenError;

const PREFIX: &str = "segment-";
const SUFFIX: &str = ".pages";

/// The files of a tier.
pub(crate) struct Segments {
    dir: PathBuf,
    files: Vec<OnceLock<File>>,
    making: Mutex<()>,
    per_file: u32,
    slots: u32,
    slot_bytes: u64,
    direct: AtomicBool,
}

/// Whether a file that is not there should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Missing {
    Create,
    Leave,
}

impl Segments {
    pub fn new(dir: &Path, slots: u32, slot_bytes: usize, segment_bytes: u64) -> Self {
        let per_file = (segment_bytes / slot_bytes as u64).clamp(1, u64::from(slots)) as u32;
        let files = (0..slots.div_ceil(per_file)).map(|_| OnceLock::new()).collect();
        Self {
            dir: dir.to_owned(),
            files,
            making: Mutex::new(()),
            per_file,
            slots,
            slot_bytes: slot_bytes as u64,
            direct: AtomicBool::new(true),
        }
    }

    /// Removes the files of an earlier run.
    pub fn remove_all(dir: &Path) -> Result<(), OpenError> {
        let fail = |source| OpenError::io(dir, source);
        for entry in std::fs::read_dir(dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|n| n.starts_with(PREFIX) && n.ends_with(SUFFIX));
            if ours {
                std::fs::remove_file(entry.path()).map_err(fail)?;
            }
        }
        Ok(())
    }

    pub fn holds(&self, slot: SlotId) -> bool {
        slot.0 < self.slots
    }
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes as usize
    }
    pub fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }
    /// How many slots from this one on lie in the same file.
    pub fn run_max(&self, slot: SlotId) -> u32 {
        self.per_file - slot.0 % self.per_file
    }

    /// The slot's place; none if its file was never made.
    pub fn place(&self, slot: SlotId, missing: Missing, disk: &dyn DiskIo) -> io::Result<Option<Place<'_>>> {
        let index = slot.0 / self.per_file;
        let offset = u64::from(slot.0 % self.per_file) * self.slot_bytes;
        let cell = &self.files[index as usize];
        if cell.get().is_none() {
            let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            if cell.get().is_none()
                && let Some(file) = self.open(index, missing, disk)?
            {
                let _ = cell.set(file);
            }
        }
        Ok(cell.get().map(|file| Place { file, offset, slot }))
    }

    fn open(&self, index: u32, missing: Missing, disk: &dyn DiskIo) -> io::Result<Option<File>> {
        let path = self.dir.join(format!("{PREFIX}{index:05}{SUFFIX}"));
        let file = match self.open_flags(&path, missing, libc::O_DIRECT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.direct.store(false, Ordering::Relaxed);
                self.open_flags(&path, missing, 0)
            }
            other => other,
        };
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::Leave => {
                return Ok(None);
            }
            other => other?,
        };
        let first = index * self.per_file;
        let bytes = u64::from(self.per_file.min(self.slots - first)) * self.slot_bytes;
        if missing == Missing::Create && file.metadata()?.len() < bytes {
            disk.allocate(&file, bytes)?;
        }
        Ok(Some(file))
    }

    fn open_flags(&self, path: &Path, missing: Missing, flags: i32) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(missing == Missing::Create).mode(0o600);
        options.custom_flags(flags | libc::O_NOFOLLOW).open(path)
    }
}
