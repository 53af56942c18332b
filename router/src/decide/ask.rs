//! What a decision is asked: one request, as far as a router knows it before it runs.

use base::AdapterId;

use super::Hot;
use crate::{Seat, SeatSet};

/// One request to place.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub prompt_tokens: u32,
    /// Tokens of one block, the unit of [`crate::Held`].
    pub block_tokens: u32,
    /// How many tokens it is expected to generate: the client's limit or what such requests took so far.
    pub output_tokens: u32,
    pub adapter: AdapterId,
    /// Where the session's last request went. It may hold more than events say, so it is preferred, softly.
    pub session: Option<Seat>,
    /// What of its beginning many have, by [`super::Heat`].
    pub hot: Hot,
    /// Name of the block that [`super::Policy::PrefixHash`] places by.
    pub prefix: u64,
    /// How many requests this router placed before: [`super::Policy::RoundRobin`] goes by it.
    pub turn: u64,
    /// Breaks ties. The same ask with the same seed is decided the same way.
    pub seed: u64,
    /// Never these: tried already, outside the client's subset, behind an open breaker.
    pub excluded: SeatSet,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            prompt_tokens: 1,
            block_tokens: 16,
            output_tokens: 256,
            adapter: AdapterId(0),
            session: None,
            hot: Hot::default(),
            prefix: 0,
            turn: 0,
            seed: 0,
            excluded: SeatSet::EMPTY,
        }
    }
}
