//! Reads a `tokenizer.json` into the parts that [`Bpe`](super::Bpe) encodes with, or says what stands in
//! the way.
//!
//! Everything that changes tokens is looked at; an entry that is not known here is a [`Refusal`], never
//! ignored. Two families are read: byte-level BPE (GPT-2, Llama 3, Qwen, Tekken, o200k, …) and
//! SentencePiece-like BPE with `▁` for spaces and a token for every byte. In both, no text is unknown.

use std::collections::HashMap;

use base::TokenId;
use serde_json::Value;

use crate::bpe::added::{Added, Strip};
use crate::bpe::cut::{Cut, Lead, Marks};
use crate::bpe::frame::Frame;
use crate::bpe::merges::Merge;
use crate::bpe::normalizer::Normalizer;
use crate::bpe::scanner::Pattern;
use crate::vocabulary::{byte_of_char, char_of_byte};

/// Why the reference has to encode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub String);

/// What a tokenizer is made of.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Cut out of the text as it is.
    pub raw: Vec<Added>,
    /// Cut out of the normalized text.
    pub normalized: Vec<Added>,
    pub normalizer: Normalizer,
    pub cut: Cut,
    pub frame: Frame,
    pub alphabet: Alphabet,
    /// Every word that merging could give, as it stands in the text, with its token.
    pub words: Vec<(Vec<u8>, TokenId)>,
    pub merges: Vec<Merge>,
    pub whole_words: WholeWords,
}

/// Whether a word that is a token is taken as it is, whatever merging gives (`ignore_merges`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WholeWords {
    Taken,
    Merged,
}

/// What the symbols of a word are before merging.
#[derive(Debug)]
pub(crate) enum Alphabet {
    /// One symbol for each byte.
    Bytes(Box<[TokenId; 256]>),
    /// One for each character that has a token, else one for each of its bytes.
    Chars { chars: HashMap<char, TokenId>, bytes: Box<[TokenId; 256]> },
}

type Vocab = HashMap<String, TokenId>;

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why.into()))
}

impl Shape {
    pub fn read(json: &Value) -> Result<Self, Refusal> {
        let model = &json["model"];
        plain_model(model)?;
        let vocab = vocab(model)?;
        let normalizer = Normalizer::read(&json["normalizer"]).map_err(Refusal)?;
        let merges = merges(model, &vocab)?;
        let whole_words = if model["ignore_merges"] == true { WholeWords::Taken } else { WholeWords::Merged };
        let cut = cut(&json["pre_tokenizer"], &normalizer, model, whole_words)?;
        let alphabet = alphabet(&cut, model, &vocab)?;
        let words = vocab.iter().filter_map(|(word, id)| Some((alphabet.spelled(word)?, *id))).collect();
        let (raw, normalized) = added(&json["added_tokens"], &normalizer)?;
        let frame = Frame::read(&json["post_processor"]).map_err(Refusal)?;
        Ok(Self { raw, normalized, normalizer, cut, frame, alphabet, words, merges, whole_words })
    }
}

impl Alphabet {
    /// The bytes of a text that would give the vocabulary's entry `word`; `None` if none would.
    fn spelled(&self, word: &str) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(_) => word.chars().map(byte_of_char).collect(),
            Self::Chars { .. } => Some(word.as_bytes().to_vec()),
        }
    }
}

/// Refuses what makes merging depend on more than pairs.
fn plain_model(model: &Value) -> Result<(), Refusal> {
    if model["type"] != "BPE" {
        return refuse(format!("model {}", model["type"]));
    }
    if model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0) {
        return refuse("dropout");
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().is_some_and(|text| !text.is_empty()) {
            return refuse(key);
        }
    }
    Ok(())
}

fn vocab(model: &Value) -> Result<Vocab, Refusal> {
    let Some(map) = model["vocab"].as_object() else { return refuse("no vocabulary") };
    let entry = |(word, id): (&String, &Value)| Some((word.clone(), TokenId::try_from(id.as_u64()?).ok()?));
    map.iter().map(entry).collect::<Option<Vocab>>().ok_or_else(|| Refusal("a token without an id".into()))
}

