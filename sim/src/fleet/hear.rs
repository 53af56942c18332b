//! What a router hears of its replicas: streams into sources, sources into the index, load into the fleet.

use std::time::Duration;

use base::{Generation, Nanos, Tier};
use router::Seat;
use router::index::{Evicts, Family, Index, Scope};
use router::source::{self, Follower, Limits, State, Tiers, Told, Verdict};

use super::message::{Node, Word};
use super::router::{Facts, Out, Plant, RouterNode};
use crate::replica::{Message, Position, Ticket};

/// How soon a router tries again to follow a replica that it does not reach.
const RECONNECT: Duration = Duration::from_millis(100);

/// A router's side of one replica's stream.
pub struct Link {
    pub seat: Seat,
    pub follower: Follower,
    /// Numbers the streams, so that what comes late of one given up is not taken for the present one's.
    pub subscription: u64,
    is_open: bool,
    retry_at: Nanos,
}

impl Link {
    pub fn new(seat: Seat, router: usize, epoch: u32) -> Self {
        Self {
            seat,
            follower: Follower::new(seat, Limits::default()),
            subscription: (router as u64) << 56 | u64::from(epoch) << 32,
            is_open: false,
            retry_at: Nanos(0),
        }
    }

    fn open(&mut self, now: Nanos) -> Word {
        self.subscription += 1;
        self.is_open = true;
        let resume = self.follower.request(now).resume;
        let resume = resume.map(|at| Position { incarnation: at.incarnation, next: at.next_sequence });
        Word::Follow { resume, subscription: self.subscription }
    }

    pub fn close(&mut self, now: Nanos) {
        if self.is_open {
            self.follower.lost();
        }
        self.is_open = false;
        self.retry_at = now.plus(RECONNECT);
    }

    /// Where the source stands in the replica's stream, if it is exact.
    pub fn exact_at(&self) -> Option<Position> {
        let at = self.follower.position().filter(|_| self.follower.state() == State::Exact)?;
        Some(Position { incarnation: at.incarnation, next: at.next_sequence })
    }
}

/// The index as a source sees it.
struct Ear<'a>(&'a Index);

impl Told for Ear<'_> {
    fn stored(&self, seat: Seat, scope: &source::Scope, tiers: Tiers, parent: Option<u64>, names: &[u64]) {
        let tiers: Vec<Tier> = tiers.iter().collect();
        let scope = Scope::namespace(&scope.namespace, scope.generation);
        let _ = self.0.stored(seat, &scope, &tiers, parent, names);
    }

    fn removed(&self, seat: Seat, scope: &source::Scope, tier: Tier, names: &[u64]) {
        self.0.removed(seat, Some(&Family::Namespace(scope.namespace.clone())), tier, names);
    }

    fn cleared(&self, seat: Seat) {
        self.0.replace(seat, Evicts::LeafFirst);
    }

    fn purged(&self, seat: Seat, namespace: &str, up_to: Generation, _blocks: u64) {
        self.0.purge(seat, namespace, up_to);
    }
}

impl RouterNode {
    /// Begins streams that are not there.
    pub(super) fn follow_all(&mut self, now: Nanos, out: &mut Out) {
        for link in &mut self.links {
            if let Verdict::Reconnect(_) = link.follower.idle(now) {
                link.is_open = false;
            }
            if !link.is_open && now >= link.retry_at {
                let word = link.open(now);
                out.say(Node::Replica(link.seat.index()), word);
            }
        }
    }

    pub(super) fn stream(
        &mut self,
        now: Nanos,
        replica: usize,
        subscription: u64,
        message: Message,
        facts: &Facts,
    ) {
        let link = &mut self.links[replica];
        if link.subscription != subscription || !link.is_open {
            return;
        }
        let mut message =
            message.proto(|namespace| facts.namespace_name(namespace).to_owned(), facts.page_tokens);
        if self.config.plant == Plant::BelievesGaps {
            believe(&mut message, link.follower.position().map(|at| at.next_sequence));
        }
        if self.config.plant == Plant::KeepsPurged {
            unpurge(&mut message);
        }
        self.unreachable = self.unreachable.without(link.seat);
        let verdict = link.follower.hear(now, message, &Ear(&self.index));
        if let Some(load) = link.follower.take_load() {
            self.fleet.observe(link.seat, load, now);
        }
        if let Verdict::Reconnect(_) = verdict {
            // With the next tick: what is wrong with a stream may be wrong with the next one, too.
            link.is_open = false;
            link.retry_at = now;
        }
    }

    pub(super) fn no_connection(
        &mut self,
        now: Nanos,
        replica: usize,
        ticket: Option<Ticket>,
        facts: &Facts,
        out: &mut Out,
    ) {
        self.is_dead(replica);
        match ticket {
            Some(ticket) => self.broken(now, ticket, facts, out),
            None => self.links[replica].close(now),
        }
    }

    /// All connections to a replica's process broke.
    pub(super) fn reset(
        &mut self,
        now: Nanos,
        replica: usize,
        tickets: &[Ticket],
        facts: &Facts,
        out: &mut Out,
    ) {
        self.links[replica].close(now);
        self.is_dead(replica);
        for &ticket in tickets {
            if self.config.plant == Plant::ForgetsTheDead {
                self.tickets.remove(&ticket);
                continue;
            }
            self.broken(now, ticket, facts, out);
        }
    }

    /// Until it is heard of again.
    fn is_dead(&mut self, replica: usize) {
        self.unreachable = self.unreachable.with(self.links[replica].seat);
    }
}

/// As a source that does not look at numbers would hear it.
fn believe(message: &mut proto::v1::KvEventsResponse, next: Option<u64>) {
    use proto::v1::kv_events_response::Message;
    match (&mut message.message, next) {
        (Some(Message::Batch(batch)), Some(next)) => batch.sequence = next,
        (Some(Message::Heartbeat(beat)), Some(next)) => {
            if let Some(at) = &mut beat.next {
                at.next_sequence = next;
            }
        }
        _ => {}
    }
}

/// As if there were no purges.
fn unpurge(message: &mut proto::v1::KvEventsResponse) {
    use proto::v1::kv_events_response::Message;
    if let Some(Message::Batch(batch)) = &mut message.message {
        batch.events.retain(|event| !matches!(event.event, Some(proto::v1::event::Event::Purged(_))));
    }
}
