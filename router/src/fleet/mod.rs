//! The replicas of one pool: who sits where, who takes requests, how fast each is.
//!
//! Readiness is a replica's own word as long as it speaks, and silence overrules it: a replica that was not
//! heard of for [`FleetLimits::silence_max`] is dead to this router whatever it said last. Breakers, which judge
//! by what requests met, are admission's.

mod learner;
mod rates;
mod replica;
mod speeds;

pub use learner::Learner;
pub use rates::Rates;
pub use replica::{Readiness, Replica, Role, Seating};
pub use speeds::Speeds;

use std::time::Duration;

use base::Nanos;
use proto::v1;

use crate::book::Book;
use crate::decide::{AdapterState, View};
use crate::{Held, Seat, SeatSet};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FleetLimits {
    pub silence_max: Duration,
}

impl Default for FleetLimits {
    fn default() -> Self {
        Self { silence_max: Duration::from_secs(1) }
    }
}

/// All seats are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a pool has at most {} replicas", Seat::MAX)]
pub struct FleetFull;

#[derive(Debug, Default)]
pub struct Fleet {
    limits: FleetLimits,
    speeds: Speeds,
    replicas: Vec<Option<Replica>>,
}

impl Fleet {
    pub fn new(limits: FleetLimits, prior: Rates) -> Self {
        Self { limits, speeds: Speeds::new(prior), replicas: Vec::new() }
    }

    /// Seats a new replica at the lowest free seat. It takes no requests until it is heard of.
    pub fn join(&mut self, seating: Seating, now: Nanos) -> Result<Seat, FleetFull> {
        let at = self.replicas.iter().position(Option::is_none).unwrap_or(self.replicas.len());
        if at >= Seat::MAX {
            return Err(FleetFull);
        }
        if at == self.replicas.len() {
            self.replicas.push(None);
        }
        self.replicas[at] = Some(Replica::new(seating, now));
        Ok(Seat(at as u16))
    }

    /// Frees a seat. The caller has dropped it from index and book.
    pub fn leave(&mut self, seat: Seat) {
        if let Some(place) = self.replicas.get_mut(seat.index()) {
            *place = None;
            self.speeds.forget(seat);
        }
    }

    pub fn replica(&self, seat: Seat) -> Option<&Replica> {
        self.replicas.get(seat.index())?.as_ref()
    }

    /// What the book says about speed goes in here.
    pub fn speeds_mut(&mut self) -> &mut Speeds {
        &mut self.speeds
    }

    pub fn speeds(&self) -> &Speeds {
        &self.speeds
    }

    /// A replica told its load.
    pub fn observe(&mut self, seat: Seat, record: v1::LoadRecord, now: Nanos) {
        let Some(replica) = self.replicas.get_mut(seat.index()).and_then(Option::as_mut) else { return };
        if let Some(last) = replica.observe(record, now) {
            self.speeds.interval(seat, &last, &record, replica.block_tokens);
        }
    }

    /// A replica without load records showed that it lives: a probe answered, a stream moved.
    pub fn alive(&mut self, seat: Seat, now: Nanos) {
        if let Some(replica) = self.replicas.get_mut(seat.index()).and_then(Option::as_mut) {
            replica.alive(now);
        }
    }

    /// A probe found a replica so.
    pub fn probed(&mut self, seat: Seat, readiness: Readiness, now: Nanos) {
        if let Some(replica) = self.replicas.get_mut(seat.index()).and_then(Option::as_mut) {
            replica.alive(now);
            replica.readiness = readiness;
        }
    }

    /// Declares those dead that have been silent too long; who that is now and was not before.
    pub fn silence(&mut self, now: Nanos) -> SeatSet {
        let limit = self.limits.silence_max;
        let mut dead = SeatSet::EMPTY;
        for (at, place) in self.replicas.iter_mut().enumerate() {
            let Some(replica) = place else { continue };
            let lives = !matches!(replica.readiness, Readiness::Unknown | Readiness::Dead);
            if lives && now.since(replica.heard()) > limit {
                replica.readiness = Readiness::Dead;
                dead = dead.with(Seat(at as u16));
            }
        }
        dead
    }

    /// Who sits where.
    pub fn seats(&self) -> impl Iterator<Item = (Seat, &Replica)> {
        self.replicas.iter().enumerate().filter_map(|(at, r)| r.as_ref().map(|r| (Seat(at as u16), r)))
    }

    /// One moment's view for a decision: `held` and `adapter` say what each holds of the prompt.
    pub fn views(
        &self,
        book: &Book,
        now: Nanos,
        held: impl Fn(Seat) -> Held,
        adapter: impl Fn(Seat) -> AdapterState,
        into: &mut Vec<View>,
    ) {
        into.clear();
        into.extend(self.seats().map(|(seat, replica)| View {
            seat,
            readiness: replica.readiness,
            role: replica.role,
            held: held(seat),
            load: book.load(seat, now),
            rates: self.speeds.rates(seat),
            pages: replica.pages(),
            adapter: adapter(seat),
        }));
    }

    /// Rates are times, and no more replicas than seats.
    pub fn check(&self) -> Result<(), String> {
        if self.replicas.len() > Seat::MAX {
            return Err(format!("{} replicas", self.replicas.len()));
        }
        self.seats().try_for_each(|(seat, _)| {
            self.speeds.rates(seat).check().map_err(|e| format!("seat {seat}: {e}"))
        })
    }
}

#[cfg(test)]
mod tests;