/// Merges as `["a", "b"]` or `"a b"`.
fn merges(model: &Value, vocab: &Vocab) -> Result<Vec<Merge>, Refusal> {
    let list = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let mut joined = String::new();
    let read = |entry: &Value| {
        let (left, right) = match entry {
            Value::String(both) => both.split_once(' ')?,
            pair => (pair[0].as_str()?, pair[1].as_str()?),
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        Some(Merge { left: *vocab.get(left)?, right: *vocab.get(right)?, into: *vocab.get(&joined)? })
    };
    list.iter().map(read).collect::<Option<_>>().ok_or_else(|| Refusal("a merge of unknown tokens".into()))
}

fn cut(pre: &Value, normalizer: &Normalizer, model: &Value, whole: WholeWords) -> Result<Cut, Refusal> {
    match pre["type"].as_str() {
        Some("Metaspace") => metaspace(pre, model, whole),
        // After the spaces are gone there is nothing to split at.
        Some("Split") if pre["pattern"]["String"] == " " && normalizer.removes_spaces() => {
            Ok(Cut::Marks { lead: Lead::AsIs, marks: whole_text_marks(model, whole)? })
        }
        None if pre.is_null() => Ok(Cut::Marks { lead: Lead::AsIs, marks: whole_text_marks(model, whole)? }),
        Some("Sequence") => sequence(pre["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice)),
        _ => sequence(std::slice::from_ref(pre)),
    }
}

/// `[Digits] ByteLevel` or `Split ByteLevel`.
fn sequence(steps: &[Value]) -> Result<Cut, Refusal> {
    let Some((last, before)) = steps.split_last() else { return refuse("an empty pre-tokenizer") };
    if last["type"] != "ByteLevel" {
        return refuse(format!("pre-tokenizer {}", last["type"]));
    }
    let lead = if last["add_prefix_space"] == true { Lead::Space } else { Lead::AsIs };
    let own = last["use_regex"] != false;
    match before {
        [] => Ok(Cut::Pattern { lead, pattern: own.then_some(Pattern::GPT2), digits: Marks::Nowhere }),
        [digits] if digits["type"] == "Digits" && digits["individual_digits"] == true => {
            Ok(Cut::Pattern { lead, pattern: own.then_some(Pattern::GPT2), digits: Marks::Each })
        }
        [split] if split["type"] == "Split" && !own && lead == Lead::AsIs => {
            let regex = split["pattern"]["Regex"].as_str().unwrap_or("");
            let plain = split["behavior"] == "Isolated" && split["invert"] != true;
            match Pattern::known(regex).filter(|_| plain) {
                Some(pattern) => Ok(Cut::Pattern { lead, pattern: Some(pattern), digits: Marks::Nowhere }),
                None => refuse(format!("the split at {regex:?}")),
            }
        }
        _ => refuse("a sequence of pre-tokenizers"),
    }
}

fn metaspace(pre: &Value, model: &Value, whole: WholeWords) -> Result<Cut, Refusal> {
    if pre["replacement"] != "\u{2581}" {
        return refuse("metaspace with another mark");
    }
    let lead = match pre["prepend_scheme"].as_str() {
        Some("never") => Lead::Marked,
        Some("first") => Lead::MarkFirst,
        Some("always") => Lead::MarkAlways,
        _ => return refuse("metaspace without a prepend_scheme"),
    };
    let marks = if pre["split"] == false { whole_text_marks(model, whole)? } else { Marks::Each };
    Ok(Cut::Marks { lead, marks })
}

/// Where a text that merges as a whole may be cut all the same: before a run of marks, if no merge
/// reaches over such a place.
fn whole_text_marks(model: &Value, whole: WholeWords) -> Result<Marks, Refusal> {
    if whole == WholeWords::Taken {
        return refuse("ignore_merges without a pre-tokenizer");
    }
    let list = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let reaches = |entry: &Value| {
        let (left, right) = match entry {
            Value::String(both) => both.split_once(' ').unwrap_or_default(),
            pair => (pair[0].as_str().unwrap_or(""), pair[1].as_str().unwrap_or("")),
        };
        right.starts_with('\u{2581}') && !left.ends_with('\u{2581}')
    };
    Ok(if list.iter().any(reaches) { Marks::Nowhere } else { Marks::RunStart })
}

fn alphabet(cut: &Cut, model: &Value, vocab: &Vocab) -> Result<Alphabet, Refusal> {
    let table = |name: &dyn Fn(u8) -> String| {
        let mut ids = Box::new([0; 256]);
        for byte in 0..=255u8 {
            match vocab.get(&name(byte)) {
                Some(id) => ids[byte as usize] = *id,
                None => return refuse(format!("no token for byte {byte:#04x}")),
            }
        }
        Ok(ids)
    };
    if matches!(cut, Cut::Pattern { .. }) {
        return Ok(Alphabet::Bytes(table(&|byte| char_of_byte(byte).to_string())?));
    }
    if model["byte_fallback"] != true {
        return refuse("no byte_fallback");
    }
    let only = |word: &String| word.chars().next().filter(|c| c.len_utf8() == word.len());
    let chars = vocab.iter().filter_map(|(word, id)| Some((only(word)?, *id))).collect();
    Ok(Alphabet::Chars { chars, bytes: table(&|byte| format!("<0x{byte:02X}>"))? })
}

type AddedTokens = (Vec<Added>, Vec<Added>);

fn added(list: &Value, normalizer: &Normalizer) -> Result<AddedTokens, Refusal> {
    let (mut raw, mut normalized) = (Vec::new(), Vec::new());
    for token in list.as_array().map_or(&[][..], Vec::as_slice) {
        let id = token["id"].as_u64().and_then(|id| TokenId::try_from(id).ok());
        let (Some(id), Some(content)) = (id, token["content"].as_str()) else {
            return refuse("an added token without id or content");
        };
        if token["single_word"] == true {
            return refuse("single_word tokens");
        }
        let strip = |key: &str| if token[key] == true { Strip::Take } else { Strip::Keep };
        let (left, right) = (strip("lstrip"), strip("rstrip"));
        if token["normalized"] == true {
            let content = normalizer.apply(content).into_owned();
            normalized.push(Added { id, content, left, right });
        } else {
            raw.push(Added { id, content: content.into(), left, right });
        }
    }
    Ok((raw, normalized))
}
