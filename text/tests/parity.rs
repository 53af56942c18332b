//! Our encoder gives the tokens of the `tokenizers` crate, for every shape of tokenizer it accepts.

use std::sync::LazyLock;

use proptest::prelude::*;
use quire_text::files::ModelFiles;
use quire_text::{AddSpecials, Encoder, Text};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::trained::{CONTROLS, CORPUS, SPLITS, byte_level, floor_char, shapes};

pub fn loaded(json: &Value) -> Text {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Text::load(&ModelFiles::Dir(dir.path().to_owned())).unwrap()
}

/// Name, ours, theirs.
static BOTH: LazyLock<Vec<(String, Text, Tokenizer)>> = LazyLock::new(|| {
    let both = |(name, json): (String, Value)| {
        let reference = serde_json::from_value(json.clone()).unwrap();
        (name, loaded(&json), reference)
    };
    shapes().into_iter().map(both).collect()
});

fn check(text: &str) {
    for (name, ours, theirs) in BOTH.iter() {
        for specials in [AddSpecials::Yes, AddSpecials::No] {
            let want = theirs.encode_fast(text, specials == AddSpecials::Yes).unwrap();
            assert_eq!(ours.encode(text, specials).unwrap(), want.get_ids(), "{name}: {text:?}");
        }
    }
}

#[test]
fn every_shape_is_encoded_by_our_own() {
    for (name, ours, _) in BOTH.iter() {
        assert_eq!(ours.encoder(), Encoder::Own, "{name}");
    }
}

/// Pieces of text as they come, and as nobody would write them.
fn piece() -> impl Strategy<Value = String> {
    let control = (0..CONTROLS.len()).prop_map(|at| CONTROLS[at].to_owned());
    let slice = (0..CORPUS.len(), 0usize..200).prop_map(|(at, length)| {
        let at = floor_char(&CORPUS, at);
        CORPUS[at..floor_char(&CORPUS, at + length)].to_owned()
    });
    // What is left of bytes that were no UTF-8.
    let broken = prop::collection::vec(any::<u8>(), 0..12)
        .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    prop_oneof![
        3 => control,
        4 => slice,
        1 => broken,
        2 => "[ \t\r\n\u{a0}\u{3000}]{1,40}",
        2 => "\\PC{0,12}",
        1 => "[\\p{Han}\\p{Hiragana}\\p{Hangul}]{0,30}",
        1 => "[\u{1F600}-\u{1F64F}\u{1F3FB}-\u{1F3FF}\u{200d}\u{fe0f}]{0,6}",
        1 => "[e\u{301}\u{300}\u{323}\u{327}a\u{1112}\u{1161}\u{11ab}\u{212b}]{0,8}",
        1 => "(['’](s|S|t|re|VE|ll|lL|\u{17f}|x)|[a-zA-Z]|\u{2581}){0,10}",
        1 => "[-+*/=<>!&|;:,.(){}#_\"'0-9]{0,20}",
        1 => "(ab|e|the){30,80}",
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn any_text_has_the_reference_tokens(pieces in prop::collection::vec(piece(), 0..12)) {
        check(&pieces.concat());
    }
}

#[test]
fn the_documentation_has_the_reference_tokens() {
    check(&CORPUS);
}

#[test]
fn long_runs_have_the_reference_tokens() {
    for run in ["a", "the ", " ", "\n", "\n ", "=", "世", "é", "'s", "1", "<|im", "\u{2581}"] {
        check(&run.repeat(700));
    }
}

/// What encodes where something is not as expected.
fn encoder_of(change: impl FnOnce(&mut Value)) -> Encoder {
    let mut json = byte_level(SPLITS[2].1);
    change(&mut json);
    loaded(&json).encoder()
}

#[test]
fn what_is_not_known_is_left_to_the_reference_by_name() {
    let refused = |change: fn(&mut Value)| match encoder_of(change) {
        Encoder::Reference(why) => why,
        Encoder::Own => "own".into(),
    };
    let why = [
        refused(|json| json["normalizer"] = json!({"type": "Lowercase"})),
        refused(|json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\w+")),
        refused(|json| json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("Removed")),
        refused(|json| json["pre_tokenizer"] = json!({"type": "Whitespace"})),
        refused(|json| json["model"]["dropout"] = json!(0.5)),
        refused(|json| json["model"]["end_of_word_suffix"] = json!("</w>")),
        refused(|json| json["added_tokens"][0]["single_word"] = json!(true)),
        refused(|json| {
            json["model"]["merges"] = json!([]);
            json["model"]["vocab"].as_object_mut().unwrap().shift_remove("Ġ");
        }),
    ];
    expect_test::expect![[r#"
        there is no fast encoder for this kind: normalizer Lowercase
        there is no fast encoder for this kind: the split at "\\w+"
        there is no fast encoder for this kind: the split at "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        there is no fast encoder for this kind: pre-tokenizer "Whitespace"
        there is no fast encoder for this kind: dropout
        there is no fast encoder for this kind: end_of_word_suffix
        there is no fast encoder for this kind: single_word tokens
        there is no fast encoder for this kind: no token for byte 0x20"#]]
    .assert_eq(&why.join("\n"));
}
