//! Every tier with real bytes: a tiny model, host memory, files on a disk, objects in a directory. What
//! comes back from a tier must give the same tokens and the same bits of logprobs as computing it; what
//! is purged must be nowhere; what a disk spoils must be a miss.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::{NamespaceId, Priority, SystemClock, Tier, TokenId};
use cusim::{Options, SimDriver};
use kernels::cuda::driver::Arch;
use kernels::cuda::{CudaBackend, CudaOptions, Determinism};
use kernels::{Backend, HostType, SamplingParams, WeightForm};
use kvcache::{EvictionKind, WritePolicy};
use quire_runtime::engine::{CacheReport, Engine};
use quire_runtime::executor::model as model_executor;
use quire_runtime::model::{KvChoice, LoadOptions, PoolSize, WeightChoice, load_from};
use quire_runtime::purge::{Guarantee, PurgeOrder, SignedReport};
use quire_runtime::request::{Event, Request, Tenant};
use quire_runtime::scheduler::{PrefetchPolicy, PurgeRunning, SchedulerConfig};
use quire_runtime::stats::EngineStats;
use quire_runtime::storage::{KeyStorePaths, Keys, NamespaceSpec, Retention, StorageConfig, TierRoom};
use tempfile::TempDir;
use transfer::NodeSigner;

use crate::tiny::{Case, cpu};

const PAGE: u32 = 16;
const CASE: &str = "llama-mha";

/// Room of each tier in pages; 0 = there is none.
#[derive(Clone, Copy)]
struct Rooms {
    device: u32,
    host: u32,
    nvme: u32,
    object: u32,
}

struct Replica {
    engine: Engine,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.engine.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, PartialEq, Clone, Default)]
struct Heard {
    tokens: Vec<TokenId>,
    logprobs: Vec<u32>,
    cached: u32,
}

fn specs() -> Vec<NamespaceSpec> {
    let named = |name: &str| NamespaceSpec { name: name.into(), ..NamespaceSpec::default() };
    vec![named("acme"), NamespaceSpec { retention: Retention::Nothing, ..named("ghost") }]
}

fn start(dir: &Path, rooms: Rooms, form: WeightForm, keys: KeysLive) -> Replica {
    start_on(cpu(), dir, rooms, form, keys)
}

fn start_on(
    backend: Box<dyn Backend>,
    dir: &Path,
    rooms: Rooms,
    form: WeightForm,
    keys: KeysLive,
) -> Replica {
    let case = Case::named(CASE);
    let options = LoadOptions {
        weights: WeightChoice::As(form),
        kv: KvChoice::Auto,
        positions_max: Some(rooms.device * PAGE),
        page_tokens: PAGE,
        pool: PoolSize::Pages(rooms.device),
        step_tokens: 256,
        ..LoadOptions::default()
    };
    let source = case.source(HostType::Bf16);
    let loaded =
        load_from(&source, case.describe(), &options, backend, &mut |_, _| {}).expect("a tiny model");
    let page_bytes = loaded.kv.page_bytes() as u64;
    let room =
        |pages: u32| TierRoom { bytes: u64::from(pages) * page_bytes, write: WritePolicy::WriteThrough };
    let cold = |name: &str, pages: u32| (pages > 0).then(|| (dir.join(name), room(pages)));
    let paths = KeyStorePaths { store: dir.join("keys.json"), node_key: dir.join("node.key") };
    let storage = StorageConfig {
        host: room(rooms.host),
        nvme: cold("nvme", rooms.nvme),
        object: cold("object", rooms.object),
        eviction: EvictionKind::Lru,
        key_store: (keys == KeysLive::OnDisk).then_some(paths),
        namespaces: specs(),
    };
    let clock = Arc::new(SystemClock::new());
    let executor = model_executor::start(loaded, clock.clone()).expect("an executor");
    let config = SchedulerConfig {
        prefetch: PrefetchPolicy::Wait,
        eviction: EvictionKind::Lru,
        ..SchedulerConfig::default()
    };
    let keys = Keys::open(&storage.namespaces, storage.key_store.as_ref()).expect("keys");
    let started = Engine::start_tiered(Box::new(executor), config, &storage, keys, None, clock);
    let (engine, thread) = started.expect("an engine");
    Replica { engine, thread: Some(thread) }
}

