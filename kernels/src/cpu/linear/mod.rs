//! Linear layers: packed weights times rows of activations.
//!
//! ```text
//! for each panel of 32 outputs             static shares for decode, tickets for prefill
//!   for each run of groups along k         a run's weights stay in the second-level cache …
//!     for each block of rows               … while all rows pass over them
//!       tile                               rows × 32 outputs in registers
//! ```
//! With one block of rows (decode) there is one run per panel and the weights stream once through. With
//! more, a run of 128 KiB is best (measured from 8 to 256): shorter ones pay for storing and loading the
//! accumulators, longer ones push the activations out.
//! A worker owns whole panels, so no sum crosses workers. See `tile` for why the result of a row does not
//! depend on the rows around it.

mod activations;
mod embed;
mod geometry;
mod pack;
mod portable;
mod quant;
mod tile;
mod x86;

#[cfg(test)]
mod tests;

use activations::{Blocks, pack_block};
pub use geometry::{GROUP, PANEL};
use geometry::{group_bytes, row_group_bytes};
use tile::{Reuse, Tile, TileFn};

use super::arena::{Region, Rows, RowsMut, Slab, Span};
use super::isa::Isa;
use super::pool::{Pool, Tickets, share};
use crate::{HostTensor, KernelError, WeightForm};

/// How far ahead of its use a weight that is read once is prefetched.
const AHEAD_BYTES: usize = 4096;
/// Weights of one run that several blocks of rows share.
const RUN_BYTES: usize = 128 << 10;
/// From this many rows on, panels are handed out by ticket.
const TICKET_ROWS: usize = 48;

/// A packed weight `[outputs, inputs]`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub form: WeightForm,
    pub outputs: usize,
    pub inputs: usize,
    span: Span,
}

impl Linear {
    /// Packs `parts`, stacked along their rows, into `slab`.
    pub fn load(
        parts: &[HostTensor<'_>],
        form: WeightForm,
        isa: Isa,
        pool: &Pool,
        slab: &mut Slab,
    ) -> Result<Self, KernelError> {
        let (outputs, inputs) = pack::stacked(parts)?;
        let (panels, width) = (outputs.div_ceil(PANEL), inputs.div_ceil(GROUP) * group_bytes(form));
        let span = slab.take(panels * width, "weights")?;
        pack::pack(parts, form, isa, pool, &RowsMut::new(slab.bytes_mut(span), panels, width));
        Ok(Self { form, outputs, inputs, span })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.span.len()
    }

    fn groups(&self) -> usize {
        self.inputs.div_ceil(GROUP)
    }
}

/// Memory that linear ops share: packed activations and the ragged last panel.
pub struct Scratch {
    x: Region,
    edge: Region,
}

impl Scratch {
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self { x: Region::new(0, "activations")?, edge: Region::new(0, "activations")? })
    }

    /// Makes room for `rows` rows of `cols`; called at load, so that a step never allocates.
    pub fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), KernelError> {
        let x = rows * cols.next_multiple_of(GROUP) * 4;
        if self.x.len() < x {
            self.x = Region::new(x, "activations")?;
        }
        if self.edge.len() < rows * PANEL * 4 {
            self.edge = Region::new(rows * PANEL * 4, "activations")?;
        }
        Ok(())
    }
}

/// What runs a linear op.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    pub pool: &'a Pool,
    pub isa: Isa,
}

/// `out = x · weightᵀ (+ bias)`.
///
/// # Panics
/// If the shapes do not fit each other.
pub fn linear(
    machine: Machine<'_>,
    weight: &Linear,
    slab: &Slab,
    x: &Rows<'_>,
    bias: Option<&[f32]>,
    out: &RowsMut<'_>,
    scratch: &mut Scratch,
) {
    assert_eq!((x.cols, out.cols, out.rows), (weight.inputs, weight.outputs, x.rows), "shape of a linear op");
    assert!(bias.is_none_or(|b| b.len() == weight.outputs), "length of a bias");
    if x.rows == 0 || weight.outputs == 0 {
        return;
    }
    scratch.reserve(x.rows, x.cols).expect("memory for activations");
    let blocks = Blocks::new(x.rows, tile::rows_max(machine.isa, weight.form));
    let row_bytes = weight.groups() * row_group_bytes(weight.form);
    let packed = &mut scratch.x.as_mut_slice::<u8>()[..x.rows * row_bytes];
    pack_rows(machine, weight, x, &blocks, packed);
    let op = Op {
        form: weight.form,
        groups: weight.groups(),
        outputs: weight.outputs,
        weights: slab.bytes(weight.span),
        x: packed,
        blocks,
        bias,
        out,
        edge: RowsMut::new(scratch.edge.as_mut_slice(), x.rows, PANEL),
        tiles: Tiles::new(machine.isa, weight.form, &blocks),
    };
    op.run(machine.pool);
}

