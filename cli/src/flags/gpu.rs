//! The GPU: which one, how much of it, and how strictly it calculates.

use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::BoolishValueParser;

/// Whether a row's bits may depend on its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Determinism {
    /// The fastest product for each shape
    Fast,
    /// One order of summation: a cache hit equals a miss bit for bit
    Strict,
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "GPU")]
pub struct GpuFlags {
    /// Which GPU, as the driver counts them
    #[arg(long, value_name = "N", env = "QUIRE_DEVICE", hide_env_values = true, default_value_t = 0)]
    pub device: u32,
    /// Share of the GPU's free memory for KV pages once the weights are loaded
    #[arg(long, value_name = "SHARE", env = "QUIRE_GPU_MEMORY_UTILIZATION", hide_env_values = true,
          default_value = "0.9", value_parser = parse_share)]
    pub gpu_memory_utilization: f64,
    /// Whether a row's bits may depend on the batch around it (CPU: never)
    #[arg(long, value_enum, env = "QUIRE_DETERMINISM", hide_env_values = true, default_value = "fast")]
    pub determinism: Determinism,
    /// Launch every kernel of a decode step by itself instead of replaying a recording
    #[arg(long, value_name = "BOOL", env = "QUIRE_ENFORCE_EAGER", hide_env_values = true,
          num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub enforce_eager: bool,
    /// Let each sequence read a shared prefix by itself; the answers are the same either way
    #[arg(long, value_name = "BOOL", env = "QUIRE_DISABLE_CASCADE_ATTN", hide_env_values = true,
          num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub disable_cascade_attn: bool,
    /// Folder of kernels compiled beforehand (NAME.sm_XX.cubin) [default: compile here, and keep the result]
    #[arg(long, value_name = "DIR", env = "QUIRE_CUDA_KERNELS", hide_env_values = true)]
    pub cuda_kernels: Option<PathBuf>,
}

/// As meant.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuOptions {
    pub device: u32,
    pub share: f64,
    pub determinism: Determinism,
    pub graphs: Graphs,
    pub cascade: Cascade,
    pub kernels: Option<PathBuf>,
}

/// Whether decode steps are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graphs {
    On,
    Off,
}

/// Whether attention reads a shared prefix once for several sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cascade {
    On,
    Off,
}

impl GpuFlags {
    pub fn meant(&self) -> GpuOptions {
        GpuOptions {
            device: self.device,
            share: self.gpu_memory_utilization,
            determinism: self.determinism,
            graphs: if self.enforce_eager { Graphs::Off } else { Graphs::On },
            cascade: if self.disable_cascade_attn { Cascade::Off } else { Cascade::On },
            kernels: self.cuda_kernels.clone(),
        }
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("a share lies above 0 and is at most 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_part_of_the_whole() {
        assert_eq!(parse_share("0.85"), Ok(0.85));
        assert_eq!(parse_share("1"), Ok(1.0));
        for wrong in ["0", "-0.1", "1.1", "85%", "nan", ""] {
            assert!(parse_share(wrong).is_err(), "{wrong}");
        }
    }
}
