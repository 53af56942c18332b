//! What a router promised to whom: one entry per request that runs, summed per replica.
//!
//! A replica's own load record says what it was doing when the record was cut; between two of them a router
//! places hundreds of requests, and without its own book all of them would go where the record looked best.
//! Sums are kept, not recomputed: a decision reads 64 of them.
//!
//! **Several routers** tell each other their sums whole, not request by request: the newest of a router
//! replaces its older ones, so that a lost or doubled message costs nothing, and what a dead router promised
//! goes when its message has aged. Limits: [`BookLimits`].

mod account;
mod span;

pub use account::Load;
pub use span::{DecodeSpan, PrefillSpan, Told};

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use base::Nanos;
use serde::{Deserialize, Serialize};

use crate::Seat;
pub use crate::Ticket;
use account::{Account, Entry, Phase};

/// Another router, by a number it drew when it started: a restarted router is another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RouterId(pub u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BookLimits {
    pub tickets_max: usize,
    pub routers_max: usize,
    /// A request of which nothing was heard for this long is taken for lost.
    pub ticket_ttl: Duration,
    /// A router of which nothing was heard for this long has promised nothing.
    pub remote_ttl: Duration,
}

impl Default for BookLimits {
    fn default() -> Self {
        Self {
            tickets_max: 1 << 18,
            routers_max: 32,
            ticket_ttl: Duration::from_secs(600),
            remote_ttl: Duration::from_secs(3),
        }
    }
}

/// What to reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reservation {
    pub seat: Seat,
    /// Prompt tokens to compute, as the decision's score has them.
    pub uncached_tokens: u32,
    /// Tokens of the prompt.
    pub total_tokens: u32,
    pub expected_output: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BookError {
    #[error("{tickets} requests are reserved already")]
    Full { tickets: usize },
    #[error("ticket {} is reserved already", ticket.0)]
    Taken { ticket: Ticket },
    #[error("seat {seat} is none of {}", Seat::MAX)]
    NoSeat { seat: Seat },
    #[error("{routers} other routers are known already")]
    RoutersFull { routers: usize },
}

impl BookError {
    pub fn kind(&self) -> &'static str {
        match self {
            BookError::Full { .. } => "book_full",
            BookError::Taken { .. } => "ticket_taken",
            BookError::NoSeat { .. } => "no_seat",
            BookError::RoutersFull { .. } => "routers_full",
        }
    }
}

/// What one router tells the others.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Gossip {
    pub router: RouterId,
    /// Raised with each message.
    pub sequence: u64,
    pub loads: Vec<(Seat, Load)>,
}

#[derive(Debug)]
pub struct Book {
    limits: BookLimits,
    entries: HashMap<Ticket, Entry>,
    /// Every ticket by when it is taken for lost.
    deadlines: BTreeSet<(Nanos, Ticket)>,
    own: Box<[Account; Seat::MAX]>,
    remote: HashMap<RouterId, Remote>,
}

#[derive(Clone, Debug)]
struct Remote {
    sequence: u64,
    heard: Nanos,
    loads: Vec<(Seat, Load)>,
}

