//! What a request would cost on one replica, in predicted milliseconds.
//!
//! One unit for everything and not weights of blocks against requests: rates are learned per replica, so a
//! slow replica, a long prompt and a distant tier weigh what they take, and a score can be compared with
//! what then happened. What the prediction leaves out: the order in which a replica serves its queue, and
//! requests that never passed a router.

use base::Tier;

use super::{AdapterState, Ask, Score, View, Weights};

/// The request whole, on one of so many replicas.
pub(super) fn score(weights: &Weights, ask: &Ask, view: &View, replicas: usize) -> Score {
    let mut score = prefill_half(weights, ask, view, replicas);
    score.decode_ms = decode_ms(weights, ask, view, score.prefill_ms);
    score.total_ms += score.decode_ms;
    score
}

/// Its prompt alone.
pub(super) fn prefill_half(weights: &Weights, ask: &Ask, view: &View, replicas: usize) -> Score {
    let reach = cheapest_reach(ask, view);
    let queue_ms = queue_ms(view);
    let other_ms = adapter_ms(view)
        + session_ms(weights, ask, view)
        + pressure_ms(weights, ask, view, f64::from(reach.uncached_tokens))
        + weights.recent * view.load.recent_tokens * view.rates.prefill_ms_per_token
        - shared_ms(ask, view, &reach, replicas);
    Score {
        seat: view.seat,
        held: view.held,
        uncached_tokens: reach.uncached_tokens,
        prefill_ms: reach.prefill_ms,
        restore_ms: reach.restore_ms,
        queue_ms,
        decode_ms: 0.0,
        other_ms,
        total_ms: reach.prefill_ms + reach.restore_ms + queue_ms + other_ms,
    }
}

/// Its answer alone: what the replica lacks of the prompt comes from another's device.
pub(super) fn decode_half(weights: &Weights, ask: &Ask, view: &View) -> Score {
    let held = view.held.in_tier(Tier::Device);
    let lacks = ask.prompt_tokens.div_ceil(ask.block_tokens.max(1)).saturating_sub(held);
    let restore_ms = f64::from(lacks) * view.rates.transfer_ms_per_block;
    let decode_ms = decode_ms(weights, ask, view, 0.0);
    let other_ms =
        adapter_ms(view) + pressure_ms(weights, ask, view, f64::from(lacks) * f64::from(ask.block_tokens));
    Score {
        seat: view.seat,
        held: view.held,
        uncached_tokens: 0,
        prefill_ms: 0.0,
        restore_ms,
        queue_ms: 0.0,
        decode_ms,
        other_ms,
        total_ms: restore_ms + decode_ms + other_ms,
    }
}

/// What a prefill takes from those who decode on the same replica: one token each comes that much later, and what of
/// that exceeds the target was promised not to.
pub(super) fn stall_ms(weights: &Weights, view: &View, prefill_ms: f64) -> f64 {
    weights.stall * decoding(view) * (prefill_ms - weights.itl_target_ms).max(0.0)
}

/// How the prompt gets into the device's memory.
#[derive(Clone, Copy)]
struct Reach {
    uncached_tokens: u32,
    prefill_ms: f64,
    restore_ms: f64,
}

impl Reach {
    fn ms(&self) -> f64 {
        self.prefill_ms + self.restore_ms
    }
}

/// Compute all that the device lacks, or restore up to what some tier holds and compute the rest.
fn cheapest_reach(ask: &Ask, view: &View) -> Reach {
    let (mut blocks, mut restore_ms) = (view.held.in_tier(Tier::Device), 0.0);
    let mut best = reach(ask, view, blocks, restore_ms);
    for tier in [Tier::Host, Tier::Nvme, Tier::Object] {
        let more = view.held.in_tier(tier).saturating_sub(blocks);
        if more > 0 {
            blocks += more;
            restore_ms += view.rates.restore_ms(tier, f64::from(more));
            let this = reach(ask, view, blocks, restore_ms);
            best = if this.ms() < best.ms() { this } else { best };
        }
    }
    best
}

fn reach(ask: &Ask, view: &View, blocks: u32, restore_ms: f64) -> Reach {
    // The last token is always computed: its logits are the answer's first.
    let most = ask.prompt_tokens.saturating_sub(1);
    let cached = blocks.saturating_mul(ask.block_tokens).min(most);
    let uncached_tokens = ask.prompt_tokens - cached;
    let prefill_ms = view.rates.prefill_ms(f64::from(uncached_tokens), f64::from(cached));
    Reach { uncached_tokens, prefill_ms, restore_ms }
}

