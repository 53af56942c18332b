//! The text side of the embedded demo model: what goes in comes out.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use quire_text::files::ModelFiles;
use quire_text::{AddSpecials, Detokenizer, Specials, Text};

fn demo() -> Arc<Text> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo");
    Arc::new(Text::load(&ModelFiles::open(&folder).unwrap()).unwrap())
}

proptest! {
    #[test]
    fn any_text_comes_back_token_by_token(text in "(\\PC|[ \\n]|page|lease|<\\|im_end\\|>){0,40}") {
        let demo = demo();
        let tokens = demo.encode(&text, AddSpecials::Yes).unwrap();
        let mut detokenizer = Detokenizer::new(Arc::clone(&demo), Specials::Show);
        let mut back = String::new();
        tokens.iter().for_each(|token| detokenizer.push(*token, &mut back));
        detokenizer.finish(&mut back);
        prop_assert_eq!(&back, &text);
        prop_assert_eq!(demo.decode(&tokens, Specials::Show), text);
    }
}

#[test]
fn the_demo_ends_its_answers_and_chats() {
    let demo = demo();
    assert!(demo.has_template());
    assert!(!demo.eos().is_empty() && demo.eos().iter().all(|id| demo.is_special(*id)));
}
