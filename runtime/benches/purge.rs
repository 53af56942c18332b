//! What a purge costs the others: one of a hundred namespaces is purged at half load.
//!
//! `cargo bench -p quire-runtime --bench purge -- [rounds] [seconds]`. A small model with random weights
//! on the real executor, host memory and a sealed disk tier below it. Windows with and without a purge
//! take turns; of every token of the ninety-nine others the gap to the one before it is kept (which is
//! the length of a step, as its client feels it), and of every request how much of its prompt was cached.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{Clock, NamespaceId, Nanos, Priority, SplitMix, SystemClock};
use kernels::SamplingParams;
use kernels::cpu::{CpuBackend, CpuOptions};
use kvcache::{EvictionKind, WritePolicy};
use quire_runtime::engine::Engine;
use quire_runtime::executor::model;
use quire_runtime::model::{Config, Dummy, LoadOptions, PoolSize, families, load_from};
use quire_runtime::purge::{Guarantee, PurgeOrder};
use quire_runtime::request::{Event, Request, Tenant};
use quire_runtime::scheduler::{PurgeRunning, SchedulerConfig};
use quire_runtime::storage::{Keys, NamespaceSpec, StorageConfig, TierRoom};
use transfer::NodeSigner;

const TENANTS: u64 = 100;
/// Conversations of each tenant, and their length in tokens.
const PROMPTS: u64 = 4;
const PROMPT_TOKENS: u32 = 256;
const ANSWER_TOKENS: u32 = 16;
const VOCAB: u32 = 2048;

const MODEL: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048,
    "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 1408, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": true}"#;

/// What a window saw of the tenants that were not purged.
#[derive(Default)]
struct Window {
    gaps_ns: Vec<u64>,
    cached: u64,
    asked: u64,
}

impl Window {
    fn p99_ms(&mut self) -> f64 {
        self.gaps_ns.sort_unstable();
        self.gaps_ns[(self.gaps_ns.len() - 1) * 99 / 100] as f64 / 1e6
    }

    fn hit_rate(&self) -> f64 {
        self.cached as f64 / self.asked as f64
    }
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let (rounds, seconds) = (numbers.next().unwrap_or(5), numbers.next().unwrap_or(6));
    let dir = tempfile::tempdir().expect("a folder");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let engine = engine(dir.path(), Arc::clone(&clock));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        warm(&engine).await;
        let rate = capacity(&engine, &*clock).await / 2.0;
        println!("half load: {rate:.0} requests/s of {PROMPT_TOKENS} in, {ANSWER_TOKENS} out");
        let length = Duration::from_secs(seconds);
        let (mut quiet, mut purged) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut without = window(&engine, &clock, rate, length, 2 * round, None).await;
            let victim = round % TENANTS;
            let mut with = window(&engine, &clock, rate, length, 2 * round + 1, Some(victim)).await;
            quiet.push((without.p99_ms(), without.hit_rate()));
            purged.push((with.p99_ms(), with.hit_rate()));
        }
        let median = |of: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = of.iter().map(pick).collect();
            values.sort_unstable_by(f64::total_cmp);
            values[values.len() / 2]
        };
        for (name, of) in [("without a purge", &quiet), ("with a purge", &purged)] {
            let (p99, hits) = (median(of, |v| v.0), median(of, |v| v.1));
            println!(
                "{name:<16} p99 between tokens {p99:.3} ms, hit rate {:.2} %, rounds {of:.3?}",
                hits * 100.0
            );
        }
        let (a, b) = (median(&quiet, |v| v.0), median(&purged, |v| v.0));
        let moved = (median(&purged, |v| v.1) - median(&quiet, |v| v.1)) * 100.0;
        println!("p99 moves by {:+.1} %, the hit rate by {moved:+.2} points", (b / a - 1.0) * 100.0);
    });
    engine.stop();
}

fn engine(dir: &Path, clock: Arc<dyn Clock>) -> Engine {
    let config = Config::parse(MODEL.as_bytes()).expect("a config");
    let description = families::describe(&config).expect("a supported model");
    let options = LoadOptions { pool: PoolSize::Pages(8192), step_tokens: 1024, ..LoadOptions::default() };
    let backend = CpuBackend::new(CpuOptions::default()).expect("a backend");
    let source = Dummy { seed: 1, kind: kernels::HostType::Bf16 };
    let loaded =
        load_from(&source, description, &options, Box::new(backend), &mut |_, _| {}).expect("a model");
    let page = loaded.kv.page_bytes() as u64;
    let room = |pages: u64| TierRoom { bytes: pages * page, write: WritePolicy::WriteThrough };
    let namespaces: Vec<NamespaceSpec> = (1..TENANTS)
        .map(|i| NamespaceSpec { name: format!("tenant-{i}"), ..NamespaceSpec::default() })
        .collect();
    let storage = StorageConfig {
        host: room(4096),
        nvme: Some((dir.join("nvme"), room(16_384))),
        eviction: EvictionKind::default(),
        namespaces,
        ..StorageConfig::device_only()
    };
    let keys = Keys::open(&storage.namespaces, None).expect("keys");
    let executor = Box::new(model::start(loaded, Arc::clone(&clock)).expect("an executor"));
    let config = SchedulerConfig::default();
    Engine::start_tiered(executor, config, &storage, keys, None, clock).expect("an engine").0
}

