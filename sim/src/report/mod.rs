//! What a replay says: a table for people, JSON for programs, a drawing for those who decide.

mod svg;
mod table;

use serde::Serialize;
use serde_json::{Value, json};

use crate::fleet::tally::{Slo, Tally};

/// One trace on one fleet, a row for each policy.
#[derive(Clone, Debug)]
pub struct Report {
    pub trace: String,
    pub calls: u64,
    pub prompt_tokens: u64,
    /// Share of prompt tokens that one unbounded cache would find.
    pub reusable: f64,
    pub replicas: usize,
    pub routers: usize,
    pub speed: f64,
    pub seed: u64,
    pub slo: Slo,
    pub rows: Vec<Row>,
}

/// One policy's run.
#[derive(Clone, Debug)]
pub struct Row {
    pub policy: String,
    /// Says which run it was: equal for equal runs only.
    pub hash: u64,
    pub tally: Tally,
}

/// A row's figures, as tables, JSON and drawings show them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Figures {
    pub hit_rate: f64,
    pub ttft_ms_mean: f64,
    pub ttft_ms_p50: f64,
    pub ttft_ms_p90: f64,
    pub ttft_ms_p99: f64,
    pub itl_ms_mean: f64,
    pub itl_ms_p50: f64,
    pub itl_ms_p99: f64,
    pub e2e_ms_mean: f64,
    /// Requests a second that met the objective.
    pub goodput_per_s: f64,
    /// Share of what was asked that met the objective.
    pub good_share: f64,
    /// The most token work of a replica over the least.
    pub imbalance: f64,
    pub refused: u64,
    pub failed: u64,
    pub idle_while_waiting_s: f64,
    pub preemptions: u64,
}

impl Row {
    pub fn figures(&self) -> Figures {
        let tally = &self.tally;
        Figures {
            hit_rate: tally.hit_rate(),
            ttft_ms_mean: tally.ttft.mean_ms(),
            ttft_ms_p50: tally.ttft.percentile_ms(50.0),
            ttft_ms_p90: tally.ttft.percentile_ms(90.0),
            ttft_ms_p99: tally.ttft.percentile_ms(99.0),
            itl_ms_mean: tally.itl.mean_ms(),
            itl_ms_p50: tally.itl.percentile_ms(50.0),
            itl_ms_p99: tally.itl.percentile_ms(99.0),
            e2e_ms_mean: tally.e2e.mean_ms(),
            goodput_per_s: tally.goodput(),
            good_share: tally.good as f64 / tally.asked.max(1) as f64,
            imbalance: tally.imbalance(),
            refused: tally.refused(),
            failed: tally.failed(),
            idle_while_waiting_s: tally.idle_while_waiting.as_secs_f64(),
            preemptions: tally.replicas.iter().map(|of| of.preemptions).sum(),
        }
    }
}

impl Report {
    /// For programs. Numbers are not rounded.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let work: Vec<u64> = row.tally.replicas.iter().map(|of| of.work()).collect();
            json!({
                "policy": row.policy,
                "run": format!("{:016x}", row.hash),
                "figures": row.figures(),
                "ends": row.tally.ends,
                "token_work": work,
            })
        });
        json!({
            "trace": self.trace,
            "calls": self.calls,
            "prompt_tokens": self.prompt_tokens,
            "reusable": self.reusable,
            "replicas": self.replicas,
            "routers": self.routers,
            "speed": self.speed,
            "seed": self.seed,
            "slo": { "ttft_ms": self.slo.ttft.as_secs_f64() * 1e3, "itl_ms": self.slo.itl.as_secs_f64() * 1e3 },
            "policies": rows.collect::<Vec<_>>(),
        })
    }

    /// What was played, in one line.
    pub fn headline(&self) -> String {
        let routers = if self.routers == 1 { String::new() } else { format!(", {} routers", self.routers) };
        format!(
            "{}: {} requests, {:.1} M prompt tokens, at most {:.1} % reusable; {} replicas{routers}, {}x speed, seed {}",
            self.trace,
            self.calls,
            self.prompt_tokens as f64 / 1e6,
            self.reusable * 100.0,
            self.replicas,
            self.speed,
            self.seed,
        )
    }
}
