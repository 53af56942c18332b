//! Text on its way in and out: tokenizer, chat template, incremental detokenizer, stop strings.

mod text;

pub use text::{Text, TextError};
