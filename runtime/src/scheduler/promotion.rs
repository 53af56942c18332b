//! Bringing pages up from cold tiers while their request still queues.
//!
//! A request that arrives is looked up in every tier. If a cold tier holds more of its prompt than device
//! and host do, and loading that beats computing it by the rates measured so far, it is loaded into host
//! memory, and the request stands aside as it would for a sequence that computes the same prefix: the
//! promotion claims the pages, and whoever shares them waits with it. What the host holds is restored in
//! the step that admits the request.
//!
//! A rate that was never measured counts as good enough, and one load in sixteen goes against a bad
//! rate: otherwise one slow minute of a disk would close it for ever.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base::{Nanos, Tier};
use kvcache::{ColdOrder, ColdOutcome, JournalNote, PrefetchEnd, PrefetchId, Ticket, TierEvent};

use super::sharing::{Owner, PrefixHash, page_hashes};
use super::{Scheduler, Stream};
use crate::plan::Moved;
use crate::stats::EngineStats;

/// Loads refused in a row before one is tried against the measured rate.
const PROBE_EVERY: u32 = 16;
/// Bytes below which a copy is too short to tell a rate.
const RATE_BYTES_MIN: u64 = 64 << 10;

/// Whether a request waits for pages on their way up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefetchPolicy {
    /// Never: it takes what is there when its turn comes.
    BestEffort,
    /// Until they are there or have failed.
    Wait,
    /// As `Wait`, but no longer than this.
    Timeout(Duration),
}

impl PrefetchPolicy {
    pub const TIMEOUT: Duration = Duration::from_secs(1);

    pub fn name(self) -> &'static str {
        match self {
            Self::BestEffort => "best_effort",
            Self::Wait => "wait",
            Self::Timeout(_) => "timeout",
        }
    }
}

impl Default for PrefetchPolicy {
    fn default() -> Self {
        Self::Timeout(Self::TIMEOUT)
    }
}

impl fmt::Display for PrefetchPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a prefetch policy that does not exist.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown prefetch policy {0:?}: best_effort, wait or timeout")]
pub struct UnknownPrefetchPolicy(pub String);

impl FromStr for PrefetchPolicy {
    type Err = UnknownPrefetchPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::BestEffort, Self::Wait, Self::Timeout(Self::TIMEOUT)]
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or_else(|| UnknownPrefetchPolicy(name.to_owned()))
    }
}

/// Nanoseconds a byte takes, as a moving average.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    byte_ns: Option<f64>,
    refused: u32,
}

impl Rate {
    fn learn(&mut self, bytes: u64, took_ns: u64) {
        if bytes >= RATE_BYTES_MIN && took_ns > 0 {
            let seen = took_ns as f64 / bytes as f64;
            self.byte_ns = Some(self.byte_ns.map_or(seen, |old| old * 0.7 + seen * 0.3));
        }
    }

    /// Whether `bytes` are here sooner than `compute_ns` later.
    fn beats(&mut self, bytes: u64, compute_ns: Option<f64>) -> bool {
        let (Some(byte_ns), Some(compute_ns)) = (self.byte_ns, compute_ns) else { return true };
        if byte_ns * bytes as f64 <= compute_ns {
            self.refused = 0;
            return true;
        }
        self.refused += 1;
        self.refused.is_multiple_of(PROBE_EVERY)
    }
}

/// One load on its way up.
#[derive(Debug)]
struct Promotion {
    pages: Vec<PrefixHash>,
    begun: Nanos,
    deadline: Option<Nanos>,
}

/// All of them; bounded by the pages that may be in flight.
#[derive(Debug, Default)]
pub(super) struct Promotions {
    open: BTreeMap<PrefetchId, Promotion>,
    loads: [Rate; Tier::ALL.len()],
    copies: Rate,
}

impl Promotions {
    pub fn has(&self, id: PrefetchId) -> bool {
        self.open.contains_key(&id)
    }

    /// A failed step empties the claims; what is on its way arrives all the same.
    pub fn clear(&mut self) {
        self.open.clear();
    }

    pub fn learn_copy(&mut self, moved: &Moved) {
        self.copies.learn(moved.bytes, moved.took_ns);
    }

    fn due(&mut self, now: Nanos) -> Vec<(PrefetchId, Promotion)> {
        let late: Vec<PrefetchId> = self
            .open
            .iter()
            .filter(|(_, promotion)| promotion.deadline.is_some_and(|deadline| deadline < now))
            .map(|(id, _)| *id)
            .collect();
        late.into_iter().filter_map(|id| Some((id, self.open.remove(&id)?))).collect()
    }
}

