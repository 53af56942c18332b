//! The handle that the API holds: submit, abort, watch. Cheap to clone; safe from any task.
//!
//! The inbox is bounded by counting admitted sequences: at the bound `submit` refuses at once with
//! [`Refusal::Overloaded`], so that a client hears it instead of waiting in a queue nobody sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use base::{Clock, RequestId};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::executor::{Executor, ExecutorShape};
use crate::request::{Event, Refusal, Request};
use crate::scheduler::{SchedulerConfig, driver};
use crate::stats::EngineStats;

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
    /// Drop every cached page that nobody uses; answers with how many.
    ClearCache(tokio::sync::oneshot::Sender<usize>),
    /// Refuse new requests from now on.
    Drain,
    /// Stop now: everything that runs fails with [`Refusal::Draining`].
    Stop,
}

/// Whether the engine can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// Finishing what runs, taking nothing new.
    Draining,
    /// The executor failed and is being restarted, or steps make no progress.
    Unhealthy,
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
}

impl Engine {
    /// Starts the scheduler thread over `executor`.
    pub fn start(
        executor: Box<dyn Executor>,
        config: SchedulerConfig,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<(Engine, JoinHandle<()>)> {
        // Room for every admitted request's submit and abort, and for the steps in flight.
        let (inbox, outbox) = sync_channel(2 * config.requests_max + 64);
        let stats = Arc::new(EngineStats::default());
        let shape = executor.shape();
        let requests_max = config.requests_max;
        let thread =
            driver::spawn(executor, config, Arc::clone(&clock), Arc::clone(&stats), inbox.clone(), outbox)?;
        let shared = Shared { inbox, stats, shape, clock, next_id: AtomicU64::new(1), requests_max };
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
        }
    }

    /// Ends a sequence early; its pages are free within two steps. Unknown ids are ignored.
    pub fn abort(&self, id: RequestId) {
        let _ = self.shared.inbox.send(Message::Abort(id));
    }

    pub fn health(&self) -> Health {
        self.shared.stats.health()
    }

    pub fn stats(&self) -> &EngineStats {
        &self.shared.stats
    }

    pub fn shape(&self) -> &ExecutorShape {
        &self.shared.shape
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Drops every cached page that no sequence uses; answers with how many pages.
    pub async fn clear_cache(&self) -> usize {
        let (tx, rx) = tokio::sync::oneshot::channel();
        if self.shared.inbox.send(Message::ClearCache(tx)).is_err() {
            return 0;
        }
        rx.await.unwrap_or(0)
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
