//! One replica's breaker.

use std::collections::VecDeque;
use std::time::Duration;

use base::{CounterRng, Nanos};

use super::answer::{Answer, Health};
use super::config::BreakerConfig;

const WINDOW_BUCKETS: usize = 10;
const BUCKET_NANOS: u64 = 1_000_000_000;
/// A pause doubles no further than this often.
const DOUBLINGS_MAX: u32 = 30;
/// No `Retry-After` keeps a replica away for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Closed,
    Open { until: Nanos },
    HalfOpen,
}

impl State {
    /// The metric label.
    pub fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen => "half_open",
        }
    }
}

/// Why a replica takes nothing now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error("the replica failed and is left alone until {until:?}")]
    Open { until: Nanos },
    #[error("the replica failed and answers as many probes as it may")]
    Probing,
    #[error("the replica is busy until {until:?}")]
    Busy { until: Nanos },
    #[error("the pool has no such replica")]
    Unknown,
}

/// Told with a request's answer, so that an answer from before a change of state is not counted in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pass {
    epoch: u64,
    probe: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Raised with every change of state.
    epoch: u64,
    in_row: u32,
    window: Window,
    /// Probes without an answer: their number and when they are given up. At most `probes_max`.
    probes: VecDeque<(u64, Nanos)>,
    probes_given: u64,
    probes_answered: u32,
    /// Pauses since the replica was last well for long.
    openings: u32,
    closed_at: Nanos,
    busy_until: Nanos,
    busy_in_row: u32,
}

/// What an answer calls for; the pool decides whether there is room for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    Nothing,
    /// Out of the pool: needs the pool's consent when it was closed.
    Open,
}

