//! What a request would cost on one replica, in predicted milliseconds.
//!
//! One unit for everything and not weights of blocks against requests: rates are learned per replica, so a
//! slow replica, a long prompt and a distant tier weigh what they take, and a score can be compared with
//! what then happened. What the prediction leaves out: the order in which a replica serves its queue, and
//! requests that never passed a router.

use base::Tier;

use super::{AdapterState, Ask, Score, View, Weights};

pub(super) fn score(weights: &Weights, ask: &Ask, view: &View) -> Score {
    let plan = cheapest_reach(ask, view);
    let queue_ms = queue_ms(view);
    let decode_ms = decode_ms(weights, ask, view);
    let other_ms = other_ms(weights, ask, view, &plan);
    Score {
        seat: view.seat,
        held: view.held,
        uncached_tokens: plan.uncached_tokens,
        prefill_ms: plan.prefill_ms,
        restore_ms: plan.restore_ms,
        queue_ms,
        decode_ms,
        other_ms,
        total_ms: plan.prefill_ms + plan.restore_ms + queue_ms + decode_ms + other_ms,
    }
}

/// How the prompt gets into the device's memory.
struct Reach {
    uncached_tokens: u32,
    prefill_ms: f64,
    restore_ms: f64,
}

/// Compute all that the device lacks, or restore up to what some tier holds and compute the rest.
fn cheapest_reach(ask: &Ask, view: &View) -> Reach {
    let mut best: Option<Reach> = None;
    let (mut reached, mut restore_ms) = (0, 0.0);
    for tier in Tier::ALL {
        let blocks = view.held.in_tier(tier).max(reached);
        restore_ms += view.rates.restore_ms(tier, f64::from(blocks - reached));
        if blocks == reached && best.is_some() {
            continue;
        }
        reached = blocks;
        let this = reach(ask, view, blocks, restore_ms);
        if best.as_ref().is_none_or(|b| this.prefill_ms + this.restore_ms < b.prefill_ms + b.restore_ms) {
            best = Some(this);
        }
    }
    best.expect("the device is a tier")
}

fn reach(ask: &Ask, view: &View, blocks: u32, restore_ms: f64) -> Reach {
    // The last token is always computed: its logits are the answer's first.
    let most = ask.prompt_tokens.saturating_sub(1);
    let cached = blocks.saturating_mul(ask.block_tokens).min(most);
    let uncached_tokens = ask.prompt_tokens - cached;
    let prefill_ms = view.rates.prefill_ms(f64::from(uncached_tokens), f64::from(cached));
    Reach { uncached_tokens, prefill_ms, restore_ms }
}

/// Prefills promised before this one, less what has passed since the first of them began.
fn queue_ms(view: &View) -> f64 {
    let load = &view.load;
    if load.pending_prefill_tokens == 0 {
        return 0.0;
    }
    let each = load.pending_prefill_tokens as f64 / f64::from(load.pending_prefills.max(1));
    let all = load.pending_prefill_tokens as f64 * view.rates.prefill_marginal_ms(each, 0.0)
        + view.rates.prefill_fixed_ms;
    (all - load.head_elapsed_ms.min(view.rates.prefill_ms(each, 0.0))).max(0.0)
}

/// What this request's presence adds to each step, times the steps it is there. Below the target only a
/// little: nobody reads faster than that. Above it fully, for this request and for those it slows down.
fn decode_ms(weights: &Weights, ask: &Ask, view: &View) -> f64 {
    let (active, resident) = (f64::from(view.load.active), view.load.resident_tokens as f64);
    let own = f64::from(ask.prompt_tokens) + f64::from(ask.output_tokens) / 2.0;
    let idle = view.rates.decode_step_ms(1.0, own);
    let after = view.rates.decode_step_ms(active + 1.0, resident + own);
    let above = (after - weights.itl_target_ms.max(idle)).max(0.0);
    let below = after - idle - above;
    let steps = f64::from(ask.output_tokens);
    steps * (weights.decode_below_target * below + weights.decode_above_target * above)
        + weights.active_request_ms * active
}

fn other_ms(weights: &Weights, ask: &Ask, view: &View, plan: &Reach) -> f64 {
    let adapter = match view.adapter {
        AdapterState::Loaded => 0.0,
        AdapterState::Absent | AdapterState::Unsupported => view.rates.adapter_load_ms,
    };
    let session = if ask.session == Some(view.seat) { -weights.session_ms } else { 0.0 };
    adapter + session + pressure_ms(weights, ask, view, plan)
}

/// Computing again what would have to go for this request. Pages that running requests hold do not go: where
/// even those would be needed, somebody is preempted and computes all of his again.
fn pressure_ms(weights: &Weights, ask: &Ask, view: &View, plan: &Reach) -> f64 {
    if view.pages.total == 0 {
        return 0.0;
    }
    let block = f64::from(ask.block_tokens.max(1));
    let need = ((f64::from(plan.uncached_tokens) + f64::from(ask.output_tokens)) / block).ceil();
    let evicted = (need - view.pages.free as f64).max(0.0);
    let preempted = (evicted - view.pages.cached as f64).max(0.0);
    (weights.eviction * (evicted - preempted) + preempted) * block * view.rates.prefill_ms_per_token
}
