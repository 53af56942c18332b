//! The clock and the mail: takes the next event, hands it to whom it concerns, and sends what they answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Generation, NamespaceId, Nanos, SplitMix};

use super::clients::{Clients, TRIES_MAX};
use super::laws::{Belief, DEAD_MAX, Told, Violation, Watch};
use super::message::{End, Letter, Node, Try, Word};
use super::net::Net;
use super::place::{INBOX_MAX, Life, Place};
use super::router::{Facts, Out, Placed, RouterNode};
use super::tally::Tally;
use super::{FleetConfig, RunEnd};
use crate::journal::Journal;
use crate::queue::Queue;
use crate::replica::{Batch, Message, Progress, Replica, Ticket};
use crate::trace::{Start, Trace};

/// Laws broken that a run reports; it ends at the last of them.
const VIOLATIONS_MAX: usize = 8;
/// Time without any end of a call after which the open ones are lost.
const LOST_AFTER: Duration = Duration::from_secs(120);
/// How often replicas are looked at, and how often they say that they live.
pub(super) const BEAT: Duration = Duration::from_millis(50);
const BEATS_PER_HEARTBEAT: u64 = 5;
/// A live replica is heard of once in so long, on any network that is not cut.
const HEARD_WITHIN: Duration = Duration::from_millis(1_200);

pub(super) enum Event {
    Arrive(usize),
    HangUp(usize),
    /// A client notices that its router is gone.
    Gone(Try),
    Deliver(Letter),
    StepEnd {
        replica: usize,
        epoch: u32,
    },
    Tick {
        router: usize,
    },
    Beat,
    Fault(usize),
    Heal(Heal),
}

/// What ends a fault.
pub(super) enum Heal {
    StartReplica {
        replica: usize,
        kept: Option<Box<Replica>>,
    },
    StartRouter {
        router: usize,
    },
    ResumeReplica {
        replica: usize,
        epoch: u32,
    },
    ResumeRouter {
        router: usize,
        epoch: u32,
    },
    Speed {
        replica: usize,
    },
    Queue {
        replica: usize,
    },
    /// Whether a draining replica is done.
    Drained {
        replica: usize,
        epoch: u32,
        down: Duration,
        memory: super::fault::Memory,
        by: Nanos,
    },
    /// Time alone ends it.
    Over,
}

pub(super) struct Subscriber {
    pub router: usize,
    pub epoch: u32,
    pub subscription: u64,
}

/// What the run knows of one router's knowledge of one replica.
#[derive(Clone, Copy, Default)]
pub(super) struct Contact {
    pub heard: Nanos,
    pub dead_since: Option<Nanos>,
}

pub(super) struct World {
    pub config: FleetConfig,
    pub facts: Facts,
    pub queue: Queue<Event>,
    pub net: Net,
    pub journal: Journal,
    pub rng: SplitMix,
    pub replicas: Vec<Place<Replica>>,
    pub routers: Vec<Place<RouterNode>>,
    pub subscribers: Vec<Vec<Subscriber>>,
    /// A step that ended while its replica was stopped.
    pub late_steps: Vec<bool>,
    pub clients: Clients,
    pub floors: BTreeMap<NamespaceId, Generation>,
    pub told: Vec<Vec<Told>>,
    pub beliefs: Vec<Vec<Belief>>,
    pub contacts: Vec<Vec<Contact>>,
    /// The first good generation, as each router has heard.
    pub purges_heard: Vec<BTreeMap<NamespaceId, Generation>>,
    pub incarnations: u64,
    /// Faults that have not ended.
    pub faults_open: usize,
    /// The last time that something ended: a fault or a call.
    pub last: Nanos,
    pub tally: Tally,
    pub violations: Vec<Violation>,
    after: Vec<Vec<(usize, Duration)>>,
    idle_since: Vec<Option<Nanos>>,
    beats: u64,
}

