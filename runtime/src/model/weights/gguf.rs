//! GGUF: one file with hyperparameters and (often quantized) tensors, read through candle's reader.
//!
//! Metadata is translated into the names of `config.json`, so that a family is described once. Blocks
//! are widened to f32 and packed again in our own forms: Q8_0 and Q4_0 come out as they were, the
//! K-quants become Q8, which loses less than their own step. Files of llama-style architectures hold q
//! and k with each head's rows interleaved for another way of rotating; they are put back in order.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, quantized::gguf_file};
use kernels::mapped::MappedFile;
use kernels::{HostType, WeightForm};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Depth, Tensor, TensorInfo, TensorSource, rows_cols, sampled};
use crate::files::FilesError;
use crate::model::config::Config;
use crate::model::description::Description;
use crate::model::error::ModelError;
use crate::model::families;
use crate::model::names::{self, Expected};
use crate::model::rope::{RopeScaling, longrope_magnitude};

/// A mapped GGUF file and its table of contents.
pub(crate) struct Gguf {
    file: PathBuf,
    map: MappedFile,
    content: Content,
    architecture: String,
    /// Set by [`Gguf::describe`]: heads of q and k, if their rows are interleaved.
    interleaved: Option<Interleaved>,
}

#[derive(Clone, Copy, Debug)]
struct Interleaved {
    heads: usize,
    kv_heads: usize,
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let map =
            MappedFile::open(path).map_err(|source| FilesError::Read { path: path.to_owned(), source })?;
        let damaged = |reason: String| ModelError::Damaged { file: path.to_owned(), reason };
        let content =
            Content::read(&mut Cursor::new(&map[..])).map_err(|e| damaged(first_line(&e.to_string())))?;
        let architecture = match content.metadata.get("general.architecture") {
            Some(Meta::String(name)) => name.clone(),
            _ => return Err(damaged("it does not name its architecture".into())),
        };
        Ok(Self { file: path.to_owned(), map, content, architecture, interleaved: None })
    }

    /// Describes the model from the file's metadata.
    pub(crate) fn describe(&mut self) -> Result<Description, ModelError> {
        let family = families::of_gguf(&self.architecture)?;
        let config = Config::from_map(self.config(), "GGUF metadata");
        let mut d = family.describe(&config)?;
        d.rope.scaling = self.rope_scaling(&d, &config)?;
        if matches!(self.architecture.as_str(), "llama" | "smollm3") {
            self.interleaved = Some(Interleaved { heads: d.heads, kv_heads: d.kv_heads });
        }
        Ok(d)
    }

    fn meta(&self, rest: &str) -> Option<&Meta> {
        self.content.metadata.get(&format!("{}.{rest}", self.architecture))
    }

    fn meta_json(&self, rest: &str) -> Value {
        self.meta(rest).map_or(Value::Null, to_json)
    }

    fn has(&self, gguf_name: &str) -> bool {
        self.content.tensor_infos.contains_key(gguf_name)
    }

    /// Metadata under the names of `config.json`.
    fn config(&self) -> Map<String, Value> {
        let pairs = [
            ("hidden_size", "embedding_length"),
            ("num_hidden_layers", "block_count"),
            ("num_attention_heads", "attention.head_count"),
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.key_length"),
            ("intermediate_size", "feed_forward_length"),
            ("max_position_embeddings", "context_length"),
            ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
            ("rope_theta", "rope.freq_base"),
            ("sliding_window", "attention.sliding_window"),
            ("original_max_position_embeddings", "rope.scaling.original_context_length"),
            ("num_local_experts", "expert_count"),
        ];
        let mut map: Map<String, Value> =
            pairs.iter().map(|(to, from)| ((*to).to_owned(), self.meta_json(from))).collect();
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        map.insert("vocab_size".into(), embedding.map_or(Value::Null, |t| json!(t.shape.dims()[0])));
        map.insert("tie_word_embeddings".into(), json!(!self.has("output.weight")));
        map.insert("attention_bias".into(), json!(self.has("blk.0.attn_q.bias")));
        map.insert("mlp_bias".into(), json!(self.has("blk.0.ffn_gate.bias")));
        if map["head_dim"].is_null() {
            let per_head = map["hidden_size"].as_u64().zip(map["num_attention_heads"].as_u64());
            map["head_dim"] = per_head.map_or(Value::Null, |(h, n)| json!(h / n.max(1)));
        }
        if let (Some(turned), Some(dim)) =
            (self.meta_json("rope.dimension_count").as_u64(), map["head_dim"].as_u64())
        {
            map.insert("partial_rotary_factor".into(), json!(turned as f64 / dim as f64));
        }
        map.insert("rope_scaling".into(), self.rope_config());
        map
    }

    fn rope_config(&self) -> Value {
        match self.meta_json("rope.scaling.type").as_str() {
            Some(kind @ ("linear" | "yarn")) => {
                let mut rope = json!({"rope_type": kind, "factor": self.meta_json("rope.scaling.factor")});
                let log_multiplier = self.meta_json("rope.scaling.attn_factor");
                if !log_multiplier.is_null() {
                    rope["attention_factor"] = log_multiplier;
                }
                rope
            }
            // Phi-3's LongRoPE comes as tensors; see `rope_scaling`.
            Some("none" | "longrope") | None => Value::Null,
            Some(other) => json!({"rope_type": other}),
        }
    }

    /// Schemes that a GGUF file stores as tensors of factors.
    fn rope_scaling(&self, d: &Description, config: &Config) -> Result<RopeScaling, ModelError> {
        if self.has("rope_freqs.weight") {
            return Ok(RopeScaling::Factors(self.factors("rope_freqs.weight", d)?));
        }
        if !self.has("rope_factors_long.weight") {
            return Ok(d.rope.scaling.clone());
        }
        let original = config.count("original_max_position_embeddings")?;
        let magnitude = match self.meta_json("rope.scaling.attn_factor").as_f64() {
            Some(given) => given,
            None => longrope_magnitude(d.positions_max as f64 / original as f64, original),
        };
        Ok(RopeScaling::LongRope {
            short: self.factors("rope_factors_short.weight", d)?,
            long: self.factors("rope_factors_long.weight", d)?,
            original,
            magnitude,
        })
    }

    fn factors(&self, name: &str, d: &Description) -> Result<Vec<f64>, ModelError> {
        let shape = vec![d.rope.dims / 2];
        let found = self.content.tensor_infos.get(name).map(|t| t.shape.dims().to_vec());
        if found.as_ref() != Some(&shape) {
            return Err(ModelError::TensorShape {
                file: self.file.clone(),
                tensor: name.into(),
                found: found.unwrap_or_default(),
                expected: shape,
            });
        }
        Ok(self.widened(name)?.iter().map(|&f| f64::from(f)).collect())
    }

    fn quantized(&self, gguf_name: &str) -> Result<QTensor, ModelError> {
        (self.content.tensor(&mut Cursor::new(&self.map[..]), gguf_name, &Device::Cpu))
            .map_err(|e| self.damaged(gguf_name, &e))
    }

    fn widened(&self, gguf_name: &str) -> Result<Vec<f32>, ModelError> {
        let tensor = self.quantized(gguf_name)?;
        let wide = tensor.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1());
        wide.map_err(|e| self.damaged(gguf_name, &e))
    }

    fn damaged(&self, tensor: &str, e: &candle_core::Error) -> ModelError {
        let reason = format!("tensor `{tensor}`: {}", first_line(&e.to_string()));
        ModelError::Damaged { file: self.file.clone(), reason }
    }

    /// The bytes of a tensor in the file, if they are all there.
    fn raw(&self, info: &gguf_file::TensorInfo) -> Option<&[u8]> {
        let start = self.content.tensor_data_offset.checked_add(info.offset)? as usize;
        let len =
            info.shape.elem_count().div_ceil(info.ggml_dtype.block_size()) * info.ggml_dtype.type_size();
        self.map.get(start..start.checked_add(len)?)
    }

    /// Heads whose rows are to be put back in order, for q and k of llama-style files.
    fn heads_to_restore(&self, name: &str) -> Option<usize> {
        let heads = self.interleaved?;
        if name.contains(".self_attn.q_proj.") {
            return Some(heads.heads);
        }
        name.contains(".self_attn.k_proj.").then_some(heads.kv_heads)
    }
}

