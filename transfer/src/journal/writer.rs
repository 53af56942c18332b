//! The one who writes the index: appends, and rewrites it when most of it no longer counts.
//!
//! Appends are plain writes: they survive kill -9 in the page cache. Only `flush` syncs, so that no
//! store waits for a disk's cache. What cannot be written is forgotten and counted; the page is then
//! computed again after a restart, never found wrongly, since a stale record's seal does not open what
//! lies in its slot now.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Entry;
use super::live::{Live, Span};
use super::record::{
    BODY_BYTES_MAX, FRAME_BYTES, HEADER_BYTES, PageRecord, Record, header, seal_frame, tree_label,
};
use super::recover::record_at;
use crate::keyring::KeyRing;

/// Below this size a file is not worth rewriting.
const COMPACT_BYTES_MIN: u64 = 1 << 20;
/// Trees that may be in the index.
const TREES_MAX: usize = 1 << 20;

pub(crate) struct Writer {
    path: PathBuf,
    layout: [u8; 32],
    file: File,
    pub live: Live,
    keys: Arc<KeyRing>,
    /// Where the next record goes.
    end: u64,
    /// Records encoded and not yet written.
    pending: Vec<u8>,
    /// A rewrite is due whatever the size: a namespace was dropped.
    erase: bool,
    /// After a failed rewrite, the size at which it is tried again.
    compact_at: u64,
    pub counts: Counts,
}

/// What the writer did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub written: u64,
    pub lost: u64,
    pub compactions: u64,
    pub failures: u64,
}

pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

impl Writer {
    /// Continues a file after `end`; what lies behind is cut off.
    pub fn resume(
        path: PathBuf,
        file: File,
        layout: [u8; 32],
        keys: Arc<KeyRing>,
        live: Live,
        end: u64,
    ) -> io::Result<Self> {
        file.set_len(end)?;
        let (pending, counts) = (Vec::new(), Counts::default());
        Ok(Self { path, layout, file, live, keys, end, pending, erase: false, compact_at: 0, counts })
    }

    /// Starts a file over.
    pub fn fresh(path: PathBuf, file: File, layout: [u8; 32], keys: Arc<KeyRing>) -> io::Result<Self> {
        file.set_len(0)?;
        file.write_all_at(&header(&layout), 0)?;
        Self::resume(path, file, layout, keys, Live::default(), HEADER_BYTES as u64)
    }

    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Encodes an entry; it is lost if it names a tree, a parent or a key that is not there.
    pub fn push(&mut self, entry: &Entry) {
        let done = match entry {
            Entry::Tree { tree, namespace, generation, key } => {
                let label = tree_label(*tree, *namespace, *generation);
                let sealed = self.keys.with(*namespace, *generation, |k| k.seal_vec(&label, key));
                sealed.and_then(Result::ok).filter(|_| self.live.trees.len() < TREES_MAX).map(|sealed| {
                    let (namespace, generation) = (*namespace, *generation);
                    self.add(&Record::Tree { tree: *tree, namespace, generation, sealed: &sealed })
                })
            }
            Entry::Page { .. } => self.push_page(entry),
            Entry::Drop { tier, slot } => Some(self.add(&Record::Drop((*tier, *slot)))),
            Entry::DropTree { tree } => Some(self.add(&Record::DropTree { tree: *tree })),
            Entry::DropNamespace { namespace, up_to } => {
                self.erase = true;
                Some(self.add(&Record::DropNamespace { namespace: *namespace, up_to: *up_to }))
            }
        };
        match done {
            Some(true) => self.counts.written += 1,
            _ => self.counts.lost += 1,
        }
    }