#[derive(Clone, Copy, PartialEq)]
enum KeysLive {
    InMemory,
    OnDisk,
}

fn prompt(from: u32, pages: u32) -> Vec<TokenId> {
    let vocab = Case::named(CASE).vocab() as u32;
    (0..pages * PAGE + 3).map(|i| (from * 37 + i * 11 + i * i) % vocab).collect()
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(work)
}

fn ask_as(replica: &Replica, tenant: Tenant, prompt: &[TokenId]) -> Heard {
    let heard = ask_at_once(replica, tenant, prompt);
    settle(replica);
    heard
}

/// The answer, whatever is still being copied.
fn ask_at_once(replica: &Replica, tenant: Tenant, prompt: &[TokenId]) -> Heard {
    let params = SamplingParams { temperature: 0.7, seed: 5, logprobs: Some(2), ..SamplingParams::default() };
    let request = Request {
        id: replica.engine.next_id(),
        tenant,
        prompt: prompt.into(),
        params: Arc::new(params),
        max_tokens: 6,
        prompt_logprobs: None,
        priority: Priority(0),
        deadline: None,
    };
    let mut running = replica.engine.submit(request).expect("a valid request");
    wait(async {
        let mut heard = Heard::default();
        while let Some(event) = running.next().await {
            match event {
                Event::Started { cached_tokens, .. } => heard.cached = cached_tokens,
                Event::Token(drawn) => {
                    heard.tokens.push(drawn.token);
                    heard.logprobs.push(drawn.logprob.expect("asked for").to_bits());
                }
                Event::Failed(refusal) => panic!("{refusal}"),
                Event::Prompt(_) | Event::Finished(_) => {}
            }
        }
        heard
    })
}

fn ask(replica: &Replica, prompt: &[TokenId]) -> Heard {
    ask_as(replica, Tenant::default(), prompt)
}

/// Until every copy has been answered.
fn settle(replica: &Replica) -> CacheReport {
    loop {
        let report = wait(replica.engine.inspect(vec![NamespaceId(0), NamespaceId(1)])).expect("it runs");
        if report.is_settled {
            return report;
        }
        std::thread::yield_now();
    }
}

/// The same but for where the prefix came from.
fn same(warm: &Heard, cold: &Heard) -> bool {
    warm.tokens == cold.tokens && warm.logprobs == cold.logprobs
}

/// Other prompts, until `first` has left the tiers above `tier`.
fn push_down(replica: &Replica, rooms: Rooms, tier: Tier) {
    let above = [rooms.device, rooms.host, rooms.nvme][..tier.index()].iter().max().copied().unwrap_or(0);
    for i in 0..=above / 6 {
        ask(replica, &prompt(100 + i, 6));
    }
}

fn loaded(replica: &Replica) -> u64 {
    settle(replica).counters.loaded_pages
}

#[test]
fn a_hit_in_any_tier_gives_the_bits_of_a_miss() {
    for form in [WeightForm::Bf16, WeightForm::Q8] {
        for (tier, rooms) in [
            (Tier::Host, Rooms { device: 16, host: 64, nvme: 0, object: 0 }),
            (Tier::Nvme, Rooms { device: 16, host: 18, nvme: 96, object: 0 }),
            (Tier::Object, Rooms { device: 16, host: 18, nvme: 20, object: 128 }),
        ] {
            let dir = TempDir::new().expect("a folder");
            let replica = start(dir.path(), rooms, form, KeysLive::InMemory);
            let cold = ask(&replica, &prompt(0, 6));
            assert_eq!(cold.cached, 0);
            push_down(&replica, rooms, tier);
            let before = loaded(&replica);
            let warm = ask(&replica, &prompt(0, 6));
            assert_eq!(warm.cached, 6 * PAGE, "{form:?} from {tier}");
            assert!(same(&warm, &cold), "{form:?} from {tier}: {warm:?} and {cold:?}");
            assert_eq!(loaded(&replica) > before, tier > Tier::Host, "it came from {tier}");
            assert!(EngineStats::get(&replica.engine.stats().host_hit_tokens) > 0);
        }
    }
}