/// Numbers, strings and flags; lists are not hyperparameters that are read here, except a list that
/// repeats one number (per-layer head counts).
fn to_json(meta: &Meta) -> Value {
    match meta {
        Meta::String(s) => json!(s),
        Meta::Bool(b) => json!(b),
        Meta::F32(x) => json!(shortest(*x)),
        Meta::F64(x) => json!(x),
        Meta::Array(list) => match list.first() {
            Some(first) if list.iter().all(|v| to_json(v) == to_json(first)) => to_json(first),
            _ => json!(format!("a list of {} values", list.len())),
        },
        other => other.to_i64().map_or_else(|_| json!(other.to_u64().ok()), |n| json!(n)),
    }
}

/// The f64 that an f32 was written for: 1e-5 as f32 is 9.99999974e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The GGUF name of a Hugging Face tensor name.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        names::EMBEDDING => return Some("token_embd.weight".into()),
        names::HEAD => return Some("output.weight".into()),
        names::NORM => return Some("output_norm.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (stem, kind) = rest.rsplit_once('.')?;
    let stem = match stem {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{stem}.{kind}"))
}

/// The form that keeps what a GGUF type stores.
fn form_of(dtype: GgmlDType) -> Option<WeightForm> {
    match dtype {
        GgmlDType::F32 => Some(WeightForm::F32),
        GgmlDType::F16 => Some(WeightForm::F16),
        GgmlDType::BF16 => Some(WeightForm::Bf16),
        GgmlDType::Q4_0 => Some(WeightForm::Q4),
        GgmlDType::Q8_0 | GgmlDType::Q4K | GgmlDType::Q5K | GgmlDType::Q6K => Some(WeightForm::Q8),
        _ => None,
    }
}

/// Restores rows that a converter interleaved: of each head, row `2j + t` came from `t * half + j`.
fn restore_rows(bytes: &[u8], heads: usize, rows: usize) -> Vec<u8> {
    let stride = bytes.len() / rows;
    let (dim, half) = (rows / heads, rows / heads / 2);
    let source = |row: usize| {
        let (head, r) = (row / dim, row % dim);
        head * dim + 2 * (r % half) + r / half
    };
    (0..rows).flat_map(|row| &bytes[source(row) * stride..][..stride]).copied().collect()
}

impl TensorSource for Gguf {
    fn info(&self, e: &Expected) -> Result<Option<TensorInfo>, ModelError> {
        let info = gguf_name(&e.name).and_then(|n| self.content.tensor_infos.get(&n));
        let Some(info) = info else { return Ok(None) };
        if form_of(info.ggml_dtype).is_none() {
            return Err(ModelError::TensorType {
                file: self.file.clone(),
                tensor: e.name.clone(),
                found: format!("{:?}", info.ggml_dtype),
                supported: "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K and Q6_K",
            });
        }
        let shape = info.shape.dims().to_vec();
        let Some(raw) = self.raw(info) else {
            let reason = format!("it ends before tensor `{}` does", e.name);
            return Err(ModelError::Damaged { file: self.file.clone(), reason });
        };
        Ok(Some(TensorInfo { shape, bytes: raw.len() as u64, file: self.file.clone() }))
    }

    fn read(&self, e: &Expected) -> Result<Tensor<'_>, ModelError> {
        let missing = || ModelError::TensorMissing { file: self.file.clone(), tensor: e.name.clone() };
        let name = gguf_name(&e.name).ok_or_else(missing)?;
        let info = self.content.tensor_infos.get(&name).ok_or_else(missing)?;
        let form = form_of(info.ggml_dtype).unwrap_or(WeightForm::F32);
        let (rows, cols) = rows_cols(&e.shape);
        let (kind, mut bytes) = match info.ggml_dtype {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => {
                let kind = match info.ggml_dtype {
                    GgmlDType::F32 => HostType::F32,
                    GgmlDType::F16 => HostType::F16,
                    _ => HostType::Bf16,
                };
                (kind, Cow::Borrowed(self.raw(info).ok_or_else(missing)?))
            }
            _ => (HostType::F32, Cow::Owned(bytemuck::cast_slice(&self.widened(&name)?).to_vec())),
        };
        if let Some(heads) = self.heads_to_restore(&e.name) {
            // A bias is one row of values; its values are the rows of the weight.
            bytes = Cow::Owned(restore_rows(&bytes, heads, e.shape[0]));
        }
        Ok(Tensor { kind, rows, cols, bytes, form })
    }

    fn digest(&self, e: &Expected, depth: Depth, hasher: &mut Sha256) {
        let info = gguf_name(&e.name).and_then(|n| self.content.tensor_infos.get(&n));
        let Some((info, raw)) = info.and_then(|i| Some((i, self.raw(i)?))) else { return };
        hasher.update(&e.name);
        hasher.update(format!("{:?}{:?}", info.ggml_dtype, info.shape));
        sampled(raw, depth).for_each(|piece| hasher.update(piece));
    }

    fn unexpected(&self, expected: &[Expected]) -> Option<(PathBuf, String)> {
        let known: HashSet<String> = expected.iter().filter_map(|e| gguf_name(&e.name)).collect();
        let ignored = |name: &str| name.starts_with("rope_f");
        let mut names: Vec<&String> = self.content.tensor_infos.keys().collect();
        names.sort_unstable();
        let odd = names.into_iter().find(|n| !known.contains(*n) && !ignored(n))?;
        Some((self.file.clone(), odd.clone()))
    }

    fn main_file(&self) -> &Path {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restoring_undoes_the_converters_interleaving() {
        // Two heads of four rows; the converter writes 0,2,1,3 of each.
        let interleaved = [0u8, 2, 1, 3, 4, 6, 5, 7];
        assert_eq!(restore_rows(&interleaved, 2, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn names_translate() {
        let name = gguf_name("model.layers.11.self_attn.k_proj.bias");
        assert_eq!(name.as_deref(), Some("blk.11.attn_k.bias"));
        assert_eq!(
            gguf_name("model.layers.1.mlp.gate_up_proj.weight").as_deref(),
            Some("blk.1.ffn_up.weight")
        );
    }
}
