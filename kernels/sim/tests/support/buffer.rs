//! Output buffers that notice writes outside of them: the bytes before and behind hold a pattern, the inside
//! starts as NaN, so that what a kernel did not write shows too.

use bytemuck::Pod;

const GUARD_BYTES: usize = 512;
const GUARD: u8 = 0xC3;

/// `n` values of 0xFF bytes between two guards; the address of the first is aligned to 64.
pub struct Guarded<T> {
    memory: Vec<u64>,
    first: usize,
    n: usize,
    kind: std::marker::PhantomData<T>,
}

impl<T: Pod> Guarded<T> {
    /// Poisoned: every byte inside is 0xFF, which is NaN in every float format.
    pub fn new(n: usize) -> Self {
        let bytes = n * size_of::<T>();
        let mut memory = vec![0u64; (2 * GUARD_BYTES + bytes + 64).div_ceil(8)];
        let address = memory.as_ptr() as usize;
        let first = (address + GUARD_BYTES).next_multiple_of(64) - address;
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        all.fill(GUARD);
        all[first..first + bytes].fill(0xFF);
        Self { memory, first, n, kind: std::marker::PhantomData }
    }

    /// With these values inside.
    pub fn from(values: &[T]) -> Self {
        let mut buffer = Self::new(values.len());
        buffer.as_mut_slice().copy_from_slice(values);
        buffer
    }

    /// The device address of the first value.
    pub fn address(&mut self) -> u64 {
        self.memory.as_mut_ptr() as u64 + self.first as u64
    }

    pub fn as_slice(&self) -> &[T] {
        let all: &[u8] = bytemuck::cast_slice(&self.memory);
        bytemuck::cast_slice(&all[self.first..self.first + self.n * size_of::<T>()])
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory);
        bytemuck::cast_slice_mut(&mut all[self.first..self.first + self.n * size_of::<T>()])
    }

    /// Panics if a byte outside of the buffer changed.
    pub fn assert_guards(&self, what: &str) {
        let all: &[u8] = bytemuck::cast_slice(&self.memory);
        let end = self.first + self.n * size_of::<T>();
        let before = all[..self.first].iter().rposition(|b| *b != GUARD);
        assert!(
            before.is_none(),
            "{what}: wrote {} bytes before the buffer",
            self.first - before.unwrap_or(0)
        );
        let behind = all[end..].iter().position(|b| *b != GUARD);
        assert!(behind.is_none(), "{what}: wrote {} bytes behind the buffer", behind.unwrap_or(0));
    }

    /// The values, once the guards are seen to be whole.
    pub fn take(self, what: &str) -> Vec<T> {
        self.assert_guards(what);
        self.as_slice().to_vec()
    }
}
