//! Cuts text into the words inside which a byte-level BPE merges, without a regular expression.
//!
//! The tokenizers in use share a handful of patterns that differ in few places: what may precede
//! letters, whether case matters, how many digits stay together, what may follow punctuation. [`Pattern`]
//! names those places; [`Pattern::word_end`] walks the alternatives of the regular expression in their
//! order, with the few steps back that a backtracking matcher would take written out. A pattern that is
//! not in the list is not approximated: [`Pattern::known`] answers `None`.
//!
//! Limit: where a word is so long that the reference's matcher gives up (about a million characters), we
//! go on and it does not.

use crate::bpe::classes::{
    CLASSES, Classes, LETTER, LOWER, MARK, NEWLINE, NUMBER, OTHER, UNCASED, UPPER, WHITE,
};

/// The pattern of GPT-2, which the ByteLevel pre-tokenizer has built in.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3 and what follows its vocabulary.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2 and 3: digits one by one.
pub(crate) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Qwen 2, with combining marks inside words.
pub(crate) const MARKED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: words end where case rises.
pub(crate) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k, as in gpt-oss.
pub(crate) const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Where the known patterns differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    letters: Letters,
    suffix: Suffix,
    /// Digits that stay together; all of them in GPT-2's.
    digits_max: usize,
    /// What follows punctuation and belongs to it.
    tail: Tail,
}

/// How a run of letters begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Letters {
    /// ` ?\p{L}+`; numbers may have the space as well, and newlines are plain whitespace.
    Spaced,
    /// `[^\r\n\p{L}\p{N}]?\p{L}+`.
    Prefixed,
    /// As before, with marks among the letters.
    Marked,
    /// As `Prefixed`, and a capital after small letters begins a new word.
    Cased,
}

/// The English endings `'s 't 're 've 'm 'll 'd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suffix {
    /// Words of their own, in small letters.
    Small,
    /// Words of their own.
    Apart,
    /// Part of the word before.
    Joined,
    /// Not known.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    Nothing,
    Newlines,
    NewlinesAndSlashes,
}

impl Pattern {
    pub const GPT2: Self =
        Self { letters: Letters::Spaced, suffix: Suffix::Small, digits_max: usize::MAX, tail: Tail::Nothing };

    /// The pattern that `regex` spells.
    pub fn known(regex: &str) -> Option<Self> {
        let of = |letters, suffix, digits_max, tail| Some(Self { letters, suffix, digits_max, tail });
        match regex {
            GPT2 => Some(Self::GPT2),
            LLAMA3 => of(Letters::Prefixed, Suffix::Apart, 3, Tail::Newlines),
            QWEN2 => of(Letters::Prefixed, Suffix::Apart, 1, Tail::Newlines),
            MARKED => of(Letters::Marked, Suffix::Apart, 1, Tail::Newlines),
            TEKKEN => of(Letters::Cased, Suffix::None, 1, Tail::NewlinesAndSlashes),
            O200K => of(Letters::Cased, Suffix::Joined, 3, Tail::NewlinesAndSlashes),
            _ => None,
        }
    }

    /// Where the word that starts at `at` ends; always past `at`.
    #[inline]
    pub fn word_end(&self, text: &[u8], at: usize) -> usize {
        let classes = &*CLASSES;
        let lead = text[at];
        if lead == b'\''
            && matches!(self.suffix, Suffix::Small | Suffix::Apart)
            && let Some(end) = self.suffix_end(text, at)
        {
            return end;
        }
        let (class, length) = classes.at(text, at);
        if let Some(end) = self.letters_end(classes, text, at, (class, length)) {
            return end;
        }
        self.rest_end(classes, text, at, (class, length))
    }

    #[inline]
    fn letters_end(&self, classes: &Classes, text: &[u8], at: usize, first: (u8, usize)) -> Option<usize> {
        let (class, length) = first;
        let word = if self.letters == Letters::Marked { LETTER | MARK } else { LETTER };
        if self.letters == Letters::Cased {
            return self.cased_end(classes, text, at, first);
        }
        if class & word != 0 {
            return Some(run(classes, text, at + length, word));
        }
        let prefix = match self.letters {
            Letters::Spaced => text[at] == b' ',
            _ => class & (NEWLINE | NUMBER) == 0,
        };
        let next = at + length;
        if !prefix || next >= text.len() {
            return None;
        }
        let (class, length) = classes.at(text, next);
        (class & word != 0).then(|| run(classes, text, next + length, word))
    }

    /// Both alternatives of the patterns that look at case: each first with the character before the
    /// word, then without.
    fn cased_end(&self, classes: &Classes, text: &[u8], at: usize, first: (u8, usize)) -> Option<usize> {
        let (class, length) = first;
        let prefix = (class & (NEWLINE | LETTER | NUMBER) == 0).then_some(at + length);
        let starts = [prefix, Some(at)];
        let small = starts.iter().flatten().find_map(|start| small_end(classes, text, *start));
        let end =
            small.or_else(|| starts.iter().flatten().find_map(|start| large_end(classes, text, *start)))?;
        let joined = self.suffix == Suffix::Joined && text.get(end) == Some(&b'\'');
        Some(if joined { self.suffix_end(text, end).unwrap_or(end) } else { end })
    }

