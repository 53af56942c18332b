//! The flags of a server, in groups; one file a group, each with its typed form (what clap filled in) and
//! its meant form (checked, in the engine's own types).
//!
//! A flag's long name is also its key in the configuration file, and `QUIRE_` + the name in capitals its
//! environment variable. Names and meanings are vLLM's where vLLM has them.

mod cache;
mod gpu;
mod keys;
mod log;
mod model;
mod route;
mod schedule;
mod server;
mod tiers;

pub use cache::{CacheFlags, CacheOptions, KvDtype, Room};
pub use gpu::{Cascade, Determinism, GpuFlags, GpuOptions, Graphs};
pub use log::{LogFlags, LogFormat};
pub use model::{Dtype, Engine, LoadFormat, ModelFlags, ModelOptions, Quantize};
pub use route::{PolicyName, RouteFlags};
pub use schedule::ScheduleFlags;
pub use server::{ServerFlags, ServerOptions};
pub use tiers::{TierFlags, TierOptions};

use std::path::PathBuf;

/// Everything that `up` and `serve` share.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineFlags {
    #[command(flatten)]
    pub server: ServerFlags,
    #[command(flatten)]
    pub model: ModelFlags,
    #[command(flatten)]
    pub gpu: GpuFlags,
    #[command(flatten)]
    pub cache: CacheFlags,
    #[command(flatten)]
    pub tiers: TierFlags,
    #[command(flatten)]
    pub schedule: ScheduleFlags,
    #[command(flatten)]
    pub log: LogFlags,
    /// TOML file whose keys are the long flag names; flags and environment win over it
    #[arg(long, value_name = "FILE", env = "QUIRE_CONFIG", hide_env_values = true, help_heading = "Options")]
    pub config: Option<PathBuf>,
}
