//! The command line: one enum of commands, each with its own file.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use crate::failure::Failure;
use crate::flags::{Engine, EngineFlags, RouteFlags};
use crate::{bench, cache, chat, config, doctor, purge, reference, replay, route, verify, version};

const EXAMPLES: &str = "\
Examples:
  quire                               serve the built-in demo model on http://127.0.0.1:8000
  quire chat                          talk to it from a second terminal
  quire serve ./Qwen2.5-0.5B-Instruct serve a model folder (Hugging Face layout) or a .gguf file
  quire doctor                        what this machine offers, and what to change";

const UP_EXAMPLES: &str = "\
Examples:
  quire up
  quire up --port 9000 --log-level warn";

const SERVE_EXAMPLES: &str = "\
Examples:
  quire serve ./Llama-3.2-1B-Instruct
  quire serve ./Qwen2.5-0.5B --quantize q8 --max-model-len 8k --port 9000
  quire serve model.gguf --host 0.0.0.0 --api-key-file /run/secrets/quire-keys
  quire serve --config /etc/quire.toml

Shutdown: the first SIGTERM or SIGINT refuses new requests and lets running ones finish
(--shutdown-timeout); the second stops now.";

/// Serves large language models, and keeps what it computed.
#[derive(Debug, Parser)]
#[command(name = "quire", version = version::SHORT, long_version = version::LONG, after_help = EXAMPLES)]
#[command(max_term_width = 100, infer_subcommands = false)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve the built-in demo model (what `quire` alone does)
    #[command(after_help = UP_EXAMPLES)]
    Up(Box<EngineFlags>),
    /// Serve a model over the OpenAI API
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// One address in front of many replicas
    #[command(after_help = route::EXAMPLES)]
    Route(Box<RouteFlags>),
    /// Compare routing policies over recorded traffic, in simulation
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),
    /// Talk to a running server
    #[command(after_help = chat::EXAMPLES)]
    Chat(chat::ChatArgs),
    /// Measure a running server
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Show how a server's cache stands, tier by tier
    #[command(after_help = cache::EXAMPLES)]
    Cache(cache::CacheArgs),
    /// Forget a namespace on a server, and keep the signed report
    #[command(after_help = purge::EXAMPLES)]
    Purge(purge::PurgeArgs),
    /// Check a signed purge report, without a server
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArgs),
    /// Show what this machine offers, and what to change
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// Show or check the configuration
    Config {
        #[command(subcommand)]
        what: config::ConfigVerb,
    },
    /// Print a page of docs/reference
    #[command(hide = true)]
    Reference { page: reference::Page },
}

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Load a running server and report latency and throughput
    #[command(after_help = bench::EXAMPLES)]
    Serve(Box<bench::BenchArgs>),
}

#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Model folder in the Hugging Face layout, or a .gguf file
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineFlags,
}

impl ServeArgs {
    /// Says what to do if there is nothing to serve.
    pub fn check(&self) -> Result<(), Failure> {
        if self.model.is_some() || self.engine.model.executor == Engine::Sim {
            return Ok(());
        }
        Err(Failure::usage(
            "`quire serve` needs a MODEL: a folder in the Hugging Face layout, or a .gguf file",
        )
        .hint("`quire up` serves the built-in demo model"))
    }
}

/// The parser, for [`crate::layers`] and the reference pages.
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        command().debug_assert();
    }

    /// The file's keys, the environment and the flags are one list of names.
    #[test]
    fn every_setting_has_the_environment_name_of_its_flag() {
        let command = command();
        let of = |name: &str| command.find_subcommand(name).unwrap().get_arguments();
        for arg in of("serve").chain(of("route")) {
            let Some(long) = arg.get_long() else { continue };
            if ["help", "version", "no-enable-prefix-caching"].contains(&long) {
                continue;
            }
            let expected = format!("QUIRE_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|e| e.to_str()), Some(expected.as_str()), "--{long}");
        }
    }
}
