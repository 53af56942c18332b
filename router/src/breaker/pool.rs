//! The breakers of one pool, and the bound on how many are out.

use base::{CounterRng, Nanos};

use super::answer::Answer;
use super::config::{BreakerConfig, ConfigError};
use super::replica::{Breaker, Draw, Pass, Refused, State, Wish};
use crate::{Seat, SeatSet};

#[derive(Debug)]
pub struct Breakers {
    config: BreakerConfig,
    rng: CounterRng,
    seats: Vec<Option<Breaker>>,
    /// Raised with every replica that takes a seat, so that an answer of the one before is not counted.
    tenure: Vec<u64>,
    members: SeatSet,
}

/// The right to send one request to one replica; its answer must be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "tell its answer, or a half-open breaker waits for it"]
pub struct Permit {
    seat: Seat,
    tenure: u64,
    pass: Pass,
}

impl Permit {
    pub fn seat(&self) -> Seat {
        self.seat
    }
}

/// Which replicas take requests now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// Take requests, half-open ones with a probe to spare included.
    pub usable: SeatSet,
    pub half_open: SeatSet,
    pub open: SeatSet,
    pub busy: SeatSet,
    /// When the first that is busy or open may be asked again: the `Retry-After` if none is usable.
    pub soonest: Option<Nanos>,
}

impl Breakers {
    pub fn new(config: BreakerConfig, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            config,
            rng: CounterRng::new(seed),
            seats: (0..Seat::MAX).map(|_| None).collect(),
            tenure: vec![0; Seat::MAX],
            members: SeatSet::EMPTY,
        })
    }

    /// The pool's replicas are these. A new one begins closed; if the pool shrank, those out beyond the
    /// bound come back, the one whose pause ends first at the head.
    pub fn set_members(&mut self, now: Nanos, members: SeatSet) {
        for seat in SeatSet::ALL.iter().filter(|seat| members.has(*seat) != self.members.has(*seat)) {
            self.tenure[seat.index()] += 1;
            self.seats[seat.index()] = members.has(seat).then(|| Breaker::new(now));
        }
        self.members = members;
        while self.out() > self.out_max() {
            let Some(first) = self.first_to_return() else { break };
            self.with(first, |breaker, _, _| breaker.close(now));
        }
    }

    pub fn members(&self) -> SeatSet {
        self.members
    }

    pub fn state(&mut self, now: Nanos, seat: Seat) -> Option<State> {
        self.tick(now, seat);
        self.breaker(seat).map(Breaker::state)
    }

    pub fn view(&mut self, now: Nanos) -> View {
        let mut view = View::default();
        for seat in self.members.iter() {
            self.tick(now, seat);
            self.look(now, seat, &mut view);
        }
        view
    }

    /// The right to send a request to `seat`, or why not.
    pub fn take(&mut self, now: Nanos, seat: Seat) -> Result<Permit, Refused> {
        self.tick(now, seat);
        let tenure = self.tenure.get(seat.index()).copied().unwrap_or_default();
        let pass =
            self.with(seat, |breaker, config, _| breaker.take(now, config)).ok_or(Refused::Unknown)??;
        Ok(Permit { seat, tenure, pass })
    }

    pub fn answered(&mut self, now: Nanos, permit: Permit, answer: Answer) {
        let Permit { seat, tenure, pass } = permit;
        if self.tenure[seat.index()] != tenure {
            return;
        }
        self.tick(now, seat);
        let was_out = self.breaker(seat).is_some_and(Breaker::is_out);
        let wish = self.with(seat, |breaker, config, _| breaker.answered(now, pass, answer, config));
        if wish == Some(Wish::Open) {
            self.open(now, seat, was_out || self.out() < self.out_max());
        }
    }

    fn open(&mut self, now: Nanos, seat: Seat, there_is_room: bool) {
        self.with(
            seat,
            |breaker, config, draw| {
                if there_is_room { breaker.open(now, config, draw) } else { breaker.pardon() }
            },
        );
    }

    fn look(&self, now: Nanos, seat: Seat, view: &mut View) {
        let Some(breaker) = self.breaker(seat) else { return };
        if breaker.state() == State::HalfOpen {
            view.half_open = view.half_open.with(seat);
        }
        let soonest = match breaker.admits(now, &self.config) {
            Ok(()) => {
                view.usable = view.usable.with(seat);
                return;
            }
            Err(Refused::Open { until }) => {
                view.open = view.open.with(seat);
                until
            }
            Err(Refused::Busy { until }) => {
                view.busy = view.busy.with(seat);
                until
            }
            Err(Refused::Probing | Refused::Unknown) => return,
        };
        view.soonest = Some(view.soonest.map_or(soonest, |other| other.min(soonest)));
    }

    fn tick(&mut self, now: Nanos, seat: Seat) {
        self.with(seat, |breaker, config, draw| breaker.tick(now, config, draw));
    }

    fn breaker(&self, seat: Seat) -> Option<&Breaker> {
        self.seats.get(seat.index())?.as_ref()
    }

    fn with<T>(
        &mut self,
        seat: Seat,
        act: impl FnOnce(&mut Breaker, &BreakerConfig, &Draw) -> T,
    ) -> Option<T> {
        let breaker = self.seats.get_mut(seat.index())?.as_mut()?;
        let lane = u64::from(seat.0) << 32 | (self.tenure[seat.index()] & 0xFFFF_FFFF);
        Some(act(breaker, &self.config, &Draw { rng: self.rng, lane }))
    }

    fn out(&self) -> usize {
        self.members.iter().filter(|seat| self.breaker(*seat).is_some_and(Breaker::is_out)).count()
    }

    fn out_max(&self) -> usize {
        self.members.len() * usize::from(self.config.out_permille_max) / 1000
    }

    fn first_to_return(&self) -> Option<Seat> {
        let end = |seat: &Seat| match self.breaker(*seat).map(Breaker::state) {
            Some(State::Open { until }) => until,
            _ => Nanos(0),
        };
        let out = self.members.iter().filter(|seat| self.breaker(*seat).is_some_and(Breaker::is_out));
        out.min_by_key(end)
    }

    /// # Panics
    /// If more are out than may be, or a breaker contradicts itself.
    pub fn check(&self) {
        assert!(self.out() <= self.out_max(), "{} of {} out", self.out(), self.members.len());
        for seat in SeatSet::ALL.iter() {
            assert_eq!(self.breaker(seat).is_some(), self.members.has(seat), "seat {seat}");
            if let Some(breaker) = self.breaker(seat) {
                breaker.check(&self.config);
            }
        }
    }
}
