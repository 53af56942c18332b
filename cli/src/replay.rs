//! `quire replay`: what routing policies would have done with recorded traffic.
//!
//! The router's own decisions, index, book and admission over simulated replicas, in simulated time; one seed gives one
//! table, whatever the machine.

use std::io::Write;
use std::path::PathBuf;

use router::decide::Policy;
use sim::trace::{Generator, Talk, Trace};
use sim::{Replay, replay};

use crate::failure::Failure;
use crate::flags::PolicyName;
use crate::listen::plain;

pub const EXAMPLES: &str = "\
Examples:
  quire replay                                            generated conversations on 8 replicas
  quire replay --trace conversation.jsonl --replicas 16 --speed 2
  quire replay --policy kv-aware,round-robin --svg policies.svg
  quire replay --json | jq '.rows[] | {policy, ttft_ms}'

A trace is JSON lines as Mooncake published them (timestamp, input_length, output_length, hash_ids),
CSV as Azure published it, or JSON lines of recorded requests. Replicas are simulated after data
sheets (an 8B model on one H200): compare policies by it, do not size a fleet.";

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayArgs {
    /// Recorded traffic [default: generated conversations]
    #[arg(long, value_name = "FILE", help_heading = "Traffic")]
    pub trace: Option<PathBuf>,
    /// Requests to play at most, from the first
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..),
          help_heading = "Traffic")]
    pub requests: u32,
    /// How many times as fast as it was
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, help_heading = "Traffic")]
    pub speed: f64,
    /// Replicas of the fleet
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64),
          help_heading = "Fleet")]
    pub replicas: u16,
    /// Routers in front of it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=8),
          help_heading = "Fleet")]
    pub routers: u16,
    /// Policies to compare; several with commas
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "kv-aware,round-robin,least-loaded,random,prefix-hash",
        help_heading = "Fleet"
    )]
    pub policy: Vec<PolicyName>,
    /// The same seed gives the same table
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Fleet")]
    pub seed: u64,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Draw the table into this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub svg: Option<PathBuf>,
}

pub fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let trace = match &args.trace {
        None => Generator::new(args.seed, [Talk::chat(600, 6.0), Talk::agents(60, 0.6)]).trace(),
        Some(path) => Trace::read(path).map_err(|error| Failure::usage(error.to_string()))?,
    };
    let policies: Vec<Policy> = args.policy.iter().map(|name| name.meant()).collect();
    let asked = Replay {
        seed: args.seed,
        replicas: usize::from(args.replicas),
        routers: usize::from(args.routers),
        speed: args.speed,
        policies,
        ..Replay::default()
    };
    let report = replay(&asked, trace.truncated(args.requests as usize));
    let report = report.map_err(|error| Failure::usage(error.to_string()))?;
    if let Some(path) = &args.svg {
        std::fs::write(path, report.svg())
            .map_err(|error| Failure::failed(format!("--svg {}: {}", path.display(), plain(&error))))?;
    }
    let text = match args.json {
        true => format!("{:#}\n", report.json()),
        false => format!("{}\n", report.table()),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
