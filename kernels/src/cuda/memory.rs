//! Device memory that was planned at load: arrays of fixed capacity, buffers of rows.
//!
//! Nothing here is freed or moved, so the addresses that kernels were launched with stay right for as long as
//! a recorded step may be replayed.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::driver::{DevicePtr, Driver, Memory};
use super::replay::bucket;
use crate::{KernelError, Precision};

/// An array of at most `capacity` elements.
#[derive(Debug)]
pub(super) struct DeviceArray<T> {
    at: DevicePtr,
    capacity: usize,
    kind: PhantomData<T>,
}

impl<T: Pod> DeviceArray<T> {
    pub fn new(memory: &dyn Memory, capacity: usize, what: &'static str) -> Result<Self, KernelError> {
        let at = memory.alloc(capacity * size_of::<T>(), what)?;
        Ok(Self { at, capacity, kind: PhantomData })
    }

    pub fn at(&self) -> DevicePtr {
        self.at
    }
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Overwrites the front.
    pub fn put(&self, driver: &dyn Driver, values: &[T]) {
        assert!(values.len() <= self.capacity, "{} values in an array of {}", values.len(), self.capacity);
        if !values.is_empty() {
            driver.upload(self.at, bytemuck::cast_slice(values));
        }
    }

    /// Reads the front.
    pub fn get(&self, driver: &dyn Driver, len: usize) -> Vec<T> {
        assert!(len <= self.capacity);
        let mut values = vec![T::zeroed(); len];
        driver.download(self.at, bytemuck::cast_slice_mut(&mut values));
        values
    }
}

/// A matrix of activations.
#[derive(Debug)]
pub(super) struct Buffer {
    pub at: DevicePtr,
    pub rows_max: usize,
    pub cols: usize,
    pub precision: Precision,
    /// Rows that hold something.
    pub rows: usize,
}

impl Buffer {
    pub fn new(
        memory: &dyn Memory,
        rows_max: usize,
        cols: usize,
        precision: Precision,
    ) -> Result<Self, KernelError> {
        // Kernels and libraries are launched for whole buckets of rows.
        let at = memory.alloc(bucket(rows_max) * cols * bytes_of(precision), "activations")?;
        Ok(Self { at, rows_max, cols, precision, rows: 0 })
    }

    /// Says how many rows an op is about to write.
    pub fn resize(&mut self, rows: usize) -> DevicePtr {
        assert!(rows <= self.rows_max, "{rows} rows in a buffer of {}", self.rows_max);
        self.rows = rows;
        self.at
    }

    /// For ops that are written for one precision.
    pub fn expect(&self, precision: Precision) -> DevicePtr {
        assert_eq!(self.precision, precision, "an op got a buffer of the other precision");
        self.at
    }

    /// The live rows, widened.
    pub fn read(&self, driver: &dyn Driver) -> Vec<f32> {
        let mut bytes = vec![0u8; self.rows * self.cols * bytes_of(self.precision)];
        driver.download(self.at, &mut bytes);
        match self.precision {
            Precision::Full => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Precision::Half => {
                bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
        }
    }

    pub fn write(&mut self, driver: &dyn Driver, rows: usize, data: &[f32]) {
        assert_eq!(data.len(), rows * self.cols);
        let at = self.resize(rows);
        match self.precision {
            Precision::Full => driver.upload(at, bytemuck::cast_slice(data)),
            Precision::Half => {
                let narrow: Vec<half::bf16> = data.iter().map(|&x| half::bf16::from_f32(x)).collect();
                driver.upload(at, bytemuck::cast_slice(&narrow));
            }
        }
    }
}

fn bytes_of(precision: Precision) -> usize {
    match precision {
        Precision::Full => 4,
        Precision::Half => 2,
    }
}
