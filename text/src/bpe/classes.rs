//! What kind of character a code point is, as the patterns of pre-tokenizers tell them apart.
//!
//! One byte of flags per character, in a table of two levels: 4,352 pages of 256 characters of which few
//! differ, so the whole is about 60 KB and the part in use stays in cache. It is computed at first use from
//! the tables of `regex-syntax`, the very ones that the reference's regular expressions use: a newer
//! Unicode then moves both.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// `\p{Lu}`, `\p{Lt}`.
pub(crate) const UPPER: u8 = 1;
/// `\p{Ll}`.
pub(crate) const LOWER: u8 = 2;
/// `\p{Lm}`, `\p{Lo}`: letters without case.
pub(crate) const UNCASED: u8 = 4;
/// `\p{M}`.
pub(crate) const MARK: u8 = 8;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 16;
/// `\s` but for the next.
pub(crate) const SPACE: u8 = 32;
/// `\r` and `\n`.
pub(crate) const NEWLINE: u8 = 64;
/// Everything else: punctuation, symbols, controls, unassigned.
pub(crate) const OTHER: u8 = 128;

/// `\p{L}`.
pub(crate) const LETTER: u8 = UPPER | LOWER | UNCASED;
/// `\s`.
pub(crate) const WHITE: u8 = SPACE | NEWLINE;

const PAGE: usize = 256;
const CHARS: usize = 0x11_0000;

/// The table.
pub(crate) struct Classes {
    ascii: [u8; 128],
    /// Page of characters → its block.
    blocks_of: Vec<u16>,
    blocks: Vec<[u8; PAGE]>,
}

/// The only one.
pub(crate) static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

impl Classes {
    /// Class and length of the character at `at`, which must be the start of one.
    #[inline(always)]
    pub fn at(&self, text: &[u8], at: usize) -> (u8, usize) {
        let lead = text[at];
        if lead < 0x80 { (self.ascii[lead as usize & 0x7F], 1) } else { self.wide(text, at, lead) }
    }

    fn wide(&self, text: &[u8], at: usize, lead: u8) -> (u8, usize) {
        let tail = |n: usize| u32::from(text.get(at + n).copied().unwrap_or(0) & 0x3F);
        let lead = u32::from(lead);
        let (code, length) = match lead {
            0xF0.. => ((lead & 7) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
            0xE0.. => ((lead & 15) << 12 | tail(1) << 6 | tail(2), 3),
            _ => ((lead & 31) << 6 | tail(1), 2),
        };
        (self.of(code), length)
    }

    fn of(&self, code: u32) -> u8 {
        let block = self.blocks_of.get(code as usize / PAGE).copied().unwrap_or(0);
        self.blocks[block as usize][code as usize % PAGE]
    }

    fn build() -> Self {
        let mut flat = vec![OTHER; CHARS];
        let kinds = [
            (r"[\p{Lu}\p{Lt}]", UPPER),
            (r"\p{Ll}", LOWER),
            (r"[\p{Lm}\p{Lo}]", UNCASED),
            (r"\p{M}", MARK),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"[\r\n]", NEWLINE),
        ];
        for (pattern, class) in kinds {
            for (first, last) in ranges(pattern) {
                flat[first as usize..=last as usize].fill(class);
            }
        }
        let mut ascii = [0; 128];
        ascii.copy_from_slice(&flat[..128]);
        let (blocks_of, blocks) = folded(&flat);
        Self { ascii, blocks_of, blocks }
    }
}

/// Equal pages once.
fn folded(flat: &[u8]) -> (Vec<u16>, Vec<[u8; PAGE]>) {
    let mut seen: HashMap<&[u8], u16> = HashMap::new();
    let mut blocks = Vec::new();
    let blocks_of = flat.chunks_exact(PAGE).map(|page| {
        *seen.entry(page).or_insert_with(|| {
            let mut block = [0; PAGE];
            block.copy_from_slice(page);
            blocks.push(block);
            blocks.len() as u16 - 1
        })
    });
    (blocks_of.collect(), blocks)
}

/// The code points of a class, as ranges with both ends in.
fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    let parsed = regex_syntax::parse(pattern);
    match parsed.as_ref().map(|hir| hir.kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => {
            class.ranges().iter().map(|range| (u32::from(range.start()), u32::from(range.end()))).collect()
        }
        Ok(HirKind::Class(Class::Bytes(class))) => {
            class.ranges().iter().map(|range| (u32::from(range.start()), u32::from(range.end()))).collect()
        }
        // The patterns above are constants; the check at load would show a class that is missing.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_one_class_and_its_own_length() {
        for c in ('\0'..=char::MAX).step_by(7) {
            let mut buffer = [0; 4];
            let (class, length) = CLASSES.at(c.encode_utf8(&mut buffer).as_bytes(), 0);
            assert_eq!((class.count_ones(), length), (1, c.len_utf8()), "{c:?}");
            assert_eq!(class & WHITE != 0, c.is_whitespace(), "{c:?}");
        }
    }

    #[test]
    fn pages_are_shared() {
        assert!(CLASSES.blocks.len() < 300, "{}", CLASSES.blocks.len());
    }

    #[test]
    fn scripts_fall_into_their_classes() {
        let classes: Vec<u8> =
            "AaǅªあÉ\u{301}5Ⅷ \u{3000}\n-€😀\u{378}".chars().map(|c| CLASSES.of(u32::from(c))).collect();
        let want = [
            UPPER, LOWER, UPPER, UNCASED, UNCASED, UPPER, MARK, NUMBER, NUMBER, SPACE, SPACE, NEWLINE, OTHER,
            OTHER, OTHER, OTHER,
        ];
        assert_eq!(classes, want);
    }
}
