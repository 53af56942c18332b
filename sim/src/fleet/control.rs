//! Faults and their ends, and the laws that need the whole fleet to be seen.

use std::collections::HashMap;
use std::time::Duration;

use base::{Generation, NamespaceId, Nanos};

use super::fault::{Fault, Memory};
use super::laws::{Told, Violation};
use super::message::{Node, Word};
use super::place::Life;
use super::router::{Placed, RouterNode};
use super::world::{Event, Heal, World};
use crate::replica::{Replica, ReplicaConfig};

/// How long the fleet runs before the first call: routers find their replicas.
pub const WARM_UP: Duration = Duration::from_millis(100);
/// A draining replica is stopped after so long, done or not.
const DRAIN_MAX: Duration = Duration::from_secs(20);

impl World {
    pub fn new_replica(&mut self, at: usize, kept: Option<Replica>) -> Replica {
        self.incarnations += 1;
        let incarnation = self.incarnations << 8 | at as u64;
        let config: ReplicaConfig = self.config.replicas[at].clone();
        let mut replica = match kept {
            Some(before) => before.warm_restart(incarnation),
            None => Replica::new(config, incarnation),
        };
        for tenant in 0..self.facts.trace.tenants.len() {
            replica.register(self.facts.namespace(tenant as u16));
        }
        // Purges that the process before had not heard of are the first thing that the next one hears.
        for (&namespace, &floor) in &self.floors {
            replica.purge(namespace, Generation(floor.0 - 1), self.queue.now());
        }
        let found = replica.stream.held().clone();
        replica.stream.begin(incarnation);
        self.told[at].push(Told { incarnation, found, batches: Vec::new() });
        replica
    }

    pub fn begin_fault(&mut self, fault: Fault) {
        self.journal.note(self.queue.now(), fault.name(), [0; 3]);
        let heal = match fault {
            Fault::KillReplica { replica, down, memory } => {
                self.kill_replica(replica, memory).map(|heal| (down, heal))
            }
            Fault::KillRouter { router, down } => self.kill_router(router).map(|heal| (down, heal)),
            Fault::PauseReplica { replica, pause } => {
                let place = &mut self.replicas[replica];
                let epoch = place.epoch;
                (place.life == Life::Running).then(|| {
                    place.life = Life::Stopped;
                    (pause, Heal::ResumeReplica { replica, epoch })
                })
            }
            Fault::PauseRouter { router, pause } => {
                let place = &mut self.routers[router];
                let epoch = place.epoch;
                (place.life == Life::Running).then(|| {
                    place.life = Life::Stopped;
                    (pause, Heal::ResumeRouter { router, epoch })
                })
            }
            Fault::Slow { replica, times, lasts } => self.replicas[replica].process.as_mut().map(|process| {
                process.slowness = times;
                (lasts, Heal::Speed { replica })
            }),
            Fault::FullQueue { replica, lasts } => self.replicas[replica].process.as_mut().map(|process| {
                process.queue_is_closed = true;
                (lasts, Heal::Queue { replica })
            }),
            Fault::Cut { router, replica, lasts } => {
                let until = self.queue.now().plus(lasts);
                self.net.cut(Node::Router(router), Node::Replica(replica), until);
                Some((lasts, Heal::Over))
            }
            Fault::Split { a, b, lasts } => {
                self.net.cut(Node::Router(a), Node::Router(b), self.queue.now().plus(lasts));
                Some((lasts, Heal::Over))
            }
            Fault::Roll { replica, down, memory } => self.replicas[replica]
                .running()
                .map(|process| {
                    process.drain();
                    (Duration::ZERO, (replica, down, memory))
                })
                .map(|(after, (replica, down, memory))| {
                    let by = self.queue.now().plus(DRAIN_MAX);
                    (after, Heal::Drained { replica, epoch: self.replicas[replica].epoch, down, memory, by })
                }),
            Fault::Purge { namespace } => {
                self.purge(NamespaceId(namespace + 1));
                None
            }
        };
        match heal {
            Some((after, heal)) => self.queue.after(after, Event::Heal(heal)),
            None => self.fault_is_over(),
        }
    }

    fn fault_is_over(&mut self) {
        self.faults_open -= 1;
        self.last = self.queue.now();
    }

