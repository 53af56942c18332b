//! The work list of attention for one step: which rows read which run of keys, and what is merged after.
//!
//! A pure function of the batch, computed once a step and used by every layer. It decides who reads what, never
//! what comes out: the kernels merge tiles in ascending order whatever the cut (see `kernels/cu/attend.cuh`), so
//! every plan of a batch gives the same bits, and the rules below are about time only.
//!
//! 1. Whole tiles inside a shared prefix are read once for all short spans that share it, level by level of
//!    the tree of groups; what is left of each sequence is its own. Long spans (which fill an item alone)
//!    stay out: sharing saves them no bandwidth.
//! 2. Rows are packed as many to an item as it holds. Items with few rows are cut into runs of tiles until
//!    there are about two for each multiprocessor; with many rows the states would cost more than the wait.
//! 3. A run that starts at its rows' first visible tile is folded in the kernel, and written directly if it
//!    is all that they see. Every other run leaves one state a tile, because a left fold cannot start in the
//!    middle.
//! 4. Past the limits groups are dropped, then cuts; what is left needs no states at all.
//!
//! The obvious other, a launch for each level and one for the suffixes, costs more in launches than it saves on
//! short prefixes.

use crate::cuda::params::attend::AttendItem;
use crate::cuda::params::merge::MergeRow;
use crate::{ATTENTION_TILE, SeqSpan};

const TILE: u32 = ATTENTION_TILE as u32;
/// Items with at most this many packed rows are cut: a state of 32 rows is an eighth of a tile's bytes.
const CUT_ROWS: u32 = 32;
/// Blocks wanted for each multiprocessor.
const WAVES: u32 = 2;

/// Spans whose sequences have the same first `tokens` tokens, in the same pages.
#[derive(Clone, Copy, Debug)]
pub struct AttendGroup<'a> {
    /// Already in the pages before this step, or written by a span that sees them.
    pub tokens: u32,
    /// Where a page table of theirs starts; any member's will do.
    pub table: u32,
    /// Indices into the step's spans. Groups nest: two of them share no member, or one holds the other.
    pub spans: &'a [u32],
}

/// What the plan must know of model, kernel and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttendGeometry {
    /// Query heads of a KV head.
    pub group: u32,
    pub kv_heads: u32,
    pub window: Option<u32>,
    /// Packed rows of an item, of the kernel that will run.
    pub rows_max: u32,
    /// Multiprocessors.
    pub sms: u32,
}

/// What the device buffers hold. Without states, `items` and `rows` of a batch's rows are always enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttendLimits {
    pub items: u32,
    /// Entries of the row list.
    pub rows: u32,
    /// Partial states; also bounds the slot list.
    pub states: u32,
}

/// What is uploaded for the step, and what it costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttendPlan {
    /// Longest first.
    pub items: Vec<AttendItem>,
    pub row_list: Vec<u32>,
    pub merges: Vec<MergeRow>,
    /// The states of each merge row, ascending by tile.
    pub slots: Vec<u32>,
    /// Partial states that the items write.
    pub states: u32,
    /// Keys that the items read, for each KV head.
    pub kv_tokens: u64,
}

