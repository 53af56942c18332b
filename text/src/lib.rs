//! Text on its way in and out: tokenizer, chat template, incremental detokenizer, stop strings.
//!
//! ```text
//! messages ─ template ─▶ prompt ─ tokenizer ─▶ tokens ─▶ engine ─▶ tokens ─ detokenizer ─▶ stop ─▶ text
//! ```
//!
//! Loaded once per model; everything here is immutable and shared, per-sequence state lives in
//! [`Detokenizer`] and [`StopMatcher`]. A crate of its own, since router and replica must make the same
//! tokens of the same request. GGUF metadata is read through the `gguf` feature only, so that who
//! routes to directories alone builds no tensor library.

pub mod files;

mod assets;
mod bpe;
mod detokenizer;
#[cfg(feature = "gguf")]
mod gguf;
mod hub;
mod prompter;
mod stop;
mod strftime;
mod synthetic;
mod template;
mod text;
mod token_cache;
mod vocabulary;

pub use assets::{Asset, Assets};
pub use detokenizer::{Detokenizer, Specials};
pub use prompter::{Prompter, Rendered};
pub use stop::{StopMatcher, StopText, Stopped};
pub use template::{ChatPrompt, Turn};
pub use text::{AddSpecials, Encoder, GenerationDefaults, Text, TextError};
pub use token_cache::{TokenCache, TokenCacheStats};
pub(crate) use vocabulary::Vocabulary;
