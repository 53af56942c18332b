//! "What if": one trace, one fleet, several policies, one table.
//!
//! Every policy meets the same calls at the same times on replicas that begin empty, so that rows differ by the
//! policy alone. Admission is open unless asked for: a replay compares placements, and a router that refuses the
//! hard half of a trace would look fast.

use std::sync::Arc;
use std::time::Duration;

use router::decide::Policy;

use crate::fleet::router::RouterConfig;
use crate::fleet::tally::Slo;
use crate::fleet::{FleetConfig, run};
use crate::replica::ReplicaConfig;
use crate::report::{Report, Row};
use crate::trace::Trace;

/// What to play, but for the trace.
#[derive(Clone, Debug)]
pub struct Replay {
    pub seed: u64,
    pub replicas: usize,
    pub replica: ReplicaConfig,
    pub policies: Vec<Policy>,
    /// How many times as fast as it was.
    pub speed: f64,
    pub slo: Slo,
    pub routers: usize,
    /// How long admitted work may take in the replicas; `None` admits everything.
    pub admit_within: Option<Duration>,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            seed: 0,
            replicas: 8,
            replica: ReplicaConfig::h200_8b(),
            policies: Policy::NAMES.iter().filter_map(|name| Policy::from_name(name)).collect(),
            speed: 1.0,
            slo: Slo::default(),
            routers: 1,
            admit_within: None,
        }
    }
}

/// Why nothing was played.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("a fleet has 1 to {most} replicas, not {asked}")]
    Replicas { asked: usize, most: usize },
    #[error("a fleet has 1 to 8 routers, not {asked}")]
    Routers { asked: usize },
    #[error("a speed of {speed}; it must be above 0")]
    Speed { speed: f64 },
    #[error("no policy to play")]
    NoPolicy,
    #[error("the trace has no calls")]
    NoCalls,
}

/// Plays `trace` once for each policy.
pub fn replay(replay: &Replay, trace: Trace) -> Result<Report, ReplayError> {
    check(replay, &trace)?;
    let trace = Arc::new(trace.sped_up(replay.speed));
    let rows = replay.policies.iter().map(|policy| one(replay, *policy, &trace)).collect();
    Ok(Report {
        trace: trace.name.clone(),
        calls: trace.calls.len() as u64,
        prompt_tokens: trace.prompt_tokens(),
        reusable: trace.reusable(),
        replicas: replay.replicas,
        routers: replay.routers,
        speed: replay.speed,
        seed: replay.seed,
        slo: replay.slo,
        rows,
    })
}

fn one(replay: &Replay, policy: Policy, trace: &Arc<Trace>) -> Row {
    // A slow policy is shown as slow, not as broken off.
    let idle_max = Duration::from_secs(3_600);
    let router = RouterConfig { admit_within: replay.admit_within, idle_max, ..RouterConfig::new(policy) };
    let mut config = FleetConfig::new(replay.seed, replay.replicas, replay.replica.clone(), router);
    config.routers = replay.routers;
    config.slo = replay.slo;
    let end = run(config, trace);
    Row { policy: policy.name().to_owned(), hash: end.hash, tally: end.tally }
}

fn check(replay: &Replay, trace: &Trace) -> Result<(), ReplayError> {
    let most = router::Seat::MAX;
    if replay.replicas == 0 || replay.replicas > most {
        return Err(ReplayError::Replicas { asked: replay.replicas, most });
    }
    if replay.routers == 0 || replay.routers > 8 {
        return Err(ReplayError::Routers { asked: replay.routers });
    }
    if !(replay.speed.is_finite() && replay.speed > 0.0) {
        return Err(ReplayError::Speed { speed: replay.speed });
    }
    match (replay.policies.is_empty(), trace.calls.is_empty()) {
        (true, _) => Err(ReplayError::NoPolicy),
        (_, true) => Err(ReplayError::NoCalls),
        _ => Ok(()),
    }
}