impl AttendPlan {
    /// Plans a step. Panics with the reason if groups do not nest: a wrong page is worse than a failed step.
    pub fn new(
        geometry: &AttendGeometry,
        spans: &[SeqSpan],
        groups: &[AttendGroup<'_>],
        limits: &AttendLimits,
    ) -> AttendPlan {
        assert!(geometry.group <= geometry.rows_max, "a token's heads must fit an item");
        let attempts = [(groups, WAVES), (&[][..], WAVES), (&[][..], 0)];
        let mut plan = AttendPlan::default();
        for (groups, waves) in attempts {
            plan = Planner::new(geometry, spans).plan(groups, waves);
            if plan.fits(limits) {
                break;
            }
        }
        plan
    }

    fn fits(&self, limits: &AttendLimits) -> bool {
        self.items.len() <= limits.items as usize
            && self.row_list.len() <= limits.rows as usize
            && self.states <= limits.states
    }
}

/// Rows that read the same keys, before runs are cut.
struct Unit {
    /// In the row list.
    first: u32,
    rows: u32,
    table: u32,
    key_from: u32,
    key_end: u32,
    /// None of its rows sees anything before `key_from`.
    starts: bool,
    /// Its rows see nothing at or beyond `key_end`.
    ends: bool,
}

impl Unit {
    fn tiles(&self) -> u32 {
        self.key_end.div_ceil(TILE) - self.key_from / TILE
    }
}

/// A state of a row: where it is, and from which tile on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    row: u32,
    tile: u32,
    slot: u32,
}

struct Planner<'a> {
    geometry: &'a AttendGeometry,
    spans: &'a [SeqSpan],
    /// Positions of the rows in the row list.
    positions: Vec<u32>,
    units: Vec<Unit>,
    states: Vec<State>,
    plan: AttendPlan,
}

impl<'a> Planner<'a> {
    fn new(geometry: &'a AttendGeometry, spans: &'a [SeqSpan]) -> Self {
        Planner {
            geometry,
            spans,
            positions: Vec::new(),
            units: Vec::new(),
            states: Vec::new(),
            plan: AttendPlan::default(),
        }
    }

