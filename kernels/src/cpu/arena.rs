//! Memory of the CPU backend: mapped regions, buffers of activations, views of their rows, and the step.
//!
//! Everything large comes from anonymous maps, not from the allocator: they are zero when fresh, start on a
//! huge page and ask for huge pages, without which a decode step spends a fifth of its time in page walks.
//! Buffers are made at load and never move. [`RowsMut`] is the one hole in the borrow checker that workers
//! need: disjoint rows of one buffer written from several threads.

use std::marker::PhantomData;
use std::ops::Range;

use base::Bytes;
use bytemuck::Pod;

use crate::{Batch, KernelError, SeqSpan};

/// Alignment of large regions and size above which huge pages are asked for.
const HUGE: usize = 2 << 20;

/// Zeroed memory from the system: aligned to 64 bytes, to 2 MiB and on huge pages if it is that large.
pub struct Region {
    base: *mut u8,
    /// Bytes asked for.
    len: usize,
    /// What was mapped, which is at least `len` and starts at or before `base`.
    map: (*mut u8, usize),
}

// SAFETY: a region owns its memory; shared access is read-only and exclusive access needs `&mut`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    pub fn new(len: usize, what: &'static str) -> Result<Self, KernelError> {
        let refused = || KernelError::Memory(Bytes(len as u64), what);
        let slack = if len >= HUGE { HUGE } else { 0 };
        let size = len.max(1).checked_add(slack).ok_or_else(refused)?;
        // SAFETY: a fresh anonymous private map of non-zero size touches no existing memory.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(refused());
        }
        let map = map.cast::<u8>();
        let skip = if slack > 0 { map.align_offset(HUGE) } else { 0 };
        // SAFETY: `skip < HUGE = slack`, so the result and the `len` bytes after it stay inside the map.
        let base = unsafe { map.add(skip) };
        #[cfg(target_os = "linux")]
        if slack > 0 {
            // SAFETY: advice on our own map; a refusal leaves small pages.
            let _refused = unsafe { libc::madvise(base.cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { base, len, map: (map, size) })
    }

    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region as elements; a remainder shorter than one is left out.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        assert!(align_of::<T>() <= 64);
        // SAFETY: mapped, initialised (zero or written through `as_mut_slice`), aligned, any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.base.cast(), self.len / size_of::<T>()) }
    }

    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        assert!(align_of::<T>() <= 64);
        // SAFETY: as in `as_slice`, and `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.cast(), self.len / size_of::<T>()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the map made in `new`; nothing borrows it any more.
        unsafe { libc::munmap(self.map.0.cast(), self.map.1) };
    }
}

/// A place in a [`Slab`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    chunk: usize,
    start: usize,
    len: usize,
}

impl Span {
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Memory that only grows, for weights: many tensors share huge pages, so that a matrix of 1 MiB streams as
/// fast as one of 100.
#[derive(Default)]
pub struct Slab {
    chunks: Vec<Region>,
    used: usize,
}

impl Slab {
    /// What is mapped at a time; untouched pages of it cost nothing.
    const CHUNK: usize = 64 << 20;

    /// `len` zeroed bytes, aligned to 64.
    pub fn take(&mut self, len: usize, what: &'static str) -> Result<Span, KernelError> {
        let fits = self.chunks.last().is_some_and(|c| c.len() - self.used >= len);
        if !fits {
            self.chunks.push(Region::new(len.max(Self::CHUNK), what)?);
            self.used = 0;
        }
        let span = Span { chunk: self.chunks.len() - 1, start: self.used, len };
        let end = (self.used + len).next_multiple_of(64);
        self.used = end.min(self.chunks[span.chunk].len());
        Ok(span)
    }

    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.chunks[span.chunk].as_slice()[span.start..span.start + span.len]
    }
    pub fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        &mut self.chunks[span.chunk].as_mut_slice()[span.start..span.start + span.len]
    }
}

/// Rows of f32, read by all workers.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
}

impl<'a> Rows<'a> {
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "{} floats for {rows} rows of {cols}", data.len());
        Self { data, rows, cols }
    }
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }
}

/// Rows of `T`, written by several workers at once, each its own part.
#[derive(Clone, Copy)]
pub struct RowsMut<'a, T = f32> {
    base: *mut T,
    pub rows: usize,
    pub cols: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `unsafe` methods whose contract is disjointness between threads.
unsafe impl<T: Send> Send for RowsMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for RowsMut<'_, T> {}

impl<'a, T> RowsMut<'a, T> {
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "{} elements for {rows} rows of {cols}", data.len());
        Self { base: data.as_mut_ptr(), rows, cols, _borrow: PhantomData }
    }

    /// One row.
    ///
    /// # Safety
    /// While the slice lives, nobody else may hold any of these elements.
    pub unsafe fn row(&self, row: usize) -> &'a mut [T] {
        // SAFETY: passed on to the caller.
        unsafe { self.part(row, 0..self.cols) }
    }

    /// The columns `cols` of one row.
    ///
    /// # Safety
    /// While the slice lives, nobody else may hold any of these elements.
    pub unsafe fn part(&self, row: usize, cols: Range<usize>) -> &'a mut [T] {
        assert!(row < self.rows && cols.start <= cols.end && cols.end <= self.cols);
        // SAFETY: inside the borrow checked in `new`; exclusive by the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(row * self.cols + cols.start), cols.len()) }
    }

    /// The first element of a rectangle that lies inside, for kernels that write many rows at once.
    pub fn corners(&self, rows: Range<usize>, cols: Range<usize>) -> *mut T {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        assert!(cols.start < cols.end && cols.end <= self.cols);
        // SAFETY: inside the borrow checked in `new`.
        unsafe { self.base.add(rows.start * self.cols + cols.start) }
    }

    /// Whole rows, contiguous.
    ///
    /// # Safety
    /// While the slice lives, nobody else may hold any of these elements.
    pub unsafe fn row_range(&self, rows: Range<usize>) -> &'a mut [T] {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        // SAFETY: inside the borrow checked in `new`; exclusive by the caller's contract.
        unsafe {
            std::slice::from_raw_parts_mut(self.base.add(rows.start * self.cols), rows.len() * self.cols)
        }
    }
}

