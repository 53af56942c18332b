//! A request's way through a router: admitted, placed, followed, tried again, ended. What the product's proxy does
//! with sockets, done with words.

use std::sync::Arc;
use std::time::Duration;

use base::{AdapterId, NamespaceId, Nanos, TokenId};
use router::admission::{
    Class, Completion, FailureKind, Offer, Outcome, Start, Tenant, Verdict, Weight, Work,
};
use router::book::Reservation;
use router::breaker::{Answer, Permit};
use router::decide::{AdapterState, Ask, decide};
use router::retry::{Attempt, RetryVerdict, Sent};
use router::{Seat, SeatSet, admission, book};

use super::message::{End, Node, Try, Word};
use super::names::names;
use super::router::{Facts, Out, Placed, Plant, RouterNode};
use crate::replica::{Progress, Refusal, Submission, Ticket};
use crate::trace;

/// Sessions that a router remembers.
const SESSIONS_MAX: usize = 1 << 16;
/// What stands for "no deadline".
const NEVER: Nanos = Nanos(u64::MAX / 4);
/// A placement that meets a closed breaker is made anew at most so often.
const CHOICES_MAX: usize = 64;

/// One request at a router.
pub struct Flight {
    pub of: Try,
    namespace: NamespaceId,
    tokens: Arc<[TokenId]>,
    deadline: Nanos,
    stage: Stage,
    tried: SeatSet,
    begun: bool,
    drawn: u32,
    heard: Nanos,
}

enum Stage {
    Waiting,
    Admitted,
    Placed { ticket: Ticket, permit: Permit },
}

impl Flight {
    pub fn is_admitted(&self) -> bool {
        !matches!(self.stage, Stage::Waiting)
    }
}

impl RouterNode {
    pub(super) fn ask(&mut self, now: Nanos, of: Try, asked: Nanos, facts: &Facts, out: &mut Out) {
        let call = &facts.trace.calls[of.call];
        self.retries.request();
        let namespace = facts.namespace(call.tenant);
        let tokens: Arc<[TokenId]> = call.tokens().into();
        let deadline = call.deadline.map_or(NEVER, |deadline| asked.plus(deadline));
        let offer = Offer {
            ticket: place_of(of),
            tenant: Tenant(u64::from(call.tenant)),
            weight: Weight::ONE,
            class: match call.class {
                trace::Class::Interactive => Class::Interactive,
                trace::Class::Batch => Class::Batch,
            },
            work: Work(tokens.len() as u64 + self.config.output_work * self.output_mean as u64),
            bytes: tokens.len() as u64 * 4,
            deadline,
        };
        let flight = Flight {
            of,
            namespace,
            tokens,
            deadline,
            stage: Stage::Waiting,
            tried: SeatSet::EMPTY,
            begun: false,
            drawn: 0,
            heard: now,
        };
        match self.admission.offer(now, offer) {
            Verdict::Admitted => {
                self.flights.insert(of.call, Flight { stage: Stage::Admitted, ..flight });
                self.start(now, of.call, facts, out);
            }
            Verdict::Queued { .. } => {
                self.flights.insert(of.call, flight);
            }
            Verdict::Rejected(refusal) => out.say(Node::Clients, ended(of, rejected(refusal.reason))),
            Verdict::ExpiredBeforeStart => out.say(Node::Clients, ended(of, End::Expired)),
        }
    }

    /// Whoever's wait is over.
    pub(super) fn settle(&mut self, now: Nanos, facts: &Facts, out: &mut Out) {
        while let Some(settled) = self.admission.next(now) {
            let call = call_of(settled.ticket);
            let Some(flight) = self.flights.get_mut(&call) else { continue };
            let of = flight.of;
            match settled.outcome {
                Outcome::Admitted => {
                    flight.stage = Stage::Admitted;
                    self.start(now, call, facts, out);
                    continue;
                }
                Outcome::Rejected(refusal) => out.say(Node::Clients, ended(of, rejected(refusal.reason))),
                Outcome::ExpiredBeforeStart => out.say(Node::Clients, ended(of, End::Expired)),
            }
            self.flights.remove(&call);
        }
    }

