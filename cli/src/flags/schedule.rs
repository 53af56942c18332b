//! How much work one step of the engine takes.

use std::time::Duration;

use crate::flags::CacheOptions;
use crate::flags::cache::Sharing;
use crate::size::parse_count;

/// As typed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Scheduler")]
pub struct ScheduleFlags {
    /// Most sequences running at once
    #[arg(long, value_name = "N", env = "QUIRE_MAX_NUM_SEQS", hide_env_values = true, default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_num_seqs: u32,
    /// Most tokens of one step
    #[arg(long, value_name = "TOKENS", env = "QUIRE_MAX_NUM_BATCHED_TOKENS", hide_env_values = true,
          default_value = "2048", value_parser = parse_count)]
    pub max_num_batched_tokens: u32,
    /// Most prompt tokens of one sequence in one step
    #[arg(long, value_name = "TOKENS", env = "QUIRE_PREFILL_CHUNK", hide_env_values = true,
          default_value = "512", value_parser = parse_count)]
    pub prefill_chunk: u32,
    /// Length of a step to aim for while answers are being generated; prefill chunks shrink to fit
    #[arg(long, value_name = "MS", env = "QUIRE_STEP_BUDGET_MS", hide_env_values = true, default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub step_budget_ms: u32,
}

impl ScheduleFlags {
    /// As meant: the scheduler's own type.
    pub fn meant(&self, requests_max: usize, cache: &CacheOptions) -> runtime::scheduler::SchedulerConfig {
        use runtime::scheduler::{PrefixCache, SchedulerConfig};
        SchedulerConfig {
            requests_max,
            step_tokens: self.max_num_batched_tokens,
            step_seqs: self.max_num_seqs,
            chunk_tokens: self.prefill_chunk.min(self.max_num_batched_tokens),
            prefix_cache: match cache.sharing {
                Sharing::On => PrefixCache::On,
                Sharing::Off => PrefixCache::Off,
            },
            eviction: cache.eviction.into(),
            step_budget: Duration::from_millis(u64::from(self.step_budget_ms)),
            ..SchedulerConfig::default()
        }
    }
}