    fn plan(mut self, groups: &[AttendGroup<'_>], waves: u32) -> AttendPlan {
        let shared = self.add_groups(groups);
        for (span, shared) in self.spans.iter().zip(shared) {
            let rows = (0..span.rows).map(|i| (span.row + i, span.start + i));
            self.add_units(rows, span.table, shared, u32::MAX);
        }
        let run_max = self.run_max(waves);
        let mut units = std::mem::take(&mut self.units);
        units.sort_by_key(|unit| std::cmp::Reverse(unit.tiles().min(run_max)));
        for unit in &units {
            self.add_items(unit, run_max);
        }
        self.plan.items.sort_by_key(|item| std::cmp::Reverse(item.key_end - item.key_from));
        self.merge();
        self.plan
    }

    /// Tokens an item can hold.
    fn rows_max(&self) -> usize {
        (self.geometry.rows_max / self.geometry.group) as usize
    }

    fn first_visible(&self, position: u32) -> u32 {
        self.geometry.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Adds the units of shared tiles; returns how many tiles of each span are covered by them.
    fn add_groups(&mut self, groups: &[AttendGroup<'_>]) -> Vec<u32> {
        let mut covered = vec![0; self.spans.len()];
        let mut order: Vec<&AttendGroup<'_>> = groups.iter().collect();
        order.sort_by_key(|group| (group.tokens, std::cmp::Reverse(group.spans.len())));
        for group in order {
            let short = |&&i: &&u32| (self.spans[i as usize].rows as usize) < self.rows_max();
            let members: Vec<u32> = group.spans.iter().filter(short).copied().collect();
            let tiles = group.tokens / TILE;
            let Some(&first) = members.first() else { continue };
            let from = covered[first as usize];
            assert!(members.iter().all(|&i| covered[i as usize] == from), "prefix groups must nest");
            if members.len() < 2 || tiles <= from {
                continue;
            }
            for &i in &members {
                covered[i as usize] = tiles;
            }
            let spans = self.spans;
            let rows = members.iter().flat_map(|&i| {
                let span = &spans[i as usize];
                (0..span.rows).map(|r| (span.row + r, span.start + r))
            });
            self.add_units(rows, group.table, from, tiles);
        }
        covered
    }

    /// Packs (row, position) pairs into units over the tiles `from..to` of `table`; rows that see none of
    /// these tiles stay out.
    fn add_units(&mut self, rows: impl Iterator<Item = (u32, u32)>, table: u32, from: u32, to: u32) {
        let from = from * TILE;
        let to = to.saturating_mul(TILE);
        let mut open: Option<Unit> = None;
        for (row, position) in rows {
            let (lo, end) = (self.first_visible(position), position + 1);
            if lo.max(from) >= end.min(to) {
                continue;
            }
            let unit = open.get_or_insert(Unit {
                first: self.plan.row_list.len() as u32,
                rows: 0,
                table,
                key_from: u32::MAX,
                key_end: 0,
                starts: true,
                ends: true,
            });
            self.plan.row_list.push(row);
            self.positions.push(position);
            unit.rows += 1;
            unit.key_from = unit.key_from.min(lo.max(from));
            unit.key_end = unit.key_end.max(end.min(to));
            unit.starts &= lo >= from;
            unit.ends &= end <= to;
            if unit.rows as usize == self.rows_max() {
                self.units.extend(open.take());
            }
        }
        self.units.extend(open);
    }

    /// The longest run of tiles with which the work fills the device `waves` times; unbounded for 0.
    fn run_max(&self, waves: u32) -> u32 {
        if waves == 0 {
            return u32::MAX;
        }
        let work: u64 = self.units.iter().map(|unit| u64::from(unit.tiles())).sum();
        let blocks = u64::from(waves * self.geometry.sms.max(1));
        (work * u64::from(self.geometry.kv_heads)).div_ceil(blocks).clamp(1, u64::from(u32::MAX)) as u32
    }

    fn add_items(&mut self, unit: &Unit, run_max: u32) {
        let tiles = unit.tiles();
        let few = unit.rows * self.geometry.group <= CUT_ROWS;
        let runs = if few { tiles.div_ceil(run_max) } else { 1 };
        let tile0 = unit.key_from / TILE;
        for run in 0..runs {
            let cut = |run: u32| tile0 + (u64::from(run) * u64::from(tiles) / u64::from(runs)) as u32;
            let mut item = AttendItem {
                row_list: unit.first,
                rows: unit.rows,
                table: unit.table,
                key_from: unit.key_from.max(cut(run) * TILE),
                key_end: unit.key_end.min(cut(run + 1) * TILE),
                ..AttendItem::default()
            };
            let folds = run == 0 && unit.starts;
            if folds && runs == 1 && unit.ends {
                item.slot = AttendItem::DIRECT;
            } else {
                self.add_states(&mut item, folds);
            }
            self.plan.kv_tokens += u64::from(item.key_end - item.key_from);
            self.plan.items.push(item);
        }
    }

    /// Gives an item its states and notes which of them its rows need.
    fn add_states(&mut self, item: &mut AttendItem, folds: bool) {
        let (from, end) = (item.key_from / TILE, item.key_end.div_ceil(TILE));
        let count = if folds { 1 } else { end - from };
        item.slot = self.plan.states;
        item.flags = if folds { AttendItem::FOLD } else { 0 };
        self.plan.states += count * item.rows;
        for i in 0..item.rows {
            let at = (item.row_list + i) as usize;
            let (row, position) = (self.plan.row_list[at], self.positions[at]);
            let seen = self.first_visible(position) / TILE..position / TILE + 1;
            for nth in 0..count {
                let tile = from + nth;
                let visible = if folds { seen.start < end && from < seen.end } else { seen.contains(&tile) };
                if visible {
                    self.states.push(State { row, tile, slot: item.slot + nth * item.rows + i });
                }
            }
        }
    }

    /// Lists the states of each row in the order in which they merge.
    fn merge(&mut self) {
        self.states.sort_unstable();
        for same_row in self.states.chunk_by(|a, b| a.row == b.row) {
            self.plan.merges.push(MergeRow {
                row: same_row[0].row,
                first: self.plan.slots.len() as u32,
                count: same_row.len() as u32,
                pad: 0,
            });
            self.plan.slots.extend(same_row.iter().map(|state| state.slot));
        }
    }
}