impl Scheduler {
    /// Starts to load what a cold tier holds of the stream's prompt, if that is worth it.
    pub(super) fn promote(&mut self, stream: &mut Stream, now: Nanos) {
        if !self.tiers.is_tiered() || !self.retains(stream) {
            return;
        }
        let key = self.tree_key(stream);
        let tokens = self.reusable(stream);
        let reach = self.tiers.reach(&key, tokens);
        let Some((tier, pages)) = reach.cold else { return };
        let gain = (pages - reach.near()) as u64;
        if !self.is_load_worth(tier, gain) {
            EngineStats::add(&self.stats.prefetch_declined, 1);
            return;
        }
        let tokens = &tokens[..pages * self.shape.page_tokens as usize];
        let Some(id) = self.tiers.prefetch(&key, tokens, tier) else { return };
        let pages = page_hashes(&key, tokens, self.shape.page_tokens).split_off(reach.near());
        stream.is_promoted = true;
        let deadline = match self.config.prefetch {
            PrefetchPolicy::BestEffort => None,
            PrefetchPolicy::Wait => None,
            PrefetchPolicy::Timeout(after) => Some(now.plus(after)),
        };
        if self.config.prefetch != PrefetchPolicy::BestEffort {
            self.computing.claim(Owner::Promotion(id), &pages);
        }
        self.promotions.open.insert(id, Promotion { pages, begun: now, deadline });
        EngineStats::add(&self.stats.prefetches, 1);
    }

    fn is_load_worth(&mut self, tier: Tier, pages: u64) -> bool {
        let compute_ns = self.token_ns.map(|ns| ns * (pages * u64::from(self.shape.page_tokens)) as f64);
        let bytes = pages * self.shape.page_bytes as u64;
        self.promotions.loads[tier.index()].beats(bytes, compute_ns)
    }

    /// Whether copying `pages` from the host beats computing them.
    pub(super) fn is_copy_worth(&mut self, pages: usize) -> bool {
        let compute_ns = self.token_ns.map(|ns| ns * (pages * self.shape.page_tokens as usize) as f64);
        self.promotions.copies.beats((pages * self.shape.page_bytes) as u64, compute_ns)
    }

    /// The head of the queue gets a second chance: at arrival too much may have been on its way.
    pub(super) fn promote_head(&mut self, now: Nanos) {
        if !self.tiers.is_tiered() || self.queue.head().is_none_or(|stream| stream.is_promoted) {
            return;
        }
        if let Some(mut stream) = self.queue.pop() {
            self.promote(&mut stream, now);
            stream.is_promoted = true;
            self.queue.push(stream);
        }
    }

    /// What the tiers want done by other threads, in order.
    pub fn take_orders(&mut self) -> Vec<ColdOrder> {
        let begun = self.fence();
        let running = &self.running;
        self.tiers.advance_purges(begun, |namespace, up_to| {
            let of = running.values().filter(|r| r.key.namespace == namespace && r.key.generation <= up_to);
            of.map(|resident| resident.private_pages()).sum()
        });
        self.tiers.take_orders()
    }

    /// Takes the answer to an order.
    pub fn answer(&mut self, ticket: Ticket, outcome: ColdOutcome, now: Nanos) {
        self.tiers.answer(ticket, outcome);
        for end in self.tiers.drain_ended() {
            self.end_promotion(end, now);
        }
    }

    fn end_promotion(&mut self, end: PrefetchEnd, now: Nanos) {
        let Some(promotion) = self.promotions.open.remove(&end.id) else { return };
        let bytes = (end.arrived * self.shape.page_bytes) as u64;
        let took = now.since(promotion.begun).as_nanos() as u64;
        self.promotions.loads[end.from.index()].learn(bytes, took);
        EngineStats::add(&self.stats.prefetched_pages, end.arrived as u64);
        self.let_promotion_go(end.id, &promotion);
    }

    /// Those who waited for a promotion stand in line again.
    fn let_promotion_go(&mut self, id: PrefetchId, promotion: &Promotion) {
        for hash in self.computing.release(Owner::Promotion(id), &promotion.pages) {
            self.queue.wake(hash);
        }
    }

    /// Requests wait no longer for promotions that take too long.
    pub(super) fn expire_promotions(&mut self, now: Nanos) {
        for (id, promotion) in self.promotions.due(now) {
            EngineStats::add(&self.stats.prefetch_timeouts, 1);
            self.let_promotion_go(id, &promotion);
        }
    }

    /// What the journal of the cold tiers has to record.
    pub fn drain_notes(&mut self) -> Vec<JournalNote> {
        self.tiers.drain_notes()
    }

    /// That all is cleared, then all that is there: for readers who lost events.
    pub fn retell(&mut self) -> Vec<TierEvent> {
        self.tiers.retell()
    }

    /// Events of all tiers since the last call.
    pub fn drain_events(&mut self) -> Vec<TierEvent> {
        self.tiers.drain_events()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_tier_is_left_alone_and_probed_now_and_then() {
        let mut rate = Rate::default();
        assert!(rate.beats(1 << 20, Some(1.0)), "nothing is known yet");
        rate.learn(1 << 20, 10 << 20);
        assert!(rate.beats(1 << 20, Some(11e6)));
        let tried = (0..32).filter(|_| rate.beats(1 << 20, Some(1e6))).count();
        assert_eq!(tried, 2);
        rate.learn(1 << 20, 1 << 10);
        assert!((0..20).any(|_| {
            rate.learn(1 << 20, 1 << 10);
            rate.beats(1 << 20, Some(1e6))
        }));
    }
}
