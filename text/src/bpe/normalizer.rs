//! The normalizers of served BPE models: none, NFC, and the two steps that write spaces as `▁`.
//!
//! A text that is NFC already, as nearly all are, is not copied: characters below U+0300 and the ranges of
//! [`is_settled`] compose with nothing, and a text of them alone is left as it is.

use std::borrow::Cow;

use serde_json::Value;
use unicode_normalization_alignments::UnicodeNormalization;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nfc,
    /// Put before a text that is not empty.
    Prepend(String),
    Replace {
        from: String,
        to: String,
    },
}

/// All steps, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Normalizer(Vec<Step>);

impl Normalizer {
    /// Reads the `normalizer` of a `tokenizer.json`; the name of a step that is not known is the error.
    pub fn read(value: &Value) -> Result<Self, String> {
        let mut steps = Vec::new();
        read_into(value, &mut steps)?;
        Ok(Self(steps))
    }

    pub fn apply<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for step in &self.0 {
            if let Some(changed) = step.apply(&text) {
                text = Cow::Owned(changed);
            }
        }
        text
    }

    /// Whether no space is left in what comes out.
    pub fn removes_spaces(&self) -> bool {
        let removes =
            |step: &Step| matches!(step, Step::Replace { from, to } if from == " " && !to.contains(' '));
        let last = self.0.iter().rposition(removes);
        let adds = |step: &Step| match step {
            Step::Nfc => false,
            Step::Prepend(text) => text.contains(' '),
            Step::Replace { to, .. } => to.contains(' '),
        };
        last.is_some_and(|at| !self.0[at + 1..].iter().any(adds))
    }
}

fn read_into(value: &Value, steps: &mut Vec<Step>) -> Result<(), String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value["type"].as_str() {
        None if value.is_null() => {}
        Some("NFC") => steps.push(Step::Nfc),
        Some("Prepend") => steps.push(Step::Prepend(text(&value["prepend"]).unwrap_or_default())),
        Some("Replace") => match (text(&value["pattern"]["String"]), text(&value["content"])) {
            (Some(from), Some(to)) if !from.is_empty() => steps.push(Step::Replace { from, to }),
            _ => return Err("normalizer Replace with a regular expression".into()),
        },
        Some("Sequence") => {
            let list = value["normalizers"].as_array().map_or(&[][..], Vec::as_slice);
            list.iter().try_for_each(|step| read_into(step, steps))?;
        }
        other => return Err(format!("normalizer {}", other.unwrap_or("without a type"))),
    }
    Ok(())
}

impl Step {
    fn apply(&self, text: &str) -> Option<String> {
        match self {
            Self::Nfc if text.chars().all(is_settled) => None,
            Self::Nfc => Some(text.nfc().map(|(c, _)| c).collect()),
            Self::Prepend(_) if text.is_empty() => None,
            Self::Prepend(prefix) => Some(format!("{prefix}{text}")),
            Self::Replace { from, to } => {
                text.contains(from.as_str()).then(|| text.replace(from.as_str(), to))
            }
        }
    }
}

/// Neither changes under NFC nor takes part in a composition with another character of this kind.
#[inline]
fn is_settled(c: char) -> bool {
    matches!(c,
        '\0'..='\u{2FF}'
        | '\u{400}'..='\u{482}' // Cyrillic
        | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205E}' | '\u{20A0}'..='\u{20BF}' // punctuation, currency
        | '\u{2190}'..='\u{21FF}' | '\u{2500}'..='\u{27BF}' // arrows, boxes, symbols
        | '\u{3000}'..='\u{3029}' | '\u{3041}'..='\u{3096}' | '\u{30A0}'..='\u{30FF}' // Japanese
        | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' // ideographs
        | '\u{AC00}'..='\u{D7A3}' // Hangul syllables
        | '\u{FE0F}' | '\u{FF01}'..='\u{FF60}'
        | '\u{1F300}'..='\u{1FAFF}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::tokenizer::{NormalizedString, Normalizer as _};

    use super::*;

    fn theirs(text: &str) -> String {
        let mut normalized = NormalizedString::from(text);
        tokenizers::normalizers::unicode::NFC.normalize(&mut normalized).unwrap();
        normalized.get().to_owned()
    }

    fn nfc() -> Normalizer {
        Normalizer::read(&json!({"type": "NFC"})).unwrap()
    }

    #[test]
    fn settled_characters_stay_as_they_are_in_any_company() {
        let settled: Vec<char> = ('\0'..=char::MAX).filter(|c| is_settled(*c)).collect();
        assert_eq!(theirs(&settled.iter().collect::<String>()), settled.iter().collect::<String>());
        for &c in &settled {
            let text: String = ['a', c, c, 'e', '\u{AC00}', c].iter().collect();
            assert_eq!(text.nfc().map(|(c, _)| c).collect::<String>(), text, "{c:?}");
        }
    }

    proptest! {
        #[test]
        fn nfc_is_the_references(text in "([a-zé世가\u{300}\u{301}\u{327}\u{1100}\u{1161}\u{11a8}\u{2126}\u{212b}\u{f900}]|\\PC){0,20}") {
            prop_assert_eq!(nfc().apply(&text), theirs(&text));
        }
    }

    #[test]
    fn steps_apply_in_order_and_unknown_ones_are_named() {
        let prepend = json!({"type": "Prepend", "prepend": "_"});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "_"});
        let both = Normalizer::read(&json!({"type": "Sequence", "normalizers": [prepend, replace]})).unwrap();
        assert_eq!((both.apply("a b"), both.apply("")), ("_a_b".into(), "".into()));
        assert!(both.removes_spaces() && !nfc().removes_spaces());
        assert_eq!(Normalizer::read(&json!({"type": "Lowercase"})), Err("normalizer Lowercase".into()));
    }
}
