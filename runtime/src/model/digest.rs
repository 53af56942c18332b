//! The name of a model's arithmetic: two replicas whose digests agree may share KV pages.
//!
//! SHA-256 over the description, the forms in which weights and KV are held, and the weights' bytes:
//! every byte for models up to [`EVERY_BYTE_MAX`], else the sample that [`weights::sampled`] takes (about
//! 1.6 %), so that a large model starts in seconds. Where the weights came from does not count: a shard
//! layout or a file name changes nothing.
//!
//! [`weights::sampled`]: super::weights

use base::ModelDigest;
use kernels::{ATTENTION_TILE, BackendInfo, KvShape, RopeTable};
use sha2::{Digest, Sha256};

use super::description::Description;
use super::load::WeightChoice;
use super::names::Expected;
use super::weights::{Depth, TensorSource};

/// Up to this many bytes of weights every byte is hashed.
pub const EVERY_BYTE_MAX: u64 = 256 << 20;

pub(crate) fn model(
    source: &dyn TensorSource,
    expected: &[Expected],
    total: u64,
    d: &Description,
    choice: WeightChoice,
) -> ModelDigest {
    let mut hasher = Sha256::new();
    hasher.update("quire.model.v1");
    // Debug of plain data: fields by name, floats by their shortest exact form.
    hasher.update(format!("{d:?}{choice:?}"));
    let depth = if total <= EVERY_BYTE_MAX { Depth::EveryByte } else { Depth::Sample };
    for e in expected {
        source.digest(e, depth, &mut hasher);
    }
    ModelDigest(hasher.finalize().into())
}

/// What else decides the bytes of a page: geometry, element type, tile, rotation, and whose
/// instructions computed it. The longest sequence served counts only where it picks the frequencies.
pub(crate) fn layout(kv: &KvShape, rope: &RopeTable, backend: &BackendInfo) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update("quire.layout.v1");
    // The number of pages is capacity, not layout.
    let KvShape { page_tokens, layers, kv_heads, head_dim, kind, .. } = kv;
    hasher.update(format!("{page_tokens} {layers} {kv_heads} {head_dim} {kind:?} {ATTENTION_TILE}"));
    hasher.update(format!("{:?} {:?}", rope.inv_freq, rope.magnitude));
    hasher.update(format!("{} {}", backend.name, backend.isa));
    hasher.finalize().into()
}