impl World {
    pub fn new(config: FleetConfig, trace: Arc<Trace>) -> Self {
        let (replicas, routers) = (config.replicas.len(), config.routers);
        let facts = Facts {
            page_tokens: config.replicas[0].page_tokens,
            replicas,
            routers,
            seed: config.seed,
            trace,
        };
        let contacts = vec![vec![Contact::default(); replicas]; routers];
        let mut world = Self {
            net: Net::new(config.net, config.seed ^ 0x6e65_7477),
            journal: Journal::new(config.verbosity),
            rng: SplitMix::new(config.seed ^ 0x776f_726c),
            queue: Queue::new(),
            replicas: Vec::new(),
            routers: Vec::new(),
            subscribers: (0..replicas).map(|_| Vec::new()).collect(),
            late_steps: vec![false; replicas],
            clients: Clients::default(),
            floors: BTreeMap::new(),
            told: (0..replicas).map(|_| Vec::new()).collect(),
            beliefs: (0..routers).map(|_| (0..replicas).map(|_| Belief::default()).collect()).collect(),
            contacts,
            purges_heard: vec![BTreeMap::new(); routers],
            incarnations: 0,
            faults_open: 0,
            last: Nanos(0),
            tally: Tally { replicas: vec![Default::default(); replicas], ..Tally::default() },
            violations: Vec::new(),
            after: vec![Vec::new(); facts.trace.calls.len()],
            idle_since: vec![None; replicas],
            beats: 0,
            facts,
            config,
        };
        world.set_up();
        world
    }

    fn set_up(&mut self) {
        for at in 0..self.facts.replicas {
            let process = self.new_replica(at, None);
            self.replicas.push(Place::new(process));
        }
        for at in 0..self.facts.routers {
            let node =
                RouterNode::new(at, 0, self.config.router.clone(), &self.facts, BTreeMap::new(), Nanos(0));
            self.routers.push(Place::new(node));
            self.queue.at(Nanos(at as u64 * 1_000), Event::Tick { router: at });
        }
        self.queue.at(Nanos(0), Event::Beat);
        let trace = self.facts.trace.clone();
        for (call, of) in trace.calls.iter().enumerate() {
            match of.start {
                // The fleet has a moment to find itself before the first call.
                Start::At(at) => self.queue.at(at.plus(super::control::WARM_UP), Event::Arrive(call)),
                Start::After { call: before, think } => self.after[before].push((call, think)),
            }
        }
        for at in 0..self.config.plan.len() {
            self.faults_open += 1;
            self.queue.at(self.config.plan[at].0.plus(super::control::WARM_UP), Event::Fault(at));
        }
    }

    pub fn run(mut self) -> RunEnd {
        while self.violations.len() < VIOLATIONS_MAX && !self.is_over() {
            let Some(event) = self.queue.pop() else { break };
            self.take(event);
            if self.queue.now().since(self.last) > LOST_AFTER && self.is_waiting() {
                break;
            }
        }
        self.at_the_end();
        RunEnd {
            hash: self.journal.hash(),
            events: self.journal.events(),
            tail: self.journal.lines().collect(),
            tally: self.tally,
            violations: self.violations,
        }
    }

    fn is_waiting(&self) -> bool {
        self.clients.open() > 0 || self.faults_open > 0
    }