    pub fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::StartReplica { replica, kept } => {
                let process = self.new_replica(replica, kept.map(|kept| *kept));
                self.replicas[replica].start(process);
                self.late_steps[replica] = false;
            }
            Heal::StartRouter { router } => self.start_router(router),
            Heal::ResumeReplica { replica, epoch } => self.resume_replica(replica, epoch),
            Heal::ResumeRouter { router, epoch } => self.resume_router(router, epoch),
            Heal::Speed { replica } => {
                if let Some(process) = &mut self.replicas[replica].process {
                    process.slowness = 1.0;
                }
            }
            Heal::Queue { replica } => {
                if let Some(process) = &mut self.replicas[replica].process {
                    process.queue_is_closed = false;
                }
            }
            Heal::Drained { replica, epoch, down, memory, by } => {
                return self.end_drain(replica, epoch, down, memory, by);
            }
            Heal::Over => {}
        }
        self.fault_is_over();
    }

    fn end_drain(&mut self, replica: usize, epoch: u32, down: Duration, memory: Memory, by: Nanos) {
        let place = &self.replicas[replica];
        if place.epoch != epoch || !place.is_alive() {
            return self.fault_is_over(); // something else has ended it
        }
        let is_done = place.process.as_ref().is_some_and(Replica::is_idle) || self.queue.now() >= by;
        if is_done && place.life == Life::Running {
            match self.kill_replica(replica, memory) {
                Some(heal) => self.queue.after(down, Event::Heal(heal)),
                None => self.fault_is_over(),
            }
        } else {
            let again = Heal::Drained { replica, epoch, down, memory, by };
            self.queue.after(Duration::from_millis(50), Event::Heal(again));
        }
    }

    fn kill_replica(&mut self, at: usize, memory: Memory) -> Option<Heal> {
        if !self.replicas[at].is_alive() {
            return None;
        }
        let process = self.replicas[at].kill()?;
        self.count_replica(at, &process);
        let epoch = self.replicas[at].epoch;
        let mut lost: Vec<Vec<_>> = vec![Vec::new(); self.routers.len()];
        process.tickets().for_each(|ticket| lost[ticket.router()].push(ticket));
        self.subscribers[at].clear();
        for (router, tickets) in lost.into_iter().enumerate() {
            let word = Word::Reset { peer: Node::Replica(at), epoch, tickets };
            self.send(Node::Replica(at), Node::Router(router), word);
        }
        let kept = (memory == Memory::Kept).then(|| Box::new(process));
        Some(Heal::StartReplica { replica: at, kept })
    }

    fn kill_router(&mut self, at: usize) -> Option<Heal> {
        if !self.routers[at].is_alive() {
            return None;
        }
        let node = self.routers[at].kill()?;
        self.tally.retried += node.retried;
        let epoch = self.routers[at].epoch;
        for replica in 0..self.replicas.len() {
            let word = Word::Reset { peer: Node::Router(at), epoch, tickets: Vec::new() };
            self.send(Node::Router(at), Node::Replica(replica), word);
        }
        for of in self.clients.open_at(at) {
            self.queue.after(Duration::from_millis(1), Event::Gone(of));
        }
        Some(Heal::StartRouter { router: at })
    }

    fn start_router(&mut self, at: usize) {
        let (epoch, now) = (self.routers[at].epoch + 1, self.queue.now());
        let node =
            RouterNode::new(at, epoch, self.config.router.clone(), &self.facts, self.floors.clone(), now);
        self.routers[at].start(node);
        for replica in 0..self.replicas.len() {
            self.beliefs[at][replica] = Default::default();
            self.contacts[at][replica] = super::world::Contact { heard: now, dead_since: None };
        }
    }

    fn resume_replica(&mut self, at: usize, epoch: u32) {
        if self.replicas[at].epoch != epoch || self.replicas[at].life != Life::Stopped {
            return;
        }
        self.replicas[at].life = Life::Running;
        for letter in std::mem::take(&mut self.replicas[at].inbox) {
            self.give_replica(at, letter);
        }
        if std::mem::take(&mut self.late_steps[at]) {
            self.step_end(at, epoch);
        }
    }

    fn resume_router(&mut self, at: usize, epoch: u32) {
        if self.routers[at].epoch != epoch || self.routers[at].life != Life::Stopped {
            return;
        }
        self.routers[at].life = Life::Running;
        let now = self.queue.now();
        // What it could not hear while it stood still it does not know.
        self.contacts[at].iter_mut().for_each(|contact| contact.heard = now);
        for letter in std::mem::take(&mut self.routers[at].inbox) {
            self.give_router(at, letter);
        }
    }

    fn purge(&mut self, namespace: NamespaceId) {
        let floor = self.floors.entry(namespace).or_default();
        let up_to = *floor;
        floor.0 += 1;
        let everybody =
            (0..self.routers.len()).map(Node::Router).chain((0..self.replicas.len()).map(Node::Replica));
        for to in everybody.collect::<Vec<_>>() {
            self.send(Node::Clients, to, Word::Purge { namespace, up_to });
        }
    }

    // ---- laws

    /// A router that knows of a purge asks for nothing that it ended.
    pub fn law_of_purges(&mut self, router: usize, placed: &Placed) {
        let heard = self.purges_heard[router].get(&placed.namespace).copied().unwrap_or_default();
        if placed.generation < heard {
            let (namespace, generation) = (placed.namespace, placed.generation);
            self.violate(Violation::PlacedPurged { router, namespace, generation });
        }
    }

    /// What the index says of a prompt is what replicas with exact sources held.
    pub fn law_of_truth(&mut self, router: usize, placed: &Placed) {
        for replica in 0..self.replicas.len() {
            let Some(truth) = self.truth(router, replica, &placed.names) else { continue };
            let said = placed.held[replica];
            if said > truth {
                self.violate(Violation::AboveTruth { router, replica, said, truth });
            } else if said < truth {
                let seat = ::router::Seat(replica as u16);
                let known = self.routers[router]
                    .process
                    .as_ref()
                    .map_or(0, |node| node.index.seat(seat).memberships.iter().sum());
                let all = self.beliefs[router][replica].len() as u64;
                let generation = placed.generation;
                self.violate(Violation::BelowTruth { router, replica, said, truth, known, all, generation });
            }
        }
    }

    /// Blocks of `names` that a replica held where the router's source is exact.
    fn truth(&mut self, router: usize, replica: usize, names: &[u64]) -> Option<u32> {
        let position = self.routers[router].process.as_ref()?.links[replica].exact_at()?;
        let belief = &mut self.beliefs[router][replica];
        belief.advance(position, &self.told[replica])?;
        Some(belief.holds(names))
    }

    pub fn check_replica(&mut self, at: usize) {
        let Some(process) = &self.replicas[at].process else { return };
        if let Err(problem) = process.check() {
            self.violate(Violation::Replica { replica: at, problem: problem.to_string() });
            return;
        }
        let told: HashMap<u64, _> = process
            .snapshot()
            .iter()
            .flat_map(|run| run.names.iter().map(|&name| (name, run.owner)))
            .collect();
        if told != *process.stream.held() {
            let problem = format!("told of {} blocks, holds {}", process.stream.len(), told.len());
            self.violate(Violation::Replica { replica: at, problem });
        }
    }

    /// When all is over, everything is as it was.
    pub fn at_the_end(&mut self) {
        if let Some(call) = self.clients.first_open() {
            let after_s = self.queue.now().since(self.last).as_secs();
            self.violate(Violation::Lost { call, after_s });
        }
        for at in 0..self.replicas.len() {
            if let Some(process) = self.replicas[at].process.take() {
                self.count_replica(at, &process);
                self.replicas[at].process = Some(process);
            }
        }
        for at in 0..self.routers.len() {
            self.tally.retried += self.routers[at].process.as_ref().map_or(0, |node| node.retried);
        }
        if self.config.watch == super::laws::Watch::Ends || !self.violations.is_empty() {
            return;
        }
        (0..self.replicas.len()).for_each(|at| self.check_rested_replica(at));
        (0..self.routers.len()).for_each(|at| self.check_rested_router(at));
    }

    fn check_rested_replica(&mut self, at: usize) {
        self.check_replica(at);
        let left = self.replicas[at].process.as_ref().map_or(0, Replica::in_flight);
        if left > 0 {
            self.violate(Violation::Replica {
                replica: at,
                problem: format!("{left} requests that nobody waits for"),
            });
        }
    }

    fn check_rested_router(&mut self, at: usize) {
        let Some(node) = &self.routers[at].process else { return };
        let mut problems: Vec<String> = node.check().err().into_iter().collect();
        if node.open() + node.book.len() + node.admission.requests_in_flight() > 0 {
            let (open, reserved, admitted) =
                (node.open(), node.book.len(), node.admission.requests_in_flight());
            problems
                .push(format!("{open} requests open, {reserved} reserved, {admitted} in admission at rest"));
        }
        for (replica, place) in self.replicas.iter().enumerate() {
            let Some(process) = &place.process else { continue };
            let (said, truth) = (node.links[replica].exact_at(), process.stream.position());
            if said != Some(truth) {
                problems.push(format!(
                    "replica {replica} is {}, at {said:?} of {truth:?}, at rest",
                    node.state(replica)
                ));
            }
            let known: u64 = node.index.seat(node.links[replica].seat).memberships.iter().sum();
            if known != process.stream.len() as u64 {
                problems.push(format!(
                    "{known} blocks of replica {replica}, which holds {}",
                    process.stream.len()
                ));
            }
        }
        for problem in problems {
            self.violate(Violation::Router { router: at, problem });
        }
    }

    fn count_replica(&mut self, at: usize, process: &Replica) {
        let (sum, counters) = (&mut self.tally.replicas[at], process.counters);
        sum.computed_tokens += counters.computed_tokens;
        sum.generated_tokens += counters.generated_tokens;
        sum.query_tokens += counters.query_tokens;
        sum.hit_tokens += counters.hit_tokens;
        sum.steps += counters.steps;
        sum.busy_ns += counters.step_ns;
        sum.preemptions += counters.preemptions;
        sum.finished += counters.finished;
    }
}
