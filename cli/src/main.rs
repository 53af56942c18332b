//! The binary `quire`: up, serve, route, replay, chat, bench, cache, purge, verify, doctor, config.
//!
//! `main` reads the command line and hands over; each command has its file. What a user may see — help,
//! settings, errors, exit codes — is held by golden files in `tests/`.

mod args;
mod backend;
mod bench;
mod cache;
mod chat;
mod config;
mod demo;
mod doctor;
mod failure;
mod flags;
mod http;
mod launch;
mod layers;
mod listen;
mod logging;
mod operator;
mod process;
mod progress;
mod purge;
mod receipt;
mod reference;
mod replay;
mod route;
mod serve;
mod size;
mod sse;
mod table;
mod verify;
mod version;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::FromArgMatches;

use crate::args::{Bench, Cli, Verb};
use crate::failure::Failure;
use crate::flags::LogFlags;
use crate::layers::{ResolveError, Setting};

fn main() -> ExitCode {
    let mut argv: Vec<OsString> = std::env::args_os().collect();
    if argv.len() == 1 {
        argv.push("up".into());
    }
    let resolved = match layers::resolve(&args::command(), &argv) {
        Ok(resolved) => resolved,
        Err(ResolveError::Clap(error)) => error.exit(),
        Err(ResolveError::Failure(failure)) => return end(failure),
    };
    let cli = match Cli::from_arg_matches(&resolved.matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(&cli.command, &resolved.settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(failure),
    }
}

fn run(verb: &Verb, settings: &[Setting]) -> Result<(), Failure> {
    match verb {
        Verb::Up(flags) => {
            logging::start(&flags.log);
            serve::run(None, flags)
        }
        Verb::Serve(args) => {
            logging::start(&args.engine.log);
            args.check()?;
            serve::run(args.model.as_deref(), &args.engine)
        }
        Verb::Route(flags) => {
            logging::start(&flags.log);
            route::run(flags)
        }
        Verb::Replay(args) => replay::run(args),
        Verb::Chat(args) => {
            logging::start(&LogFlags::quiet());
            chat::start(args)
        }
        Verb::Bench { what: Bench::Serve(args) } => {
            logging::start(&LogFlags::quiet());
            bench::run(args)
        }
        Verb::Cache(args) => {
            logging::start(&LogFlags::quiet());
            cache::run(args)
        }
        Verb::Purge(args) => {
            logging::start(&LogFlags::quiet());
            purge::run(args)
        }
        Verb::Verify(args) => verify::run(args),
        Verb::Doctor(args) => {
            logging::start(&LogFlags::quiet());
            doctor::run(args)
        }
        Verb::Config { what } => config::run(what, settings),
        Verb::Reference { page } => Ok(std::io::stdout().write_all(page.render().as_bytes())?),
    }
}

fn end(failure: Failure) -> ExitCode {
    eprintln!("{failure}");
    failure.code()
}