    fn start(&mut self, now: Nanos, call: usize, facts: &Facts, out: &mut Out) {
        let Some(flight) = self.flights.get(&call) else { return };
        match self.admission.started(now, place_of(flight.of)) {
            Ok(Start::Go) => self.place(now, call, SeatSet::EMPTY, facts, out),
            Ok(Start::TooLate) | Err(_) => {
                let of = flight.of;
                self.flights.remove(&call);
                out.say(Node::Clients, ended(of, End::Expired));
            }
        }
    }

    /// Gives a request to the replica that the policy chooses, none of `excluded`.
    fn place(&mut self, now: Nanos, call: usize, excluded: SeatSet, facts: &Facts, out: &mut Out) {
        let Some(flight) = self.flights.get(&call) else { return };
        let (namespace, tokens) = (flight.namespace, flight.tokens.clone());
        let generation = self.floor(namespace);
        let names: Arc<[u64]> = names(namespace, generation, &tokens, facts.page_tokens).into();
        let held = self.lookup(facts, namespace, generation, &names);
        let Some((score, permit)) = self.choose(now, call, excluded, &names, facts) else {
            let end = End::Refused { status: 503, code: "no_replica" };
            return self.end(call, end, Completion::Failed(FailureKind::Transport), out);
        };
        let seat = permit.seat();
        let ticket = self.next_ticket();
        let reservation = Reservation {
            seat,
            uncached_tokens: score,
            total_tokens: tokens.len() as u32,
            expected_output: self.output_mean as u32,
        };
        // The book is as large as admission's limit of requests in flight.
        let _ = self.book.reserve(book::Ticket(ticket.0), reservation, now);
        self.placed += 1;
        if let Some(session) = facts.trace.calls[call].session {
            if self.sessions.len() >= SESSIONS_MAX {
                self.sessions.pop_first();
            }
            self.sessions.insert(session, seat);
        }
        let Some(flight) = self.flights.get_mut(&call) else { return };
        flight.stage = Stage::Placed { ticket, permit };
        flight.tried = flight.tried.with(seat);
        flight.heard = now;
        out.placed.push(Placed { of: flight.of, seat, namespace, generation, names: names.clone(), held });
        self.tickets.insert(ticket, call);
        let output = facts.trace.calls[call].output;
        let submission = Submission { ticket, namespace, generation, tokens, names, output };
        out.say(Node::Replica(seat.index()), Word::Submit(Box::new(submission)));
    }

    /// The seat, with the right to use it, and what it would have to compute.
    fn choose(
        &mut self,
        now: Nanos,
        call: usize,
        excluded: SeatSet,
        names: &[u64],
        facts: &Facts,
    ) -> Option<(u32, Permit)> {
        let mut views = std::mem::take(&mut self.views);
        let held = |seat: Seat| self.matches.held(seat);
        self.fleet.views(&self.book, now, held, |_| AdapterState::Loaded, &mut views);
        if self.config.plant == Plant::RoutesToTheDead {
            views.iter_mut().for_each(|view| view.readiness = router::fleet::Readiness::Ready);
        }
        let reachable = self.reachable(now);
        let mut excluded = SeatSet(excluded.0 | !reachable.0);
        let trace = &facts.trace.calls[call];
        let hot = self.heat.note(names, now);
        let mut chosen = None;
        for _ in 0..CHOICES_MAX {
            let ask = Ask {
                prompt_tokens: trace.prompt_tokens(),
                block_tokens: facts.page_tokens,
                output_tokens: self.output_mean as u32,
                adapter: AdapterId(0),
                session: trace.session.and_then(|session| self.sessions.get(&session).copied()),
                hot,
                prefix: names.first().copied().unwrap_or(call as u64),
                turn: self.placed,
                seed: facts.seed ^ (self.at as u64) << 48 ^ self.placed,
                excluded,
            };
            let Ok(decision) = decide(&self.config.policy, &ask, &views) else { break };
            match self.breakers.take(now, decision.chosen) {
                Ok(permit) => {
                    chosen = Some((decision.score().uncached_tokens, permit));
                    break;
                }
                Err(_) => excluded = excluded.with(decision.chosen),
            }
        }
        self.views = views;
        chosen
    }

