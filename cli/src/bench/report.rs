//! The result of a run: a table for people, JSON for scripts. Field names follow vLLM's bench where it
//! has them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::histogram::Summary;
use super::tally::Outcome;
use super::workload::Workload;
use super::{BenchArgs, Dataset};
use crate::failure::Failure;

/// As written to `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    pub model: String,
    pub seed: u64,
    pub dataset: String,
    pub requests: u64,
    pub concurrency: u32,
    pub request_rate: Option<f64>,
    pub input_len: u32,
    pub prefix_len: u32,
    pub output_len: u32,
    pub completed: u64,
    pub errors: BTreeMap<String, u64>,
    /// Requests of an open loop that waited in the generator because `--concurrency` were in flight.
    pub held_back: u64,
    pub duration_s: f64,
    pub request_throughput: f64,
    pub output_throughput: f64,
    pub total_token_throughput: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// Pieces of text that arrived (0 without streaming); fewer than tokens where several came at once.
    pub chunks: u64,
    pub prefix_hit_rate: f64,
    pub ttft_ms: Summary,
    pub itl_ms: Summary,
    pub tpot_ms: Summary,
    pub e2e_ms: Summary,
    /// Over every answer's text in the order of the requests: the same seed on the same model gives the
    /// same hash.
    pub result_hash: String,
    pub version: &'static str,
}

impl Report {
    pub fn new(args: &BenchArgs, workload: &Workload, outcome: &Outcome) -> Self {
        let seconds = outcome.took.as_secs_f64().max(1e-9);
        let per_second = |count: u64| count as f64 / seconds;
        let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        Self {
            model: workload.model.clone(),
            seed: args.seed,
            dataset: match args.dataset {
                Dataset::Random => "random",
                Dataset::SharegptLike => "sharegpt-like",
                Dataset::Prefix => "prefix",
            }
            .into(),
            requests: u64::from(args.requests),
            concurrency: args.concurrency,
            request_rate: args.rate,
            input_len: args.input_len,
            prefix_len: workload.prefix_len,
            output_len: args.output_len,
            completed: outcome.succeeded,
            errors: outcome.errors.clone(),
            held_back: outcome.held_back,
            duration_s: outcome.took.as_secs_f64(),
            request_throughput: per_second(outcome.succeeded),
            output_throughput: per_second(outcome.output_tokens),
            total_token_throughput: per_second(outcome.prompt_tokens + outcome.output_tokens),
            prompt_tokens: outcome.prompt_tokens,
            cached_tokens: outcome.cached_tokens,
            output_tokens: outcome.output_tokens,
            chunks: outcome.chunks,
            prefix_hit_rate: share(outcome.cached_tokens, outcome.prompt_tokens),
            ttft_ms: outcome.ttft.summary(),
            itl_ms: outcome.itl.summary(),
            tpot_ms: outcome.tpot.summary(),
            e2e_ms: outcome.e2e.summary(),
            result_hash: format!("{:016x}", outcome.hash),
            version: crate::version::SHORT,
        }
    }

    /// The table goes to standard output, unless the JSON does.
    pub fn print(&self, json: Option<&Path>) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        let mut out = std::io::stdout().lock();
        match json {
            Some(path) if path.as_os_str() == "-" => return Ok(out.write_all(text.as_bytes())?),
            Some(path) => std::fs::write(path, text)
                .map_err(|e| Failure::failed(format!("cannot write --json {}: {e}", path.display())))?,
            None => {}
        }
        Ok(out.write_all(self.table().as_bytes())?)
    }

    fn table(&self) -> String {
        let per_second = |count: u64| count as f64 / self.duration_s.max(1e-9);
        let mut table = format!(
            "{} of {} requests in {:.2} s, model {}, seed {}\n\n",
            self.completed, self.requests, self.duration_s, self.model, self.seed
        );
        for (kind, count) in &self.errors {
            table += &format!("{:<28}{count:>12}\n", format!("error: {kind}"));
        }
        if self.held_back > 0 {
            table += &format!("{:<28}{:>12}\n", "held back by --concurrency", self.held_back);
        }
        for (name, value) in [
            ("requests/s", self.request_throughput),
            ("output tokens/s", self.output_throughput),
            ("total tokens/s", self.total_token_throughput),
            ("chunks/s", per_second(self.chunks)),
            ("prefix hit rate, %", 100.0 * self.prefix_hit_rate),
        ] {
            table += &format!("{name:<28}{value:>12.2}\n");
        }
        table +=
            &format!("\n{:<16}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "ms", "mean", "p50", "p90", "p99", "max");
        for (name, s) in
            [("TTFT", &self.ttft_ms), ("ITL", &self.itl_ms), ("TPOT", &self.tpot_ms), ("E2E", &self.e2e_ms)]
        {
            table += &format!(
                "{name:<16}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}\n",
                s.mean, s.p50, s.p90, s.p99, s.max
            );
        }
        table + &format!("\nresult hash {}\n", self.result_hash)
    }
}
