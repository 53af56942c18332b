//! The bytes that the index may have, all its tables together, and who has them.
//!
//! A table takes its bytes before it is allocated and gives them back when it is dropped, which for a table
//! that has been replaced is when its last reader has let go. So the sum is what is allocated, not what is in
//! use, and growing needs room for the old table and the new. An estimate afterwards would be cheaper by
//! nothing and could not refuse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use base::Bytes;

/// There is no room for so many bytes more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the prefix index has {used} of {max} bytes and needs {wanted} more")]
pub struct Full {
    pub wanted: u64,
    pub used: u64,
    pub max: u64,
}

/// Shared by everything that allocates for the index.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    max: u64,
}

impl Budget {
    pub(super) fn new(max: Bytes) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), max: max.0 })
    }

    /// Takes bytes until the charge is dropped.
    pub(super) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, Full> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.max);
        match self.used.fetch_update(Relaxed, Relaxed, fits) {
            Ok(_) => Ok(Charge { budget: self.clone(), bytes }),
            Err(used) => Err(Full { wanted: bytes, used, max: self.max }),
        }
    }

    pub fn used(&self) -> Bytes {
        Bytes(self.used.load(Relaxed))
    }

    pub fn max(&self) -> Bytes {
        Bytes(self.max)
    }
}

/// Bytes taken from a budget.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_beyond_the_limit_is_refused_and_a_dropped_one_makes_room() {
        let budget = Budget::new(Bytes(100));
        let first = budget.charge(60).unwrap();
        let refused = budget.charge(41).unwrap_err();
        assert_eq!(refused, Full { wanted: 41, used: 60, max: 100 });
        drop(first);
        let all = budget.charge(100).unwrap();
        assert_eq!((budget.used(), all.bytes()), (Bytes(100), 100));
    }
}