/// Packs the rows of `x`, the work cut by blocks and, where those are few, along k.
fn pack_rows(machine: Machine<'_>, weight: &Linear, x: &Rows<'_>, blocks: &Blocks, out: &mut [u8]) {
    let (form, groups, size) = (weight.form, weight.groups(), row_group_bytes(weight.form));
    let out = RowsMut::new(out, x.rows * groups, size);
    let piece = |block: usize, part: std::ops::Range<usize>| {
        let rows = blocks.rows(block);
        let from = rows.start * groups + part.start * rows.len();
        // SAFETY: callers give each (block, part) to one worker, and these are disjoint.
        let out = unsafe { out.row_range(from..from + part.len() * rows.len()) };
        pack_block(x, rows, part, form, machine.isa, out);
    };
    if x.rows == 1 {
        return piece(0, 0..groups); // less work than a fork
    }
    machine.pool.run(&|worker, workers| {
        if blocks.count >= 4 * workers {
            share(blocks.count, 1, worker, workers).for_each(|block| piece(block, 0..groups));
        } else {
            (0..blocks.count).for_each(|block| piece(block, share(groups, 1, worker, workers)));
        }
    });
}

/// One linear op, ready to run: everything that workers share.
struct Op<'a> {
    form: WeightForm,
    groups: usize,
    outputs: usize,
    weights: &'a [u8],
    x: &'a [u8],
    blocks: Blocks,
    bias: Option<&'a [f32]>,
    out: &'a RowsMut<'a>,
    /// Whole-width stand-in for the last panel if the outputs end inside it.
    edge: RowsMut<'a>,
    tiles: Tiles,
}

impl Op<'_> {
    fn run(&self, pool: &Pool) {
        let panels = self.outputs.div_ceil(PANEL);
        if self.out.rows >= TICKET_ROWS {
            let tickets = Tickets::new(panels, 1);
            pool.run(&|_, _| {
                while let Some(taken) = tickets.take() {
                    taken.for_each(|panel| self.panel(panel));
                }
            });
        } else {
            pool.run(&|worker, workers| {
                share(panels, 1, worker, workers).for_each(|panel| self.panel(panel));
            });
        }
    }

    /// All rows of one panel.
    fn panel(&self, panel: usize) {
        let ragged = (panel + 1) * PANEL > self.outputs;
        let out = if ragged { &self.edge } else { self.out };
        let column = if ragged { 0 } else { panel * PANEL };
        let run =
            if self.blocks.count == 1 { self.groups } else { (RUN_BYTES / group_bytes(self.form)).max(1) };
        for first in (0..self.groups).step_by(run) {
            let groups = run.min(self.groups - first);
            for block in 0..self.blocks.count {
                self.tile(panel, first, groups, block, out, column);
            }
        }
        if ragged {
            self.copy_edge(panel * PANEL);
        }
        if let Some(bias) = self.bias {
            let columns = panel * PANEL..self.outputs.min((panel + 1) * PANEL);
            self.add_bias(&bias[columns.clone()], columns);
        }
    }

    fn tile(
        &self,
        panel: usize,
        first: usize,
        groups: usize,
        block: usize,
        out: &RowsMut<'_>,
        column: usize,
    ) {
        let size = group_bytes(self.form);
        let from = (panel * self.groups + first) * size;
        let weights = &self.weights[from..from + groups * size];
        let rows = self.blocks.rows(block);
        let x_size = row_group_bytes(self.form);
        let x_from = (rows.start * self.groups + first * rows.len()) * x_size;
        let x = &self.x[x_from..x_from + groups * rows.len() * x_size];
        let out_last = out.at(rows.end - 1, column + PANEL); // checks the far corner
        let _ = out_last;
        let (distance, ahead_step) = match self.blocks.count {
            1 => (AHEAD_BYTES, 128),
            count => (weights.len() + weights.len() * block / count, 128usize.div_ceil(count)),
        };
        let call = Tile {
            weight: weights.as_ptr(),
            x: x.as_ptr(),
            groups,
            out: out.at(rows.start, column),
            stride: out.cols,
            resume: first > 0,
            ahead: weights.as_ptr().wrapping_add(distance),
            ahead_step,
        };
        // SAFETY: the slices above cover the run and the block, `out` covers the tile (its far corner was
        // checked) and this worker owns its columns; the set was chosen as available.
        unsafe { self.tiles.of(rows.len())(&call) };
    }

    fn copy_edge(&self, column: usize) {
        for row in 0..self.out.rows {
            // SAFETY: this worker owns the panel, hence the edge and these columns.
            let (to, from) = unsafe { (self.out.part(row, column..self.outputs), self.edge.row(row)) };
            to.copy_from_slice(&from[..to.len()]);
        }
    }

    fn add_bias(&self, bias: &[f32], columns: std::ops::Range<usize>) {
        for row in 0..self.out.rows {
            // SAFETY: this worker owns the panel, hence these columns.
            let out = unsafe { self.out.part(row, columns.clone()) };
            out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
        }
    }
}

/// The one or two tile functions that an even cut into blocks needs.
struct Tiles {
    small_rows: usize,
    small: TileFn,
    large: TileFn,
}

impl Tiles {
    fn new(isa: Isa, form: WeightForm, blocks: &Blocks) -> Self {
        let reuse = if blocks.count == 1 { Reuse::Once } else { Reuse::Again };
        let sizes = (0..blocks.count).map(|b| blocks.rows(b).len());
        let (least, most) = sizes.fold((usize::MAX, 0), |(lo, hi), n| (lo.min(n), hi.max(n)));
        assert!(most - least <= 1, "an even cut");
        let of = |rows| tile::select(isa, form, rows, reuse);
        Self { small_rows: least, small: of(least), large: of(most) }
    }
    fn of(&self, rows: usize) -> TileFn {
        if rows == self.small_rows { self.small } else { self.large }
    }
}
