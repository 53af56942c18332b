//! Our own encoder for the BPE tokenizers in use, token for token the reference's.
//!
//! ```text
//! text ─ added tokens ─▶ pieces ─ normalizer ─ added tokens ─▶ pieces ─ cut ─▶ words ─ cache, merges ─▶ tokens
//! ```
//!
//! The `tokenizers` crate keeps the origin of every byte, makes a string of every word and runs a regular
//! expression with look-ahead over all text; a router that must know the tokens of each prompt cannot
//! afford that. Here a word is a range of the text from scanner to token. What is given up is offsets,
//! which nobody asks for.
//!
//! Parity is held three times: each part against the reference's part, and the whole against the whole, by
//! property tests; and at load, on [`check::SAMPLES`], with the model's own tokenizer. A tokenizer of
//! another shape, or one that disagrees at load, is encoded by the reference.

mod added;
mod check;
mod classes;
mod cut;
mod frame;
mod merges;
mod normalizer;
mod scanner;
mod shape;
mod words;

use std::sync::{Mutex, PoisonError};

use base::TokenId;
use tokenizers::Tokenizer;

pub(crate) use added::Piece;
#[cfg(feature = "gguf")]
pub(crate) use scanner::{LLAMA3, QWEN2, TEKKEN};
pub(crate) use words::hash;

use added::Splitter;
use cut::{Cut, Place};
use frame::Frame;
use merges::{Bench, Merges};
use normalizer::Normalizer;
use shape::{Alphabet, Shape, WholeWords};
use words::{Recent, Whole};

/// Most sets of caches and buffers kept for reuse; more texts at once make theirs anew.
const SCRATCHES_MAX: usize = 32;

/// Why the reference encodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotOwn {
    #[error("there is no fast encoder for this kind: {0}")]
    Shape(shape::Refusal),
    #[error("it disagrees with the reference on {0:?}")]
    Disagrees(String),
}

/// The encoder; immutable but for its caches.
pub(crate) struct Bpe {
    raw: Splitter,
    normalized: Splitter,
    normalizer: Normalizer,
    cut: Cut,
    frame: Frame,
    alphabet: Alphabet,
    whole: Whole,
    merges: Merges,
    scratches: Mutex<Vec<Scratch>>,
}

/// What one text at a time works with.
struct Scratch {
    recent: Recent,
    bench: Bench,
}

impl std::fmt::Debug for Bpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bpe").field("cut", &self.cut).finish_non_exhaustive()
    }
}

