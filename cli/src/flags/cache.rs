//! The KV page pool and what stays in it.

use base::Bytes;
use clap::ValueEnum;
use clap::builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser};

use crate::failure::Failure;
use crate::size::parse_bytes;

/// Element type of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvDtype {
    /// bfloat16
    Auto,
    #[value(alias = "bf16")]
    Bfloat16,
    #[value(alias = "f32")]
    Float32,
    /// 8-bit floats (e4m3), half of the memory; on a GPU
    #[value(alias = "fp8_e4m3")]
    Fp8,
}

/// Which unused prefix goes first when pages run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Eviction {
    /// Leaves by learned ages of reuse, never far from lru
    Reuse,
    /// Leaves by aged frequency times recompute cost
    Gdsf,
    /// Leaves by last use
    Lru,
    /// As lru, with a protected segment for what was used twice
    Slru,
}

impl From<Eviction> for kvcache::EvictionKind {
    fn from(eviction: Eviction) -> Self {
        match eviction {
            Eviction::Reuse => Self::Reuse,
            Eviction::Gdsf => Self::Gdsf,
            Eviction::Lru => Self::Lru,
            Eviction::Slru => Self::Slru,
        }
    }
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheFlags {
    /// Tokens of one KV page
    #[arg(long, value_name = "TOKENS", env = "QUIRE_BLOCK_SIZE", hide_env_values = true, default_value = "16",
          value_parser = PossibleValuesParser::new(["16", "32", "64"]).map(|s| s.parse::<u32>().expect("listed")))]
    pub block_size: u32,
    /// Element type of cached keys and values
    #[arg(long, value_enum, env = "QUIRE_KV_CACHE_DTYPE", hide_env_values = true, default_value = "auto")]
    pub kv_cache_dtype: KvDtype,
    /// KV pages in the pool [default: what --kv-memory gives]
    #[arg(long, value_name = "N", alias = "num-gpu-blocks-override", env = "QUIRE_KV_PAGES", hide_env_values = true,
          value_parser = clap::value_parser!(u32).range(2..))]
    pub kv_pages: Option<u32>,
    /// Memory of the KV pool [default: a share of what is free]
    #[arg(long, value_name = "SIZE", env = "QUIRE_KV_MEMORY", hide_env_values = true, value_parser = parse_bytes)]
    pub kv_memory: Option<Bytes>,
    /// Reuse the KV pages of shared prefixes
    #[arg(long, value_name = "BOOL", env = "QUIRE_ENABLE_PREFIX_CACHING", hide_env_values = true,
          num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set,
          overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,
    /// Compute every prompt from its first token
    #[arg(long, overrides_with = "enable_prefix_caching")]
    pub no_enable_prefix_caching: bool,
    /// Which unused prefix goes first when pages run out
    #[arg(long, value_enum, env = "QUIRE_EVICTION", hide_env_values = true, default_value = "reuse")]
    pub eviction: Eviction,
}

/// As meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    pub page_tokens: u32,
    pub dtype: KvDtype,
    pub room: Room,
    pub sharing: Sharing,
    pub eviction: Eviction,
}

/// How large the pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Auto,
    Pages(u32),
    Memory(Bytes),
}

/// Whether prefixes are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    On,
    Off,
}

impl CacheFlags {
    pub fn meant(&self) -> Result<CacheOptions, Failure> {
        let room = match (self.kv_pages, self.kv_memory) {
            (None, None) => Room::Auto,
            (Some(pages), None) => Room::Pages(pages),
            (None, Some(memory)) => Room::Memory(memory),
            (Some(_), Some(_)) => {
                return Err(Failure::usage("--kv-pages and --kv-memory both set the size of the KV pool")
                    .hint("keep one of them"));
            }
        };
        let on = self.enable_prefix_caching && !self.no_enable_prefix_caching;
        Ok(CacheOptions {
            page_tokens: self.block_size,
            dtype: self.kv_cache_dtype,
            room,
            sharing: if on { Sharing::On } else { Sharing::Off },
            eviction: self.eviction,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        flags: CacheFlags,
    }

    fn meant(args: &[&str]) -> Result<CacheOptions, Failure> {
        Only::try_parse_from([&["t"], args].concat()).unwrap().flags.meant()
    }

    #[test]
    fn the_last_of_the_two_prefix_flags_wins() {
        let sharing = |args: &[&str]| meant(args).unwrap().sharing;
        assert_eq!(sharing(&[]), Sharing::On);
        assert_eq!(sharing(&["--no-enable-prefix-caching"]), Sharing::Off);
        assert_eq!(sharing(&["--no-enable-prefix-caching", "--enable-prefix-caching"]), Sharing::On);
        assert_eq!(sharing(&["--enable-prefix-caching=false"]), Sharing::Off);
    }

    #[test]
    fn two_sizes_of_one_pool_are_refused() {
        assert!(
            meant(&["--kv-pages", "64", "--kv-memory", "1GiB"]).unwrap_err().message.contains("both set")
        );
        assert_eq!(meant(&["--num-gpu-blocks-override", "64"]).unwrap().room, Room::Pages(64));
    }
}
