//! The cached tokens of a conversation are those of its whole prompt, for any tokenizer and any order.

use std::sync::{Arc, LazyLock};

use base::Bytes;
use proptest::prelude::*;
use quire_text::{AddSpecials, ChatPrompt, Encoder, Prompter, Rendered, Text, Turn};
use serde_json::{Map, Value, json};

use crate::parity::loaded;
use crate::trained::{CORPUS, SPLITS, byte_level, floor_char, shapes};

static TEXTS: LazyLock<Vec<(String, Arc<Text>)>> = LazyLock::new(|| {
    let mut texts: Vec<_> =
        shapes().into_iter().map(|(name, json)| (name, Arc::new(loaded(&json)))).collect();
    let mut unknown = byte_level(SPLITS[2].1);
    unknown["normalizer"] = json!({"type": "Lowercase"});
    texts.push(("the reference".into(), Arc::new(loaded(&unknown))));
    assert!(matches!(texts.last().unwrap().1.encoder(), Encoder::Reference(_)));
    texts
});

/// Messages long enough to be kept, from a small stock, so that they come again.
fn message() -> impl Strategy<Value = String> {
    let stock = (0usize..6, 0usize..3).prop_map(|(at, size)| {
        let start = floor_char(&CORPUS, at * 700);
        CORPUS[start..floor_char(&CORPUS, start + [20, 300, 2000][size])].to_owned()
    });
    prop_oneof![6 => stock, 1 => Just("<|im_end|> \n <|im_start|>".to_owned()), 1 => "\\PC{0,300}"]
}

fn chatml(messages: &[String]) -> String {
    let one = |message: &String| format!("<|im_start|>user\n{message}<|im_end|>\n");
    messages.iter().map(one).collect::<String>() + "<|im_start|>assistant\n"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn cached_tokens_are_the_tokens(
        talks in prop::collection::vec(prop::collection::vec(message(), 0..5), 1..5),
        cache_bytes in prop_oneof![Just(0u64), 0u64..200_000, Just(1 << 24)],
        specials in prop_oneof![Just(AddSpecials::Yes), Just(AddSpecials::No)],
    ) {
        for (name, text) in TEXTS.iter() {
            let prompter = Prompter::from_text(Arc::clone(text), Bytes(cache_bytes));
            for talk in &talks {
                let prompt = chatml(talk);
                // With and without a control token in front.
                for prompt in [&prompt[..], prompt.trim_start_matches("<|im_start|>")] {
                    let rendered = Rendered { text: prompt.to_owned(), specials };
                    let want = text.encode(prompt, specials).unwrap();
                    prop_assert_eq!(prompter.tokens(&rendered).unwrap(), want, "{}", name);
                }
            }
        }
    }
}

#[test]
fn the_next_turn_tokenizes_only_what_is_new() {
    let text = Arc::new(loaded(&byte_level(SPLITS[2].1)));
    let prompter = Prompter::from_text(text, Bytes(1 << 20));
    let long = |at: usize| CORPUS[floor_char(&CORPUS, at)..].chars().take(1000).collect::<String>();
    let mut talk = vec![long(0), long(3000)];
    prompter.tokens(&Rendered::plain(chatml(&talk))).unwrap();
    let first = prompter.cache_stats();
    talk.push(long(9000));
    prompter.tokens(&Rendered::plain(chatml(&talk))).unwrap();
    let second = prompter.cache_stats();
    assert_eq!((first.hits, first.misses), (0, 2));
    assert_eq!((second.hits, second.misses, second.entries), (2, 3, 3));
}

#[test]
fn a_prompt_is_rendered_and_has_the_tokens_of_its_text() {
    let text = Arc::new(Text::synthetic(300).unwrap());
    let prompter = Prompter::from_text(Arc::clone(&text), Bytes(1 << 20));
    let (messages, none, kwargs) = (json!([{"role": "user", "content": "hi"}]), Value::Null, Map::new());
    let prompt = ChatPrompt {
        messages: &messages,
        tools: &none,
        documents: &none,
        kwargs: &kwargs,
        turn: Turn::Answer,
        unix_ms: 0,
    };
    let rendered = prompter.prompt_of(&prompt).unwrap();
    assert_eq!(rendered.text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let tokens = prompter.tokens(&rendered).unwrap();
    assert_eq!(tokens, text.encode(&rendered.text, AddSpecials::No).unwrap());
    assert_eq!((tokens.first(), tokens.len()), (Some(&257), 21));
}
