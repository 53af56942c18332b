//! Which replicas of a pool take requests now: a breaker each, and a bound on how many may be out.
//!
//! ```text
//!             failures in a row, or too large a share of them
//!   Closed ─────────────────────────────────────────────────▶ Open{until}
//!     ▲                                                          │ pause over
//!     └── enough probes answered ── HalfOpen ◀───────────────────┘
//!                                      └── a probe failed or was lost ──▶ Open, twice as long
//! ```
//!
//! Only what says "this replica is broken" counts: transport errors, timeouts, 5xx other than 503. An
//! answer of 4xx says the client is wrong and the replica well. A 503 or 429 says the replica is busy: it
//! is left alone until it asked to be asked again, which is no failure. A breaker that opens on either
//! turns an overload or one bad client into an outage.
//!
//! Half-open always ends: a probe whose answer never comes counts as failed when its time is over, and an
//! answer of any healthy kind (4xx and busy too) counts as success.
//!
//! Limits: at most a set share of the pool is out at once; with one replica the answer is the replica's
//! own error, which says more than ours. Every request's outcome must be told, a cancelled one's too.

mod answer;
mod config;
mod pool;
mod replica;
#[cfg(test)]
mod tests;

pub use answer::{Answer, Health};
pub use config::{BreakerConfig, ConfigError};
pub use pool::{Breakers, Permit, View};
pub use replica::{Refused, State};
