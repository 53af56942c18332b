//! Every token's bytes in one table, made at load, so that a token becomes text without asking the
//! tokenizer.
//!
//! A tokenizer's decoder works on whole sequences and allocates a string per token. The two decoders
//! that nearly all served models use — byte-level BPE and SentencePiece with byte fallback — are a
//! concatenation of per-token bytes, and those are known at load. Any other decoder is
//! [`Style::Windowed`]: the detokenizer then decodes a short window with the tokenizer itself.

use base::TokenId;
use serde_json::Value;
use tokenizers::Tokenizer;

/// How a token's bytes join into text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Bytes concatenate; invalid UTF-8 becomes U+FFFD as `String::from_utf8_lossy` does.
    ByteLevel,
    /// Texts concatenate; runs of `<0x..>` tokens are bytes. The first space of a text may go.
    Pieces { lead: Lead },
    /// Only the tokenizer knows.
    Windowed,
}

/// What happens to one space at the very start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    Keep,
    Strip,
}

/// What a token is, beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No such token.
    Absent,
    /// Bytes that are valid UTF-8 by themselves.
    Text,
    /// Part of a character, or a `<0x..>` token.
    Bytes,
    /// A control token such as end of sequence; hidden unless asked for.
    Special,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub style: Style,
    bytes: Vec<u8>,
    /// `bytes[ends[i-1]..ends[i]]` is token `i`.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
}

impl Vocabulary {
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let style = style_of(tokenizer);
        let added = tokenizer.get_added_tokens_decoder();
        let highest = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id + 1);
        let mut table = Self {
            style,
            bytes: Vec::new(),
            ends: Vec::with_capacity(highest as usize),
            kinds: Vec::with_capacity(highest as usize),
        };
        for id in 0..highest {
            let special = added.get(&id).is_some_and(|token| token.special);
            table.push(tokenizer.id_to_token(id), special);
        }
        table
    }

    fn push(&mut self, token: Option<String>, special: bool) {
        let kind = match &token {
            None => Kind::Absent,
            Some(token) => {
                let start = self.bytes.len();
                let byte_run = append_bytes(self.style, token, &mut self.bytes);
                let whole = std::str::from_utf8(&self.bytes[start..]).is_ok();
                match (special, byte_run || !whole) {
                    (true, _) => Kind::Special,
                    (false, true) => Kind::Bytes,
                    (false, false) => Kind::Text,
                }
            }
        };
        self.ends.push(self.bytes.len() as u32);
        self.kinds.push(kind);
    }

    /// One more than the largest id.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    pub fn kind(&self, token: TokenId) -> Kind {
        self.kinds.get(token as usize).copied().unwrap_or(Kind::Absent)
    }

    /// The token's own bytes; empty for an id that does not exist.
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        let index = token as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// Appends what `token` stands for; says whether it is a `<0x..>` token.
fn append_bytes(style: Style, token: &str, out: &mut Vec<u8>) -> bool {
    match style {
        Style::ByteLevel => {
            let start = out.len();
            for c in token.chars() {
                match byte_of_char(c) {
                    Some(byte) => out.push(byte),
                    None => {
                        // Not written in the byte alphabet: an added token, taken literally.
                        out.truncate(start);
                        out.extend_from_slice(token.as_bytes());
                        return false;
                    }
                }
            }
            false
        }
        Style::Pieces { .. } | Style::Windowed => {
            if let Some(byte) = hex_byte(token) {
                out.push(byte);
                return true;
            }
            out.extend_from_slice(token.replace('\u{2581}', " ").as_bytes());
            false
        }
    }
}

/// `<0x41>` → `0x41`.
fn hex_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// The inverse of GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes are
/// moved in order to U+0100 and above.
pub(crate) fn byte_of_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Byte → its letter in GPT-2's alphabet.
pub(crate) fn char_of_byte(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
        0x00..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte) - 0x7F,
        0xAD => 0x143,
    };
    char::from_u32(code).unwrap_or('\u{FFFD}')
}

fn style_of(tokenizer: &Tokenizer) -> Style {
    let decoder = tokenizer.get_decoder().and_then(|d| serde_json::to_value(d).ok());
    let Some(decoder) = decoder else { return Style::Windowed };
    match decoder["type"].as_str() {
        Some("ByteLevel") => Style::ByteLevel,
        Some("Sequence") => {
            decoder["decoders"].as_array().and_then(|steps| pieces(steps)).unwrap_or(Style::Windowed)
        }
        _ => Style::Windowed,
    }
}

/// Recognizes Replace ▁, ByteFallback, Fuse and an optional Strip of one leading space.
fn pieces(steps: &[Value]) -> Option<Style> {
    let kinds: Vec<&str> = steps.iter().map(|s| s["type"].as_str().unwrap_or("")).collect();
    let replaces = steps[0]["pattern"]["String"] == "\u{2581}" && steps[0]["content"] == " ";
    match kinds.as_slice() {
        ["Replace", "ByteFallback", "Fuse"] if replaces => Some(Style::Pieces { lead: Lead::Keep }),
        ["Replace", "ByteFallback", "Fuse", "Strip"] if replaces => {
            let strip = &steps[3];
            let one = strip["content"] == " " && strip["start"] == 1 && strip["stop"] == 0;
            one.then_some(Style::Pieces { lead: Lead::Strip })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_is_its_own_inverse() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!(char_of_byte(b' '), 'Ġ');
        assert_eq!(byte_of_char('世'), None);
    }

    #[test]
    fn only_six_character_hex_tokens_are_bytes() {
        assert_eq!(hex_byte("<0x0A>"), Some(10));
        assert_eq!(hex_byte("<0xA>"), None);
        assert_eq!(hex_byte("<0xZZ>"), None);
    }
}
