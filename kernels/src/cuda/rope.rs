//! Cosines and sines on the device, tabulated as far as steps have come.
//!
//! The table is allocated for all positions, since kernels keep its address, and filled a run of positions at
//! a time: 131,072 positions at once would cost a second at start.

use super::driver::{DevicePtr, Driver, Memory};
use crate::{KernelError, RopeTable};

/// Positions that are tabulated at a time.
const FILL: usize = 4096;

pub(super) struct Angles {
    table: RopeTable,
    at: DevicePtr,
    filled: usize,
}

impl Angles {
    pub fn new(memory: &dyn Memory, table: &RopeTable) -> Result<Self, KernelError> {
        let at = memory.alloc(Self::bytes(table.positions, table.inv_freq.len()), "rope table")?;
        Ok(Self { table: table.clone(), at, filled: 0 })
    }

    /// Of a table.
    pub fn bytes(positions: usize, pairs: usize) -> usize {
        positions * pairs * 2 * size_of::<f32>()
    }

    pub fn at(&self) -> DevicePtr {
        self.at
    }
    pub fn pairs(&self) -> usize {
        self.table.inv_freq.len()
    }

    /// Makes positions up to `last` available.
    pub fn fill_to(&mut self, driver: &dyn Driver, last: usize) {
        assert!(last < self.table.positions, "position {last} of {} tabulated", self.table.positions);
        if last < self.filled {
            return;
        }
        let end = ((last / FILL + 1) * FILL).min(self.table.positions);
        let pairs = self.pairs();
        let mut rows = vec![0.0f32; (end - self.filled) * 2 * pairs];
        for (position, row) in (self.filled..end).zip(rows.chunks_exact_mut(2 * pairs)) {
            let (cos, sin) = row.split_at_mut(pairs);
            self.table.angles(position, cos, sin);
        }
        driver.upload(self.at.plus(self.filled * 8 * pairs), bytemuck::cast_slice(&rows));
        self.filled = end;
    }
}
