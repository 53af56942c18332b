//! Taking a replica or a pool out of service without cutting its streams.
//!
//! ```text
//!  Serving ──begin──▶ Draining{deadline} ──last stream ends──▶ Drained
//!     ▲                    │      └────── deadline ──────────▶ Cut{streams} ──▶ Drained
//!     └──────resume────────┘
//! ```
//!
//! The one who drains owns the streams' numbers and is told which to cut, rather than a count to wait
//! for: at the deadline each stream is ended with a reason its client can read, and none is forgotten.
//!
//! Limits: as many streams as it was made for; one more is a typed refusal, as is any while it drains.

use std::collections::BTreeSet;

use base::Nanos;

use crate::admission::Ticket;

#[derive(Debug)]
pub struct Drain {
    state: Phase,
    streams: BTreeSet<Ticket>,
    streams_max: usize,
    report: Report,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Serving,
    Draining { since: Nanos, deadline: Nanos },
    Drained { at: Nanos },
}

impl Phase {
    /// The metric label.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Serving => "serving",
            Phase::Draining { .. } => "draining",
            Phase::Drained { .. } => "drained",
        }
    }
}

/// What a drain came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Streams open when it began.
    pub open: usize,
    /// Of those, how many ended by themselves.
    pub kept: usize,
    /// And how many the deadline cut.
    pub cut: usize,
}

/// What [`Drain::poll`] calls for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    Nothing,
    /// So many streams are open; come back by the deadline.
    Wait {
        open: usize,
        deadline: Nanos,
    },
    /// The deadline is over: end these, each with [`Step::CUT_REASON`].
    Cut {
        streams: Vec<Ticket>,
    },
    /// Nothing is left; said from now on until it serves again.
    Done(Report),
}

impl Step {
    /// The code a client reads when its stream is cut.
    pub const CUT_REASON: &'static str = "drain_deadline";
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error("it is being drained and takes nothing new")]
    Draining,
    #[error("{streams_max} streams are open, as many as there may be")]
    Full { streams_max: usize },
}

impl Refused {
    pub fn kind(&self) -> &'static str {
        match self {
            Refused::Draining => "draining",
            Refused::Full { .. } => "full",
        }
    }
}

impl Drain {
    pub fn new(streams_max: usize) -> Self {
        Self { state: Phase::Serving, streams: BTreeSet::new(), streams_max, report: Report::default() }
    }

    pub fn phase(&self) -> Phase {
        self.state
    }
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// A stream begins; refused while draining.
    pub fn opened(&mut self, stream: Ticket) -> Result<(), Refused> {
        if self.state != Phase::Serving {
            return Err(Refused::Draining);
        }
        if self.streams.len() >= self.streams_max {
            return Err(Refused::Full { streams_max: self.streams_max });
        }
        self.streams.insert(stream);
        Ok(())
    }

    /// A stream ended by itself; one that was cut before is no longer known.
    pub fn closed(&mut self, stream: Ticket) {
        if self.streams.remove(&stream) && self.state != Phase::Serving {
            self.report.kept += 1;
        }
    }

    /// Takes nothing new from now on. Begun twice, the earlier deadline holds.
    pub fn begin(&mut self, now: Nanos, deadline: Nanos) {
        match &mut self.state {
            Phase::Serving => {
                self.report = Report { open: self.streams.len(), ..Report::default() };
                self.state = Phase::Draining { since: now, deadline };
            }
            Phase::Draining { deadline: set, .. } => *set = deadline.min(*set),
            Phase::Drained { .. } => {}
        }
    }

    /// Serves again: the drain was called off, or what was drained is back.
    pub fn resume(&mut self) {
        self.state = Phase::Serving;
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: Nanos) -> Step {
        let Phase::Draining { deadline, .. } = self.state else {
            return self.settled();
        };
        if self.streams.is_empty() {
            self.state = Phase::Drained { at: now };
            return Step::Done(self.report);
        }
        if now < deadline {
            return Step::Wait { open: self.streams.len(), deadline };
        }
        let streams: Vec<Ticket> = std::mem::take(&mut self.streams).into_iter().collect();
        self.report.cut += streams.len();
        Step::Cut { streams }
    }

    fn settled(&self) -> Step {
        match self.state {
            Phase::Drained { .. } => Step::Done(self.report),
            _ => Step::Nothing,
        }
    }

    /// # Panics
    /// If a stream of the drain is unaccounted for.
    pub fn check(&self) {
        assert!(self.streams.len() <= self.streams_max);
        let Report { open, kept, cut } = self.report;
        if self.state != Phase::Serving {
            assert_eq!(open, kept + cut + self.streams.len(), "{:?}", self.report);
        }
        assert!(!matches!(self.state, Phase::Drained { .. }) || self.streams.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_streams(n: u64) -> Drain {
        let mut drain = Drain::new(8);
        (0..n).for_each(|stream| drain.opened(Ticket(stream)).unwrap());
        drain
    }

    #[test]
    fn open_streams_end_by_themselves_and_nothing_new_is_taken() {
        let mut drain = with_streams(2);
        drain.begin(Nanos(0), Nanos(100));
        assert_eq!(drain.opened(Ticket(9)), Err(Refused::Draining));
        drain.closed(Ticket(0));
        assert_eq!(drain.poll(Nanos(50)), Step::Wait { open: 1, deadline: Nanos(100) });
        drain.closed(Ticket(1));
        assert_eq!(drain.poll(Nanos(60)), Step::Done(Report { open: 2, kept: 2, cut: 0 }));
        assert_eq!(drain.phase(), Phase::Drained { at: Nanos(60) });
        drain.check();
    }

    #[test]
    fn the_deadline_cuts_what_is_left_once() {
        let mut drain = with_streams(3);
        drain.begin(Nanos(0), Nanos(100));
        drain.begin(Nanos(10), Nanos(500));
        drain.closed(Ticket(1));
        assert_eq!(drain.poll(Nanos(100)), Step::Cut { streams: vec![Ticket(0), Ticket(2)] });
        drain.closed(Ticket(2));
        assert_eq!(drain.poll(Nanos(101)), Step::Done(Report { open: 3, kept: 1, cut: 2 }));
        drain.check();
    }

    #[test]
    fn a_drain_called_off_keeps_its_streams() {
        let mut drain = with_streams(1);
        drain.begin(Nanos(0), Nanos(100));
        drain.resume();
        assert_eq!(drain.poll(Nanos(200)), Step::Nothing);
        drain.opened(Ticket(5)).unwrap();
        assert_eq!(drain.open_streams(), 2);
        drain.check();
    }

    #[test]
    fn one_stream_too_many_is_refused() {
        assert_eq!(with_streams(8).opened(Ticket(9)), Err(Refused::Full { streams_max: 8 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_stream_is_kept_or_cut(ops in proptest::collection::vec((0..6u8, 0..12u64), 1..80)) {
            let mut drain = Drain::new(8);
            for (now, (op, n)) in ops.into_iter().enumerate() {
                let now = Nanos(now as u64);
                match op {
                    0 | 1 => drop(drain.opened(Ticket(n))),
                    2 | 3 => drain.closed(Ticket(n)),
                    4 => drain.begin(now, Nanos(now.0 + n)),
                    _ => drain.resume(),
                }
                drop(drain.poll(now));
                drain.check();
            }
            drain.begin(Nanos(100), Nanos(100));
            drop(drain.poll(Nanos(100)));
            prop_assert!(matches!(drain.poll(Nanos(200)), Step::Done(_)));
        }
    }
}