impl Breaker {
    pub fn new(now: Nanos) -> Self {
        Self {
            state: State::Closed,
            epoch: 0,
            in_row: 0,
            window: Window::default(),
            probes: VecDeque::new(),
            probes_given: 0,
            probes_answered: 0,
            openings: 0,
            closed_at: now,
            busy_until: Nanos(0),
            busy_in_row: 0,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }
    pub fn is_out(&self) -> bool {
        self.state != State::Closed
    }

    /// Time passes: a pause ends, a probe is given up.
    pub fn tick(&mut self, now: Nanos, config: &BreakerConfig, draw: &Draw) {
        match self.state {
            State::Open { until } if until <= now => self.enter(State::HalfOpen),
            State::HalfOpen if self.probes.front().is_some_and(|(_, end)| *end <= now) => {
                self.open(now, config, draw);
            }
            _ => {}
        }
    }

    /// Whether it would take a request, after [`Breaker::tick`].
    pub fn admits(&self, now: Nanos, config: &BreakerConfig) -> Result<(), Refused> {
        match self.state {
            State::Open { until } => Err(Refused::Open { until }),
            _ if self.busy_until > now => Err(Refused::Busy { until: self.busy_until }),
            State::HalfOpen if self.probes.len() >= config.probes_max as usize => Err(Refused::Probing),
            _ => Ok(()),
        }
    }

    pub fn take(&mut self, now: Nanos, config: &BreakerConfig) -> Result<Pass, Refused> {
        self.admits(now, config)?;
        let probe = (self.state == State::HalfOpen).then(|| {
            self.probes_given += 1;
            self.probes.push_back((self.probes_given, now.plus(config.probe_timeout)));
            self.probes_given
        });
        Ok(Pass { epoch: self.epoch, probe })
    }

    pub fn answered(&mut self, now: Nanos, pass: Pass, answer: Answer, config: &BreakerConfig) -> Wish {
        self.note_busy(now, answer, config);
        if pass.epoch != self.epoch {
            return Wish::Nothing;
        }
        match pass.probe {
            Some(probe) => self.probe_answered(now, probe, answer.health(), config),
            None => self.request_answered(now, answer.health(), config),
        }
    }

    fn probe_answered(&mut self, now: Nanos, probe: u64, health: Health, config: &BreakerConfig) -> Wish {
        self.probes.retain(|(number, _)| *number != probe);
        match health {
            Health::Unknown => Wish::Nothing,
            Health::Broken => Wish::Open,
            Health::Well => {
                self.probes_answered += 1;
                if self.probes_answered >= config.probes_needed {
                    self.close(now);
                }
                Wish::Nothing
            }
        }
    }

    fn request_answered(&mut self, now: Nanos, health: Health, config: &BreakerConfig) -> Wish {
        match health {
            Health::Unknown => return Wish::Nothing,
            Health::Well => self.in_row = 0,
            Health::Broken => self.in_row += 1,
        }
        let (requests, failures) = self.window.count(now, health);
        let many = requests >= config.window_requests_min
            && u64::from(failures) * 1000 >= u64::from(requests) * u64::from(config.failures_permille);
        let opens = health == Health::Broken && (many || self.in_row >= config.failures_in_row);
        if opens { Wish::Open } else { Wish::Nothing }
    }

    /// Busy is a time, not a fault; one that asks nothing in particular is left alone ever longer.
    fn note_busy(&mut self, now: Nanos, answer: Answer, config: &BreakerConfig) {
        match answer {
            Answer::Busy { retry_after } => {
                let pause = retry_after
                    .map(|asked| asked.min(RETRY_AFTER_MAX))
                    .unwrap_or_else(|| doubled(config.busy_pause, self.busy_in_row, config.busy_pause_max));
                self.busy_until = self.busy_until.max(now.plus(pause));
                self.busy_in_row = (self.busy_in_row + 1).min(DOUBLINGS_MAX);
            }
            Answer::Success => self.busy_in_row = 0,
            _ => {}
        }
    }

    pub fn open(&mut self, now: Nanos, config: &BreakerConfig, draw: &Draw) {
        if self.state == State::Closed && now.since(self.closed_at) >= config.pause_max {
            self.openings = 0;
        }
        let pause = doubled(config.pause, self.openings, config.pause_max);
        let extra = pause.mul_f64(draw.unit(self.epoch) * f64::from(config.jitter_permille) / 1000.0);
        self.openings = (self.openings + 1).min(DOUBLINGS_MAX);
        self.enter(State::Open { until: now.plus(pause + extra) });
    }

    pub fn close(&mut self, now: Nanos) {
        self.closed_at = now;
        self.enter(State::Closed);
    }

    /// It may not be out: what was counted against it is forgotten.
    pub fn pardon(&mut self) {
        self.in_row = 0;
        self.window = Window::default();
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
        self.probes.clear();
        self.probes_answered = 0;
        self.pardon();
    }

    /// # Panics
    /// If the parts contradict each other.
    pub fn check(&self, config: &BreakerConfig) {
        assert!(self.probes.len() <= config.probes_max as usize, "{} probes", self.probes.len());
        assert!(self.probes.is_empty() || self.state == State::HalfOpen, "a probe while {:?}", self.state);
        assert!(self.probes_answered < config.probes_needed, "half-open after its last probe");
    }
}

/// One replica's draws: a function of the seed, the seat and the change of state.
pub(super) struct Draw {
    pub rng: CounterRng,
    pub lane: u64,
}

impl Draw {
    fn unit(&self, position: u64) -> f64 {
        self.rng.uniform(position, self.lane)
    }
}

fn doubled(pause: Duration, times: u32, max: Duration) -> Duration {
    pause.saturating_mul(1 << times.min(DOUBLINGS_MAX)).min(max)
}

/// Requests and failures of the last ten seconds.
#[derive(Debug, Default)]
struct Window {
    buckets: [(u32, u32); WINDOW_BUCKETS],
    newest: u64,
}

impl Window {
    fn count(&mut self, now: Nanos, health: Health) -> (u32, u32) {
        let second = now.0 / BUCKET_NANOS;
        let passed = second.saturating_sub(self.newest).min(WINDOW_BUCKETS as u64);
        self.newest = self.newest.max(second);
        for back in 0..passed {
            self.buckets[((self.newest - back) % WINDOW_BUCKETS as u64) as usize] = (0, 0);
        }
        let bucket = &mut self.buckets[(self.newest % WINDOW_BUCKETS as u64) as usize];
        bucket.0 += 1;
        bucket.1 += u32::from(health == Health::Broken);
        self.buckets.iter().fold((0, 0), |(all, bad), b| (all + b.0, bad + b.1))
    }
}
