//! When a breaker opens, for how long, and how many may be open.

use std::time::Duration;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BreakerConfig {
    /// So many failures in a row open it.
    pub failures_in_row: u32,
    /// Or so large a share of the requests of the last ten seconds …
    pub failures_permille: u16,
    /// … if there were at least so many.
    pub window_requests_min: u32,
    /// The first pause; each further one is twice as long, up to the longest.
    pub pause: Duration,
    pub pause_max: Duration,
    /// A pause is drawn from itself to so much more, so that replicas do not come back in step.
    pub jitter_permille: u16,
    /// Probes at a time while half-open.
    pub probes_max: u32,
    /// Probes answered that close it.
    pub probes_needed: u32,
    /// A probe not answered by then has failed.
    pub probe_timeout: Duration,
    /// Most of the pool that may be out at once, rounded down.
    pub out_permille_max: u16,
    /// The first pause after a busy answer without `Retry-After`; it doubles as the other does.
    pub busy_pause: Duration,
    pub busy_pause_max: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{what} must be at least 1")]
    Zero { what: &'static str },
    #[error("{what} is {permille} ‰; it must lie in 0..=1000")]
    NotAShare { what: &'static str, permille: u16 },
}

impl ConfigError {
    pub fn kind(&self) -> &'static str {
        match self {
            ConfigError::Zero { .. } => "zero",
            ConfigError::NotAShare { .. } => "not_a_share",
        }
    }
}

impl BreakerConfig {
    pub fn validate(&self) -> Result<(), ConfigError> {
        let zero = [
            (self.failures_in_row == 0, "failures_in_row"),
            (self.window_requests_min == 0, "window_requests_min"),
            (self.probes_max == 0, "probes_max"),
            (self.probes_needed == 0, "probes_needed"),
            (self.pause.is_zero(), "pause"),
            (self.probe_timeout.is_zero(), "probe_timeout"),
            (self.busy_pause.is_zero(), "busy_pause"),
        ];
        if let Some((_, what)) = zero.into_iter().find(|(is_zero, _)| *is_zero) {
            return Err(ConfigError::Zero { what });
        }
        let shares = [
            (self.failures_permille, "failures_permille"),
            (self.jitter_permille, "jitter_permille"),
            (self.out_permille_max, "out_permille_max"),
        ];
        match shares.into_iter().find(|(permille, _)| *permille > 1000) {
            Some((permille, what)) => Err(ConfigError::NotAShare { what, permille }),
            None => Ok(()),
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures_in_row: 5,
            failures_permille: 500,
            window_requests_min: 20,
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(60),
            jitter_permille: 250,
            probes_max: 2,
            probes_needed: 2,
            probe_timeout: Duration::from_secs(30),
            out_permille_max: 500,
            busy_pause: Duration::from_millis(100),
            busy_pause_max: Duration::from_secs(5),
        }
    }
}
