//! Records of the index as bytes.
//!
//! ```text
//! file    magic 8 | version u32 | layout 32 | crc u32, then records
//! record  length u32 | crc u32 | body;  crc over (offset in the file u64 | length | body)
//! body    kind u8 | fields, little-endian | sealed bytes to the end
//! ```
//!
//! The offset is part of the checksum, so a record is good at its own place only: blocks that a file
//! system shuffled in a crash end the journal there. Fixed fields and no serializer: replay reads
//! them in place.

use base::{ChainHash, Generation, NamespaceId, SlotId, Tier};

use super::crc::crc32c;
use crate::seal::{NONCE_BYTES, PageSeal, TAG_BYTES};

pub(crate) const MAGIC: [u8; 8] = *b"quireidx";
const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 48;
/// Length and checksum.
pub(crate) const FRAME_BYTES: usize = 8;
/// Longest body; tokens of the largest page and every adapter name fit.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

const TREE: u8 = 1;
const PAGE: u8 = 2;
const DROP: u8 = 3;
const DROP_NAMESPACE: u8 = 4;
const DROP_TREE: u8 = 5;
/// Of a page's body, what lies before its sealed tokens.
const PAGE_FIXED: usize = 1 + 5 + 8 + 1 + 5 + 32 + 32 + NONCE_BYTES + TAG_BYTES;
const TREE_FIXED: usize = 25;

/// A place of a page.
pub type At = (Tier, SlotId);

/// A record being looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Record<'a> {
    Tree { tree: u64, namespace: NamespaceId, generation: Generation, sealed: &'a [u8] },
    Page(PageRecord<'a>),
    Drop(At),
    DropNamespace { namespace: NamespaceId, up_to: Generation },
    DropTree { tree: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRecord<'a> {
    pub at: At,
    pub tree: u64,
    /// Where the parent lies and what it is called: another page in that slot is no parent.
    pub parent: Option<(At, ChainHash)>,
    pub name: ChainHash,
    pub seal: PageSeal,
    pub sealed: &'a [u8],
}

impl Record<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Tree { tree, namespace, generation, sealed } => {
                out.push(TREE);
                out.extend(tree.to_le_bytes());
                out.extend(namespace.0.to_le_bytes());
                out.extend(generation.0.to_le_bytes());
                out.extend(*sealed);
            }
            Record::Page(page) => {
                page.encode_fixed(out);
                out.extend(page.sealed);
            }
            Record::Drop(at) => {
                out.push(DROP);
                put_at(out, *at);
            }
            Record::DropNamespace { namespace, up_to } => {
                out.push(DROP_NAMESPACE);
                out.extend(namespace.0.to_le_bytes());
                out.extend(up_to.0.to_le_bytes());
            }
            Record::DropTree { tree } => {
                out.push(DROP_TREE);
                out.extend(tree.to_le_bytes());
            }
        }
    }
}

impl PageRecord<'_> {
    /// What the seal of the tokens covers beside them.
    pub fn label(&self, namespace: NamespaceId, generation: Generation) -> Vec<u8> {
        let mut out = Vec::with_capacity(PAGE_FIXED + 40);
        out.extend(b"quire.index.page.v1");
        out.extend(namespace.0.to_le_bytes());
        out.extend(generation.0.to_le_bytes());
        self.encode_fixed(&mut out);
        out
    }

    fn encode_fixed(&self, out: &mut Vec<u8>) {
        let none = ((Tier::Device, SlotId(0)), ChainHash([0; 32]));
        out.push(PAGE);
        put_at(out, self.at);
        out.extend(self.tree.to_le_bytes());
        out.push(u8::from(self.parent.is_some()));
        let (at, name) = self.parent.unwrap_or(none);
        put_at(out, at);
        out.extend(name.0);
        out.extend(self.name.0);
        out.extend(self.seal.nonce);
        out.extend(self.seal.tag);
    }
}

/// What the seal of a tree's key covers beside it.
pub(crate) fn tree_label(tree: u64, namespace: NamespaceId, generation: Generation) -> Vec<u8> {
    let mut out = b"quire.index.tree.v1".to_vec();
    out.extend(tree.to_le_bytes());
    out.extend(namespace.0.to_le_bytes());
    out.extend(generation.0.to_le_bytes());
    out
}

