//! `quire bench serve`: a load generator that is cheaper than the server it measures.
//!
//! It runs on one thread, keeps one raw connection a request in flight, sends token ids (so lengths are
//! exact and nothing is tokenized), and scans the answer's bytes instead of parsing them. Closed loop
//! (`--concurrency`) or open loop with Poisson arrivals (`--rate`). Everything drawn comes from `--seed`;
//! the result carries a hash of every answer's text, so that a run that computed something else shows.

mod drive;
mod histogram;
mod report;
mod tally;
mod workload;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use base::{Clock, SystemClock};
use clap::ValueEnum;
use clap::builder::BoolishValueParser;

use crate::failure::Failure;
use crate::http::Endpoint;

pub const EXAMPLES: &str = "\
Examples:
  quire bench serve --requests 200 --concurrency 16
  quire bench serve --rate 20 --input-len 512 --output-len 128 --json run.json
  quire bench serve --dataset prefix --prefix-len 2000 --input-len 32 --output-len 16";

/// How lengths and prompts are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dataset {
    /// Every prompt of --input-len random tokens, every answer of --output-len
    Random,
    /// Lengths log-normal around --input-len and --output-len, as in chat logs
    SharegptLike,
    /// As random, after a shared prefix of --prefix-len (2000 if not given)
    Prefix,
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// The server
    #[arg(long, env = "QUIRE_URL", hide_env_values = true, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// Key of the server
    #[arg(long, value_name = "KEY", env = "QUIRE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Requests to send
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Load",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub requests: u32,
    /// Requests in flight at once (with --rate: at most)
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Load",
          value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub concurrency: u32,
    /// Requests a second, arriving at random times, instead of one after another
    #[arg(long, value_name = "R", help_heading = "Load", value_parser = positive)]
    pub rate: Option<f64>,
    /// Requests before the measurement that are not counted
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub warmup: u32,
    /// How prompts and lengths are drawn
    #[arg(long, value_enum, default_value = "random", help_heading = "Workload")]
    pub dataset: Dataset,
    /// Prompt tokens of a request, without the shared prefix
    #[arg(long, value_name = "TOKENS", default_value_t = 128, help_heading = "Workload",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub input_len: u32,
    /// Most tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 64, help_heading = "Workload",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub output_len: u32,
    /// Tokens that prompts share
    #[arg(long, value_name = "TOKENS", alias = "shared-prefix", help_heading = "Workload")]
    pub prefix_len: Option<u32>,
    /// Number of different shared prefixes
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Workload",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub prefix_groups: u32,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Workload")]
    pub seed: u64,
    /// Draw token ids below this [default: ids that the server's /tokenize gives]
    #[arg(long, value_name = "N", help_heading = "Workload", value_parser = clap::value_parser!(u32).range(2..))]
    pub vocab_size: Option<u32>,
    /// Generate --output-len tokens whatever the model says
    #[arg(long, help_heading = "Workload")]
    pub ignore_eos: bool,
    /// Sampling temperature
    #[arg(long, value_name = "T", default_value_t = 0.0, help_heading = "Workload")]
    pub temperature: f64,
    /// Stream the answers; without it there is no time to the first token
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true",
          default_missing_value = "true", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, help_heading = "Load")]
    pub stream: bool,
    /// Write the result as JSON to FILE (- for standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("must be a number above 0".into()),
    }
}

/// Runs the load and prints the result. Fails if no request succeeded.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    let endpoint = Endpoint::parse(&args.url, args.api_key.clone())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // One thread: beside the server, a second one would take time from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let (workload, outcome) = local.block_on(&runtime, async {
        let workload = Rc::new(workload::Workload::prepare(args, &endpoint).await?);
        let outcome = drive::drive(args, &endpoint, &workload, &clock).await?;
        Ok::<_, Failure>((workload, outcome))
    })?;
    let report = report::Report::new(args, &workload, &outcome);
    report.print(args.json.as_deref())?;
    match outcome.succeeded {
        0 => Err(Failure::failed("no request succeeded")),
        _ => Ok(()),
    }
}
