//! The thread around the scheduler: messages in, plans out.
//!
//! It sleeps on one channel that carries requests, aborts and step results alike, so an idle engine
//! costs nothing and a busy one never polls.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use base::{Clock, Generation, NamespaceId, Tier};
use kvcache::{ColdOutcome, Fault, PurgeId, SlotRecord};
use tokio::sync::{oneshot, watch};

use super::telling::Teller;
use super::{Scheduler, SchedulerConfig};
use crate::engine::{CacheReport, Health, Mailbox, Message, Purged, Shelf};
use crate::events::{EventHub, Forgotten};
use crate::executor::{Executor, RestartError, StepError};
use crate::request::Refusal;
use crate::stats::EngineStats;
use crate::storage::{Namespace, Storage};

/// Longest wait at the end for copies on their way to tiers that survive.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// How often purges and readers of events that are behind go on if nothing else wakes the engine.
const CHORE_TICK: Duration = Duration::from_millis(1);
/// Page names that may wait for the hub.
const EVENTS_MAX: usize = 1 << 16;
/// How often a silent engine looks at deadlines and at steps that do not come back.
const TICK: Duration = Duration::from_millis(250);

pub(crate) fn spawn(
    mut executor: Box<dyn Executor>,
    mut config: SchedulerConfig,
    shelf: Shelf,
    clock: Arc<dyn Clock>,
    stats: Arc<EngineStats>,
    (results, inbox): Mailbox,
    loss: watch::Sender<Option<String>>,
) -> std::io::Result<JoinHandle<()>> {
    executor.connect(Box::new(move |outcome| {
        let _ = results.send(Message::Step(outcome));
    }));
    let Shelf { storage, lower, records, namespaces, events } = shelf;
    config.events_max = if events.is_some() { EVENTS_MAX } else { 0 };
    if let Some(host) = storage.as_ref().and_then(Storage::host) {
        executor.attach_host(host);
    }
    config.tiers = lower;
    base::spawn("scheduler", move || {
        let mut scheduler = Scheduler::new(config, executor.shape(), Arc::clone(&stats));
        settle_in(&mut scheduler, namespaces, records, executor.shape().page_bytes as u64);
        let driver = Driver {
            scheduler,
            executor,
            storage,
            events,
            teller: Teller::new(),
            clock,
            stats,
            inbox,
            purging: Vec::new(),
            is_draining: false,
            loss,
        };
        driver.run();
    })
}

/// Namespaces and the pages of an earlier run, before the first request.
fn settle_in(
    scheduler: &mut Scheduler,
    namespaces: Vec<Namespace>,
    records: Vec<SlotRecord>,
    page_bytes: u64,
) {
    for namespace in namespaces {
        scheduler.register_namespace(namespace.id, namespace.chain, namespace.generation);
        for (tier, quota) in Tier::ALL.into_iter().zip(namespace.spec.quotas) {
            scheduler.set_quota(namespace.id, tier, quota.map(|bytes| (bytes / page_bytes) as usize));
        }
    }
    let found = records.len();
    if found > 0 {
        let kept = scheduler.reinstate(records);
        tracing::info!(kept, lost = found - kept, "pages of an earlier run are back");
    }
}

struct Driver {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    storage: Option<Storage>,
    events: Option<EventHub>,
    teller: Teller,
    clock: Arc<dyn Clock>,
    stats: Arc<EngineStats>,
    inbox: Receiver<Message>,
    purging: Vec<Purging>,
    is_draining: bool,
    /// Tells those who wait that the executor will not come back.
    loss: watch::Sender<Option<String>>,
}

/// Who waits for a purge.
struct Purging {
    id: PurgeId,
    namespace: NamespaceId,
    up_to: Generation,
    answer: oneshot::Sender<Purged>,
}

impl Driver {
    fn run(mut self) {
        // Readers know of an earlier run's pages before the first request finds them.
        self.publish_events();
        while self.listen().is_continue() {
            self.go_on();
            debug_assert!(self.scheduler.check().is_ok(), "{:?}", self.scheduler.check());
        }
        self.settle();
        self.scheduler.publish_stats();
    }

    fn go_on(&mut self) {
        self.submit_steps();
        self.submit_orders();
        self.publish_events();
        self.answer_purges();
        self.scheduler.publish_stats();
    }

    /// Nothing runs any more: what was being copied to tiers that survive gets there, and is recorded,
    /// as far as that does not take too long.
    fn settle(&mut self) {
        let begun = self.clock.now();
        while !self.scheduler.is_settled() && self.clock.now().since(begun) < SETTLE_MAX {
            self.go_on();
            if let Ok(message) = self.inbox.recv_timeout(CHORE_TICK) {
                let _ = self.handle(message);
            }
        }
        self.go_on();
        let journal = self.storage.as_ref().and_then(Storage::journal);
        if let Some(error) = journal.and_then(|journal| journal.flush().err()) {
            tracing::warn!(%error, "the index of the cold tiers is not whole on the disk");
        }
    }

    /// Waits for a message, then takes all that are there.
    fn listen(&mut self) -> ControlFlow<()> {
        let has_chores = !self.purging.is_empty() || (self.events.is_some() && self.teller.is_behind());
        let first = if self.scheduler.is_idle() && !has_chores {
            self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            self.inbox.recv_timeout(if has_chores { CHORE_TICK } else { TICK })
        };
        match first {
            Ok(message) => self.handle(message)?,
            Err(RecvTimeoutError::Timeout) => self.watch_progress(),
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.handle(message)?;
        }
        ControlFlow::Continue(())
    }