/// Every conversation of every tenant once.
async fn warm(engine: &Engine) {
    let mut rng = SplitMix::new(5);
    for tenant in 0..TENANTS {
        let of_tenant: Vec<_> = (0..PROMPTS)
            .map(|prompt| engine.submit(conversation(engine, tenant, prompt, &mut rng)).expect("admitted"))
            .collect();
        for mut one in of_tenant {
            while one.next().await.is_some() {}
        }
    }
}

/// Any conversation of any tenant.
fn request(engine: &Engine, rng: &mut SplitMix) -> Request {
    let (tenant, prompt) = (rng.below(TENANTS), rng.below(PROMPTS));
    conversation(engine, tenant, prompt, rng)
}

/// A conversation of a tenant, different at its end each time.
fn conversation(engine: &Engine, tenant: u64, prompt: u64, rng: &mut SplitMix) -> Request {
    let mut words = SplitMix::new(tenant * PROMPTS + prompt);
    let mut prompt: Vec<u32> = (0..PROMPT_TOKENS).map(|_| words.below(u64::from(VOCAB)) as u32).collect();
    prompt.extend((0..24).map(|_| rng.below(u64::from(VOCAB)) as u32));
    Request {
        id: engine.next_id(),
        tenant: Tenant { namespace: NamespaceId(tenant), ..Tenant::default() },
        prompt: prompt.into(),
        params: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
        max_tokens: ANSWER_TOKENS,
        prompt_logprobs: None,
        priority: Priority(0),
        deadline: None,
    }
}

/// Requests a second, eight at a time, after everything is warm.
async fn capacity(engine: &Engine, clock: &dyn Clock) -> f64 {
    let mut rng = SplitMix::new(9);
    let mut begun = Nanos(0);
    const WARM: usize = 100;
    const COUNT: usize = 400;
    for batch in 0..COUNT / 8 {
        if batch * 8 == WARM.next_multiple_of(8) {
            begun = clock.now();
        }
        let running: Vec<_> =
            (0..8).map(|_| engine.submit(request(engine, &mut rng)).expect("admitted")).collect();
        for mut one in running {
            while one.next().await.is_some() {}
        }
    }
    (COUNT - WARM.next_multiple_of(8)) as f64 / clock.now().since(begun).as_secs_f64()
}

/// Requests arrive by chance at `rate` for as long as the window is; in its middle `victim` is purged.
async fn window(
    engine: &Engine,
    clock: &Arc<dyn Clock>,
    rate: f64,
    length: Duration,
    seed: u64,
    victim: Option<u64>,
) -> Window {
    let purging = victim.map(|victim| tokio::spawn(purge(engine.clone(), victim, length / 4)));
    let mut rng = SplitMix::new(100 + seed);
    let begun = clock.now();
    let mut next = begun;
    let mut listening = Vec::new();
    let open = Arc::new(AtomicU64::new(0));
    while clock.now().since(begun) < length {
        let wait = -rng.unit().max(1e-9).ln() / rate;
        next = next.plus(Duration::from_secs_f64(wait));
        tokio::time::sleep(next.since(clock.now())).await;
        let request = request(engine, &mut rng);
        let is_victim = Some(request.tenant.namespace.0) == victim;
        let asked = request.prompt.len() as u64;
        let running = engine.submit(request).expect("admitted");
        open.fetch_add(1, Ordering::Relaxed);
        let clock = Arc::clone(clock);
        listening.push(tokio::spawn(async move { (is_victim, asked, listen(running, &*clock).await) }));
    }
    let mut window = Window::default();
    for one in listening {
        let (is_victim, asked, (gaps, cached)) = one.await.expect("a listener ends");
        if !is_victim {
            window.gaps_ns.extend(gaps);
            window.cached += cached;
            window.asked += asked;
        }
    }
    if let Some(purging) = purging {
        purging.await.expect("the purge ends");
    }
    window
}

async fn listen(mut running: quire_runtime::engine::Running, clock: &dyn Clock) -> (Vec<u64>, u64) {
    let (mut gaps, mut cached, mut last) = (Vec::new(), 0, None);
    while let Some(event) = running.next().await {
        match event {
            Event::Started { cached_tokens, .. } => cached = u64::from(cached_tokens),
            Event::Token(_) => {
                let now = clock.now();
                gaps.extend(last.map(|before| now.since(before).as_nanos() as u64));
                last = Some(now);
            }
            _ => {}
        }
    }
    (gaps, cached)
}

async fn purge(engine: Engine, victim: u64, after: Duration) {
    tokio::time::sleep(after).await;
    let namespace = if victim == 0 { "default".to_owned() } else { format!("tenant-{victim}") };
    let order = PurgeOrder { namespace, running: PurgeRunning::Wait, patience: Duration::from_secs(60) };
    let signer = NodeSigner::random().expect("a key");
    let signed = engine.purge(&order, &signer).await.expect("a report");
    assert_eq!(signed.report.guarantee, Guarantee::Erased, "{:#?}", signed.report);
}
