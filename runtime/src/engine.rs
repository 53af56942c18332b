//! The handle that the API holds: submit, abort, watch. Cheap to clone; safe from any task.
//!
//! The inbox is bounded by counting admitted sequences: at the bound `submit` refuses at once with
//! [`Refusal::Overloaded`], so that a client hears it instead of waiting in a queue nobody sees.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use base::{AdapterId, ChainHash, ChainRoot, Clock, Generation, NamespaceId, NamespaceKey, RequestId, Tier};
use kvcache::{ColdOutcome, LowerConfig, PurgeState, SlotRecord, Ticket, TierCounters, TierStats};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};
use transfer::{Journal, PageTier, TierIoStats};

use crate::events::EventHub;
use crate::executor::{Executor, ExecutorShape};
use crate::request::{Event, Refusal, Request};
use crate::scheduler::{PurgeRunning, SchedulerConfig, driver};
use crate::stats::EngineStats;
use crate::storage::{
    DEFAULT, Keys, Namespace, OutcomeSink, Retention, Storage, StorageConfig, StorageError, StorageStats,
};

/// A running sequence's events. Dropping it before its end aborts the sequence. Its queue is bounded by
/// construction: at most `max_tokens` + 3 events ever enter it.
pub struct Running {
    pub id: RequestId,
    events: UnboundedReceiver<Event>,
    engine: Engine,
    /// The last event was taken: there is nothing left to abort.
    ended: bool,
}

impl Running {
    /// The next event; `None` after the last one, or if the engine is gone.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.note(event)
    }

    /// The next event if there is one already. Registers no waker.
    pub fn try_next(&mut self) -> Option<Event> {
        let event = self.events.try_recv().ok();
        event.and_then(|event| self.note(Some(event)))
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx).map(|event| self.note(event))
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        self.ended |= matches!(event, None | Some(Event::Finished(_) | Event::Failed(_)));
        event
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.engine.abort(self.id);
        }
    }
}

/// What crosses into the scheduler thread.
pub(crate) enum Message {
    Submit(Box<crate::scheduler::Submission>),
    Abort(RequestId),
    Step(Result<crate::plan::StepResult, crate::executor::StepError>),
    /// An order to a lower tier has ended.
    Cold(Ticket, ColdOutcome),
    /// Forget a namespace up to a generation; answers when nothing of it is left.
    Purge {
        namespace: NamespaceId,
        up_to: Generation,
        running: PurgeRunning,
        answer: oneshot::Sender<Purged>,
    },
    /// How the tiers stand, and what these namespaces keep in each.
    Inspect {
        namespaces: Vec<NamespaceId>,
        answer: oneshot::Sender<CacheReport>,
    },
    /// The trees of a tier as text.
    Dump {
        tier: Tier,
        answer: oneshot::Sender<Option<String>>,
    },
    /// Drop every cached page that nobody uses; answers with how many.
    ClearCache(oneshot::Sender<usize>),
    /// Refuse new requests from now on.
    Drain,
    /// Stop now: everything that runs fails with [`Refusal::Draining`].
    Stop,
}

/// What the engine keeps below the device, ready to be used by its scheduler.
#[derive(Default)]
pub(crate) struct Shelf {
    pub storage: Option<Storage>,
    pub lower: Vec<LowerConfig>,
    pub records: Vec<SlotRecord>,
    pub namespaces: Vec<Namespace>,
    pub events: Option<EventHub>,
}

/// How a purge stood when it was answered.
#[derive(Debug)]
pub struct Purged {
    pub state: PurgeState,
    /// Pages still found in each tier: the negative probe.
    pub remaining: Vec<(Tier, usize)>,
}

/// The tiers at one moment.
#[derive(Debug)]
pub struct CacheReport {
    pub tiers: Vec<TierStats>,
    pub counters: TierCounters,
    pub namespaces: Vec<(NamespaceId, Vec<(Tier, usize)>)>,
    /// Those under way.
    pub purges: Vec<Purged>,
    /// Nothing is being copied or waits to be.
    pub is_settled: bool,
    pub storage: StorageStats,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("threads: {0}")]
    Thread(#[from] std::io::Error),
}

/// Where a namespace stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generations {
    /// Of what is stored from now on.
    pub generation: Generation,
    /// The first that can be used.
    pub floor: Generation,
}

/// Whose root is asked for.
#[derive(Clone, Debug)]
pub(crate) struct RootOf {
    pub namespace: NamespaceId,
    /// `None` for the present one.
    pub generation: Option<Generation>,
    pub adapter: AdapterId,
    pub salt: Vec<u8>,
}

/// Where a chain of names begins.
pub(crate) struct Root {
    pub generation: Generation,
    pub hash: ChainHash,
    pub retention: Retention,
}

/// Why there is no root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoot {
    UnknownNamespace,
    Purged { floor: Generation },
}

/// Whether the engine can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// Finishing what runs, taking nothing new.
    Draining,
    /// The executor failed and is being restarted, or steps make no progress.
    Unhealthy,
    /// The executor or its device will not come back in this process.
    Lost,
}