/// Reads a body; none if it is not one of ours.
pub(crate) fn decode(body: &[u8]) -> Option<Record<'_>> {
    let mut rest = body;
    let kind = take::<1>(&mut rest)?[0];
    let record = match kind {
        TREE if body.len() >= TREE_FIXED => {
            let tree = u64::from_le_bytes(take(&mut rest)?);
            let namespace = NamespaceId(u64::from_le_bytes(take(&mut rest)?));
            let generation = Generation(u64::from_le_bytes(take(&mut rest)?));
            return Some(Record::Tree { tree, namespace, generation, sealed: rest });
        }
        PAGE if body.len() >= PAGE_FIXED => return page(rest).map(Record::Page),
        DROP => Record::Drop(take_at(&mut rest)?),
        DROP_NAMESPACE => {
            let namespace = NamespaceId(u64::from_le_bytes(take(&mut rest)?));
            Record::DropNamespace { namespace, up_to: Generation(u64::from_le_bytes(take(&mut rest)?)) }
        }
        DROP_TREE => Record::DropTree { tree: u64::from_le_bytes(take(&mut rest)?) },
        _ => return None,
    };
    rest.is_empty().then_some(record)
}

fn page(mut rest: &[u8]) -> Option<PageRecord<'_>> {
    let at = take_at(&mut rest)?;
    let tree = u64::from_le_bytes(take(&mut rest)?);
    let has_parent = take::<1>(&mut rest)?[0] == 1;
    let parent = (take_at(&mut rest)?, ChainHash(take(&mut rest)?));
    let name = ChainHash(take(&mut rest)?);
    let seal = PageSeal { nonce: take(&mut rest)?, tag: take(&mut rest)? };
    Some(PageRecord { at, tree, parent: has_parent.then_some(parent), name, seal, sealed: rest })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn put_at(out: &mut Vec<u8>, (tier, slot): At) {
    out.push(tier.index() as u8);
    out.extend(slot.0.to_le_bytes());
}

fn take_at(rest: &mut &[u8]) -> Option<At> {
    let tier = *Tier::ALL.get(usize::from(take::<1>(rest)?[0]))?;
    Some((tier, SlotId(u32::from_le_bytes(take(rest)?))))
}

/// Puts length and checksum before the body that starts at `body` in `out`; the record lies at `offset`
/// of the file. The caller left [`FRAME_BYTES`] before the body.
pub(crate) fn seal_frame(out: &mut [u8], offset: u64) {
    let length = (out.len() - FRAME_BYTES) as u32;
    let crc = checksum(offset, length, &out[FRAME_BYTES..]);
    out[..4].copy_from_slice(&length.to_le_bytes());
    out[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The body of the record at `offset`; none where the journal ends.
pub(crate) fn frame_at(file: &[u8], offset: usize) -> Option<&[u8]> {
    let head = file.get(offset..offset + FRAME_BYTES)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?);
    let crc = u32::from_le_bytes(head[4..].try_into().ok()?);
    if length as usize > BODY_BYTES_MAX {
        return None;
    }
    let body = file.get(offset + FRAME_BYTES..offset + FRAME_BYTES + length as usize)?;
    (checksum(offset as u64, length, body) == crc).then_some(body)
}

fn checksum(offset: u64, length: u32, body: &[u8]) -> u32 {
    let mut head = [0; 12];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    head[8..].copy_from_slice(&length.to_le_bytes());
    crc32c(crc32c(0, &head), body)
}

pub(crate) fn header(layout: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..44].copy_from_slice(layout);
    let crc = crc32c(0, &out[..44]);
    out[44..].copy_from_slice(&crc.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record<'static>> {
        let seal = PageSeal { nonce: [3; 12], tag: [4; 16] };
        let page = PageRecord {
            at: (Tier::Nvme, SlotId(8)),
            tree: 5,
            parent: Some(((Tier::Object, SlotId(2)), ChainHash([1; 32]))),
            name: ChainHash([2; 32]),
            seal,
            sealed: b"tokens",
        };
        vec![
            Record::Tree { tree: 5, namespace: NamespaceId(6), generation: Generation(7), sealed: b"key" },
            Record::Page(page),
            Record::Page(PageRecord { parent: None, ..page }),
            Record::Drop((Tier::Nvme, SlotId(8))),
            Record::DropNamespace { namespace: NamespaceId(6), up_to: Generation(7) },
            Record::DropTree { tree: 5 },
        ]
    }

    #[test]
    fn records_read_as_written() {
        for record in records() {
            let mut body = Vec::new();
            record.encode(&mut body);
            assert_eq!(decode(&body), Some(record));
        }
    }

    #[test]
    fn any_flipped_bit_and_any_other_place_end_the_journal() {
        for record in records() {
            let mut frame = vec![0; FRAME_BYTES];
            record.encode(&mut frame);
            seal_frame(&mut frame, 0);
            assert!(frame_at(&frame, 0).is_some());
            for bit in 0..frame.len() * 8 {
                frame[bit / 8] ^= 1 << (bit % 8);
                assert!(frame_at(&frame, 0).is_none(), "{record:?} bit {bit}");
                frame[bit / 8] ^= 1 << (bit % 8);
            }
            let mut moved = vec![0; 16];
            moved.extend(&frame);
            assert!(frame_at(&moved, 16).is_none());
        }
    }
}
