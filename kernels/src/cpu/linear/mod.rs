//! Linear layers: packed weights times rows of activations.
//!
//! ```text
//! for each panel of 32 outputs             an even share per worker; in a prefill, idle ones steal
//!   for each run of groups along k         a run's weights stay in the second-level cache …
//!     for each block of rows               … while all rows pass over them
//!       tile                               rows × 32 outputs in registers
//! ```
//! With one block of rows (decode) there is one run per panel and the weights stream once through. With
//! more, runs are cut only where a panel would fill the second-level cache (384 KiB of a MiB): measured from
//! 8 KiB up, shorter runs lose 3 to 10 % to storing, loading and restarting, and a stripe of several panels
//! per pass over the activations gains nothing.
//! A worker owns whole panels, so no sum crosses workers. See `tile` for why the result of a row does not
//! depend on the rows around it.

mod activations;
mod embed;
mod form;
mod geometry;
mod pack;
mod portable;
mod quant;
mod tile;
mod x86;

#[cfg(test)]
mod tests;

use std::ops::Range;

use activations::{Blocks, pack_block};
pub use form::Form;
pub use geometry::{GROUP, PANEL};
use geometry::{group_bytes, row_group_bytes};
use tile::{Reuse, Tile, TileFn};

use super::arena::{Region, Rows, RowsMut, Slab, Span};
use super::isa::Isa;
use super::pool::{Lots, Pool, share};
use crate::{HostTensor, KernelError};

/// How far ahead of its use a weight that is read once is prefetched.
const AHEAD_BYTES: usize = 4096;
/// Weights of one run that several blocks of rows share; short in tests, so that small shapes have several.
const RUN_BYTES: usize = if cfg!(test) { 16 << 10 } else { 384 << 10 };
/// From this many rows on, workers that have finished take panels from the others.
const STEAL_ROWS: usize = 48;

/// A packed weight `[outputs, inputs]`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub form: Form,
    pub outputs: usize,
    pub inputs: usize,
    span: Span,
}