    /// Seats that breakers let pass and whose connections stand.
    fn reachable(&mut self, now: Nanos) -> SeatSet {
        let usable = self.breakers.view(now).usable;
        match self.config.plant {
            Plant::RoutesToTheDead => self.breakers.members(),
            _ => usable.and(SeatSet(!self.unreachable.0)),
        }
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket::new(self.at, self.epoch, self.last_ticket)
    }

    pub(super) fn progress(
        &mut self,
        now: Nanos,
        items: Vec<(Ticket, Progress)>,
        facts: &Facts,
        out: &mut Out,
    ) {
        for (ticket, progress) in items {
            let Some(&call) = self.tickets.get(&ticket) else { continue };
            let Some(flight) = self.flights.get_mut(&call) else { continue };
            flight.heard = now;
            match progress {
                Progress::First { .. } => {
                    flight.begun = true;
                    flight.drawn = 1;
                    out.say(Node::Clients, Word::Begun { of: flight.of });
                    if let Some(span) = self.book.prefill_done(book::Ticket(ticket.0), now).span() {
                        self.fleet.speeds_mut().prefilled(&span);
                    }
                }
                Progress::Token { .. } => {
                    flight.drawn += 1;
                    self.book.grew(book::Ticket(ticket.0), 1, now);
                }
                Progress::Finished { tokens } => self.finished(now, call, tokens, out),
            }
        }
        self.settle(now, facts, out);
    }

    fn finished(&mut self, now: Nanos, call: usize, tokens: u32, out: &mut Out) {
        self.output_mean += (f64::from(tokens) - self.output_mean) / 64.0;
        self.leave_replica(now, call, Answer::Success);
        if self.config.plant == Plant::AnswersTwice && self.placed.is_multiple_of(16) {
            let of = self.flights[&call].of;
            out.say(Node::Clients, ended(of, End::Answered { tokens }));
        }
        self.end(call, End::Answered { tokens }, Completion::Completed, out);
    }

    /// Ends what a request has at a replica.
    fn leave_replica(&mut self, now: Nanos, call: usize, answer: Answer) -> Option<(Ticket, Seat)> {
        let flight = self.flights.get_mut(&call)?;
        let Stage::Placed { ticket, permit } = std::mem::replace(&mut flight.stage, Stage::Admitted) else {
            return None;
        };
        self.tickets.remove(&ticket);
        self.breakers.answered(now, permit, answer);
        if self.config.plant == Plant::LeaksPlaces {
            return Some((ticket, permit.seat()));
        }
        if let Some(span) = self.book.free(book::Ticket(ticket.0), now).span() {
            self.fleet.speeds_mut().decoded(&span);
        }
        Some((ticket, permit.seat()))
    }

    fn end(&mut self, call: usize, end: End, completion: Completion, out: &mut Out) {
        let Some(flight) = self.flights.remove(&call) else { return };
        let work = flight.tokens.len() as u64 + self.config.output_work * u64::from(flight.drawn);
        // Unknown to admission is only who never was admitted, and such a one does not come here.
        let _ = self.admission.finished(place_of(flight.of), Work(work), completion);
        out.say(Node::Clients, ended(flight.of, end));
    }