    fn is_over(&self) -> bool {
        let calm = self.last.max(self.config.lossy_until).plus(self.config.settle);
        self.clients.asked() == self.facts.trace.calls.len() && !self.is_waiting() && self.queue.now() >= calm
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Arrive(call) => self.arrive(call),
            Event::HangUp(call) => self.hang_up(call),
            Event::Gone(of) => self.ask_again(of),
            Event::Deliver(letter) => self.deliver(letter),
            Event::StepEnd { replica, epoch } => self.step_end(replica, epoch),
            Event::Tick { router } => {
                let letter = self.letter(Node::Router(router), Node::Router(router), Word::Tick);
                if self.routers[router].running().is_some() {
                    self.give_router(router, letter);
                }
                self.queue.after(self.config.router.tick_every, Event::Tick { router });
            }
            Event::Beat => self.beat(),
            Event::Fault(at) => self.begin_fault(self.config.plan[at].1),
            Event::Heal(heal) => self.heal(heal),
        }
    }

    pub fn violate(&mut self, violation: Violation) {
        let now = self.queue.now();
        self.journal.note(now, violation.kind(), [0; 3]);
        self.journal.freeze();
        self.violations.push(violation);
    }

    // ---- clients

    fn arrive(&mut self, call: usize) {
        let router = self.rng.below(self.facts.routers as u64) as usize;
        if self.tally.asked == 0 {
            self.tally.first = self.queue.now();
        }
        self.tally.asked += 1;
        self.ask(call, router);
        if self.rng.below(1000) < self.config.hangups_permille {
            let patience = Duration::from_millis(self.rng.below(3_000));
            self.queue.after(patience, Event::HangUp(call));
        }
    }

    fn ask(&mut self, call: usize, router: usize) {
        let of = self.clients.ask(self.queue.now(), call, router);
        let asked = self.clients.get(call).map_or(self.queue.now(), |asked| asked.at);
        self.send(Node::Clients, Node::Router(router), Word::Ask { of, asked });
    }

    fn ask_again(&mut self, of: Try) {
        let Some(asked) = self.clients.get(of.call).copied() else { return };
        if !self.clients.listens(of) || asked.end.is_some() {
            return;
        }
        if of.attempt + 1 >= TRIES_MAX {
            return self.ended(of, End::Failed { code: "router_lost" });
        }
        self.tally.asked_again += 1;
        self.ask(of.call, (asked.router + 1) % self.facts.routers);
    }

    fn hang_up(&mut self, call: usize) {
        let Some(asked) = self.clients.get(call).copied() else { return };
        if asked.end.is_some() {
            return;
        }
        let of = Try { call, attempt: asked.attempt };
        self.send(Node::Clients, Node::Router(asked.router), Word::Hangup { of });
        self.ended(of, End::Failed { code: "hung_up" });
        self.clients.stop_listening(call);
    }

    fn give_clients(&mut self, word: Word) {
        let now = self.queue.now();
        match word {
            Word::Begun { of } if self.clients.listens(of) => {
                let ttft = self.clients.begun(now, of);
                self.tally.ttft.record(ttft.unwrap_or_default());
            }
            Word::Ended { of, end } if self.clients.listens(of) => self.ended(of, end),
            _ => {}
        }
    }

    fn ended(&mut self, of: Try, end: End) {
        let now = self.queue.now();
        if let Err(unheard) = self.clients.ended(now, of, end) {
            return self.violate(unheard.into());
        }
        self.last = now;
        self.tally.last = now;
        self.count_end(of, end);
        for (call, think) in std::mem::take(&mut self.after[of.call]) {
            self.queue.after(think, Event::Arrive(call));
        }
    }

    fn count_end(&mut self, of: Try, end: End) {
        let Some(asked) = self.clients.get(of.call) else { return };
        let took = self.queue.now().since(asked.at);
        *self.tally.ends.entry(end.code()).or_default() += 1;
        match (end, asked.begun) {
            (End::Answered { tokens }, Some(begun)) => {
                self.tally.e2e.record(took);
                self.tally.answered += 1;
                self.tally.answered_tokens += u64::from(tokens);
                let gaps = tokens.saturating_sub(1).max(1);
                let itl = self.queue.now().since(begun) / gaps;
                let is_good = begun.since(asked.at) <= self.config.slo.ttft && itl <= self.config.slo.itl;
                self.tally.good += u64::from(is_good);
            }
            (End::Refused { .. }, _) => self.tally.refusal.record(took),
            _ => {}
        }
    }

    // ---- mail

    fn letter(&self, from: Node, to: Node, word: Word) -> Letter {
        Letter {
            from,
            from_epoch: self.epoch(from),
            to,
            to_epoch: self.epoch(to),
            sent: self.queue.now(),
            word,
        }
    }

    fn epoch(&self, node: Node) -> u32 {
        match node {
            Node::Clients => 0,
            Node::Router(at) => self.routers[at].epoch,
            Node::Replica(at) => self.replicas[at].epoch,
        }
    }

    pub fn send(&mut self, from: Node, to: Node, word: Word) {
        let letter = self.letter(from, to, word);
        self.post(letter);
    }

    pub fn post(&mut self, letter: Letter) {
        let now = self.queue.now();
        if now >= self.config.lossy_until {
            self.net.config.events = super::net::Loss::NONE;
            self.net.config.gossip = super::net::Loss::NONE;
        }
        let [first, second] = self.net.arrivals(now, letter.from, letter.to, &letter.word);
        if let Some(at) = second {
            self.queue.at(at, Event::Deliver(letter.clone()));
        }
        if let Some(at) = first {
            self.queue.at(at, Event::Deliver(letter));
        }
    }

    fn deliver(&mut self, letter: Letter) {
        let now = self.queue.now();
        let about = [letter.from.number() << 32 | letter.to.number(), letter.word.number(), letter.sent.0];
        self.journal.note(now, letter.word.name(), about);
        match letter.to {
            Node::Clients => self.give_clients(letter.word),
            Node::Router(at) => match self.routers[at].life {
                Life::Stopped if self.routers[at].inbox.len() < INBOX_MAX => {
                    self.routers[at].inbox.push(letter)
                }
                Life::Running if self.routers[at].epoch == letter.to_epoch => self.give_router(at, letter),
                _ => self.bounce(letter),
            },
            Node::Replica(at) => match self.replicas[at].life {
                Life::Stopped if self.replicas[at].inbox.len() < INBOX_MAX => {
                    self.replicas[at].inbox.push(letter)
                }
                Life::Running if self.replicas[at].epoch == letter.to_epoch => self.give_replica(at, letter),
                _ => self.bounce(letter),
            },
        }
    }

    /// Nobody is there, or another process than the one that had the connection.
    fn bounce(&mut self, letter: Letter) {
        match (letter.to, letter.word) {
            (Node::Replica(replica), Word::Submit(submission)) => {
                let word = Word::NoConnection { replica, ticket: Some(submission.ticket) };
                self.answer(replica, submission.ticket, word);
            }
            (Node::Replica(replica), Word::Follow { .. }) => {
                let word = Word::NoConnection { replica, ticket: None };
                let to_epoch = letter.from_epoch;
                let back = Letter { to_epoch, ..self.letter(letter.to, letter.from, word) };
                self.post(back);
            }
            (Node::Router(_), Word::Ask { of, .. }) => {
                self.queue.after(Duration::from_millis(1), Event::Gone(of));
            }
            _ => {}
        }
    }

    /// To the router's process that gave the ticket.
    fn answer(&mut self, replica: usize, ticket: Ticket, word: Word) {
        let to = Node::Router(ticket.router());
        let letter = Letter { to_epoch: ticket.epoch(), ..self.letter(Node::Replica(replica), to, word) };
        self.post(letter);
    }

    // ---- routers

    pub fn give_router(&mut self, at: usize, letter: Letter) {
        let now = self.queue.now();
        self.note_contact(at, &letter);
        let Some(router) = self.routers[at].running() else { return };
        let mut out = Out::default();
        router.hear(now, letter.from, letter.word, &self.facts, &mut out);
        for placed in std::mem::take(&mut out.placed) {
            self.placed(at, &placed);
        }
        for (to, word) in out.words {
            self.send(Node::Router(at), to, word);
        }
    }

    fn note_contact(&mut self, at: usize, letter: &Letter) {
        let now = self.queue.now();
        let contact = |replica: usize| (at, replica);
        match &letter.word {
            Word::Stream { replica, .. } => {
                let (router, replica) = contact(*replica);
                self.contacts[router][replica] = Contact { heard: now, dead_since: None };
            }
            Word::NoConnection { replica, .. } | Word::Reset { peer: Node::Replica(replica), .. } => {
                let contact = &mut self.contacts[at][*replica];
                contact.dead_since = contact.dead_since.or(Some(now));
            }
            Word::Purge { namespace, up_to } => {
                let floor = self.purges_heard[at].entry(*namespace).or_default();
                *floor = (*floor).max(Generation(up_to.0 + 1));
            }
            _ => {}
        }
    }

    /// The laws of a placement.
    fn placed(&mut self, router: usize, placed: &Placed) {
        let (now, replica) = (self.queue.now(), placed.seat.index());
        self.tally.placed += 1;
        self.journal.note(now, "placed", [placed.of.call as u64, replica as u64, placed.generation.0]);
        if self.config.watch == Watch::Ends {
            return;
        }
        self.law_of_the_dead(router, replica, placed);
        self.law_of_deadlines(placed);
        self.law_of_purges(router, placed);
        self.law_of_truth(router, placed);
    }

    fn law_of_the_dead(&mut self, router: usize, replica: usize, placed: &Placed) {
        let now = self.queue.now();
        let contact = self.contacts[router][replica];
        let silent = contact.heard.plus(HEARD_WITHIN);
        let since = contact.dead_since.unwrap_or(silent).min(silent);
        if now > since.plus(DEAD_MAX) {
            let known_ms = now.since(since).as_millis() as u64;
            self.violate(Violation::GivenToTheDead { router, replica, call: placed.of.call, known_ms });
        }
    }

    fn law_of_deadlines(&mut self, placed: &Placed) {
        let Some(deadline) = self.facts.trace.calls[placed.of.call].deadline else { return };
        let Some(asked) = self.clients.get(placed.of.call) else { return };
        let late = self.queue.now().since(asked.at.plus(deadline));
        if late > Duration::ZERO {
            self.violate(Violation::Late { call: placed.of.call, late_ms: late.as_millis() as u64 });
        }
    }

    // ---- replicas

    pub fn give_replica(&mut self, at: usize, letter: Letter) {
        let now = self.queue.now();
        let from = letter.from;
        let Some(replica) = self.replicas[at].running() else { return };
        match letter.word {
            Word::Submit(submission) => {
                let ticket = submission.ticket;
                match replica.submit(*submission) {
                    Ok(()) => self.plan(at),
                    Err(refusal) => self.answer(at, ticket, Word::Refused { ticket, refusal }),
                }
            }
            Word::Cancel(ticket) => replica.cancel(ticket),
            Word::Follow { resume, subscription } => {
                let Node::Router(router) = from else { return };
                let messages = replica.follow(resume);
                self.subscribers[at].retain(|subscriber| subscriber.router != router);
                self.subscribers[at].push(Subscriber { router, epoch: letter.from_epoch, subscription });
                messages
                    .into_iter()
                    .for_each(|message| self.tell_one(at, self.subscribers[at].len() - 1, message));
                let beat = self.heartbeat(at);
                self.tell_one(at, self.subscribers[at].len() - 1, beat);
            }
            Word::Reset { peer: Node::Router(router), epoch, .. } => {
                let gone: Vec<Ticket> =
                    replica.tickets().filter(|of| (of.router(), of.epoch()) == (router, epoch)).collect();
                gone.into_iter().for_each(|ticket| replica.cancel(ticket));
                self.subscribers[at].retain(|of| (of.router, of.epoch) != (router, epoch));
            }
            Word::Purge { namespace, up_to } => {
                let batch = replica.purge(namespace, up_to, now);
                self.tell_all(at, batch);
            }
            other => unreachable!("{} is not for a replica", other.name()),
        }
    }

    fn plan(&mut self, at: usize) {
        let epoch = self.replicas[at].epoch;
        let took = self.replicas[at].running().and_then(Replica::plan);
        if let Some(took) = took {
            self.queue.after(took, Event::StepEnd { replica: at, epoch });
        }
    }

    pub fn step_end(&mut self, at: usize, epoch: u32) {
        if self.replicas[at].epoch != epoch {
            return;
        }
        let now = self.queue.now();
        if self.replicas[at].life == Life::Stopped {
            self.late_steps[at] = true;
            return;
        }
        let Some(replica) = self.replicas[at].running() else { return };
        let end = replica.finish(now);
        let steps = replica.counters.steps;
        self.tell_all(at, end.batch);
        self.tell_progress(at, end.progress);
        if let Watch::Closely { cache_every } = self.config.watch
            && steps.is_multiple_of(cache_every)
        {
            self.check_replica(at);
        }
        self.plan(at);
    }

    fn tell_progress(&mut self, at: usize, progress: Vec<(Ticket, Progress)>) {
        let mut by_router: BTreeMap<(usize, u32), Vec<(Ticket, Progress)>> = BTreeMap::new();
        for (ticket, progress) in progress {
            if let Progress::Token { gap_ns } = progress {
                self.tally.itl.record(Duration::from_nanos(gap_ns));
            }
            by_router.entry((ticket.router(), ticket.epoch())).or_default().push((ticket, progress));
        }
        for items in by_router.into_values() {
            self.answer(at, items[0].0, Word::Heard { replica: at, items });
        }
    }

    pub fn tell_all(&mut self, at: usize, batch: Option<Arc<Batch>>) {
        let Some(batch) = batch else { return };
        if self.config.watch != Watch::Ends
            && let Some(told) = self.told[at].last_mut()
        {
            told.batches.push(batch.clone());
        }
        for index in 0..self.subscribers[at].len() {
            self.tell_one(at, index, Message::Batch(batch.clone()));
        }
    }

    fn tell_one(&mut self, at: usize, index: usize, message: Message) {
        let Subscriber { router, epoch, subscription } = self.subscribers[at][index];
        let word = Word::Stream { replica: at, subscription, message };
        let letter = Letter { to_epoch: epoch, ..self.letter(Node::Replica(at), Node::Router(router), word) };
        self.post(letter);
    }

    fn heartbeat(&mut self, at: usize) -> Message {
        let unix_ms = self.queue.now().0 / 1_000_000;
        let replica = self.replicas[at].process.as_ref().expect("only the living send heartbeats");
        Message::Heartbeat { next: replica.stream.position(), load: replica.load(), unix_ms }
    }

    fn beat(&mut self) {
        self.beats += 1;
        self.watch_idleness();
        if self.beats.is_multiple_of(BEATS_PER_HEARTBEAT) {
            for at in (0..self.replicas.len())
                .filter(|&at| self.replicas[at].life == Life::Running)
                .collect::<Vec<_>>()
            {
                let beat = self.heartbeat(at);
                (0..self.subscribers[at].len()).for_each(|index| self.tell_one(at, index, beat.clone()));
            }
        }
        self.queue.after(BEAT, Event::Beat);
    }

    /// How long each replica has had nothing to do while another lets requests wait.
    fn watch_idleness(&mut self) {
        let now = self.queue.now();
        let waits: Vec<bool> =
            self.replicas.iter().map(|of| of.process.as_ref().is_some_and(|r| r.waiting() > 0)).collect();
        for (at, place) in self.replicas.iter().enumerate() {
            let is_idle = place.process.as_ref().is_some_and(Replica::is_idle);
            let others_wait = waits.iter().enumerate().any(|(other, waits)| other != at && *waits);
            if is_idle && others_wait {
                let since = *self.idle_since[at].get_or_insert(now);
                self.tally.idle_while_waiting = self.tally.idle_while_waiting.max(now.since(since));
            } else {
                self.idle_since[at] = None;
            }
        }
    }
}
