//! Text on its way in and out: tokenizer, chat template, incremental detokenizer, stop strings.
//!
//! ```text
//! messages ─ template ─▶ prompt ─ tokenizer ─▶ tokens ─▶ engine ─▶ tokens ─ detokenizer ─▶ stop ─▶ text
//! ```
//!
//! Loaded once per model; everything here is immutable and shared, per-sequence state lives in
//! [`Detokenizer`] and [`StopMatcher`].

mod assets;
mod detokenizer;
mod gguf;
mod hub;
mod stop;
mod strftime;
mod synthetic;
mod template;
#[expect(clippy::module_inception, reason = "the noun of the file is the noun of the module")]
mod text;
mod vocabulary;

pub use assets::{Asset, Assets};
pub use detokenizer::{Detokenizer, Specials};
pub use stop::{StopMatcher, StopText, Stopped};
pub use template::{ChatPrompt, Turn};
pub use text::{AddSpecials, GenerationDefaults, Text, TextError};
pub(crate) use vocabulary::Vocabulary;
