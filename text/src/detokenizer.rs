//! Tokens to text, one at a time, such that the pieces joined are the text of all of them together.
//!
//! A character may be spread over several tokens, so up to three bytes are held back until it is whole;
//! U+FFFD is written only when the bytes can no longer become a character, or at the end. Work per
//! token is in proportion to its own bytes. (The usual alternative, decoding a growing window twice per
//! token, costs two tokenizer calls and guesses from a trailing U+FFFD; it remains for exotic decoders.)
//!
//! Limit: in SentencePiece models a run of `<0x..>` tokens that is not UTF-8 as a whole is replaced as a
//! whole by the reference decoder; here its valid characters survive, since they were already sent.

use std::sync::Arc;

use base::TokenId;

use crate::vocabulary::{Kind, Lead, Style};
use crate::{Text, Vocabulary};

/// Whether control tokens show in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    Skip,
    Show,
}

/// Most tokens of one decode window.
const WINDOW_MAX: usize = 48;

/// The state of one sequence.
#[derive(Debug)]
pub struct Detokenizer {
    text: Arc<Text>,
    specials: Specials,
    /// The start of a character that is not whole yet.
    partial: Vec<u8>,
    /// Nothing was written yet, and a leading space is to go.
    strip: bool,
    /// Only for [`Style::Windowed`].
    window: Vec<TokenId>,
    /// Tokens of `window` whose text was written.
    written: usize,
}

impl Detokenizer {
    pub fn new(text: Arc<Text>, specials: Specials) -> Self {
        let strip = text.vocabulary().style == Style::Pieces { lead: Lead::Strip };
        Self { text, specials, partial: Vec::new(), strip, window: Vec::new(), written: 0 }
    }

    /// Appends to `out` what `token` completes.
    pub fn push(&mut self, token: TokenId, out: &mut String) {
        let text = Arc::clone(&self.text);
        let vocabulary = text.vocabulary();
        let kind = vocabulary.kind(token);
        let hidden = kind == Kind::Special && self.specials == Specials::Skip;
        if hidden || kind == Kind::Absent {
            return;
        }
        match vocabulary.style {
            Style::ByteLevel => self.push_bytes(vocabulary, token, kind, out),
            Style::Pieces { .. } => self.push_piece(vocabulary, token, kind, out),
            Style::Windowed => self.push_window(&text, token, out),
        }
    }

