//! Which sequences of a step share a prefix: those whose page tables begin with the same pages.
//!
//! Pages are shared only through the radix tree, so equal page numbers are equal content, and the tables say
//! all that the tree knows of a running batch: nothing has to be carried through the scheduler. Groups are cut at
//! whole tiles, because that is what attention can share without changing a bit, and nest as the tree does.
//!
//! ```text
//! a a a b c │ d      tiles of four sequences: {1,2,3,4} share a tile, {1,2,3} two more
//! a a a b e │ f
//! a a a g h │ i
//! a k l m n │ o
//! ```
//!
//! Cost: one comparison of a tile's page numbers a sequence and shared tile, up to the depth at which groups end.

use super::attend_plan::AttendGroup;
pub use super::sharing::{SharedLayer, SharingRule};
use crate::{ATTENTION_TILE, Batch};

/// Groups of a step; borrow them as the plan wants them with [`PrefixGroups::list`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixGroups {
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    tokens: u32,
    table: u32,
    spans: Vec<u32>,
}

impl PrefixGroups {
    /// Finds the groups of `batch` that `rule` accepts.
    pub fn find(batch: &Batch<'_>, page_tokens: usize, layer: SharedLayer, rule: SharingRule) -> Self {
        let mut found = Self::default();
        let finder = Finder { batch, tile_pages: ATTENTION_TILE / page_tokens, layer, rule };
        let all: Vec<u32> = (0..batch.spans.len() as u32).collect();
        finder.descend(all, 0, 0, &mut found.groups);
        found
    }

    pub fn list(&self) -> Vec<AttendGroup<'_>> {
        let borrow = |g: &'_ Group| (g.tokens, g.table);
        self.groups
            .iter()
            .map(|g| {
                let (tokens, table) = borrow(g);
                AttendGroup { tokens, table, spans: &g.spans }
            })
            .collect()
    }
}

struct Finder<'a> {
    batch: &'a Batch<'a>,
    tile_pages: usize,
    layer: SharedLayer,
    rule: SharingRule,
}

