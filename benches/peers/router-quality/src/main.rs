//! Which replica gets a request, judged by NVIDIA's own simulator (`aisimulate-core`): its engine, its clock, its
//! report; only the placement is ours, Dynamo's default or round robin.
//!
//! ```text
//! router-quality --trace T.jsonl --workers 16 --speed 2 --pages 65536 [--weights '{…}'] POLICY…
//! ```
//!
//! A trace is JSON lines as Mooncake published them: `timestamp` in ms, lengths, `hash_ids` of 512-token blocks. A
//! policy is one of [`policy::Kind`]'s names. One line of JSON per policy comes out. What this cannot say: what a
//! real engine would take (its step times are a polynomial), and what tiers below the device bring (it has none).

mod dynamo;
mod holdings;
mod ours;
mod placement;
mod policy;

use std::path::PathBuf;

use aisimulate_core::engine::{Backend, EngineConfig};
use aisimulate_core::replay::loadgen::Trace;
use aisimulate_core::replay::{
    CURRENT_REPLAY_SPEC_VERSION, ReplayEngineConfig, ReplayEngineFactory, ReplayReport, ReplayRuntimeInput,
    ReplaySpec, ReplayTopology, Replayer,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};

use placement::Composition;
use policy::Kind;

/// Tokens of one of the engine's pages, and of a block of the traces.
pub const BLOCK_TOKENS: usize = 16;
const TRACE_BLOCK_TOKENS: usize = 512;

struct Options {
    trace: PathBuf,
    workers: usize,
    speed: f64,
    pages: usize,
    weights: Option<String>,
    policies: Vec<Kind>,
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        println!(
            "quire-router {} ({})",
            env!("CARGO_PKG_VERSION"),
            option_env!("QUIRE_COMMIT").unwrap_or("unknown")
        );
        return Ok(());
    }
    let options = options(std::env::args().skip(1))?;
    for kind in &options.policies {
        println!("{}", one(&options, *kind)?);
    }
    Ok(())
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut o = Options {
        trace: PathBuf::new(),
        workers: 16,
        speed: 1.0,
        pages: 16384,
        weights: None,
        policies: vec![],
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--trace" => o.trace = value()?.into(),
            "--workers" => o.workers = value()?.parse()?,
            "--speed" => o.speed = value()?.parse()?,
            "--pages" => o.pages = value()?.parse()?,
            "--weights" => o.weights = Some(value()?),
            name => o.policies.push(Kind::from_name(name).with_context(|| format!("no policy {name}"))?),
        }
    }
    Ok(o)
}

fn one(o: &Options, kind: Kind) -> Result<Value> {
    let trace = Trace::from_mooncake(&o.trace, TRACE_BLOCK_TOKENS)?.speed_up_timing(o.speed)?;
    let input = ReplayRuntimeInput::Workload(trace.into_trace_driver_with_block_size(BLOCK_TOKENS)?);
    let factory = ReplayEngineFactory::new();
    let report = match kind {
        Kind::PeerRoundRobin => Replayer::new(spec(o)?, factory)?.with_runtime_input(input).run()?,
        kind => {
            let weights = o.weights.as_deref().map(serde_json::from_str).transpose()?.unwrap_or_default();
            let ours = Composition { kind, weights, pages: o.pages };
            Replayer::with_composition(spec(o)?, factory, ours)?.with_runtime_input(input).run()?
        }
    };
    Ok(row(kind, &report)?)
}

fn spec(o: &Options) -> Result<ReplaySpec> {
    let rank = EngineConfig {
        block_size: BLOCK_TOKENS,
        num_gpu_blocks: o.pages,
        emit_kv_events: true,
        ..EngineConfig::for_backend(Backend::Vllm)
    };
    Ok(ReplaySpec {
        version: CURRENT_REPLAY_SPEC_VERSION,
        topology: ReplayTopology::aggregated(o.workers),
        engine: serde_json::to_value(ReplayEngineConfig { rank, ..Default::default() })?,
        adapters: Default::default(),
        max_sim_time_ms: None,
        max_in_flight: None,
        record_per_request: false,
        sla: Default::default(),
        requests: vec![],
    })
}

fn row(kind: Kind, report: &ReplayReport) -> Result<Value> {
    let all = serde_json::to_value(report)?;
    let names = [
        "mean_ttft_ms",
        "median_ttft_ms",
        "p95_ttft_ms",
        "p99_ttft_ms",
        "mean_itl_ms",
        "p99_itl_ms",
        "mean_e2e_latency_ms",
        "prefix_cache_reused_ratio",
    ];
    let mut row = json!({ "policy": kind.name() });
    for name in names {
        row[name] = find(&all, name).cloned().with_context(|| format!("the report has no {name}"))?;
    }
    Ok(row)
}

fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let map = value.as_object()?;
    map.get(name).or_else(|| map.values().find_map(|inner| find(inner, name)))
}