    /// Appends what was held back; an incomplete character shows as U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        let style = self.text.vocabulary().style;
        match style {
            Style::ByteLevel if !self.partial.is_empty() => out.push('\u{FFFD}'),
            Style::Pieces { .. } => self.flush_run(out),
            Style::Windowed => {
                let text = Arc::clone(&self.text);
                self.write_window(&text, Partial::Show, out);
            }
            Style::ByteLevel => {}
        }
        self.partial.clear();
    }

    fn push_bytes(&mut self, vocabulary: &Vocabulary, token: TokenId, kind: Kind, out: &mut String) {
        let bytes = vocabulary.bytes(token);
        if self.partial.is_empty()
            && kind != Kind::Bytes
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return;
        }
        self.partial.extend_from_slice(bytes);
        drain_lossy(&mut self.partial, Replace::Sequence, out);
    }

    fn push_piece(&mut self, vocabulary: &Vocabulary, token: TokenId, kind: Kind, out: &mut String) {
        let bytes = vocabulary.bytes(token);
        if kind == Kind::Bytes {
            self.partial.extend_from_slice(bytes);
            let from = out.len();
            drain_lossy(&mut self.partial, Replace::EachByte, out);
            self.strip_lead(from, out);
            return;
        }
        self.flush_run(out);
        let from = out.len();
        out.push_str(&String::from_utf8_lossy(bytes));
        self.strip_lead(from, out);
    }

    fn flush_run(&mut self, out: &mut String) {
        for _ in 0..self.partial.len() {
            out.push('\u{FFFD}');
            self.strip = false;
        }
        self.partial.clear();
    }

    fn strip_lead(&mut self, from: usize, out: &mut String) {
        if self.strip && out.len() > from {
            self.strip = false;
            if out.as_bytes()[from] == b' ' {
                out.remove(from);
            }
        }
    }

    fn push_window(&mut self, text: &Text, token: TokenId, out: &mut String) {
        self.window.push(token);
        let partial = if self.window.len() < WINDOW_MAX { Partial::Hold } else { Partial::Show };
        self.write_window(text, partial, out);
    }

    /// Writes what the window's unwritten tokens add to the text of its written ones.
    fn write_window(&mut self, text: &Text, partial: Partial, out: &mut String) {
        let before = text.decode_raw(&self.window[..self.written], self.specials);
        let after = text.decode_raw(&self.window, self.specials);
        let whole = partial == Partial::Show || !after.ends_with('\u{FFFD}');
        if !whole || after.len() <= before.len() {
            return;
        }
        out.push_str(after.get(before.len()..).unwrap_or(""));
        self.window.drain(..self.written);
        self.written = self.window.len();
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Partial {
    Hold,
    Show,
}

/// How many U+FFFD stand for invalid bytes.
#[derive(Clone, Copy, PartialEq)]
enum Replace {
    /// One for each maximal invalid sequence, as `String::from_utf8_lossy`.
    Sequence,
    EachByte,
}

/// Moves all whole characters of `bytes` to `out`; keeps an unfinished one.
fn drain_lossy(bytes: &mut Vec<u8>, replace: Replace, out: &mut String) {
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(text) => {
                out.push_str(text);
                bytes.clear();
                return;
            }
            Err(error) => {
                let valid = start + error.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&bytes[start..valid]));
                let Some(bad) = error.error_len() else {
                    bytes.drain(..valid);
                    return;
                };
                let marks = if replace == Replace::EachByte { bad } else { 1 };
                (0..marks).for_each(|_| out.push('\u{FFFD}'));
                start = valid + bad;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::assets::Assets;
    use crate::files::ModelFiles;
    use crate::text::{GenerationDefaults, Parts};
    use crate::vocabulary::char_of_byte;

    /// A tokenizer with the given decoder over `tokens`; the last one is special.
    fn text(tokens: &[String], decoder: Value) -> Arc<Text> {
        let vocab: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
        let last = tokens.len() - 1;
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": last, "content": tokens[last], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": false, "vocab": vocab, "merges": []},
        });
        let parts = Parts {
            tokenizer: serde_json::from_value(json).unwrap(),
            template: None,
            defaults: GenerationDefaults::default(),
            eos: vec![],
            bos: None,
            add_bos: None,
            vocab: None,
            assets: Assets::read(&ModelFiles::Embedded(&[])).unwrap(),
        };
        Arc::new(Text::check(parts).unwrap())
    }

    fn byte_level() -> Arc<Text> {
        let mut tokens: Vec<String> = (0..=255).map(|b| char_of_byte(b).to_string()).collect();
        let words = ["Ġthe", "世界", " ä", "\u{1F600}"];
        let spelled = |w: &str| w.bytes().map(char_of_byte).collect::<String>();
        tokens.extend(words.iter().map(|w| spelled(w)));
        tokens.push("<|end of text|>".into());
        text(
            &tokens,
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        )
    }

    fn sentencepiece() -> Arc<Text> {
        let mut tokens: Vec<String> = (0..=255).map(|b| format!("<0x{b:02X}>")).collect();
        tokens.extend(["\u{2581}", "\u{2581}the", "cat", "\u{2581}\u{2581}", "é", "<s>"].map(String::from));
        let steps = [
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
            json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        ];
        text(&tokens, json!({"type": "Sequence", "decoders": steps}))
    }

    fn metaspace() -> Arc<Text> {
        let tokens = ["\u{2581}the", "cat", "\u{2581}", "é", "<s>"].map(String::from);
        text(
            &tokens,
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true}),
        )
    }

    /// Joins the pieces; asserts that no piece shows a half character.
    fn streamed(text: &Arc<Text>, tokens: &[TokenId], specials: Specials) -> String {
        let mut detokenizer = Detokenizer::new(Arc::clone(text), specials);
        let mut out = String::new();
        tokens.iter().for_each(|token| detokenizer.push(*token, &mut out));
        detokenizer.finish(&mut out);
        out
    }

    fn specials() -> impl Strategy<Value = Specials> {
        prop_oneof![Just(Specials::Skip), Just(Specials::Show)]
    }

    proptest! {
        #[test]
        fn byte_level_pieces_join_to_the_full_decode(
            // Past the end (261, 262) are ids that do not exist.
            tokens in prop::collection::vec(prop_oneof![0u32..263, 0xC0u32..0x100, 0x80u32..0xC0], 0..24),
            specials in specials(),
        ) {
            let text = byte_level();
            prop_assert_eq!(streamed(&text, &tokens, specials), text.decode(&tokens, specials));
        }

        #[test]
        fn sentencepiece_pieces_join_to_the_full_decode(
            words in prop::collection::vec(prop_oneof![
                prop::collection::vec(256u32..262, 1..3),
                any::<char>().prop_map(|c| c.to_string().bytes().map(u32::from).collect()),
            ], 0..12),
            specials in specials(),
        ) {
            let text = sentencepiece();
            let tokens = words.concat();
            prop_assert_eq!(streamed(&text, &tokens, specials), text.decode(&tokens, specials));
        }

        #[test]
        fn windowed_pieces_join_to_the_full_decode(tokens in prop::collection::vec(0u32..5, 0..80)) {
            let text = metaspace();
            let want = text.decode(&tokens, Specials::Skip);
            prop_assert_eq!(streamed(&text, &tokens, Specials::Skip), want);
        }
    }

    #[test]
    fn half_a_character_is_held_until_it_is_whole_or_hopeless() {
        let text = byte_level();
        let mut detokenizer = Detokenizer::new(text, Specials::Skip);
        let mut steps = Vec::new();
        for byte in [0xE4u32, 0xB8, 0x96, 0xE4, 0xB8, u32::from(b'x'), 0xF0] {
            let mut out = String::new();
            detokenizer.push(byte, &mut out);
            steps.push(out);
        }
        let mut out = String::new();
        detokenizer.finish(&mut out);
        steps.push(out);
        assert_eq!(steps, ["", "", "世", "", "", "\u{FFFD}x", "", "\u{FFFD}"]);
    }
}