#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: SyncSender<Message>,
    stats: Arc<EngineStats>,
    shape: ExecutorShape,
    clock: Arc<dyn Clock>,
    next_id: AtomicU64,
    requests_max: usize,
    keys: Option<Arc<Mutex<Keys>>>,
    /// Of all namespaces, for whoever must not wait for `keys`, whose lock is held while files are synced.
    names: Arc<[(NamespaceId, String)]>,
    naming: BTreeMap<NamespaceId, (NamespaceKey, Retention)>,
    generations: Mutex<BTreeMap<NamespaceId, Generations>>,
    journal: Option<Arc<Journal>>,
    cold: Vec<Arc<dyn PageTier>>,
    /// Why the executor will not come back.
    lost: watch::Receiver<Option<String>>,
}

impl Engine {
    /// Starts the scheduler thread over `executor`.
    pub fn start(
        executor: Box<dyn Executor>,
        config: SchedulerConfig,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<(Engine, JoinHandle<()>)> {
        let mailbox = mailbox(&config);
        Self::begin(executor, config, Shelf::default(), None, clock, mailbox)
    }

    /// As [`Engine::start`], with tiers below the device and namespaces with keys of their own.
    pub fn start_tiered(
        executor: Box<dyn Executor>,
        config: SchedulerConfig,
        storage: &StorageConfig,
        keys: Keys,
        events: Option<EventHub>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Engine, JoinHandle<()>), StartError> {
        let mailbox = mailbox(&config);
        let to = mailbox.0.clone();
        // Blocks a tier's thread while the scheduler is behind, never the scheduler. Fails only once the
        // scheduler has ended.
        let sink: OutcomeSink = Arc::new(move |ticket, outcome| {
            let _ = to.send(Message::Cold(ticket, outcome));
        });
        let (storage, opened) = Storage::open(storage, &executor.shape(), &keys, &clock, sink)?;
        let shelf = Shelf {
            storage: Some(storage),
            lower: opened.lower,
            records: opened.records,
            namespaces: keys.namespaces().to_vec(),
            events,
        };
        Ok(Self::begin(executor, config, shelf, Some(keys), clock, mailbox)?)
    }

    fn begin(
        executor: Box<dyn Executor>,
        config: SchedulerConfig,
        shelf: Shelf,
        keys: Option<Keys>,
        clock: Arc<dyn Clock>,
        (inbox, outbox): Mailbox,
    ) -> std::io::Result<(Engine, JoinHandle<()>)> {
        let stats = Arc::new(EngineStats::default());
        let namespaces = keys.as_ref().map(Keys::namespaces).unwrap_or_default();
        let mut names: Vec<_> = namespaces.iter().map(|of| (of.id, of.spec.name.clone())).collect();
        if names.is_empty() {
            names.push((NamespaceId(0), DEFAULT.to_owned()));
        }
        let generations = namespaces
            .iter()
            .map(|of| (of.id, Generations { generation: of.generation, floor: of.generation }));
        let naming = namespaces.iter().map(|of| (of.id, (of.chain.clone(), of.spec.retention)));
        let mut naming: BTreeMap<_, _> = naming.collect();
        if naming.is_empty() {
            naming.insert(NamespaceId(0), (config.namespace_key.clone(), Retention::Keep));
        }
        let (loss, lost) = watch::channel(None);
        let shared = Shared {
            lost,
            names: names.into(),
            naming,
            generations: Mutex::new(generations.collect()),
            inbox: inbox.clone(),
            stats: Arc::clone(&stats),
            shape: executor.shape(),
            clock: Arc::clone(&clock),
            next_id: AtomicU64::new(1),
            requests_max: config.requests_max,
            journal: shelf.storage.as_ref().and_then(Storage::journal),
            cold: shelf.storage.as_ref().map(Storage::cold).unwrap_or_default(),
            keys: keys.map(|keys| Arc::new(Mutex::new(keys))),
        };
        let thread = driver::spawn(executor, config, shelf, clock, stats, (inbox, outbox), loss)?;
        Ok((Engine { shared: Arc::new(shared) }, thread))
    }

    pub fn next_id(&self) -> RequestId {
        RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Checks `request` and hands it to the scheduler.
    pub fn submit(&self, request: Request) -> Result<Running, Refusal> {
        self.check(&request)?;
        let stats = &self.shared.stats;
        let limit = self.shared.requests_max;
        let running = stats.in_flight.fetch_add(1, Ordering::AcqRel) as usize;
        if running >= limit {
            stats.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(Refusal::Overloaded { running, limit });
        }
        let (sender, events) = unbounded_channel();
        let id = request.id;
        let arrived = self.shared.clock.now();
        let submission = Box::new(crate::scheduler::Submission { request, sender, arrived });
        if self.shared.inbox.send(Message::Submit(submission)).is_err() {
            stats.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(Refusal::Engine("the scheduler has stopped".into()));
        }
        Ok(Running { id, events, engine: self.clone(), ended: false })
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        match self.health() {
            Health::Ready => request.check(&self.shared.shape),
            Health::Draining => Err(Refusal::Draining),
            Health::Unhealthy => Err(Refusal::Engine("the executor is restarting".into())),
            Health::Lost => Err(Refusal::Engine("the executor is lost".into())),
        }
    }

    /// Ends a sequence early; its pages are free within two steps. Unknown ids are ignored.
    pub fn abort(&self, id: RequestId) {
        let _ = self.shared.inbox.send(Message::Abort(id));
    }

    pub fn health(&self) -> Health {
        self.shared.stats.health()
    }

    /// Waits until the executor is lost for good; with the reason. Never returns if that does not happen.
    pub async fn lost(&self) -> String {
        let mut lost = self.shared.lost.clone();
        match lost.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            // The scheduler has ended in another way.
            _ => std::future::pending().await,
        }
    }

    pub fn stats(&self) -> &EngineStats {
        &self.shared.stats
    }

    pub fn shape(&self) -> &ExecutorShape {
        &self.shared.shape
    }

    /// Sequences admitted at a time.
    pub fn requests_max(&self) -> usize {
        self.shared.requests_max
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Drops every cached page that no sequence uses; answers with how many pages.
    pub async fn clear_cache(&self) -> usize {
        let (tx, rx) = oneshot::channel();
        if self.shared.inbox.send(Message::ClearCache(tx)).is_err() {
            return 0;
        }
        rx.await.unwrap_or(0)
    }

    /// How the tiers stand; `None` if the engine has stopped.
    pub async fn inspect(&self, namespaces: Vec<NamespaceId>) -> Option<CacheReport> {
        let (answer, report) = oneshot::channel();
        self.shared.inbox.send(Message::Inspect { namespaces, answer }).ok()?;
        report.await.ok()
    }

    /// What the cold tiers' devices have done.
    pub(crate) fn tier_io(&self) -> Vec<(Tier, TierIoStats)> {
        self.shared.cold.iter().map(|tier| (tier.tier(), tier.stats())).collect()
    }

    /// Its namespaces by id and name; the default's alone if it was given none. Never waits.
    pub(crate) fn names(&self) -> Arc<[(NamespaceId, String)]> {
        Arc::clone(&self.shared.names)
    }

    /// Where the names of a namespace's pages begin: in a generation that is not purged, or in the present one.
    pub(crate) fn root(&self, of: RootOf) -> Result<Root, NoRoot> {
        let (key, retention) = self.shared.naming.get(&of.namespace).ok_or(NoRoot::UnknownNamespace)?;
        let now = self.generations().get(&of.namespace).copied().unwrap_or_default();
        let generation = of.generation.unwrap_or(now.generation);
        if generation < now.floor {
            return Err(NoRoot::Purged { floor: now.floor });
        }
        let ExecutorShape { model, layout, .. } = self.shared.shape;
        let root = ChainRoot { generation, model, layout, adapter: of.adapter, salt: of.salt };
        Ok(Root { generation, hash: root.hash(key), retention: *retention })
    }

    /// Where each namespace stands that has keys of its own.
    pub(crate) fn generations(&self) -> BTreeMap<NamespaceId, Generations> {
        self.shared.generations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that a namespace has gone on.
    pub(crate) fn note_generations(&self, namespace: NamespaceId, note: impl FnOnce(&mut Generations)) {
        let mut generations = self.shared.generations.lock().unwrap_or_else(PoisonError::into_inner);
        note(generations.entry(namespace).or_default());
    }

    /// The trees of a tier as text; `None` if it has none such.
    pub async fn dump(&self, tier: Tier) -> Option<String> {
        let (answer, text) = oneshot::channel();
        self.shared.inbox.send(Message::Dump { tier, answer }).ok()?;
        text.await.ok()?
    }

    /// The keys of its namespaces, if it has any but the default's.
    pub(crate) fn keys(&self) -> Option<&Arc<Mutex<Keys>>> {
        self.shared.keys.as_ref()
    }

    pub(crate) fn journal(&self) -> Option<&Arc<Journal>> {
        self.shared.journal.as_ref()
    }

    /// Starts to forget a namespace; the answer comes when nothing of it is left. Dropping the receiver
    /// leaves the purge running.
    pub(crate) fn begin_purge(
        &self,
        namespace: NamespaceId,
        up_to: Generation,
        running: PurgeRunning,
    ) -> oneshot::Receiver<Purged> {
        let (answer, purged) = oneshot::channel();
        let _ = self.shared.inbox.send(Message::Purge { namespace, up_to, running, answer });
        purged
    }

    /// Takes nothing new; what runs goes on.
    pub fn drain(&self) {
        let _ = self.shared.inbox.send(Message::Drain);
    }

    /// Fails what still runs and ends the scheduler thread.
    pub fn stop(&self) {
        let _ = self.shared.inbox.send(Message::Stop);
    }
}

pub(crate) type Mailbox = (SyncSender<Message>, Receiver<Message>);

/// Room for every admitted request's submit and abort, for the steps in flight, and for answers of tiers.
fn mailbox(config: &SchedulerConfig) -> Mailbox {
    sync_channel(2 * config.requests_max + 4096)
}