/// As a GPU moves pages: beside the steps, and as late or as early as events allow.
#[test]
fn a_hit_gives_the_bits_of_a_miss_on_an_emulated_device_however_late_its_copies_run() {
    for (seed, tier, rooms) in [
        (0, Tier::Host, Rooms { device: 16, host: 64, nvme: 0, object: 0 }),
        (1, Tier::Host, Rooms { device: 16, host: 64, nvme: 0, object: 0 }),
        (5, Tier::Nvme, Rooms { device: 16, host: 18, nvme: 96, object: 0 }),
    ] {
        let dir = TempDir::new().expect("a folder");
        let driver = SimDriver::new(Arch(80), Options { seed, threads: 2 });
        let options = CudaOptions { determinism: Determinism::Strict, ..CudaOptions::default() };
        let backend = Box::new(CudaBackend::new(Box::new(driver), options));
        let replica = start_on(backend, dir.path(), rooms, WeightForm::Bf16, KeysLive::InMemory);
        let cold = ask(&replica, &prompt(0, 6));
        push_down(&replica, rooms, tier);
        let warm = ask(&replica, &prompt(0, 6));
        assert_eq!((cold.cached, warm.cached), (0, 6 * PAGE), "seed {seed} from {tier}");
        assert!(same(&warm, &cold), "seed {seed} from {tier}: {warm:?} and {cold:?}");
    }
}

#[test]
fn pages_of_the_same_keys_are_hits_after_a_restart() {
    let dir = TempDir::new().expect("a folder");
    let rooms = Rooms { device: 16, host: 24, nvme: 96, object: 0 };
    let cold = ask(&start(dir.path(), rooms, WeightForm::Bf16, KeysLive::OnDisk), &prompt(0, 6));
    let replica = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::OnDisk);
    let warm = ask(&replica, &prompt(0, 6));
    assert_eq!(warm.cached, 6 * PAGE);
    assert!(same(&warm, &cold));
    drop(replica);
    let other = ask(&start(dir.path(), rooms, WeightForm::Q8, KeysLive::OnDisk), &prompt(0, 6));
    assert_eq!(other.cached, 0, "pages of other weights are other pages");
}

#[test]
fn a_stop_right_after_an_answer_keeps_its_pages() {
    let dir = TempDir::new().expect("a folder");
    let rooms = Rooms { device: 32, host: 40, nvme: 96, object: 0 };
    let replica = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::OnDisk);
    ask_at_once(&replica, Tenant::default(), &prompt(0, 24));
    drop(replica);
    let again = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::OnDisk);
    assert_eq!(ask(&again, &prompt(0, 24)).cached, 24 * PAGE);
}

#[test]
fn keys_of_memory_leave_a_disk_that_nobody_can_read() {
    let dir = TempDir::new().expect("a folder");
    let rooms = Rooms { device: 16, host: 24, nvme: 96, object: 0 };
    ask(&start(dir.path(), rooms, WeightForm::Bf16, KeysLive::InMemory), &prompt(0, 6));
    let replica = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::InMemory);
    assert_eq!(ask(&replica, &prompt(0, 6)).cached, 0);
}

/// Flips a bit in every page-sized piece of every file of the tier.
fn spoil(dir: &Path) {
    for entry in std::fs::read_dir(dir).expect("the tier's folder") {
        let path = entry.expect("an entry").path();
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        let is_segment = path.extension().is_some_and(|e| e == "seg") || bytes.len() > 1 << 16;
        if is_segment && bytes.iter().any(|&byte| byte != 0) {
            bytes.iter_mut().step_by(512).for_each(|byte| *byte ^= 4);
            std::fs::write(&path, bytes).expect("written back");
        }
    }
}

