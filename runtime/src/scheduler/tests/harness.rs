//! A replica without threads: the scheduler, the simulated model, a clock, and clients that listen.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use base::{Nanos, Priority, RequestId, SlotId, StepId, Tier, TokenId};
use kernels::{Sampled, SamplingParams};
use kvcache::{ColdOrder, ColdOutcome, ColdWork, Fault, Label, Ticket};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use transfer::HostArena;

use crate::executor::StepError;
use crate::executor::sim::{SimConfig, SimModel};
use crate::executor::threaded::StepModel;
use crate::plan::{StepPlan, StepResult};
use crate::request::{Event, Finish, Refusal, Request, Tenant};
use crate::scheduler::{Scheduler, SchedulerConfig, Submission};
use crate::stats::EngineStats;

/// What a client has heard.
#[derive(Debug, Default, Clone)]
pub(super) struct Heard {
    pub cached: Option<u32>,
    pub tokens: Vec<TokenId>,
    pub prompt: Option<Vec<Sampled>>,
    pub end: Option<Result<Finish, Refusal>>,
}

pub(super) struct Client {
    pub request: Request,
    events: UnboundedReceiver<Event>,
    pub heard: Heard,
}

pub(super) struct Harness {
    pub scheduler: Scheduler,
    pub stats: Arc<EngineStats>,
    pub sim: SimConfig,
    pub model: SimModel,
    flying: VecDeque<StepPlan>,
    depth: usize,
    pub now: Nanos,
    pub clients: HashMap<RequestId, Client>,
    last_id: u64,
    cold: Cold,
}

/// Cold tiers made of memory: orders wait here until a test lets them be carried out.
pub(super) struct Cold {
    host: Option<Arc<HostArena>>,
    pub pending: VecDeque<ColdOrder>,
    slots: HashMap<(Tier, SlotId), (Vec<u8>, Label)>,
    /// Orders with this remainder of their ticket fail.
    pub fails_every: Option<u64>,
    pub loaded: usize,
}

impl Cold {
    fn carry_out(&mut self, order: ColdOrder) -> (Ticket, ColdOutcome) {
        let host = self.host.as_ref().expect("cold tiers need host memory");
        let is_load = matches!(order.work, ColdWork::Load { .. });
        self.loaded += usize::from(is_load);
        if is_load && self.fails_every.is_some_and(|n| (self.loaded as u64).is_multiple_of(n)) {
            return (order.ticket, ColdOutcome::Failed(Fault::Wrong));
        }
        let outcome = match order.work {
            ColdWork::Store { frame, label } => {
                let bytes = host.read(frame).expect("nobody writes it").to_vec();
                self.slots.insert((order.tier, label.slot), (bytes, label));
                ColdOutcome::Stored([0; 28])
            }
            ColdWork::Load { frame, label, .. } => {
                let (bytes, held) = &self.slots[&(order.tier, label.slot)];
                assert_eq!(*held, label, "what is loaded is what was stored");
                host.write(frame).expect("nobody reads it").copy_from_slice(bytes);
                ColdOutcome::Loaded
            }
            ColdWork::Erase { slots } => {
                slots.iter().for_each(|&slot| drop(self.slots.remove(&(order.tier, slot))));
                ColdOutcome::Erased { probed: slots.len() as u32 }
            }
            ColdWork::ScrubFrames { frames } => {
                let clean = frames.iter().filter(|&&frame| host.scrub(frame).expect("free frames")).count();
                ColdOutcome::Erased { probed: clean as u32 }
            }
        };
        (order.ticket, outcome)
    }
}

impl Harness {
    pub fn new(sim: SimConfig, config: SchedulerConfig, depth: usize) -> Self {
        let stats = Arc::new(EngineStats::default());
        let host = config.tiers.first().map(|host| {
            Arc::new(HostArena::new(host.pages, sim.shape.page_bytes).expect("memory for a few frames"))
        });
        let cold =
            Cold { host, pending: VecDeque::new(), slots: HashMap::new(), fails_every: None, loaded: 0 };
        let mut model = SimModel::new(sim.clone());
        cold.host.iter().for_each(|host| model.attach_host(Arc::clone(host)));
        let scheduler = Scheduler::new(config, sim.shape.clone(), Arc::clone(&stats));
        Self {
            scheduler,
            stats,
            model,
            sim,
            flying: VecDeque::new(),
            depth,
            now: Nanos(1),
            clients: HashMap::new(),
            last_id: 0,
            cold,
        }
    }

    pub fn small(pages: u32, page_tokens: u32) -> Self {
        Self::new(SimConfig::new(pages, page_tokens, 1000), SchedulerConfig::default(), 2)
    }

    pub fn request(&mut self, prompt: &[TokenId], max_tokens: u32) -> Request {
        self.last_id += 1;
        Request {
            id: RequestId(self.last_id),
            tenant: Tenant::default(),
            prompt: prompt.into(),
            params: Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
            max_tokens,
            prompt_logprobs: None,
            priority: Priority(0),
            deadline: None,
        }
    }

    pub fn submit(&mut self, request: Request) -> RequestId {
        request.check(&self.sim.shape).expect("a valid request");
        let id = request.id;
        let (sender, events) = unbounded_channel();
        self.clients.insert(id, Client { request: request.clone(), events, heard: Heard::default() });
        self.stats.in_flight.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.scheduler.submit(Submission { request, sender, arrived: self.now });
        id
    }

