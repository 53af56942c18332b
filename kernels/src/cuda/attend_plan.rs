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

    /// The longest run of tiles with which the work fills the device `waves` times; unbounded for 0. Never
    /// shorter than what is not cut: that takes its time anyway.
    fn run_max(&self, waves: u32) -> u32 {
        if waves == 0 {
            return u32::MAX;
        }
        let uncut = self.units.iter().filter(|unit| !self.cuts(unit)).map(Unit::tiles).max().unwrap_or(1);
        let work: u64 = self.units.iter().map(|unit| u64::from(unit.tiles())).sum();
        let blocks = u64::from(waves * self.geometry.sms.max(1));
        (work * u64::from(self.geometry.kv_heads))
            .div_ceil(blocks)
            .clamp(u64::from(uncut), u64::from(u32::MAX)) as u32
    }

    fn cuts(&self, unit: &Unit) -> bool {
        unit.rows * self.geometry.group <= CUT_ROWS
    }

    fn add_items(&mut self, unit: &Unit, run_max: u32) {
        let tiles = unit.tiles();
        let runs = if self.cuts(unit) { tiles.div_ceil(run_max) } else { 1 };
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

#[cfg(test)]
mod tests {
    use super::*;
    use base::SplitMix;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const FREE: AttendLimits = AttendLimits { items: u32::MAX, rows: u32::MAX, states: u32::MAX };

    /// A group with members of its own, and the node it hangs from.
    struct Node {
        tokens: u32,
        members: Vec<u32>,
        parent: Option<usize>,
    }

    /// A random tree of groups, and spans that continue its leaves by 0 to 700 tokens.
    struct Tree {
        nodes: Vec<Node>,
        spans: Vec<SeqSpan>,
        /// The node each span hangs from.
        leaf: Vec<Option<usize>>,
    }

    impl Tree {
        fn random(rng: &mut SplitMix, rows_max: u64) -> Tree {
            let mut tree = Tree { nodes: Vec::new(), spans: Vec::new(), leaf: Vec::new() };
            for _ in 0..1 + rng.below(3) {
                tree.grow(rng, None, 0, 3, rows_max);
            }
            tree
        }

        fn grow(
            &mut self,
            rng: &mut SplitMix,
            parent: Option<usize>,
            tokens: u32,
            depth: u32,
            rows_max: u64,
        ) {
            let node = self.nodes.len();
            let tokens = tokens + 16 * rng.below(60) as u32;
            self.nodes.push(Node { tokens, members: Vec::new(), parent });
            for _ in 0..2 + rng.below(3) {
                if depth > 0 && rng.below(3) == 0 {
                    self.grow(rng, Some(node), tokens, depth - 1, rows_max);
                } else {
                    self.add_span(rng, Some(node), tokens, rows_max);
                }
            }
            if rng.below(4) == 0 {
                self.add_span(rng, None, 0, rows_max * 20);
            }
        }

        fn add_span(&mut self, rng: &mut SplitMix, leaf: Option<usize>, shared: u32, rows_max: u64) {
            let row = self.spans.last().map_or(0, |s| s.row + s.rows);
            let rows = 1 + rng.below(rows_max) as u32;
            let own = if rng.below(4) == 0 { 0 } else { rng.below(700) as u32 };
            let start = (shared + own).saturating_sub(rows);
            let table = self.spans.len() as u32 * 1000;
            self.leaf.push(leaf);
            let mut at = leaf;
            while let Some(node) = at {
                self.nodes[node].members.push(self.spans.len() as u32);
                at = self.nodes[node].parent;
            }
            self.spans.push(SeqSpan { row, rows, start, table });
        }

        fn groups(&self) -> Vec<AttendGroup<'_>> {
            let group =
                |node: &'_ Node| (node.tokens, self.spans[*node.members.last().unwrap() as usize].table);
            self.nodes
                .iter()
                .map(|node| AttendGroup { tokens: group(node).0, table: group(node).1, spans: &node.members })
                .collect()
        }

        /// May `table` serve the first `end` keys of `span`?
        fn shares(&self, span: usize, table: u32, end: u32) -> bool {
            let in_node = |node: &Node| {
                let holds = |table: u32| node.members.iter().any(|&i| self.spans[i as usize].table == table);
                end <= node.tokens && node.members.contains(&(span as u32)) && holds(table)
            };
            table == self.spans[span].table || self.nodes.iter().any(in_node)
        }
    }

    fn geometry(rng: &mut SplitMix, window: bool) -> AttendGeometry {
        AttendGeometry {
            group: [1, 2, 4, 7, 16][rng.below(5) as usize],
            kv_heads: 1 + rng.below(8) as u32,
            window: window.then(|| 1 + rng.below(900) as u32),
            rows_max: 64 << rng.below(2),
            sms: 1 + rng.below(200) as u32,
        }
    }

    /// Every (row, visible tile) is read once, with all its visible keys, and merges are in order.
    fn check(plan: &AttendPlan, geometry: &AttendGeometry, tree: &Tree) {
        let planner = Planner::new(geometry, &tree.spans);
        let rows: Vec<(usize, u32)> = (tree.spans.iter().enumerate())
            .flat_map(|(i, s)| (0..s.rows).map(move |r| (i, s.start + r)))
            .collect();
        // By state (or, directly written, by row): the row and its tiles.
        let mut states: BTreeMap<u32, (u32, Vec<u32>)> = BTreeMap::new();
        let mut done: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for item in &plan.items {
            assert!(item.rows > 0 && item.rows * geometry.group <= geometry.rows_max);
            let folds = item.slot == AttendItem::DIRECT || item.flags == AttendItem::FOLD;
            for i in 0..item.rows {
                let row = plan.row_list[(item.row_list + i) as usize];
                let (span, position) = rows[row as usize];
                assert!(tree.shares(span, item.table, item.key_end));
                let lo = planner.first_visible(position);
                let tiles = item.key_from / TILE..item.key_end.div_ceil(TILE);
                assert!(!folds || lo / TILE >= tiles.start, "a folded run starts at the first visible tile");
                for tile in tiles.clone() {
                    let keys = lo.max(tile * TILE)..(position + 1).min((tile + 1) * TILE);
                    if keys.is_empty() {
                        continue;
                    }
                    assert!(
                        item.key_from <= keys.start && keys.end <= item.key_end,
                        "a visible key is not read"
                    );
                    if item.slot == AttendItem::DIRECT {
                        done.entry(row).or_default().push(tile);
                        continue;
                    }
                    let nth = if folds { 0 } else { tile - tiles.start };
                    let state = states.entry(item.slot + nth * item.rows + i).or_insert((row, Vec::new()));
                    assert_eq!(state.0, row, "two rows share a state");
                    state.1.push(tile);
                }
            }
        }
        for merge in &plan.merges {
            assert!(!done.contains_key(&merge.row));
            let tiles = done.entry(merge.row).or_default();
            for slot in &plan.slots[merge.first as usize..][..merge.count as usize] {
                assert!(*slot < plan.states);
                let (row, of_state) =
                    states.remove(slot).expect("a state that is written once and used once");
                assert_eq!(row, merge.row);
                tiles.extend(of_state);
            }
        }
        assert!(states.is_empty(), "a state that nobody merges");
        for (row, &(_, position)) in rows.iter().enumerate() {
            let visible: Vec<u32> = (planner.first_visible(position) / TILE..=position / TILE).collect();
            assert_eq!(done.get(&(row as u32)), Some(&visible), "row {row} at {position}");
        }
        let read: u64 = plan.items.iter().map(|item| u64::from(item.key_end - item.key_from)).sum();
        assert_eq!(read, plan.kv_tokens);
    }

    proptest! {
        #[test]
        fn every_row_reads_every_visible_tile_once_and_merges_in_order(seed: u64, window: bool, long: bool) {
            let mut rng = SplitMix::new(seed);
            let tree = Tree::random(&mut rng, if long { 90 } else { 3 });
            let geometry = geometry(&mut rng, window);
            let plan = AttendPlan::new(&geometry, &tree.spans, &tree.groups(), &FREE);
            check(&plan, &geometry, &tree);
            prop_assert_eq!(&plan, &AttendPlan::new(&geometry, &tree.spans, &tree.groups(), &FREE));
        }

        #[test]
        fn decodes_of_a_tree_read_each_node_once(seed: u64) {
            let mut rng = SplitMix::new(seed);
            let tree = Tree::random(&mut rng, 1);
            let geometry = AttendGeometry { group: 1, rows_max: 128, ..geometry(&mut rng, false) };
            let plan = AttendPlan::new(&geometry, &tree.spans, &tree.groups(), &FREE);
            let whole = |node: Option<usize>| node.map_or(0, |i| u64::from(tree.nodes[i].tokens / TILE * TILE));
            let shared: u64 = (0..tree.nodes.len()).map(|i| whole(Some(i)) - whole(tree.nodes[i].parent)).sum();
            let own: u64 =
                tree.spans.iter().zip(&tree.leaf).map(|(s, &leaf)| u64::from(s.start + s.rows).saturating_sub(whole(leaf))).sum();
            prop_assert_eq!(plan.kv_tokens, shared + own);
        }

        #[test]
        fn without_room_for_states_a_plan_has_none(seed: u64) {
            let mut rng = SplitMix::new(seed);
            let tree = Tree::random(&mut rng, 3);
            let geometry = geometry(&mut rng, false);
            let rows = tree.spans.iter().map(|s| s.rows).sum();
            let tight = AttendLimits { items: rows, rows, states: 0 };
            let plan = AttendPlan::new(&geometry, &tree.spans, &tree.groups(), &tight);
            check(&plan, &geometry, &tree);
            prop_assert!(plan.fits(&tight) && plan.merges.is_empty());
        }
    }

    fn h200(rows_max: u32) -> AttendGeometry {
        AttendGeometry { group: 4, kv_heads: 8, window: None, rows_max, sms: 132 }
    }

    fn decodes(count: u32, tokens: u32) -> Vec<SeqSpan> {
        (0..count).map(|i| SeqSpan { row: i, rows: 1, start: tokens - 1, table: i * 4096 }).collect()
    }

    #[test]
    fn a_lone_long_decode_fills_the_device_twice() {
        let plan = AttendPlan::new(&h200(64), &decodes(1, 32 << 10), &[], &FREE);
        assert_eq!((plan.items.len(), plan.merges.len()), (32, 1));
        assert!(plan.items.iter().all(|item| item.key_end - item.key_from == 4 * TILE));
        assert_eq!(plan.states, 1 + 31 * 4, "the first run is folded");
    }

    #[test]
    fn a_full_batch_is_neither_cut_nor_merged() {
        let plan = AttendPlan::new(&h200(64), &decodes(64, 4096), &[], &FREE);
        assert_eq!((plan.items.len(), plan.states), (64, 0));
    }

    #[test]
    fn a_prompt_is_packed_longest_rows_first() {
        let span = SeqSpan { row: 0, rows: 100, start: 1000, table: 0 };
        let plan = AttendPlan::new(&h200(128), &[span], &[], &FREE);
        let ends: Vec<(u32, u32)> = plan.items.iter().map(|item| (item.rows, item.key_end)).collect();
        assert_eq!(ends, [(4, 1100), (32, 1096), (32, 1064), (32, 1032)]);
        assert_eq!(plan.states, 0);
    }

    #[test]
    fn a_shared_prefix_is_read_once_for_each_item_of_rows() {
        let spans = decodes(256, 32768 + 256);
        let members: Vec<u32> = (0..256).collect();
        let group = AttendGroup { tokens: 32768, table: 0, spans: &members };
        let plan = AttendPlan::new(&h200(128), &spans, &[group], &FREE);
        assert_eq!(plan.kv_tokens, 8 * 32768 + 256 * 256);
        assert_eq!((plan.items.len(), plan.merges.len()), (8 + 256, 256));
        assert_eq!(plan.states, 2 * 256, "the shared run is folded, the own tile is one");
    }
}
