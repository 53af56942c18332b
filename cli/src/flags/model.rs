//! Which arithmetic the model runs in, and on what.

use clap::ValueEnum;

use crate::size::parse_count;

/// Element type of weights that are not quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// As the file has them
    Auto,
    #[value(alias = "bf16")]
    Bfloat16,
    #[value(alias = "half", alias = "f16")]
    Float16,
    #[value(alias = "float", alias = "f32")]
    Float32,
}

/// Quantization of the linear weights while they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    None,
    /// 8 bits, groups of 32; on a CPU
    Q8,
    /// 4 bits, groups of 32; on a CPU
    Q4,
    /// 8-bit floats (e4m3), one scale an output; on a GPU
    #[value(alias = "fp8_e4m3")]
    Fp8,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoadFormat {
    /// Safetensors or GGUF, whichever is there
    Auto,
    /// Random weights in the shape of config.json, for benches
    Dummy,
}

/// What runs the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The GPU where there is one, else the CPU
    Auto,
    Cpu,
    Cuda,
    /// No model at all: tokens are a function of the prompt, at once; for benches of the front end
    Sim,
}

/// As typed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelFlags {
    /// Element type of the weights
    #[arg(long, value_enum, env = "QUIRE_DTYPE", hide_env_values = true, default_value = "auto")]
    pub dtype: Dtype,
    /// Quantize linear weights while loading
    #[arg(long, value_enum, env = "QUIRE_QUANTIZE", hide_env_values = true, default_value = "none")]
    pub quantize: Quantize,
    /// Longest sequence, prompt and output together; 32k and 32K are understood [default: the model's]
    #[arg(long, value_name = "TOKENS", env = "QUIRE_MAX_MODEL_LEN", hide_env_values = true,
          value_parser = parse_count)]
    pub max_model_len: Option<u32>,
    /// Where weights come from
    #[arg(long, value_enum, env = "QUIRE_LOAD_FORMAT", hide_env_values = true, default_value = "auto")]
    pub load_format: LoadFormat,
    /// Seed from which request ids and missing seeds are drawn [default: a new one each start]
    #[arg(long, value_name = "N", env = "QUIRE_SEED", hide_env_values = true)]
    pub seed: Option<u64>,
    /// What runs the steps
    #[arg(long, value_enum, env = "QUIRE_EXECUTOR", hide_env_values = true, default_value = "auto")]
    pub executor: Engine,
    /// Compute threads, each pinned to a core [default: one a core]
    #[arg(long, value_name = "N", env = "QUIRE_THREADS", hide_env_values = true,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// As meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    pub dtype: Dtype,
    pub quantize: Quantize,
    pub max_model_len: Option<u32>,
    pub load_format: LoadFormat,
    pub seed: Option<u64>,
    pub executor: Engine,
    pub threads: Option<usize>,
}

impl ModelFlags {
    pub fn meant(&self) -> ModelOptions {
        ModelOptions {
            dtype: self.dtype,
            quantize: self.quantize,
            max_model_len: self.max_model_len,
            load_format: self.load_format,
            seed: self.seed,
            executor: self.executor,
            threads: self.threads.map(usize::from),
        }
    }
}