impl Finder<'_> {
    /// `members` share the tiles before `tile`; what they share beyond becomes a group if it is worth it, and
    /// those of them that share still more are looked at again. `covered` tiles belong to a group already.
    fn descend(&self, members: Vec<u32>, tile: usize, covered: usize, out: &mut Vec<Group>) {
        let count = members.len() as u32;
        if self.rule.is_hopeless(count, &self.layer) {
            return;
        }
        let first = members[0];
        let mut end = tile;
        while let Some(pages) = self.tile(first, end)
            && members[1..].iter().all(|&m| self.tile(m, end) == Some(pages))
        {
            end += 1;
        }
        let mut covered = covered;
        let shared = ((end - covered) * ATTENTION_TILE) as u32;
        if shared > 0 && self.rule.is_worth(count, shared, &self.layer) {
            let table = self.batch.spans[first as usize].table;
            out.push(Group { tokens: (end * ATTENTION_TILE) as u32, table, spans: members.clone() });
            covered = end;
        }
        for part in self.parts(members, end) {
            self.descend(part, end, covered, out);
        }
    }

    /// `members` by the pages of `tile`; those that have none are left out.
    fn parts(&self, members: Vec<u32>, tile: usize) -> Vec<Vec<u32>> {
        let mut keyed: Vec<(&[u32], u32)> =
            members.into_iter().filter_map(|m| Some((self.tile(m, tile)?, m))).collect();
        keyed.sort_unstable();
        keyed.chunk_by(|a, b| a.0 == b.0).map(|part| part.iter().map(|&(_, m)| m).collect()).collect()
    }

    /// The pages of a whole tile that lies before all that the span computes.
    fn tile(&self, span: u32, tile: usize) -> Option<&[u32]> {
        let span = &self.batch.spans[span as usize];
        let whole = (tile + 1) * ATTENTION_TILE <= span.start as usize;
        let from = span.table as usize + tile * self.tile_pages;
        whole.then(|| &self.batch.page_table[from..from + self.tile_pages])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeqSpan;
    use crate::cuda::sharing::SharingCosts;

    const PAGE: usize = 64;

    fn layer(group: u32) -> SharedLayer {
        SharedLayer { group, kv_heads: 1, token_bytes: 512 }
    }

    /// A batch of decodes, each given by its tiles (a number stands for four pages of 64) and a tail.
    fn found(sequences: &[&[u32]], rows_min: u32, tokens_min: u32) -> Vec<(u32, Vec<u32>)> {
        let (mut table, mut spans) = (Vec::new(), Vec::new());
        for (i, tiles) in sequences.iter().enumerate() {
            let start = (tiles.len() * ATTENTION_TILE + 5) as u32;
            spans.push(SeqSpan { row: i as u32, rows: 1, start, table: table.len() as u32 });
            table.extend(tiles.iter().flat_map(|&tile| (0..4).map(move |page| tile * 4 + page)));
            table.push(4000 + i as u32);
        }
        let tokens = vec![0; spans.len()];
        let batch = Batch { tokens: &tokens, spans: &spans, page_table: &table };
        let rule = SharingRule::Thresholds { tokens_min, rows_min };
        let groups = PrefixGroups::find(&batch, PAGE, layer(4), rule);
        groups.list().iter().map(|g| (g.tokens, g.spans.to_vec())).collect()
    }

    #[test]
    fn groups_nest_as_the_tree_of_their_pages_does() {
        let sequences: [&[u32]; 4] = [&[1, 2, 3, 4], &[1, 2, 3, 5], &[1, 2, 3, 6, 7], &[1, 8, 9]];
        let groups = found(&sequences, 8, 256);
        assert_eq!(groups, [(256, vec![0, 1, 2, 3]), (768, vec![0, 1, 2])]);
    }

    #[test]
    fn too_few_rows_or_tokens_are_not_worth_a_state() {
        let sequences: [&[u32]; 4] = [&[1, 2, 3], &[1, 2, 3], &[1, 2, 4], &[5, 2, 3]];
        assert_eq!(found(&sequences, 16, 256), [], "four rows a sequence, three sequences");
        assert_eq!(found(&sequences, 12, 256), [(512, vec![0, 1, 2])]);
        assert_eq!(
            found(&sequences, 8, 768),
            [(768, vec![0, 1])],
            "the shorter stretch is left to its members"
        );
        assert_eq!(found(&sequences, 1, 256)[0].1, [0, 1, 2]);
    }

    #[test]
    fn measured_costs_choose_by_what_the_stretch_spares() {
        let sequences: [&[u32]; 3] = [&[1, 2, 3, 4], &[1, 2, 3, 5], &[1, 6, 7, 8]];
        let found = |group_ns: u64| {
            let costs = SharingCosts { byte_fs: 1_000_000, group_ns, row_ps: 0 };
            let (mut table, mut spans) = (Vec::new(), Vec::new());
            for (i, tiles) in sequences.iter().enumerate() {
                spans.push(SeqSpan { row: i as u32, rows: 1, start: 1025, table: table.len() as u32 });
                table.extend(tiles.iter().flat_map(|&tile| (0..4).map(move |page| tile * 4 + page)));
                table.push(4000 + i as u32);
            }
            let batch = Batch { tokens: &[0; 3], spans: &spans, page_table: &table };
            let groups = PrefixGroups::find(&batch, PAGE, layer(4), SharingRule::Measured(costs));
            groups.list().iter().map(|g| (g.tokens, g.spans.len())).collect::<Vec<_>>()
        };
        // A tile is 131,072 bytes, a nanosecond each: the first group spares two tiles, the second two more.
        assert_eq!(found(100_000), [(256, 3), (768, 2)]);
        assert_eq!(found(262_144), [(768, 2)], "worth more than the first, which spares exactly that");
        assert_eq!(found(393_216), []);
    }

    #[test]
    fn equal_pages_after_other_pages_are_not_shared() {
        let sequences: [&[u32]; 2] = [&[1, 2], &[3, 2]];
        assert_eq!(found(&sequences, 1, 256), []);
    }

    #[test]
    fn only_whole_tiles_before_the_present_step_count() {
        let spans = [0, 1].map(|row| SeqSpan { row, rows: 1, start: 511, table: 0 });
        let table: Vec<u32> = (0..8).collect();
        let batch = Batch { tokens: &[0, 0], spans: &spans, page_table: &table };
        let groups = PrefixGroups::find(&batch, PAGE, layer(16), SharingRule::default());
        assert_eq!(groups.list().len(), 1);
        assert_eq!(groups.list()[0].tokens, 256);
    }
}