impl Linear {
    /// Packs `parts`, stacked along their rows, into `slab`.
    pub fn load(
        parts: &[HostTensor<'_>],
        form: Form,
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

/// Memory that linear ops share: packed activations, and panels on their way to the output.
pub struct Scratch {
    x: Region,
    staging: Region,
    lots: Lots,
}

impl Scratch {
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self {
            x: Region::new(0, "activations")?,
            staging: Region::new(0, "activations")?,
            lots: Lots::default(),
        })
    }

    /// Makes room for `rows` rows of `cols`; called at load, so that a step never allocates.
    pub fn reserve(&mut self, rows: usize, cols: usize, workers: usize) -> Result<(), KernelError> {
        let x = rows * cols.next_multiple_of(GROUP) * 4;
        if self.x.len() < x {
            self.x = Region::new(x, "activations")?;
        }
        let staging = workers * rows * PANEL * 4;
        if self.staging.len() < staging {
            self.staging = Region::new(staging, "activations")?;
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
    if x.rows == 0 || weight.outputs == 0 || weight.inputs == 0 {
        return;
    }
    let workers = machine.pool.workers();
    scratch.reserve(x.rows, x.cols, workers).expect("memory for activations");
    let blocks = Blocks::new(x.rows, tile::rows_max(machine.isa, weight.form));
    let run = match blocks.count {
        1 => weight.groups(),
        _ => even_run(weight.groups(), RUN_BYTES / group_bytes(weight.form)),
    };
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
        run,
        staging: RowsMut::new(scratch.staging.as_mut_slice(), workers * x.rows, PANEL),
        tiles: Tiles::new(machine.isa, weight.form, &blocks),
    };
    op.run(machine.pool, &mut scratch.lots);
}

/// The length of the fewest even runs that are no longer than `most`.
fn even_run(groups: usize, most: usize) -> usize {
    groups.div_ceil(groups.div_ceil(most))
}

/// Packs the rows of `x`, the work cut by blocks and, where those are few, along k.
fn pack_rows(machine: Machine<'_>, weight: &Linear, x: &Rows<'_>, blocks: &Blocks, out: &mut [u8]) {
    let (form, groups, size) = (weight.form, weight.groups(), row_group_bytes(weight.form));
    let out = RowsMut::new(out, x.rows * groups, size);
    let piece = |block: usize, part: Range<usize>| {
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
    form: Form,
    groups: usize,
    outputs: usize,
    weights: &'a [u8],
    x: &'a [u8],
    blocks: Blocks,
    bias: Option<&'a [f32]>,
    out: &'a RowsMut<'a>,
    /// Groups that all rows pass over before the next.
    run: usize,
    /// `[worker][row][32]`, see [`Target`].
    staging: RowsMut<'a>,
    tiles: Tiles,
}

impl Op<'_> {
    fn run(&self, pool: &Pool, lots: &mut Lots) {
        let panels = self.outputs.div_ceil(PANEL);
        if self.out.rows < STEAL_ROWS {
            return pool.run(&|worker, workers| {
                share(panels, 1, worker, workers).for_each(|panel| self.panel(panel, worker));
            });
        }
        lots.deal(panels, pool.workers());
        let lots = &*lots;
        pool.run(&|worker, _| {
            while let Some(panel) = lots.take(worker) {
                self.panel(panel, worker);
            }
        });
    }

    /// All rows of one panel.
    fn panel(&self, panel: usize, worker: usize) {
        let target = self.target(panel, worker);
        for first in (0..self.groups).step_by(self.run) {
            let groups = first..(first + self.run).min(self.groups);
            for block in 0..self.blocks.count {
                self.tile(panel, groups.clone(), block, target);
            }
        }
        self.finish(panel, target);
    }

    /// Where the sums of a panel gather.
    fn target(&self, panel: usize, worker: usize) -> Target {
        let ragged = (panel + 1) * PANEL > self.outputs;
        if ragged || self.run < self.groups {
            Target::Staged { first_row: worker * self.out.rows }
        } else {
            Target::Out { column: panel * PANEL }
        }
    }

    fn tile(&self, panel: usize, groups: Range<usize>, block: usize, target: Target) {
        let size = group_bytes(self.form);
        let from = panel * self.groups * size;
        let weights = &self.weights[from + groups.start * size..from + groups.end * size];
        let rows = self.blocks.rows(block);
        let x_size = row_group_bytes(self.form);
        let x_from = (rows.start * self.groups + groups.start * rows.len()) * x_size;
        let x = &self.x[x_from..x_from + groups.len() * rows.len() * x_size];
        let (distance, ahead_step) = match self.blocks.count {
            1 => (AHEAD_BYTES, 128),
            // The next run follows in memory, and so does the next panel of this worker.
            count => (weights.len() + weights.len() * block / count, 128usize.div_ceil(count)),
        };
        let (out, stride) = match target {
            Target::Out { column } => (self.out.corners(rows.clone(), column..column + PANEL), self.out.cols),
            Target::Staged { first_row } => {
                (self.staging.corners(first_row + rows.start..first_row + rows.end, 0..PANEL), PANEL)
            }
        };
        let call = Tile {
            weight: weights.as_ptr(),
            x: x.as_ptr(),
            groups: groups.len(),
            out,
            stride,
            resume: groups.start > 0,
            ahead: weights.as_ptr().wrapping_add(distance),
            ahead_step,
        };
        // SAFETY: the slices above cover the run and the block, `corners` checked that `out` covers the
        // tile, this worker owns these columns, and the set was chosen as available.
        unsafe { self.tiles.of(rows.len())(&call) };
    }

    /// Moves a staged panel to its place and adds the bias.
    fn finish(&self, panel: usize, target: Target) {
        let columns = panel * PANEL..self.outputs.min((panel + 1) * PANEL);
        let bias = self.bias.map(|b| &b[columns.clone()]);
        if bias.is_none() && matches!(target, Target::Out { .. }) {
            return;
        }
        for row in 0..self.out.rows {
            // SAFETY: this worker owns the panel, hence these columns.
            let out = unsafe { self.out.part(row, columns.clone()) };
            if let Target::Staged { first_row } = target {
                // SAFETY: this part of the staging rows is this worker's.
                out.copy_from_slice(&unsafe { self.staging.row(first_row + row) }[..out.len()]);
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
            }
        }
    }
}

/// Where the sums of one panel gather: in place, or aside if they are cut along k (rows of the output lie
/// a power of two apart and would fight for one cache set) or wider than the output.
#[derive(Clone, Copy)]
enum Target {
    Out { column: usize },
    Staged { first_row: usize },
}

/// The one or two tile functions that an even cut into blocks needs.
struct Tiles {
    small_rows: usize,
    small: TileFn,
    large: TileFn,
}

impl Tiles {
    fn new(isa: Isa, form: Form, blocks: &Blocks) -> Self {
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