impl Book {
    pub fn new(limits: BookLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            deadlines: BTreeSet::new(),
            own: Box::new([Account::default(); Seat::MAX]),
            remote: HashMap::new(),
        }
    }

    /// Promises a replica's time to a request.
    pub fn reserve(&mut self, ticket: Ticket, reservation: Reservation, now: Nanos) -> Result<(), BookError> {
        if reservation.seat.index() >= Seat::MAX {
            return Err(BookError::NoSeat { seat: reservation.seat });
        }
        if self.entries.contains_key(&ticket) {
            return Err(BookError::Taken { ticket });
        }
        if self.entries.len() >= self.limits.tickets_max {
            return Err(BookError::Full { tickets: self.entries.len() });
        }
        let deadline = now.plus(self.limits.ticket_ttl);
        let entry = Entry::new(reservation, deadline);
        self.own[reservation.seat.index()].open(&entry, now);
        self.entries.insert(ticket, entry);
        self.deadlines.insert((deadline, ticket));
        Ok(())
    }

    /// Its first token came. Now and then what comes back says how long the replica's prefills took.
    pub fn prefill_done(&mut self, ticket: Ticket, now: Nanos) -> Told<PrefillSpan> {
        let Some(entry) = self.entries.get_mut(&ticket) else { return Told::Unknown };
        let account = &mut self.own[entry.reservation.seat.index()];
        let span = (entry.phase == Phase::Prefill).then(|| account.prefilled(entry, now)).flatten();
        self.touch(ticket, now);
        Told::of(span)
    }

    /// It generated `tokens` more.
    pub fn grew(&mut self, ticket: Ticket, tokens: u32, now: Nanos) -> Told<()> {
        let Some(entry) = self.entries.get_mut(&ticket) else { return Told::Unknown };
        self.own[entry.reservation.seat.index()].grew(entry, u64::from(tokens));
        self.touch(ticket, now);
        Told::Counted
    }

    /// It ended, in whatever way. What comes back says how fast it decoded, if it did.
    pub fn free(&mut self, ticket: Ticket, now: Nanos) -> Told<DecodeSpan> {
        let Some(entry) = self.entries.remove(&ticket) else { return Told::Unknown };
        self.deadlines.remove(&(entry.deadline, ticket));
        Told::of(self.own[entry.reservation.seat.index()].close(&entry, now))
    }

    /// A replica is gone with all it was promised; how many requests that were. Other routers say for
    /// themselves when they have noticed.
    pub fn drop_seat(&mut self, seat: Seat) -> usize {
        let before = self.entries.len();
        let deadlines = &mut self.deadlines;
        self.entries.retain(|ticket, entry| {
            let stays = entry.reservation.seat != seat;
            if !stays {
                deadlines.remove(&(entry.deadline, *ticket));
            }
            stays
        });
        if let Some(account) = self.own.get_mut(seat.index()) {
            *account = Account::default();
        }
        before - self.entries.len()
    }

    /// Takes requests and routers for lost that have been silent too long; how many requests that were.
    pub fn expire(&mut self, now: Nanos) -> usize {
        let ttl = self.limits.remote_ttl;
        self.remote.retain(|_, r| now.since(r.heard) < ttl);
        let mut lost = 0;
        while let Some((deadline, ticket)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.free(ticket, now);
            lost += 1;
        }
        lost
    }

    /// What this router and those it heard of promised to a replica.
    pub fn load(&self, seat: Seat, now: Nanos) -> Load {
        let mut load = self.own_load(seat, now);
        for remote in self.remote.values().filter(|r| now.since(r.heard) < self.limits.remote_ttl) {
            remote.loads.iter().filter(|(s, _)| *s == seat).for_each(|(_, l)| load.add(l));
        }
        load
    }

    /// What this router promised to a replica.
    pub fn own_load(&self, seat: Seat, now: Nanos) -> Load {
        self.own.get(seat.index()).map(|account| account.at(now)).unwrap_or_default()
    }

    /// What to tell the other routers.
    pub fn gossip(&self, router: RouterId, sequence: u64, now: Nanos) -> Gossip {
        let seats = (0..Seat::MAX as u16).map(Seat);
        let loads =
            seats.map(|s| (s, self.own_load(s, now))).filter(|(_, l)| *l != Load::default()).collect();
        Gossip { router, sequence, loads }
    }

    /// Takes in what another router told. Older news than what is here changes nothing.
    pub fn merge(&mut self, gossip: Gossip, now: Nanos) -> Result<(), BookError> {
        let Gossip { router, sequence, mut loads } = gossip;
        if let Some(known) = self.remote.get(&router) {
            if known.sequence >= sequence {
                return Ok(());
            }
        } else if self.remote.len() >= self.limits.routers_max {
            return Err(BookError::RoutersFull { routers: self.remote.len() });
        }
        loads.truncate(Seat::MAX);
        loads.iter_mut().for_each(|(_, load)| load.sanitize());
        self.remote.insert(router, Remote { sequence, heard: now, loads });
        Ok(())
    }

    /// Requests that are reserved.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// That the sums are the entries' and every entry has its deadline.
    pub fn check(&self) -> Result<(), String> {
        if self.deadlines.len() != self.entries.len() {
            return Err(format!("{} deadlines of {} tickets", self.deadlines.len(), self.entries.len()));
        }
        let mut sums = [Load::default(); Seat::MAX];
        for (ticket, entry) in &self.entries {
            if !self.deadlines.contains(&(entry.deadline, *ticket)) {
                return Err(format!("ticket {} has no deadline", ticket.0));
            }
            sums[entry.reservation.seat.index()].add(&entry.load());
        }
        for (seat, (sum, account)) in sums.iter().zip(self.own.iter()).enumerate() {
            if *sum != account.load {
                return Err(format!("seat {seat} has {:?}, its tickets {sum:?}", account.load));
            }
        }
        Ok(())
    }

    /// Puts a ticket's deadline off. Not for every token: the tree of deadlines would be what decoding costs.
    fn touch(&mut self, ticket: Ticket, now: Nanos) {
        let Some(entry) = self.entries.get_mut(&ticket) else { return };
        let deadline = now.plus(self.limits.ticket_ttl);
        if deadline.since(entry.deadline) > self.limits.ticket_ttl / 8 {
            self.deadlines.remove(&(entry.deadline, ticket));
            entry.deadline = deadline;
            self.deadlines.insert((deadline, ticket));
        }
    }
}

#[cfg(test)]
mod tests;