impl Bpe {
    /// The encoder of `tokenizer`, if it has a known shape and passes the check.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self, NotOwn> {
        let json = serde_json::to_value(tokenizer)
            .map_err(|e| NotOwn::Shape(shape::Refusal(format!("content ({e})"))))?;
        let bpe = Self::new(Shape::read(&json).map_err(NotOwn::Shape)?);
        drop(json);
        match check::disagreement(&bpe, tokenizer) {
            None => Ok(bpe),
            Some(sample) => Err(NotOwn::Disagrees(sample)),
        }
    }

    fn new(shape: Shape) -> Self {
        let merges = Merges::new(&shape.merges);
        let whole = whole(&shape, &merges);
        Self {
            raw: Splitter::new(shape.raw),
            normalized: Splitter::new(shape.normalized),
            normalizer: shape.normalizer,
            cut: shape.cut,
            frame: shape.frame,
            alphabet: shape.alphabet,
            whole,
            merges,
            scratches: Mutex::new(Vec::new()),
        }
    }

    /// Tokens that belong before and after a text.
    pub fn frame(&self) -> (&[TokenId], &[TokenId]) {
        (&self.frame.before, &self.frame.after)
    }

    /// Appends the tokens of `text`, without the frame.
    pub fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut scratch = self.take();
        self.raw.split(text, |piece| match piece {
            Piece::Token(id) => out.push(id),
            Piece::Text(from, to) => self.piece(&text[from..to], place(from), &mut scratch, out),
        });
        self.give(scratch);
    }

    /// Calls `each` with the control tokens and the texts between them. Texts are encoded by themselves:
    /// joining what [`Bpe::encode_piece`] gives for each is what [`Bpe::encode`] gives for all.
    pub fn split(&self, text: &str, each: impl FnMut(Piece)) {
        self.raw.split(text, each);
    }

    /// Appends the tokens of the text that [`Bpe::split`] found at `from`.
    pub fn encode_piece(&self, piece: &str, from: usize, out: &mut Vec<TokenId>) {
        let mut scratch = self.take();
        self.piece(piece, place(from), &mut scratch, out);
        self.give(scratch);
    }

    /// Whether a piece has other tokens at the start of a text than elsewhere.
    pub fn place_matters(&self) -> bool {
        matches!(self.cut, Cut::Marks { lead: cut::Lead::MarkFirst, .. })
    }

    fn piece(&self, piece: &str, place: Place, scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        let text = self.normalizer.apply(piece);
        self.normalized.split(&text, |part| match part {
            Piece::Token(id) => out.push(id),
            Piece::Text(from, to) => {
                let place = if from == 0 { place } else { Place::Later };
                self.cut.words(&text[from..to], place, |text, start, end| {
                    self.word(text, start, end, scratch, out);
                });
            }
        });
    }

    #[inline]
    fn word(&self, text: &[u8], start: usize, end: usize, scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        let Some(key) = words::key(text, start, end) else {
            return self.unseen(&text[start..end], &mut scratch.bench, out);
        };
        if !scratch.recent.append(key, out) {
            let from = out.len();
            self.unseen(&text[start..end], &mut scratch.bench, out);
            scratch.recent.keep(key, &out[from..]);
        }
    }

    fn unseen(&self, word: &[u8], bench: &mut Bench, out: &mut Vec<TokenId>) {
        match self.whole.get(word) {
            Some(token) => out.push(token),
            None => {
                merge(&self.alphabet, &self.merges, word, bench);
                out.extend_from_slice(&bench.symbols);
            }
        }
    }

    fn take(&self) -> Scratch {
        let kept = self.scratches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Scratch { recent: Recent::new(), bench: Bench::default() })
    }

    fn give(&self, scratch: Scratch) {
        let mut kept = self.scratches.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < SCRATCHES_MAX {
            kept.push(scratch);
        }
    }
}

fn place(from: usize) -> Place {
    if from == 0 { Place::First } else { Place::Later }
}

/// Leaves the tokens of `word` in `bench.symbols`.
fn merge(alphabet: &Alphabet, merges: &Merges, word: &[u8], bench: &mut Bench) {
    bench.symbols.clear();
    match alphabet {
        Alphabet::Bytes(ids) => bench.symbols.extend(word.iter().map(|byte| ids[*byte as usize])),
        Alphabet::Chars { chars, bytes } => {
            // Words are cut between characters, so this is the text itself.
            for c in String::from_utf8_lossy(word).chars() {
                match chars.get(&c) {
                    Some(id) => bench.symbols.push(*id),
                    None => {
                        let mut buffer = [0; 4];
                        let encoded = c.encode_utf8(&mut buffer).bytes();
                        bench.symbols.extend(encoded.map(|byte| bytes[byte as usize]));
                    }
                }
            }
        }
    }
    merges.run(bench);
}

/// The words that come out as one token.
fn whole(shape: &Shape, merges: &Merges) -> Whole {
    let mut bench = Bench::default();
    let mut alone = |word: &[u8], token: TokenId| {
        merge(&shape.alphabet, merges, word, &mut bench);
        bench.symbols == [token]
    };
    let taken = |(word, token): &&(Vec<u8>, TokenId)| {
        !word.is_empty() && (shape.whole_words == WholeWords::Taken || alone(word, *token))
    };
    let words: Vec<_> = shape.words.iter().filter(taken).collect();
    Whole::new(words.into_iter().map(|(word, token)| (word.as_slice(), *token)))
}
