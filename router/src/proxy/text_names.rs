//! Names of a prompt's pieces for engines that tell nothing of their caches: hashes of its text.
//!
//! Such an engine is assumed to keep what was sent to it. To know a prompt again its bytes will do, so it is
//! neither templated nor tokenized: the raw JSON of tools, system, messages or prompt is cut into pieces of
//! [`PIECE_BYTES`] and each piece's name chains over all before it. The next turn of a conversation repeats
//! the bytes of the last up to the closing bracket, so its names begin alike.
//!
//! Limits: a client that writes the same messages with other white space is a stranger. The chain is not
//! cryptographic; two prompts that meet in 64 bits by chance cost a cache miss at the replica, never an answer.

/// About 32 tokens of English.
pub const PIECE_BYTES: usize = 128;
/// Bytes that one token is taken for.
pub const TOKEN_BYTES: u32 = 4;
/// Longest prompt that is named; past it the prefix is long enough to tell replicas apart.
const PIECES_MAX: usize = 16 << 10;

/// Appends the names of `parts`, all under `model`.
pub fn text_names<'a>(model: &str, parts: impl Iterator<Item = &'a str>, names: &mut Vec<u64>) {
    let mut chain = Chain { at: fold(SEED, model.as_bytes()), piece: [0; PIECE_BYTES], filled: 0 };
    for part in parts {
        // The bracket that closes a list of messages moves with every turn.
        let bytes = part.strip_suffix(']').unwrap_or(part).as_bytes();
        chain.take(bytes, names);
    }
}

const SEED: u64 = 0x9ae1_6a3b_2f90_404f;
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

struct Chain {
    at: u64,
    piece: [u8; PIECE_BYTES],
    filled: usize,
}

impl Chain {
    fn take(&mut self, mut bytes: &[u8], names: &mut Vec<u64>) {
        if self.filled > 0 {
            let room = (PIECE_BYTES - self.filled).min(bytes.len());
            self.piece[self.filled..self.filled + room].copy_from_slice(&bytes[..room]);
            self.filled += room;
            bytes = &bytes[room..];
            if self.filled < PIECE_BYTES {
                return;
            }
            self.filled = 0;
            let piece = self.piece;
            self.close(&piece, names);
        }
        let mut pieces = bytes.chunks_exact(PIECE_BYTES);
        for piece in pieces.by_ref() {
            self.close(piece, names);
        }
        let rest = pieces.remainder();
        self.piece[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    fn close(&mut self, piece: &[u8], names: &mut Vec<u64>) {
        if names.len() < PIECES_MAX {
            self.at = fold(self.at, piece);
            names.push(self.at);
        }
    }
}

/// Folds `bytes` into `at`, eight at a time, by multiply and xor of the halves.
fn fold(at: u64, bytes: &[u8]) -> u64 {
    let mut at = at ^ bytes.len() as u64;
    let mut words = bytes.chunks_exact(8);
    for word in words.by_ref() {
        at = mix(at ^ u64::from_le_bytes(word.try_into().expect("eight bytes")));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    mix(at ^ u64::from_le_bytes(last))
}

fn mix(word: u64) -> u64 {
    let product = u128::from(word ^ SEED) * u128::from(MIX);
    (product as u64) ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(model: &str, parts: &[&str]) -> Vec<u64> {
        let mut names = Vec::new();
        text_names(model, parts.iter().copied(), &mut names);
        names
    }

    #[test]
    fn the_next_turn_begins_with_the_names_of_the_last() {
        let said = "x".repeat(700);
        let first = names("m", &[&format!(r#"[{{"role":"user","content":"{said}"}}]"#)]);
        let second =
            names("m", &[&format!(r#"[{{"role":"user","content":"{said}"}},{{"role":"assistant"}}]"#)]);
        assert_eq!(first[..5], second[..5]);
        assert_ne!(names("n", &[&said])[0], names("m", &[&said])[0], "models share nothing");
    }

    proptest! {
        #[test]
        fn how_a_prompt_is_cut_into_parts_does_not_change_its_names(text in "[a-z]{0,900}", cut in 0usize..900) {
            let cut = cut.min(text.len());
            prop_assert_eq!(names("m", &[&text[..cut], &text[cut..]]), names("m", &[&text]));
        }

        #[test]
        fn a_byte_changes_its_piece_and_all_after(text in "[a-z]{512,900}", at in 0usize..512) {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            let (a, b) = (names("m", &[&text]), names("m", &[&changed]));
            for (index, (x, y)) in a.iter().zip(&b).enumerate() {
                prop_assert_eq!(x == y, index < at / PIECE_BYTES);
            }
        }
    }
}
