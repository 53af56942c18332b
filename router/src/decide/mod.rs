//! Which replica serves a request: a pure function of the request and of one moment's view of the replicas.
//!
//! ```text
//!  Ask ──┐
//!        ├─▶ who can ──▶ a score each, in predicted ms ──▶ the least; the seed among equals ──▶ Decision
//!  View… ┘
//! ```
//!
//! Pure, so that serving, simulator and replay decide alike, and a logged decision can be made again. It reads
//! no clock and keeps nothing: what a router remembers is in [`crate::book`] and [`crate::fleet`].

mod ask;
mod cost;
mod decision;
mod heat;
mod pair;
mod policy;
mod view;

pub use ask::Ask;
pub use decision::{Decision, NoReplica, Score, Why};
pub use heat::{Heat, Hot};
pub use pair::{Placement, place};
pub use policy::{Policy, Weights};
pub use view::{AdapterState, Pages, View};

use base::CounterRng;

use crate::fleet::{Readiness, Role};
use crate::{Seat, SeatSet};

/// Chooses a replica that takes a request whole.
pub fn decide(policy: &Policy, ask: &Ask, views: &[View]) -> Result<Decision, NoReplica> {
    let able = able(ask, views, Role::serves_whole)?;
    let weights = policy.weights();
    let scores: Vec<Score> = views
        .iter()
        .filter(|v| able.has(v.seat))
        .map(|v| cost::score(&weights, ask, v, able.len()))
        .collect();
    let (chosen, why) = choose(policy, ask, views, &scores);
    Ok(Decision { chosen, scores, why })
}

/// Who can serve at all.
fn able(ask: &Ask, views: &[View], role: fn(Role) -> bool) -> Result<SeatSet, NoReplica> {
    let mut able = SeatSet::EMPTY;
    let mut refused = NoReplica::default();
    for view in views {
        match refusal(ask, view, role, &mut refused) {
            Some(count) => *count += 1,
            None => able = able.with(view.seat),
        }
    }
    if able.is_empty() { Err(refused) } else { Ok(able) }
}

fn refusal<'a>(
    ask: &Ask,
    view: &View,
    role: fn(Role) -> bool,
    counts: &'a mut NoReplica,
) -> Option<&'a mut u32> {
    let too_small = || {
        let room = view.pages.total.saturating_mul(u64::from(ask.block_tokens));
        view.pages.total > 0 && u64::from(ask.prompt_tokens) > room
    };
    if ask.excluded.has(view.seat) {
        Some(&mut counts.excluded)
    } else if view.readiness != Readiness::Ready {
        Some(&mut counts.not_ready)
    } else if !role(view.role) {
        Some(&mut counts.wrong_role)
    } else if view.adapter == AdapterState::Unsupported {
        Some(&mut counts.no_adapter)
    } else if too_small() {
        Some(&mut counts.too_small)
    } else {
        None
    }
}

fn choose(policy: &Policy, ask: &Ask, views: &[View], scores: &[Score]) -> (Seat, Why) {
    if let [only] = scores {
        return (only.seat, Why::Only);
    }
    match policy {
        Policy::KvAware(weights) => cheapest(weights, ask, scores),
        Policy::RoundRobin => (scores[(ask.turn % scores.len() as u64) as usize].seat, Why::Turn),
        Policy::LeastLoaded => (least_loaded(ask, views, scores), Why::LeastLoaded),
        Policy::Random => (scores[draw(ask, scores.len())].seat, Why::Random),
        Policy::PrefixHash => (highest_weight(ask.prefix, scores), Why::Prefix),
    }
}

fn cheapest(weights: &Weights, ask: &Ask, scores: &[Score]) -> (Seat, Why) {
    if let [only] = scores {
        return (only.seat, Why::Only);
    }
    let least = scores.iter().map(|s| s.total_ms).fold(f64::INFINITY, f64::min);
    let tied = |s: &&Score| s.total_ms <= least + weights.tie_ms;
    let among = scores.iter().filter(tied).count();
    if among > 1 {
        let seat = scores.iter().filter(tied).nth(draw(ask, among)).expect("counted").seat;
        return (seat, Why::Tie { among: among as u32 });
    }
    let chosen = scores.iter().find(tied).expect("the least is one of them").seat;
    let next = scores.iter().filter(|s| s.seat != chosen).map(|s| s.total_ms).fold(f64::INFINITY, f64::min);
    (chosen, Why::Cheapest { margin_ms: next - least })
}

fn least_loaded(ask: &Ask, views: &[View], scores: &[Score]) -> Seat {
    let load = |seat: Seat| views.iter().find(|v| v.seat == seat).map(|v| v.load).unwrap_or_default();
    let key = |s: &Score| (load(s.seat).active, load(s.seat).pending_prefill_tokens);
    let least = scores.iter().map(key).min().expect("somebody is able");
    let tied: Vec<&Score> = scores.iter().filter(|s| key(s) == least).collect();
    tied[draw(ask, tied.len())].seat
}

fn draw(ask: &Ask, among: usize) -> usize {
    let at = CounterRng::new(ask.seed).uniform(ask.turn, 0) * among as f64;
    (at as usize).min(among - 1)
}

/// Rendezvous hashing: a seat that goes away moves only the prefixes that were its own.
fn highest_weight(prefix: u64, scores: &[Score]) -> Seat {
    let weight = |seat: Seat| CounterRng::new(prefix).words(u64::from(seat.0), 0);
    scores.iter().max_by_key(|s| weight(s.seat)).expect("somebody is able").seat
}

#[cfg(test)]
mod fluid;
#[cfg(test)]
mod tests;