/// Prefills promised before this one, less what has passed since the first of them can have begun.
fn queue_ms(view: &View) -> f64 {
    let load = &view.load;
    if load.pending_prefill_tokens == 0 {
        return 0.0;
    }
    let tokens = load.pending_prefill_tokens as f64;
    let each = tokens / f64::from(load.pending_prefills.max(1));
    let all = tokens * view.rates.prefill_marginal_ms(each, 0.0) + view.rates.prefill_fixed_ms;
    (all - load.head_elapsed_ms.min(view.rates.prefill_ms(each, 0.0))).max(0.0)
}

/// What the answer costs beyond the first token. While the target is met that counts little, for nobody reads faster
/// than it: `decode_below_target` of what all who decode here lose together. What exceeds the target counts fully.
fn decode_ms(weights: &Weights, ask: &Ask, view: &View, prefill_ms: f64) -> f64 {
    let (active, resident) = (f64::from(view.load.active), view.load.resident_tokens as f64);
    let (steps, own) = (f64::from(ask.output_tokens), own_tokens(ask));
    let mine_ms = steps * view.rates.decode_growth_ms(active, resident);
    let shared_steps = (view.load.expected_tokens as f64).min(active * steps);
    let theirs_ms = shared_steps * view.rates.decode_growth_ms(1.0, own);
    let stalls_ms = decoding(view) * prefill_ms;
    let above_ms = steps * above_target_ms(weights, view, own);
    weights.decode_below_target * (mine_ms + theirs_ms + stalls_ms) + weights.decode_above_target * above_ms
}

/// How far a step with this request beside the others is beyond the target, or beyond what it takes alone.
fn above_target_ms(weights: &Weights, view: &View, own: f64) -> f64 {
    let alone = view.rates.decode_step_ms(1.0, own);
    let load = &view.load;
    let beside = view.rates.decode_step_ms(f64::from(load.active) + 1.0, load.resident_tokens as f64 + own);
    (beside - weights.itl_target_ms.max(alone)).max(0.0)
}

/// Tokens that the request keeps on the device, on average.
fn own_tokens(ask: &Ask) -> f64 {
    f64::from(ask.prompt_tokens) + f64::from(ask.output_tokens) / 2.0
}

/// Requests that get tokens and would wait for a prefill.
fn decoding(view: &View) -> f64 {
    f64::from(view.load.active.saturating_sub(view.load.pending_prefills))
}

fn adapter_ms(view: &View) -> f64 {
    match view.adapter {
        AdapterState::Loaded => 0.0,
        AdapterState::Absent | AdapterState::Unsupported => view.rates.adapter_load_ms,
    }
}

fn session_ms(weights: &Weights, ask: &Ask, view: &View) -> f64 {
    if ask.session == Some(view.seat) { -weights.session_ms } else { 0.0 }
}

/// What others will have of this prefill: the part of its beginning that many ask for, less this request's share
/// of it. So a prompt that all have is soon on all replicas, and one that nobody else has is where it was.
fn shared_ms(ask: &Ask, view: &View, reach: &Reach, replicas: usize) -> f64 {
    let cached = ask.prompt_tokens - reach.uncached_tokens;
    let hot = ask.hot.blocks.saturating_mul(ask.block_tokens).min(ask.prompt_tokens);
    if hot <= cached {
        return 0.0;
    }
    let rest_ms = view.rates.prefill_ms(f64::from(ask.prompt_tokens - hot), f64::from(hot));
    let uses = ask.hot.uses / replicas.max(1) as f64;
    (reach.prefill_ms - rest_ms).max(0.0) * uses / (1.0 + uses)
}

/// Computing again what would have to go for this request. Pages that running requests hold do not go: where
/// even those would be needed, somebody is preempted and computes all of his again.
fn pressure_ms(weights: &Weights, ask: &Ask, view: &View, new_tokens: f64) -> f64 {
    if view.pages.total == 0 {
        return 0.0;
    }
    let block = f64::from(ask.block_tokens.max(1));
    let need = ((new_tokens + f64::from(ask.output_tokens)) / block).ceil();
    let evicted = (need - view.pages.free as f64).max(0.0);
    let preempted = (evicted - view.pages.cached as f64).max(0.0);
    (weights.eviction * (evicted - preempted) + preempted) * block * view.rates.prefill_ms_per_token
}
