//! Newtypes for every id, so that a page cannot be passed where a sequence is meant.
//!
//! `TokenId` stays a plain `u32`: token slices cross into tokenizers, kernels and hashes by the
//! million, and a wrapper would buy casts, not safety.

use std::fmt;

/// A vocabulary index.
pub type TokenId = u32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One request as a client sees it (a request with `n` choices holds several sequences).
    RequestId(u64)
);
id!(
    /// One sequence of tokens being generated.
    SeqId(u64)
);
id!(
    /// One step of the engine, counted from 1.
    StepId(u64)
);
id!(
    /// A physical page of the device pool.
    PageId(u32)
);
id!(
    /// A frame of pinned host memory, as large as a page.
    FrameId(u32)
);
id!(
    /// A page-sized place on a disk or in an object store.
    SlotId(u32)
);
id!(
    /// A tenant's part of the cache.
    NamespaceId(u64)
);
id!(
    /// Raised by a purge; a key of an older generation can no longer be formed.
    Generation(u64)
);
id!(
    /// A LoRA adapter; 0 is the base model.
    AdapterId(u32)
);
id!(
    /// Smaller runs first, as in vLLM.
    Priority(i32)
);

/// SHA-256 over what decides a model's arithmetic: weights, config and layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ModelDigest(pub [u8; 32]);

impl fmt::Debug for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelDigest({self})")
    }
}

impl fmt::Display for ModelDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