    /// Numbers, punctuation, whitespace: what is left when there is no letter.
    fn rest_end(&self, classes: &Classes, text: &[u8], at: usize, first: (u8, usize)) -> usize {
        let (class, length) = first;
        let marks = if self.letters == Letters::Marked { 0 } else { MARK };
        let punctuation = OTHER | marks;
        if class & NUMBER != 0 {
            return digits(classes, text, at + length, self.digits_max - 1);
        }
        if class & punctuation != 0 {
            return self.tail_end(text, run(classes, text, at + length, punctuation));
        }
        if text[at] == b' ' && at + 1 < text.len() {
            let (class, length) = classes.at(text, at + 1);
            if class & punctuation != 0 {
                return self.tail_end(text, run(classes, text, at + 1 + length, punctuation));
            }
            if class & NUMBER != 0 && self.letters == Letters::Spaced {
                return run(classes, text, at + 1 + length, NUMBER);
            }
        }
        self.white_end(classes, text, at)
    }

    fn tail_end(&self, text: &[u8], mut at: usize) -> usize {
        let belongs = |byte: u8| match self.tail {
            Tail::Nothing => false,
            Tail::Newlines => matches!(byte, b'\r' | b'\n'),
            Tail::NewlinesAndSlashes => matches!(byte, b'\r' | b'\n' | b'/'),
        };
        while at < text.len() && belongs(text[at]) {
            at += 1;
        }
        at
    }

    /// `\s*[\r\n]+`, then `\s+(?!\S)`, then `\s+`: up to the last newline; else all but the last
    /// character, which goes with the word that follows; else that one.
    fn white_end(&self, classes: &Classes, text: &[u8], at: usize) -> usize {
        let (mut end, mut last, mut newline) = (at, at, None);
        while end < text.len() {
            let (class, length) = classes.at(text, end);
            if class & WHITE == 0 {
                break;
            }
            last = end;
            end += length;
            if class & NEWLINE != 0 {
                newline = Some(end);
            }
        }
        match newline {
            Some(past) if self.letters != Letters::Spaced => past,
            _ if end == text.len() || last == at => end,
            _ => last,
        }
    }

    /// The end of `'s` and its like at `at`, which is an apostrophe.
    fn suffix_end(&self, text: &[u8], at: usize) -> Option<usize> {
        let letter = |n: usize| {
            let byte = text.get(at + n).copied().unwrap_or(0);
            if self.suffix == Suffix::Small { byte } else { byte.to_ascii_lowercase() }
        };
        match (letter(1), letter(2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
            // The long s is an s to a matcher that ignores case.
            (0xC5, 0xBF) if self.suffix != Suffix::Small => Some(at + 3),
            _ => None,
        }
    }
}

/// The end of the run of `wanted` characters from `at`.
#[inline(always)]
fn run(classes: &Classes, text: &[u8], mut at: usize, wanted: u8) -> usize {
    while at < text.len() {
        let (class, length) = classes.at(text, at);
        if class & wanted == 0 {
            break;
        }
        at += length;
    }
    at
}

fn digits(classes: &Classes, text: &[u8], mut at: usize, mut more: usize) -> usize {
    while at < text.len() && more > 0 {
        let (class, length) = classes.at(text, at);
        if class & NUMBER == 0 {
            break;
        }
        at += length;
        more -= 1;
    }
    at
}

const RISING: u8 = UPPER | UNCASED | MARK;
const FLAT: u8 = LOWER | UNCASED | MARK;

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`.
fn small_end(classes: &Classes, text: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut back) = (start, None);
    while at < text.len() {
        let (class, length) = classes.at(text, at);
        if class & RISING == 0 {
            break;
        }
        at += length;
        if class & FLAT != 0 {
            back = Some(at);
        }
    }
    let end = run(classes, text, at, FLAT);
    // Nothing small follows: the first part gives back up to its last character that may be small.
    if end > at { Some(end) } else { back }
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`.
fn large_end(classes: &Classes, text: &[u8], start: usize) -> Option<usize> {
    let end = run(classes, text, start, RISING);
    (end > start).then(|| run(classes, text, end, FLAT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::tokenizer::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    };

    use super::*;

    const ALL: [&str; 6] = [GPT2, LLAMA3, QWEN2, MARKED, TEKKEN, O200K];

    fn ours(regex: &str, text: &str) -> Vec<String> {
        let pattern = Pattern::known(regex).unwrap();
        let (mut at, mut words) = (0, Vec::new());
        while at < text.len() {
            let end = pattern.word_end(text.as_bytes(), at);
            words.push(text[at..end].to_owned());
            at = end;
        }
        words
    }

    fn theirs(split: &Split, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        split.pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, _, _)| word.to_owned()).collect()
    }

    fn splits() -> Vec<(&'static str, Split)> {
        let split = |regex: &'static str| {
            let pattern = SplitPattern::Regex(regex.into());
            (regex, Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap())
        };
        ALL.map(split).into()
    }

    /// What the alternatives tell apart, dense enough that every pair meets.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[ \t\r\n\u{a0}\u{3000}\u{85}]{1,3}",
            4 => "[aBcDé]{1,3}",
            3 => "['’][sStTreVELlmMdD\u{17f}]{1,3}",
            2 => "[0-9٣Ⅷ²]{1,5}",
            3 => "[-(/.!_\"€]{1,3}",
            2 => "[あ世ªʰ\u{301}\u{300}ǅßÉ]{1,3}",
            1 => "[\u{1F600}\u{200d}\u{fe0f}\u{0}\u{378}]{1,2}",
            1 => any::<char>().prop_map(String::from),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]
        #[test]
        fn words_are_those_of_the_regular_expressions(pieces in prop::collection::vec(piece(), 0..24)) {
            let text = pieces.concat();
            for (regex, split) in splits() {
                prop_assert_eq!(ours(regex, &text), theirs(&split, &text), "{}", regex);
            }
        }
    }

    #[test]
    fn an_unknown_pattern_is_not_approximated() {
        assert_eq!(Pattern::known(r"\w+|\s+"), None);
    }
}
