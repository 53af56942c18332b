//! Cuts a piece of text (between added tokens) into words: the pre-tokenizer.

use std::borrow::Cow;

use crate::bpe::scanner::Pattern;

/// How a tokenizer cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Byte-level: at a pattern, or not at all; `digits` says whether each digit is cut out before.
    Pattern { lead: Lead, pattern: Option<Pattern>, digits: Marks },
    /// SentencePiece-like: at the marks that stand for spaces.
    Marks { lead: Lead, marks: Marks },
}

/// What happens to the start of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    AsIs,
    /// A space is put before a piece that has none.
    Space,
    /// Spaces become marks, and nothing is put before.
    Marked,
    /// Spaces become marks, and one is put before the first piece of a text.
    MarkFirst,
    /// Spaces become marks, and one is put before every piece.
    MarkAlways,
}

/// At which of the things that mark a boundary a cut is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    Nowhere,
    /// Before every mark (around every digit).
    Each,
    /// Before each run of marks.
    RunStart,
}

/// Where a piece stands in its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    First,
    Later,
}

const MARK: &str = "\u{2581}";

impl Cut {
    /// Calls `each` with the words of `piece` as ranges of the text that it also gets.
    pub fn words(&self, piece: &str, place: Place, mut each: impl FnMut(&[u8], usize, usize)) {
        match self {
            Self::Pattern { lead, pattern, digits: Marks::Nowhere } => {
                pattern_words(&led(piece, *lead, place), *pattern, &mut each);
            }
            Self::Pattern { lead, pattern, .. } => {
                for part in digits_apart(piece) {
                    pattern_words(&led(part, *lead, place), *pattern, &mut each);
                }
            }
            Self::Marks { lead, marks } => {
                let text = led(piece, *lead, place);
                let mut start = 0;
                while start < text.len() {
                    let end = next_mark(&text, start, *marks);
                    each(text.as_bytes(), start, end);
                    start = end;
                }
            }
        }
    }
}

#[inline]
fn pattern_words(text: &str, pattern: Option<Pattern>, each: &mut impl FnMut(&[u8], usize, usize)) {
    let bytes = text.as_bytes();
    let mut start = 0;
    while start < bytes.len() {
        let end = pattern.map_or(bytes.len(), |pattern| pattern.word_end(bytes, start));
        each(bytes, start, end);
        start = end;
    }
}

/// The piece with its start as `lead` wants it.
fn led(piece: &str, lead: Lead, place: Place) -> Cow<'_, str> {
    let marked = |piece: &str| piece.replace(' ', MARK);
    let with_mark = |text: String| if text.starts_with(MARK) { text } else { format!("{MARK}{text}") };
    match (lead, place) {
        (Lead::AsIs, _) => Cow::Borrowed(piece),
        (Lead::Space, _) if piece.starts_with(' ') => Cow::Borrowed(piece),
        (Lead::Space, _) => Cow::Owned(format!(" {piece}")),
        (Lead::Marked, _) | (Lead::MarkFirst, Place::Later) => Cow::Owned(marked(piece)),
        (Lead::MarkFirst, Place::First) | (Lead::MarkAlways, _) => Cow::Owned(with_mark(marked(piece))),
    }
}

/// The place after `start` where the next word begins, or the end.
fn next_mark(text: &str, start: usize, marks: Marks) -> usize {
    if marks == Marks::Nowhere {
        return text.len();
    }
    let bytes = text.as_bytes();
    let mut at = start;
    // The first character is this word's, mark or not.
    loop {
        at += if text[at..].starts_with(MARK) { MARK.len() } else { 1 };
        match bytes.get(at..).and_then(|rest| rest.windows(MARK.len()).position(|w| w == MARK.as_bytes())) {
            None => return text.len(),
            Some(more) if marks == Marks::RunStart && more == 0 && text[..at].ends_with(MARK) => {}
            Some(more) => return at + more,
        }
    }
}

/// Every numeric character by itself, and what is between them.
fn digits_apart(piece: &str) -> impl Iterator<Item = &str> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end = if first.is_numeric() {
            first.len_utf8()
        } else {
            rest.find(char::is_numeric).unwrap_or(rest.len())
        };
        let (part, more) = rest.split_at(end);
        rest = more;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(cut: Cut, piece: &str, place: Place) -> Vec<String> {
        let mut out = Vec::new();
        cut.words(piece, place, |text, start, end| {
            out.push(String::from_utf8(text[start..end].to_vec()).unwrap())
        });
        out
    }

    #[test]
    fn marks_cut_each_or_at_the_start_of_their_run() {
        let cut = |lead, marks| Cut::Marks { lead, marks };
        let text = "a  b c";
        assert_eq!(words(cut(Lead::MarkAlways, Marks::Each), text, Place::Later), ["▁a", "▁", "▁b", "▁c"]);
        assert_eq!(words(cut(Lead::Marked, Marks::RunStart), text, Place::First), ["a", "▁▁b", "▁c"]);
        assert_eq!(words(cut(Lead::MarkFirst, Marks::RunStart), " a", Place::First), ["▁a"]);
        assert_eq!(words(cut(Lead::MarkFirst, Marks::Nowhere), "a b", Place::First), ["▁a▁b"]);
        assert_eq!(words(cut(Lead::MarkFirst, Marks::Each), "é é▁", Place::Later), ["é", "▁é", "▁"]);
    }

    #[test]
    fn digits_stand_alone_and_each_part_is_led() {
        let cut = |lead| Cut::Pattern { lead, pattern: Some(Pattern::GPT2), digits: Marks::Each };
        assert_eq!(words(cut(Lead::AsIs), "ab 12c", Place::First), ["ab", " ", "1", "2", "c"]);
        assert_eq!(words(cut(Lead::Space), "a1", Place::First), [" a", " 1"]);
    }
}
