//! What every crate stands on: ids and units as types, the clock, counter-based randomness, named
//! threads, limits, and the keyed chain of page hashes.
//!
//! Nothing here knows a model, a device or a socket. Time, randomness and threads come from here so
//! that tests and the simulator can own them; the direct calls are refused by `clippy.toml`.

mod chain;
mod clock;
mod ids;
mod limits;
mod rng;
mod spawn;
mod tier;
mod units;

pub use chain::{CHAIN_BYTES, ChainHash, ChainRoot, NamespaceKey};
pub use clock::{Clock, ManualClock, Nanos, SystemClock};
pub use ids::{
    AdapterId, FrameId, Generation, ModelDigest, NamespaceId, PageId, Priority, RequestId, SeqId, SlotId,
    StepId, TokenId,
};
pub use limits::Limits;
pub use rng::{CounterRng, SplitMix};
pub use spawn::spawn;
pub use tier::Tier;
pub use units::{Bytes, bytes_human};
