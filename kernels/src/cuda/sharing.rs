//! When reading a prefix once beats reading it for each of its sequences.
//!
//! Sharing spares `(n - 1)` readings of the prefix and costs an item more, states that would not have been written, and
//! their merge:
//!
//! ```text
//! (n - 1) * prefix bytes * time of a byte   >   time of a group + rows * time of a row
//! ```
//!
//! The three times are measured by `scripts/gpu-check` and stand in `kernels/cascade.txt`, one line a device. The
//! queries' own products are not counted: they are the same products, and together they fill tiles that alone would be
//! padded. Where there is no line, thresholds: a tile of tokens, 32 query rows. The answers are the same bits either
//! way, so a wrong time costs time only.

use crate::ATTENTION_TILE;

const TABLE: &str = include_str!("../../cascade.txt");

/// Which prefixes are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharingRule {
    Thresholds {
        /// Shorter shared stretches are not worth a state.
        tokens_min: u32,
        /// Query rows (sequences times heads of a group) that a shared item must have.
        rows_min: u32,
    },
    Measured(SharingCosts),
}

/// What was measured, in whole numbers of small units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharingCosts {
    /// Femtoseconds to read a byte of keys and values.
    pub byte_fs: u64,
    /// Nanoseconds that a group costs.
    pub group_ns: u64,
    /// Picoseconds that each of its query rows costs.
    pub row_ps: u64,
}

/// The attention of a layer, as far as the rule looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedLayer {
    /// Query heads of a KV head.
    pub group: u32,
    pub kv_heads: u32,
    /// Of keys and values, all heads together.
    pub token_bytes: u64,
}

impl Default for SharingRule {
    fn default() -> Self {
        Self::Thresholds { tokens_min: ATTENTION_TILE as u32, rows_min: 32 }
    }
}

impl SharingRule {
    /// By what was measured on such a device, or by thresholds.
    pub fn of_device(name: &str) -> Self {
        measured(TABLE, name).map_or_else(Self::default, Self::Measured)
    }

    /// Whether `sequences` that share `tokens` read them once.
    pub fn is_worth(&self, sequences: u32, tokens: u32, layer: &SharedLayer) -> bool {
        match *self {
            Self::Thresholds { tokens_min, rows_min } => {
                sequences * layer.group >= rows_min && tokens >= tokens_min
            }
            Self::Measured(SharingCosts { byte_fs, group_ns, row_ps }) => {
                let spared = u64::from(sequences.saturating_sub(1)) * u64::from(tokens) * layer.token_bytes;
                let rows = u64::from(sequences) * u64::from(layer.group) * u64::from(layer.kv_heads);
                u128::from(spared) * u128::from(byte_fs)
                    > u128::from(group_ns) * 1_000_000 + u128::from(rows) * u128::from(row_ps) * 1_000
            }
        }
    }

    /// Whether no stretch, however long, is worth it to so few sequences.
    pub fn is_hopeless(&self, sequences: u32, layer: &SharedLayer) -> bool {
        match *self {
            Self::Thresholds { rows_min, .. } => sequences < 2 || sequences * layer.group < rows_min,
            Self::Measured(_) => sequences < 2,
        }
    }
}

/// The line of `device` in `table`.
fn measured(table: &str, device: &str) -> Option<SharingCosts> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let mut rows = lines.map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&device))?;
    let &[_, byte_fs, group_ns, row_ps] = row.as_slice() else { return None };
    let number = |text: &str| text.parse().ok();
    Some(SharingCosts { byte_fs: number(byte_fs)?, group_ns: number(group_ns)?, row_ps: number(row_ps)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama-3.1-8B.
    const LAYER: SharedLayer = SharedLayer { group: 4, kv_heads: 8, token_bytes: 4096 };
    /// 4.3 TB/s; the other two are made up.
    const COSTS: SharingCosts = SharingCosts { byte_fs: 233, group_ns: 2_000, row_ps: 50 };

    #[test]
    fn a_group_is_worth_what_it_spares_beyond_what_it_costs() {
        let rule = SharingRule::Measured(COSTS);
        // 4096 tokens are 16 MiB, 3.9 us a reading.
        assert!(rule.is_worth(2, 4096, &LAYER));
        assert!(!rule.is_worth(2, 2048, &LAYER), "1.95 us against 2 us and its rows");
        assert!(rule.is_worth(3, 2048, &LAYER));
        assert!(!rule.is_worth(1, 1 << 20, &LAYER));
        let dear = SharingRule::Measured(SharingCosts { row_ps: 1_000_000, ..COSTS });
        assert!(!dear.is_worth(64, 256, &LAYER), "rows cost 2 ms");
    }

    #[test]
    fn more_sequences_and_longer_prefixes_never_make_a_group_less_worth() {
        for rule in [SharingRule::default(), SharingRule::Measured(COSTS)] {
            for n in 2..40 {
                for tokens in (256..8192).step_by(256) {
                    let worth = rule.is_worth(n, tokens, &LAYER);
                    assert!(!worth || rule.is_worth(n, tokens + 256, &LAYER), "{rule:?} {n} x {tokens}");
                    assert!(!worth || rule.is_worth(n + 1, tokens, &LAYER), "{rule:?} {n} x {tokens}");
                    assert!(!worth || !rule.is_hopeless(n, &LAYER), "{rule:?} {n} x {tokens}");
                }
            }
        }
    }

    #[test]
    fn a_device_of_the_table_is_judged_by_its_line_and_another_by_thresholds() {
        let table = "# a comment\nNVIDIA H200 | 233 | 2000 | 50\nanother | 1 | x | 2\n";
        assert_eq!(measured(table, "NVIDIA H200"), Some(COSTS));
        assert_eq!(measured(table, "NVIDIA H100"), None);
        assert_eq!(measured(table, "another"), None, "a broken line is no line");
        assert_eq!(SharingRule::of_device("a device of nobody"), SharingRule::default());
    }

    #[test]
    fn every_line_of_the_table_is_whole() {
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let device = line.split('|').next().unwrap_or_default().trim();
            assert!(measured(TABLE, device).is_some(), "{line}");
        }
    }
}