    pub fn ask(&mut self, prompt: &[TokenId], max_tokens: u32) -> RequestId {
        let request = self.request(prompt, max_tokens);
        self.submit(request)
    }

    /// Plans up to the depth, answers the oldest step, checks the law. False if nothing happened.
    pub fn tick(&mut self) -> bool {
        self.now = self.now.plus(Duration::from_millis(1));
        while self.scheduler.in_flight() < self.depth {
            let Some(plan) = self.scheduler.plan(self.now) else { break };
            self.flying.push_back(plan);
        }
        self.cold.pending.extend(self.scheduler.take_orders());
        let Some(plan) = self.flying.pop_front() else { return false };
        self.answer(&plan);
        self.scheduler.check().expect("the integrity law");
        self.listen();
        true
    }

    fn answer(&mut self, plan: &StepPlan) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let moved = self.model.move_pages(plan);
            let mut result = StepResult { moved, ..self.model.forward(plan) };
            self.model.settle_moves(plan, &mut result.moved);
            result
        }));
        match outcome.map_err(|payload| failure(plan.id, &*payload)) {
            Ok(result) => self.scheduler.apply(result),
            Err(error) => {
                assert!(self.scheduler.fail_step(&error));
                // Steps queued behind a failed one are refused before the restart.
                for stale in self.flying.drain(..) {
                    assert!(!self.scheduler.fail_step(&StepError::Gone { step: stale.id }));
                }
                self.model.reset();
            }
        }
    }

    /// Carries out up to `n` cold orders; false if there were none.
    pub fn cold(&mut self, n: usize) -> bool {
        self.cold.pending.extend(self.scheduler.take_orders());
        let mut any = false;
        for _ in 0..n {
            let Some(order) = self.cold.pending.pop_front() else { break };
            let (ticket, outcome) = self.cold.carry_out(order);
            self.scheduler.answer(ticket, outcome, self.now);
            any = true;
        }
        self.scheduler.drain_notes();
        any
    }

    /// Every `n`th load brings wrong bytes to light.
    pub fn spoil_every(&mut self, n: u64) {
        self.cold.fails_every = Some(n);
    }

    /// Until nothing is left to do, orders included; panics if that takes more than `limit` steps.
    pub fn run(&mut self, limit: usize) {
        for _ in 0..limit {
            if !self.tick() && !self.cold(16) {
                assert!(self.scheduler.is_idle(), "stuck: nothing to compute, but not idle");
                return;
            }
        }
        panic!("not done after {limit} steps");
    }

    fn listen(&mut self) {
        for client in self.clients.values_mut() {
            client.listen();
        }
    }

    pub fn heard(&mut self, id: RequestId) -> Heard {
        let client = self.clients.get_mut(&id).expect("a known client");
        client.listen();
        client.heard.clone()
    }

    pub fn abort(&mut self, id: RequestId) {
        self.scheduler.abort(id);
    }

    /// The tokens that `request` must get, computed without any cache.
    pub fn expected(&self, request: &Request) -> Vec<TokenId> {
        let mut tokens = request.prompt.to_vec();
        for _ in 0..request.max_tokens {
            let next = SimModel::expected(&self.sim, &request.params, &tokens);
            tokens.push(next);
            if request.params.stop_ids.contains(&next) {
                break;
            }
        }
        tokens.split_off(request.prompt.len())
    }

    /// What the client heard so far is a prefix of (or, when finished, equals) what it must get.
    pub fn verify(&self, client: &Client) {
        let expected = self.expected(&client.request);
        let got = &client.heard.tokens;
        assert!(expected.starts_with(got), "{:?}: got {got:?}, expected {expected:?}", client.request.id);
        if let Some(Ok(Finish::Stop(_) | Finish::Length)) = client.heard.end {
            assert_eq!(got.len(), expected.len());
        }
    }

    pub fn fault_at(&mut self, step: StepId) {
        self.sim.faults.push(step);
        self.model = SimModel::new(self.sim.clone());
        self.cold.host.iter().for_each(|host| self.model.attach_host(Arc::clone(host)));
    }
}

/// Only injected faults may fail a step; anything else is the device refusing a wrong page.
fn failure(step: StepId, payload: &(dyn std::any::Any + Send)) -> StepError {
    let message = payload.downcast_ref::<&str>().map(ToString::to_string);
    let message = message.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    assert!(message == "injected fault", "the simulated device refused a step: {message}");
    StepError::Panic { step, message }
}

impl Client {
    fn listen(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert!(self.heard.end.is_none(), "an event after the end: {event:?}");
            match event {
                Event::Started { cached_tokens, .. } => {
                    assert!(self.heard.cached.replace(cached_tokens).is_none(), "started twice");
                }
                Event::Prompt(scores) => self.heard.prompt = Some(scores),
                Event::Token(drawn) => self.heard.tokens.push(drawn.token),
                Event::Finished(finish) => self.heard.end = Some(Ok(finish)),
                Event::Failed(refusal) => self.heard.end = Some(Err(refusal)),
            }
        }
    }
}