    fn push_page(&mut self, entry: &Entry) -> Option<bool> {
        let Entry::Page { tier, slot, tree, parent, name, seal, tokens } = entry else { return None };
        let at = (*tier, *slot);
        let parent = match parent {
            None => None,
            Some(above) => match self.live.page(*above, *tree) {
                Some(page) => Some((*above, page.name)),
                None => return self.forget(at),
            },
        };
        let Some(owner) = self.live.trees.get(tree).copied() else { return self.forget(at) };
        let mut page = PageRecord { at, tree: *tree, parent, name: *name, seal: *seal, sealed: &[] };
        let label = page.label(owner.namespace, owner.generation);
        let plain: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let sealed = self.keys.with(owner.namespace, owner.generation, |k| k.seal_vec(&label, &plain));
        let Some(sealed) = sealed.and_then(Result::ok) else { return self.forget(at) };
        page.sealed = &sealed;
        Some(self.add(&Record::Page(page)))
    }

    /// The slot holds something that the index will not know: whatever it knew is no longer true.
    fn forget(&mut self, at: super::record::At) -> Option<bool> {
        self.add(&Record::Drop(at));
        None
    }

    fn add(&mut self, record: &Record<'_>) -> bool {
        let start = self.pending.len();
        self.pending.extend([0; FRAME_BYTES]);
        record.encode(&mut self.pending);
        let bytes = self.pending.len() - start;
        if bytes > BODY_BYTES_MAX {
            self.pending.truncate(start);
            return false;
        }
        let offset = self.end + start as u64;
        seal_frame(&mut self.pending[start..], offset);
        self.live.apply(record, Span { offset, bytes: bytes as u32 });
        true
    }

    /// Writes what was encoded; on failure it is as if it had never been.
    pub fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all_at(&self.pending, self.end);
        match written {
            Ok(()) => self.end += self.pending.len() as u64,
            Err(_) => {
                self.counts.failures += 1;
                self.live.cut(self.end);
                // If this fails too, the torn record ends the journal at the next start.
                let _ = self.file.set_len(self.end);
            }
        }
        self.pending.clear();
        written
    }

    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Rewrites the file if most of it no longer counts, or something in it must go.
    pub fn compact_if_due(&mut self) -> io::Result<()> {
        let live = self.live.bytes + HEADER_BYTES as u64;
        let due = self.end > (2 * live).max(COMPACT_BYTES_MIN).max(self.compact_at);
        if !(due || self.erase) {
            return Ok(());
        }
        let done = self.compact();
        match &done {
            Ok(()) => {
                self.erase = false;
                self.compact_at = 0;
                self.counts.compactions += 1;
            }
            Err(_) => {
                self.counts.failures += 1;
                self.compact_at = self.end * 2;
            }
        }
        done
    }

    pub fn compact(&mut self) -> io::Result<()> {
        // Pages of a tree that was replaced must not end up in its successor.
        self.live.sweep();
        let mut old = vec![0; self.end as usize];
        self.file.read_exact_at(&mut old, 0)?;
        let (bytes, live) = self.rewritten(&old);
        let aside = self.path.with_extension("new");
        let file = open_file(&aside)?;
        let written =
            file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0)).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = std::fs::remove_file(&aside);
            return Err(error);
        }
        std::fs::rename(&aside, &self.path)?;
        sync_dir(&self.path)?;
        self.file = file;
        self.end = bytes.len() as u64;
        self.live = live;
        Ok(())
    }

    fn rewritten(&self, old: &[u8]) -> (Vec<u8>, Live) {
        let mut spans: Vec<Span> = self.live.trees.values().map(|t| t.span).collect();
        spans.sort_unstable_by_key(|span| span.offset);
        let mut pages: Vec<Span> = self.live.pages.values().map(|p| p.span).collect();
        pages.sort_unstable_by_key(|span| span.offset);
        spans.extend(pages);
        let mut out = header(&self.layout).to_vec();
        let mut live = Live::default();
        for span in spans {
            let Some(record) = record_at(old, span) else { continue };
            let start = out.len();
            out.extend([0; FRAME_BYTES]);
            record.encode(&mut out);
            seal_frame(&mut out[start..], start as u64);
            live.apply(&record, Span { offset: start as u64, bytes: (out.len() - start) as u32 });
        }
        (out, live)
    }
}

/// Makes a rename in the directory of `path` last.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