    pub(super) fn refused(
        &mut self,
        now: Nanos,
        ticket: Ticket,
        refusal: Refusal,
        facts: &Facts,
        out: &mut Out,
    ) {
        let answer = Answer::of_status(refusal.status(), None);
        let end = End::Refused { status: refusal.status(), code: refusal.code() };
        self.failed(now, ticket, answer, end, facts, out);
    }

    /// The connection to the replica broke.
    pub(super) fn broken(&mut self, now: Nanos, ticket: Ticket, facts: &Facts, out: &mut Out) {
        self.failed(now, ticket, Answer::Transport, End::Failed { code: "replica_lost" }, facts, out);
    }

    /// One try is over without an answer: another one, or `end`.
    fn failed(&mut self, now: Nanos, ticket: Ticket, answer: Answer, end: End, facts: &Facts, out: &mut Out) {
        let Some(&call) = self.tickets.get(&ticket) else { return };
        self.leave_replica(now, call, answer);
        let usable = self.reachable(now);
        let Some(flight) = self.flights.get(&call) else { return };
        let ready =
            self.fleet.seats().filter(|(_, replica)| replica.readiness == router::fleet::Readiness::Ready);
        let ready: SeatSet = ready.map(|(seat, _)| seat).collect();
        let attempt = Attempt {
            answer,
            sent: if flight.begun { Sent::FirstByte } else { Sent::Nothing },
            tried: flight.tried,
            usable: usable.and(ready),
            deadline: flight.deadline,
        };
        match self.retries.ask(now, &attempt) {
            RetryVerdict::Retry { among } => {
                self.retried += 1;
                self.place(now, call, SeatSet(!among.0), facts, out);
            }
            RetryVerdict::GiveUp(_) => {
                self.end(call, end, Completion::Failed(FailureKind::Upstream), out);
            }
        }
        self.settle(now, facts, out);
    }

    /// Requests at replicas that have been silent: elsewhere if nothing has come yet, else broken off after long.
    pub(super) fn give_up_silent(&mut self, now: Nanos, facts: &Facts, out: &mut Out) {
        let dead = self.fleet.silence(now);
        let idle = self.config.idle_max;
        let lost = self.flights.values().filter_map(|flight| {
            let Stage::Placed { ticket, permit } = &flight.stage else { return None };
            let waits = now.since(flight.heard);
            let is_lost = waits > idle
                || (!flight.begun && dead.has(permit.seat()) && waits > Duration::from_millis(200));
            is_lost.then_some((*ticket, permit.seat()))
        });
        for (ticket, seat) in lost.collect::<Vec<_>>() {
            out.say(Node::Replica(seat.index()), Word::Cancel(ticket));
            self.failed(now, ticket, Answer::TimedOut, End::Failed { code: "replica_silent" }, facts, out);
        }
    }

    /// The client went away.
    pub(super) fn hang_up(&mut self, now: Nanos, of: Try, facts: &Facts, out: &mut Out) {
        if self.flights.get(&of.call).is_none_or(|flight| flight.of != of) {
            return;
        }
        if self.admission.cancel(place_of(of)) == admission::Cancel::InFlight {
            if let Some((ticket, seat)) = self.leave_replica(now, of.call, Answer::Abandoned) {
                out.say(Node::Replica(seat.index()), Word::Cancel(ticket));
            }
            let _ = self.admission.finished(place_of(of), Work(1), Completion::Cancelled);
        }
        self.flights.remove(&of.call);
        self.settle(now, facts, out);
    }
}

/// A try's number in admission.
fn place_of(of: Try) -> admission::Ticket {
    admission::Ticket((of.call as u64) << 8 | u64::from(of.attempt & 0xff))
}

fn call_of(ticket: admission::Ticket) -> usize {
    (ticket.0 >> 8) as usize
}

fn ended(of: Try, end: End) -> Word {
    Word::Ended { of, end }
}

fn rejected(reason: admission::Reason) -> End {
    End::Refused { status: reason.http_status(), code: reason.code() }
}
