//! A replica that comes back to its disk: readers of events know of all its pages before anyone asks.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use base::{ManualClock, NamespaceId, Priority, Tier};
use kernels::SamplingParams;
use kvcache::{EvictionKind, WritePolicy};

use crate::engine::{CacheReport, Engine};
use crate::events::{Change, EventHub, EventsConfig, Read, Record};
use crate::executor::sim::{SimConfig, SimModel};
use crate::executor::threaded::ThreadedExecutor;
use crate::request::{Request, Tenant};
use crate::scheduler::SchedulerConfig;
use crate::storage::{KeyStorePaths, Keys, NamespaceSpec, StorageConfig, TierRoom};

const PAGE: u32 = 16;

struct Replica {
    engine: Engine,
    thread: Option<JoinHandle<()>>,
    hub: EventHub,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.engine.stop();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn start(dir: &Path) -> Replica {
    let room = |bytes| TierRoom { bytes, write: WritePolicy::WriteThrough };
    let storage = StorageConfig {
        host: room(1 << 20),
        nvme: Some((dir.join("nvme"), room(1 << 20))),
        object: None,
        eviction: EvictionKind::Lru,
        key_store: Some(KeyStorePaths { store: dir.join("keys.json"), node_key: dir.join("node.key") }),
        namespaces: vec![NamespaceSpec { name: "acme".into(), ..NamespaceSpec::default() }],
    };
    let clock = Arc::new(ManualClock::default());
    let keys = Keys::open(&storage.namespaces, storage.key_store.as_ref()).unwrap();
    let hub = EventHub::start(EventsConfig::default(), clock.clone()).unwrap();
    let model = SimModel::new(SimConfig::new(64, PAGE, 1000));
    let executor = Box::new(ThreadedExecutor::start("sim", model, 1, clock.clone()).unwrap());
    let config = SchedulerConfig::default();
    let (engine, thread) =
        Engine::start_tiered(executor, config, &storage, keys, Some(hub.clone()), clock).unwrap();
    Replica { engine, thread: Some(thread), hub }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

impl Replica {
    fn ask(&self, pages: u32) {
        let request = Request {
            id: self.engine.next_id(),
            tenant: Tenant { namespace: NamespaceId(1), ..Tenant::default() },
            prompt: (0..pages * PAGE + 1).collect::<Vec<u32>>().into(),
            params: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
            max_tokens: 1,
            prompt_logprobs: None,
            priority: Priority(0),
            deadline: None,
        };
        let mut running = self.engine.submit(request).unwrap();
        wait(async { while running.next().await.is_some() {} });
    }

    fn settle(&self) -> CacheReport {
        loop {
            let report = wait(self.engine.inspect(vec![NamespaceId(1)])).unwrap();
            if report.is_settled {
                return report;
            }
            std::thread::yield_now();
        }
    }

    /// All that was told so far.
    fn records(&self) -> Vec<Arc<Record>> {
        let read = |sequence| match self.hub.read(sequence) {
            Read::Record(record) => Some(record),
            _ => None,
        };
        (0..).map_while(read).collect()
    }

    /// Until so many blocks of the disk have been told of: all of them, each after its parent.
    fn told(&self, blocks: usize) -> BTreeSet<u64> {
        loop {
            let mut told = BTreeSet::new();
            for change in self.records().iter().flat_map(|record| &record.changes) {
                match change {
                    Change::Stored(run) if run.tiers.iter().eq([Tier::Nvme]) => {
                        assert!(run.parent.is_none_or(|parent| told.contains(&parent)), "a child first");
                        told.extend(&run.hashes);
                    }
                    Change::Removed { tier: Tier::Nvme, hashes, .. } => {
                        told.retain(|hash| !hashes.contains(hash));
                    }
                    Change::Cleared => told.clear(),
                    _ => {}
                }
            }
            if told.len() >= blocks {
                return told;
            }
            std::thread::yield_now();
        }
    }
}

fn held(report: &CacheReport) -> usize {
    let nvme = report.namespaces[0].1.iter().find(|(tier, _)| *tier == Tier::Nvme);
    nvme.expect("there is a disk").1
}

#[test]
fn pages_of_an_earlier_run_are_told_before_anyone_asks_and_their_children_after_them() {
    let dir = tempfile::TempDir::new().unwrap();
    let first = start(dir.path());
    first.ask(6);
    let pages = held(&first.settle());
    let before = first.told(pages);
    assert_eq!((pages, before.len()), (6, 6));
    drop(first);
    let again = start(dir.path());
    assert_eq!(again.told(pages), before, "the same blocks by the same names");
    again.ask(9);
    let pages = held(&again.settle());
    let after = again.told(pages);
    assert_eq!((pages, after.len()), (9, 9));
    assert!(after.is_superset(&before));
}
