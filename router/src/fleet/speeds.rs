//! How fast each replica of a pool is: one fit for all of them, and each one's pace relative to it.
//!
//! Not a fit per replica. Replicas of a pool run one model, mostly on one kind of device, and noise in separate fits
//! is not harmless: the replica whose fit came out 10 % low gets the long prompts of all others, for no reason. So
//! the shape is learned from everybody's samples, which takes a sixteenth of the time with sixteen replicas, and of
//! a single one only a factor, which counts once it is more than noise ([`DEADBAND`]). What that cannot say: a
//! replica that is slower in one coefficient and not in another.

use base::Tier;
use proto::v1;

use super::{Learner, Rates};
use crate::Seat;
use crate::book::{DecodeSpan, PrefillSpan};

/// Paces within this factor of the pool's are the pool's (logarithm).
const DEADBAND: f64 = 0.15;
/// Samples after which an old one of a single replica counts 1/e.
const MEMORY: f64 = 48.0;
/// Samples of "as the others" that a new replica starts with.
const PRIOR: f64 = 8.0;
/// No single sample says that a replica is faster or slower by more (logarithm of 4).
const CLIP: f64 = 1.386;

/// The speeds of one pool.
#[derive(Clone, Debug, Default)]
pub struct Speeds {
    common: Learner,
    paces: Vec<Paces>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Paces {
    prefill: Pace,
    decode: Pace,
}

impl Speeds {
    /// Starts from `prior`, which holds until samples say otherwise.
    pub fn new(prior: Rates) -> Self {
        Self { common: Learner::new(prior), paces: Vec::new() }
    }

    /// One replica's rates.
    pub fn rates(&self, seat: Seat) -> Rates {
        let paces = self.paces.get(seat.index()).copied().unwrap_or_default();
        self.common.rates().paced(paces.prefill.factor(), paces.decode.factor())
    }

    /// What the whole pool is like.
    pub fn common(&self) -> Rates {
        self.common.rates()
    }

    /// Prefills ended.
    pub fn prefilled(&mut self, span: &PrefillSpan) {
        let predicted = self.common.predict_prefill(span);
        let Some(paces) = self.paces(span.seat) else { return };
        let factor = paces.prefill.learn(span.ms, predicted);
        self.common.prefill_span(&PrefillSpan { ms: span.ms / factor, ..*span });
    }

    /// An answer ended.
    pub fn decoded(&mut self, span: &DecodeSpan) {
        let predicted = self.common.rates().decode_step_ms(span.sequences, span.resident_tokens);
        let Some(paces) = self.paces(span.seat) else { return };
        let factor = paces.decode.learn(span.step_ms, predicted);
        self.common.decode_span(&DecodeSpan { step_ms: span.step_ms / factor, ..*span });
    }

    /// What two load records of a replica with pages of `block_tokens` say together.
    pub fn interval(&mut self, seat: Seat, from: &v1::LoadRecord, to: &v1::LoadRecord, block_tokens: u32) {
        if let Some(span) = decode_span(seat, from, to, block_tokens) {
            self.decoded(&span);
        }
    }

    /// `blocks` were brought from a tier.
    pub fn restored(&mut self, tier: Tier, blocks: u32, ms: f64) {
        self.common.restore(tier, blocks, ms);
    }

    /// `blocks` came from another replica's device.
    pub fn transferred(&mut self, blocks: u32, ms: f64) {
        self.common.transfer(blocks, ms);
    }

    pub fn adapter_loaded(&mut self, ms: f64) {
        self.common.adapter_load(ms);
    }

    /// Who sits there next is somebody else.
    pub fn forget(&mut self, seat: Seat) {
        if let Some(paces) = self.paces.get_mut(seat.index()) {
            *paces = Paces::default();
        }
    }

    fn paces(&mut self, seat: Seat) -> Option<&mut Paces> {
        if seat.index() >= Seat::MAX {
            return None;
        }
        if self.paces.len() <= seat.index() {
            self.paces.resize(seat.index() + 1, Paces::default());
        }
        self.paces.get_mut(seat.index())
    }
}

/// Only an interval that computed no prompt says how long a decode step takes; others mix the two, and requests tell
/// prefill better.
fn decode_span(
    seat: Seat,
    from: &v1::LoadRecord,
    to: &v1::LoadRecord,
    block_tokens: u32,
) -> Option<DecodeSpan> {
    let steps = to.steps.checked_sub(from.steps).filter(|n| *n > 0)?;
    let generated = to.generated_tokens.checked_sub(from.generated_tokens).filter(|n| *n > 0)?;
    let ns = to.step_ns.checked_sub(from.step_ns)?;
    let used = to.pages_total.saturating_sub(to.pages_free).saturating_sub(to.pages_cached);
    (to.computed_tokens == from.computed_tokens).then(|| DecodeSpan {
        seat,
        step_ms: ns as f64 / 1e6 / steps as f64,
        sequences: generated as f64 / steps as f64,
        resident_tokens: used as f64 * f64::from(block_tokens),
    })
}

/// A replica's time over the pool's, as a mean of logarithms: twice and half as long cancel out.
#[derive(Clone, Copy, Debug)]
struct Pace {
    log: f64,
    samples: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { log: 0.0, samples: PRIOR }
    }
}

impl Pace {
    fn factor(&self) -> f64 {
        if self.log.abs() < DEADBAND { 1.0 } else { self.log.exp() }
    }

    /// Takes a sample in, and gives the factor after it.
    fn learn(&mut self, ms: f64, predicted_ms: f64) -> f64 {
        let log = (ms / predicted_ms).ln();
        if log.is_finite() {
            self.samples = (self.samples + 1.0).min(MEMORY);
            self.log += (log.clamp(self.log - CLIP, self.log + CLIP) - self.log) / self.samples;
        }
        self.factor()
    }
}
