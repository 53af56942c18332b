//! `quire config show` and `quire config check`: what a server would run with, and why.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use crate::args::{ServeArgs, command};
use crate::failure::Failure;
use crate::layers::{self, ResolveError, Setting};

const SHOW_EXAMPLES: &str = "\
Examples:
  quire config show
  quire config show --config quire.toml --port 9000 --json";

#[derive(Debug, clap::Subcommand)]
pub enum ConfigVerb {
    /// Print each setting of `serve` with its value and where that came from
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Box<ShowArgs>),
    /// Check a configuration file without starting anything
    Check(CheckArgs),
}

#[derive(Clone, Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Print JSON
    #[arg(long, help_heading = "Options")]
    pub json: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// The TOML file
    pub file: PathBuf,
}

/// Runs one of them; `settings` are those of the command line as it was resolved.
pub fn run(verb: &ConfigVerb, settings: &[Setting]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let text = match verb {
        ConfigVerb::Show(args) if args.json => show_json(settings),
        ConfigVerb::Show(_) => show(settings),
        ConfigVerb::Check(args) => check(args)?,
    };
    Ok(out.write_all(text.as_bytes())?)
}

fn show(settings: &[Setting]) -> String {
    let shown = |s: &Setting| s.value.clone().unwrap_or_else(|| "(decided at start)".into());
    let width = |of: &dyn Fn(&Setting) -> usize| settings.iter().map(of).max().unwrap_or(0);
    let (keys, values) = (width(&|s| s.key.len()), width(&|s| shown(s).len()));
    settings.iter().map(|s| format!("{:keys$}  {:values$}  {}\n", s.key, shown(s), s.source)).collect()
}

fn show_json(settings: &[Setting]) -> String {
    let entries: serde_json::Map<_, _> = settings
        .iter()
        .map(|s| (s.key.clone(), json!({"value": s.value, "source": s.source.to_string()})))
        .collect();
    format!("{:#}\n", serde_json::Value::Object(entries))
}

fn check(args: &CheckArgs) -> Result<String, Failure> {
    let set = layers::check(&command(), &args.file, &["quire", "serve"]).map_err(|e| match e {
        ResolveError::Failure(failure) => failure,
        ResolveError::Clap(error) => Failure::usage(error.to_string()),
    })?;
    Ok(format!("{}: ok, {} settings\n", args.file.display(), set.len()))
}
