//! Prefill on one replica, decode on another, where that pays.
//!
//! A pair costs the transfer of what the decoder lacks. What it buys: the prefill stalls nobody who decodes. So the
//! one replica that would do both is charged for those stalls, and the cheaper way wins. The two halves depend on
//! each other only in being two: what the transfer takes is set by what the decoder holds, wherever it comes from.

use serde::{Deserialize, Serialize};

use super::{Ask, Decision, NoReplica, Policy, Score, View, Weights, able, cheapest, choose, cost};
use crate::SeatSet;
use crate::fleet::Role;

/// Where a request's two halves go.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "form")]
pub enum Placement {
    /// One replica does both. `pair_ms` is what the best pair would have cost, if there was one.
    Whole { decision: Decision, pair_ms: Option<f64> },
    /// Two do one each. `whole_ms` is what the best single replica would have cost, stalls included.
    Pair { prefill: Decision, decode: Decision, transfer_ms: f64, whole_ms: Option<f64> },
}

/// Chooses a replica that takes the request whole, or a pair where that is cheaper or the only way. Policies that
/// predict no cost take a pair only where nobody serves whole requests.
pub fn place(policy: &Policy, ask: &Ask, views: &[View]) -> Result<Placement, NoReplica> {
    let pair = pair(policy, ask, views);
    let whole = match super::decide(policy, ask, views) {
        Ok(decision) => decision,
        Err(refused) => return pair.map(|found| found.placement(None)).ok_or(refused),
    };
    let (Policy::KvAware(weights), Some(pair)) = (policy, pair) else {
        return Ok(Placement::Whole { decision: whole, pair_ms: None });
    };
    let whole = with_stalls(weights, ask, views, whole);
    let whole_ms = whole.score().total_ms;
    if pair.total_ms < whole_ms {
        Ok(pair.placement(Some(whole_ms)))
    } else {
        Ok(Placement::Whole { decision: whole, pair_ms: Some(pair.total_ms) })
    }
}

struct Pair {
    prefill: Decision,
    decode: Decision,
    transfer_ms: f64,
    total_ms: f64,
}

impl Pair {
    fn placement(self, whole_ms: Option<f64>) -> Placement {
        Placement::Pair {
            prefill: self.prefill,
            decode: self.decode,
            transfer_ms: self.transfer_ms,
            whole_ms,
        }
    }
}

/// The best two that are not one: the decoder first, for of the prefillers there are more to choose from.
fn pair(policy: &Policy, ask: &Ask, views: &[View]) -> Option<Pair> {
    let weights = policy.weights();
    let decoders = able(ask, views, Role::serves_decode).ok()?;
    let prefillers = able(ask, views, Role::serves_prefill).ok()?;
    // The only prefiller cannot decode as well.
    let decoders = if prefillers.len() == 1 { SeatSet(decoders.0 & !prefillers.0) } else { decoders };
    let decode = half(policy, ask, views, decoders, |view| cost::decode_half(&weights, ask, view))?;
    let prefillers = prefillers.without(decode.chosen);
    let count = prefillers.len();
    let prefill =
        half(policy, ask, views, prefillers, |view| cost::prefill_half(&weights, ask, view, count))?;
    let transfer_ms = decode.score().restore_ms;
    let total_ms = prefill.score().total_ms + decode.score().total_ms;
    Some(Pair { prefill, decode, transfer_ms, total_ms })
}

fn half(
    policy: &Policy,
    ask: &Ask,
    views: &[View],
    among: SeatSet,
    score: impl Fn(&View) -> Score,
) -> Option<Decision> {
    let scores: Vec<Score> = views.iter().filter(|v| among.has(v.seat)).map(score).collect();
    if scores.is_empty() {
        return None;
    }
    let (chosen, why) = choose(policy, ask, views, &scores);
    Some(Decision { chosen, scores, why })
}

/// The same decision with each replica charged for those whose decoding a prefill there would stall.
fn with_stalls(weights: &Weights, ask: &Ask, views: &[View], mut whole: Decision) -> Decision {
    for score in &mut whole.scores {
        let Some(view) = views.iter().find(|v| v.seat == score.seat) else { continue };
        let stall_ms = cost::stall_ms(weights, view, score.prefill_ms);
        score.decode_ms += stall_ms;
        score.total_ms += stall_ms;
    }
    (whole.chosen, whole.why) = cheapest(weights, ask, &whole.scores);
    whole
}