    fn handle(&mut self, message: Message) -> ControlFlow<()> {
        match message {
            Message::Submit(submission) => self.scheduler.submit(*submission),
            Message::Abort(id) => self.scheduler.abort(id),
            Message::Step(Ok(result)) => {
                self.scheduler.apply(result);
                self.report_health();
            }
            // Those behind the step that was the last.
            Message::Step(Err(_)) if self.is_lost() => {}
            Message::Step(Err(error)) => return self.recover(&error),
            Message::ClearCache(answer) => {
                let _ = answer.send(self.scheduler.clear_cache());
            }
            Message::Cold(ticket, outcome) => self.scheduler.answer(ticket, outcome, self.clock.now()),
            Message::Purge { namespace, up_to, running, answer } => {
                let id = self.scheduler.purge(namespace, up_to, running);
                if let Some(hub) = &self.events {
                    hub.purge(namespace, up_to);
                }
                self.purging.push(Purging { id, namespace, up_to, answer });
            }
            Message::Inspect { namespaces, answer } => {
                let _ = answer.send(self.inspect(&namespaces));
            }
            Message::Dump { tier, answer } => {
                let _ = answer.send(self.scheduler.dump(tier));
            }
            Message::Drain => {
                self.is_draining = true;
                self.report_health();
            }
            Message::Stop => {
                self.stats.set_health(Health::Draining);
                self.scheduler.fail_all(&Refusal::Draining);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn is_lost(&self) -> bool {
        self.loss.borrow().is_some()
    }

    fn submit_steps(&mut self) {
        while !self.is_lost() && self.scheduler.in_flight() < self.executor.depth() {
            let Some(plan) = self.scheduler.plan(self.clock.now()) else { break };
            self.executor.submit(plan);
        }
    }

    /// What the tiers want done elsewhere.
    fn submit_orders(&mut self) {
        let orders = self.scheduler.take_orders();
        let notes = self.scheduler.drain_notes();
        let Some(storage) = &mut self.storage else { return };
        let refused = storage.submit(orders);
        storage.record(notes);
        for ticket in refused {
            let failed = ColdOutcome::Failed(Fault::Unavailable);
            self.scheduler.answer(ticket, failed, self.clock.now());
        }
    }

    /// Tells subscribers what changed; all of it anew if something was lost on the way.
    fn publish_events(&mut self) {
        let Some(hub) = &self.events else { return };
        self.teller.go_on(&mut self.scheduler, |events| hub.publish(events));
    }

    /// Tells those who wait for purges that are done. Nobody is told of one that nobody waits for.
    fn answer_purges(&mut self) {
        let is_told = self.storage.as_ref().is_none_or(Storage::has_told_all);
        for purging in std::mem::take(&mut self.purging) {
            // Asked each time, long before the purge is done: readers drop what is purged at once, and a hub
            // that had no room for it hears of it as soon as it has.
            let is_untold = self.is_untold(&purging);
            match self.purged(&purging) {
                Some(purged) if !purged.state.is_done || !is_told || !is_untold => {
                    self.purging.push(purging);
                }
                Some(purged) => {
                    self.scheduler.forget_purge(purging.id);
                    let _ = purging.answer.send(purged);
                }
                None => {}
            }
        }
    }

    /// Whether what subscribers could have replayed names no tokens of it any more.
    fn is_untold(&self, purging: &Purging) -> bool {
        let forgotten = |hub: &EventHub| hub.purge(purging.namespace, purging.up_to);
        self.events.as_ref().map(forgotten).is_none_or(|forgotten| forgotten == Forgotten::Done)
    }

    fn purged(&self, purging: &Purging) -> Option<Purged> {
        let state = self.scheduler.purge_state(purging.id)?;
        let remaining = self.scheduler.remaining(purging.namespace, purging.up_to);
        Some(Purged { state, remaining })
    }

    fn inspect(&self, namespaces: &[NamespaceId]) -> CacheReport {
        let (tiers, counters) = self.scheduler.tier_report();
        CacheReport {
            tiers,
            counters,
            namespaces: namespaces.iter().map(|&id| (id, self.scheduler.used(id))).collect(),
            purges: self.purging.iter().filter_map(|purging| self.purged(purging)).collect(),
            is_settled: self.scheduler.is_settled(),
            storage: self.storage.as_ref().map(Storage::stats).unwrap_or_default(),
        }
    }

    /// Brings the executor back, or ends the engine: one that is lost serves nobody, and what is still on its way
    /// to tiers that survive gets there while the engine settles.
    fn recover(&mut self, error: &StepError) -> ControlFlow<()> {
        if !self.scheduler.fail_step(error) {
            return ControlFlow::Continue(());
        }
        tracing::error!(%error, "step failed; restarting the executor");
        self.stats.set_health(Health::Unhealthy);
        let Err(RestartError(reason)) = self.executor.restart() else {
            self.report_health();
            return ControlFlow::Continue(());
        };
        tracing::error!(reason, "executor is lost");
        self.stats.set_health(Health::Lost);
        self.scheduler.fail_all(&Refusal::Engine(reason.clone()));
        self.loss.send_replace(Some(reason));
        ControlFlow::Break(())
    }

    fn watch_progress(&self) {
        if self.scheduler.is_stalled(self.clock.now()) {
            tracing::error!("a step makes no progress");
            self.stats.set_health(Health::Unhealthy);
        }
    }

    fn report_health(&self) {
        if self.is_lost() {
            return;
        }
        let health = if self.is_draining { Health::Draining } else { Health::Ready };
        self.stats.set_health(health);
    }
}