/// A matrix of activations that remembers how many of its rows are live.
pub struct Buffer {
    memory: Region,
    pub rows: usize,
    pub rows_max: usize,
    pub cols: usize,
}

impl Buffer {
    pub fn new(rows_max: usize, cols: usize) -> Result<Self, KernelError> {
        let bytes = rows_max.saturating_mul(cols).saturating_mul(4);
        Ok(Self { memory: Region::new(bytes, "activations")?, rows: 0, rows_max, cols })
    }

    /// The live rows.
    pub fn view(&self) -> Rows<'_> {
        Rows::new(self.memory.as_slice(), self.rows, self.cols)
    }

    /// Sets the number of live rows and gives them for writing.
    pub fn resize(&mut self, rows: usize) -> RowsMut<'_> {
        assert!(rows <= self.rows_max, "{rows} rows in a buffer of {}", self.rows_max);
        self.rows = rows;
        RowsMut::new(self.memory.as_mut_slice(), rows, self.cols)
    }
}

/// A step as the ops see it: the batch, copied, with per-row lookups.
#[derive(Debug, Default)]
pub struct StepRows {
    pub tokens: Vec<u32>,
    /// Absolute position of each row.
    pub positions: Vec<u32>,
    /// Index into `spans` of each row.
    pub span_of: Vec<u32>,
    pub spans: Vec<SeqSpan>,
    pub page_table: Vec<u32>,
}

impl StepRows {
    /// Replaces the step; keeps its memory.
    pub fn fill(&mut self, batch: &Batch<'_>) {
        self.tokens.clear();
        self.tokens.extend_from_slice(batch.tokens);
        self.spans.clear();
        self.spans.extend_from_slice(batch.spans);
        self.page_table.clear();
        self.page_table.extend_from_slice(batch.page_table);
        self.positions.clear();
        self.span_of.clear();
        for (index, span) in batch.spans.iter().enumerate() {
            self.positions.extend(span.start..span.start + span.rows);
            self.span_of.extend(std::iter::repeat_n(index as u32, span.rows as usize));
        }
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Page and slot of the token at `position` of span `span`.
    pub fn slot(&self, span: usize, position: usize, page_tokens: usize) -> (u32, usize) {
        let table = self.spans[span].table as usize;
        (self.page_table[table + position / page_tokens], position % page_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zero_aligned_and_writable_to_the_end() {
        for len in [0, 1, 100, 4096, HUGE - 1, HUGE, 3 * HUGE + 17] {
            let mut region = Region::new(len, "test").unwrap();
            assert_eq!(region.as_slice::<u8>().len(), len);
            assert!(region.as_slice::<u8>().iter().all(|&b| b == 0));
            assert_eq!(region.as_slice::<u8>().as_ptr().align_offset(if len >= HUGE { HUGE } else { 64 }), 0);
            region.as_mut_slice::<u8>().fill(7);
        }
    }

    #[test]
    fn a_slab_gives_disjoint_aligned_zeroes() {
        let mut slab = Slab::default();
        let spans: Vec<_> =
            [1, 63, 64, 65, 1 << 20, 70 << 20, 5].map(|len| slab.take(len, "test").unwrap()).into();
        for &span in &spans {
            assert!(slab.bytes(span).iter().all(|&b| b == 0));
            assert_eq!(slab.bytes(span).as_ptr().align_offset(64), 0);
            slab.bytes_mut(span).fill(1); // an overlap would show as a one in a later span
        }
    }

    #[test]
    fn an_impossible_region_is_refused_with_its_purpose() {
        let refused = Region::new(1 << 60, "the moon").err().expect("no such memory");
        assert_eq!(refused.to_string(), "cannot allocate 1048576.0 TiB for the moon");
    }

    #[test]
    fn a_step_knows_position_and_page_of_every_row() {
        let spans = [
            SeqSpan { row: 0, rows: 3, start: 15, table: 0 },
            SeqSpan { row: 3, rows: 1, start: 4, table: 2 },
        ];
        let mut step = StepRows::default();
        for _ in 0..2 {
            step.fill(&Batch { tokens: &[9, 8, 7, 6], spans: &spans, page_table: &[5, 3, 1] });
            assert_eq!(step.positions, [15, 16, 17, 4]);
            assert_eq!(step.span_of, [0, 0, 0, 1]);
            assert_eq!((step.slot(0, 15, 16), step.slot(0, 17, 16)), ((5, 15), (3, 1)));
            assert_eq!(step.slot(1, 4, 16), (1, 4));
        }
    }
}