#[test]
fn flipped_bits_on_the_disk_are_a_miss_and_the_answer_is_right() {
    let dir = TempDir::new().expect("a folder");
    let rooms = Rooms { device: 16, host: 18, nvme: 96, object: 0 };
    let replica = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::InMemory);
    let cold = ask(&replica, &prompt(0, 6));
    push_down(&replica, rooms, Tier::Nvme);
    spoil(&dir.path().join("nvme"));
    let again = ask(&replica, &prompt(0, 6));
    assert_eq!(again.cached, 0);
    assert!(same(&again, &cold));
    assert!(settle(&replica).counters.wrong_pages > 0);
}

fn purge(replica: &Replica, namespace: &str) -> SignedReport {
    let order = PurgeOrder {
        namespace: namespace.into(),
        running: PurgeRunning::Wait,
        patience: Duration::from_secs(60),
    };
    wait(replica.engine.purge(&order, &NodeSigner::random().expect("a key"))).expect("a report")
}

#[test]
fn a_purge_empties_every_tier_of_one_namespace_and_its_report_says_so() {
    let dir = TempDir::new().expect("a folder");
    let rooms = Rooms { device: 32, host: 48, nvme: 96, object: 128 };
    let replica = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::OnDisk);
    let acme = Tenant { namespace: NamespaceId(1), ..Tenant::default() };
    ask_as(&replica, acme.clone(), &prompt(0, 6));
    ask(&replica, &prompt(0, 6));
    let before = settle(&replica).namespaces;
    let signed = purge(&replica, "acme");
    assert!(signed.verify());
    assert_eq!(signed.report.guarantee, Guarantee::Erased, "{:#?}", signed.report);
    assert_eq!(signed.report.data_keys_destroyed, 1);
    assert_eq!(signed.report.tiers.len(), 4);
    for line in &signed.report.tiers {
        assert!(line.pages >= 6 && line.verified >= line.pages, "{line:?}");
        assert_eq!((line.failed, line.outstanding, line.found_by_probe), (0, 0, 0), "{line:?}");
    }
    let after = settle(&replica).namespaces;
    assert_eq!(after[0], before[0], "the default namespace lost nothing");
    assert!(after[1].1.iter().all(|(_, pages)| *pages == 0));
    assert_eq!(ask_as(&replica, acme.clone(), &prompt(0, 6)).cached, 0);
    assert_eq!(ask(&replica, &prompt(0, 6)).cached, 6 * PAGE);
    drop(replica);
    let again = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::OnDisk);
    assert_eq!(ask_as(&again, acme, &prompt(0, 6)).cached, 6 * PAGE, "what came after the purge is kept");
}

#[test]
fn an_unknown_namespace_is_not_purged() {
    let dir = TempDir::new().expect("a folder");
    let rooms = Rooms { device: 16, host: 16, nvme: 0, object: 0 };
    let replica = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::InMemory);
    let order =
        PurgeOrder { namespace: "nobody".into(), running: PurgeRunning::Wait, patience: Duration::ZERO };
    let refused = wait(replica.engine.purge(&order, &NodeSigner::random().expect("a key")));
    assert_eq!(refused.expect_err("no such namespace").to_string(), "no namespace is called \"nobody\"");
}

#[test]
fn a_namespace_that_retains_nothing_leaves_nothing() {
    let dir = TempDir::new().expect("a folder");
    let rooms = Rooms { device: 32, host: 48, nvme: 96, object: 0 };
    let replica = start(dir.path(), rooms, WeightForm::Bf16, KeysLive::InMemory);
    let ghost = Tenant { namespace: NamespaceId(2), retention: Retention::Nothing, ..Tenant::default() };
    for _ in 0..2 {
        assert_eq!(ask_as(&replica, ghost.clone(), &prompt(0, 6)).cached, 0);
    }
    let report = settle(&replica);
    assert!(report.tiers.iter().all(|tier| tier.cache.pages_cached + tier.cache.pages_leased == 0));
}
