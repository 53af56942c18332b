//! The inner kernel's contract: a few rows times one panel over a run of groups.
//!
//! ```text
//! out[r][0..32] (+)= Σ over the groups, in order, of x[r] · w[·][0..32]        r < rows
//! ```
//! Every output is one chain of additions along k. A tile may stop after any group and a later call resume
//! from the f32 in `out`: storing and loading an f32 is exact, so cutting k changes no bit. Every row
//! count runs the same instructions in the same order per output; only how many rows share a loaded weight
//! differs. That is the whole proof that one row and five hundred give the same bits.

use super::form::Form;
use super::{portable, x86};
use crate::cpu::isa::Isa;

/// Arguments of one call.
#[derive(Clone, Copy)]
pub struct Tile {
    /// First group of the run in the panel.
    pub weight: *const u8,
    /// First group of the run in the packed block of rows.
    pub x: *const u8,
    pub groups: usize,
    /// Column 0 of row 0; 32 columns are written.
    pub out: *mut f32,
    /// Elements between rows of `out`.
    pub stride: usize,
    /// Start from `out` instead of zero.
    pub resume: bool,
    /// Where to prefetch from, and how far to move per 128 bytes of weights.
    pub ahead: *const u8,
    pub ahead_step: usize,
}

/// # Safety
/// All pointers must cover what `groups`, the row count and the form say, and the instruction set that the
/// function was selected for must be available.
pub type TileFn = unsafe fn(&Tile);

/// Who pays for the memory latency of weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reuse {
    /// Weights are read once, from memory: prefetch every line into the first level.
    Once,
    /// Weights are read again from cache: prefetch the next run at leisure into the second level.
    Again,
}

/// Most rows of one tile.
pub fn rows_max(isa: Isa, form: Form) -> usize {
    match (isa, form) {
        (Isa::Avx512, Form::Q8 | Form::Q4) => x86::avx512::ROWS_INT,
        (Isa::Avx512, _) => x86::avx512::ROWS_FLOAT,
        (Isa::Avx2, _) => x86::avx2::ROWS,
        (Isa::Portable, _) => portable::ROWS,
    }
}

/// The tile for `rows` rows.
pub fn select(isa: Isa, form: Form, rows: usize, reuse: Reuse) -> TileFn {
    assert!(rows >= 1 && rows <= rows_max(isa, form), "a tile of {rows} rows");
    match isa {
        Isa::Avx512 => x86::avx512::select(form, rows, reuse),
        Isa::Avx2 => x86::avx2::select(form, rows),
        Isa::Portable => portable::select(form, rows),
    }
}
