//! What goes wrong, and when: a plan made from the seed before the run begins, so that it can be read, cut
//! short and played again.
//!
//! Every fault of a plan ends: what a run must show is that the fleet then is as if it had not happened.

use std::time::Duration;

use base::{Nanos, SplitMix};

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    /// The process dies; another one starts in its place after a while.
    KillReplica {
        replica: usize,
        down: Duration,
        memory: Memory,
    },
    KillRouter {
        router: usize,
        down: Duration,
    },
    /// As SIGSTOP does: it says nothing, and its connections stay open.
    PauseReplica {
        replica: usize,
        pause: Duration,
    },
    PauseRouter {
        router: usize,
        pause: Duration,
    },
    /// Steps take so many times as long.
    Slow {
        replica: usize,
        times: f64,
        lasts: Duration,
    },
    /// It refuses everything, as if its queue were full.
    FullQueue {
        replica: usize,
        lasts: Duration,
    },
    /// A router and a replica do not reach each other.
    Cut {
        router: usize,
        replica: usize,
        lasts: Duration,
    },
    /// Two routers do not.
    Split {
        a: usize,
        b: usize,
        lasts: Duration,
    },
    /// A replica takes nothing new, finishes what it has, and is replaced.
    Roll {
        replica: usize,
        down: Duration,
        memory: Memory,
    },
    /// A namespace is purged up to its present generation, everywhere.
    Purge {
        namespace: u64,
    },
}

/// What the next process finds of the pages of the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    Empty,
    Kept,
}

/// Faults in order of time.
pub type Plan = Vec<(Nanos, Fault)>;

/// What a plan may contain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Menu {
    pub replicas: usize,
    pub routers: usize,
    pub namespaces: u64,
    pub faults: usize,
    /// They begin within this time.
    pub span: Duration,
}

impl Menu {
    pub fn plan(&self, rng: &mut SplitMix) -> Plan {
        let mut plan: Plan = (0..self.faults).map(|_| (self.when(rng), self.fault(rng))).collect();
        plan.sort_by_key(|(at, _)| *at);
        plan
    }

    fn when(&self, rng: &mut SplitMix) -> Nanos {
        Nanos(rng.below(self.span.as_nanos().max(1) as u64))
    }

    fn fault(&self, rng: &mut SplitMix) -> Fault {
        let replica = rng.below(self.replicas as u64) as usize;
        let router = rng.below(self.routers as u64) as usize;
        let lasts = Duration::from_millis(20 + rng.below(2_500));
        let down = Duration::from_millis(50 + rng.below(1_500));
        let memory = if rng.below(2) == 0 { Memory::Empty } else { Memory::Kept };
        match rng.below(12) {
            0 | 1 => Fault::KillReplica { replica, down, memory },
            2 => Fault::KillRouter { router, down },
            3 | 4 => Fault::PauseReplica { replica, pause: lasts },
            5 => Fault::PauseRouter { router, pause: lasts },
            6 => Fault::Slow { replica, times: 2.0 + rng.unit() * 8.0, lasts },
            7 => Fault::FullQueue { replica, lasts },
            8 => Fault::Cut { router, replica, lasts },
            9 if self.routers > 1 => Fault::Split { a: router, b: (router + 1) % self.routers, lasts },
            10 => Fault::Roll { replica, down, memory },
            _ => Fault::Purge { namespace: rng.below(self.namespaces) },
        }
    }
}

impl Fault {
    pub fn name(&self) -> &'static str {
        match self {
            Fault::KillReplica { .. } => "kill_replica",
            Fault::KillRouter { .. } => "kill_router",
            Fault::PauseReplica { .. } => "pause_replica",
            Fault::PauseRouter { .. } => "pause_router",
            Fault::Slow { .. } => "slow",
            Fault::FullQueue { .. } => "full_queue",
            Fault::Cut { .. } => "cut",
            Fault::Split { .. } => "split",
            Fault::Roll { .. } => "roll",
            Fault::Purge { .. } => "purge",
        }
    }

    /// How long it lasts at most after it began, as far as time alone ends it.
    pub fn lasts(&self) -> Duration {
        match *self {
            Fault::KillReplica { down, .. } | Fault::KillRouter { down, .. } | Fault::Roll { down, .. } => {
                down
            }
            Fault::PauseReplica { pause, .. } | Fault::PauseRouter { pause, .. } => pause,
            Fault::Slow { lasts, .. }
            | Fault::FullQueue { lasts, .. }
            | Fault::Cut { lasts, .. }
            | Fault::Split { lasts, .. } => lasts,
            Fault::Purge { .. } => Duration::ZERO,
        }
    }
}
