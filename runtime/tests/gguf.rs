//! GGUF: what a converter would write of a tiny model loads as that model.
//!
//! The writer here is candle's; names, metadata and the reordering of q and k follow llama.cpp's
//! converter. A file and the safetensors of its own widened blocks must give the same logits.

use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use kernels::{HostType, WeightForm};
use quire_runtime::files::ModelFiles;
use quire_runtime::model::{Description, Expected, LoadOptions, PoolSize, WeightChoice, expected, load};
use serde_json::json;

use crate::tiny::{Bench, Case, Difference, PAGES, compare, reference};

/// A case whose rows are as long as the blocks of K-quants.
fn wide() -> Case {
    let mut case = Case::named("llama-gqa-tied");
    let shape = json!({"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 512, "tie_word_embeddings": false});
    shape.as_object().unwrap().iter().for_each(|(k, v)| case.config[k] = v.clone());
    case.name = "llama-wide".into();
    case
}

/// llama.cpp's name of a tensor.
fn gguf_name(name: &str) -> String {
    let table = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    table.iter().fold(name.to_owned(), |n, (from, to)| n.replace(from, to))
}

/// The converter's order of rows for one head after another: `2j + t` holds row `t * half + j`.
fn interleave(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let (cols, dim) = (values.len() / rows, rows / heads);
    let from = |r: usize| (r / dim) * dim + (r % 2) * (dim / 2) + (r % dim) / 2;
    (0..rows).flat_map(|r| values[from(r) * cols..][..cols].to_vec()).collect()
}

fn metadata(case: &Case, d: &Description, arch: &str) -> Vec<(String, Meta)> {
    let count = |n: usize| Meta::U32(n as u32);
    let c = &case.config;
    let mut all = vec![
        ("embedding_length", count(d.hidden)),
        ("block_count", count(d.layers.len())),
        ("attention.head_count", count(d.heads)),
        ("attention.head_count_kv", count(d.kv_heads)),
        ("attention.key_length", count(d.head_dim)),
        ("attention.value_length", count(d.head_dim)),
        ("feed_forward_length", count(d.intermediate)),
        ("context_length", count(c["max_position_embeddings"].as_u64().unwrap() as usize)),
        ("attention.layer_norm_rms_epsilon", Meta::F32(d.norm_eps)),
        ("rope.freq_base", Meta::F32(d.rope.theta as f32)),
        ("rope.dimension_count", count(d.rope.dims)),
    ];
    if let Some(n) = c.get("original_max_position_embeddings").and_then(|v| v.as_u64()) {
        all.push(("rope.scaling.original_context_length", count(n as usize)));
    }
    if let Some(linear) = c.get("rope_scaling").filter(|s| s["type"] == "linear") {
        all.push(("rope.scaling.type", Meta::String("linear".into())));
        all.push(("rope.scaling.factor", Meta::F32(linear["factor"].as_f64().unwrap() as f32)));
    }
    if let (Some(window), "phi3") = (c.get("sliding_window").and_then(|v| v.as_u64()), arch) {
        all.push(("attention.sliding_window", count(window as usize)));
    }
    if let Some(yarn) = c.get("rope_scaling").filter(|s| s["type"] == "yarn") {
        all.push(("rope.scaling.type", Meta::String("yarn".into())));
        all.push(("rope.scaling.factor", Meta::F32(yarn["factor"].as_f64().unwrap() as f32)));
        let original = yarn["original_max_position_embeddings"].as_u64().unwrap();
        all.push(("rope.scaling.original_context_length", count(original as usize)));
    }
    let mut all: Vec<_> = all.into_iter().map(|(k, v)| (format!("{arch}.{k}"), v)).collect();
    all.push(("general.architecture".into(), Meta::String(arch.into())));
    all
}

fn quantized(values: Vec<f32>, shape: &[usize], dtype: GgmlDType) -> QTensor {
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, dtype).unwrap()
}

/// Factors of frequencies that converters store as tensors.
fn rope_tensors(d: &Description) -> Vec<(String, QTensor)> {
    let list = |name: &str, f: Vec<f32>| {
        let n = f.len();
        (name.to_owned(), quantized(f, &[n], GgmlDType::F32))
    };
    match &d.rope.scaling {
        quire_runtime::model::RopeScaling::LongRope { short, long, .. } => {
            let f32s = |v: &[f64]| v.iter().map(|&x| x as f32).collect();
            vec![list("rope_factors_short.weight", f32s(short)), list("rope_factors_long.weight", f32s(long))]
        }
        quire_runtime::model::RopeScaling::Llama3 { .. } => {
            let mut plain = d.rope.clone();
            plain.scaling = quire_runtime::model::RopeScaling::None;
            let (scaled, plain) = (d.rope.table(8).inv_freq, plain.table(8).inv_freq);
            vec![list("rope_freqs.weight", plain.iter().zip(&scaled).map(|(p, s)| (p / s) as f32).collect())]
        }
        _ => vec![],
    }
}

/// Writes `case` as GGUF with matrices in `dtype`; its widened values come back by HF name.
fn write_gguf(case: &Case, path: &Path, dtype: GgmlDType) -> Vec<(Expected, Vec<f32>)> {
    let d = case.describe();
    let arch = if d.family == "mistral" { "llama" } else { d.family };
    let (mut tensors, mut widened) = (rope_tensors(&d), Vec::new());
    for e in expected(&d) {
        let values = case.source(HostType::F32).values(&e);
        let reordered = matches!(arch, "llama" | "smollm3");
        let heads = match &e.name {
            name if reordered && name.contains("q_proj") => Some(d.heads),
            name if reordered && name.contains("k_proj") => Some(d.kv_heads),
            _ => None,
        };
        let of_file = match heads {
            Some(heads) => interleave(&values, heads, e.shape[0]),
            None => values.clone(),
        };
        let dtype = if e.shape.len() == 2 { dtype } else { GgmlDType::F32 };
        // Blocks run along rows, so reordering rows and widening commute.
        let wide = quantized(values, &e.shape, dtype).dequantize(&Device::Cpu).unwrap();
        tensors.push((gguf_name(&e.name), quantized(of_file, &e.shape, dtype)));
        widened.push((e, wide.flatten_all().unwrap().to_vec1().unwrap()));
    }
    let metadata = metadata(case, &d, arch);
    let metadata: Vec<(&str, &Meta)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
    widened
}

fn write_safetensors(dir: &Path, case: &Case, widened: &[(Expected, Vec<f32>)]) -> ModelFiles {
    std::fs::write(dir.join("config.json"), case.config.to_string()).unwrap();
    let views = widened.iter().map(|(e, v)| {
        let bytes: &[u8] = bytemuck::cast_slice(v);
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, e.shape.clone(), bytes);
        (e.name.clone(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    ModelFiles::open(dir).unwrap()
}

fn logits(case: &Case, files: &ModelFiles, weights: WeightChoice) -> Vec<Vec<f32>> {
    let options = LoadOptions {
        weights,
        positions_max: case.positions_max,
        pool: PoolSize::Pages(PAGES),
        step_tokens: 700,
        ..LoadOptions::default()
    };
    let loaded = load(files, &options, reference(), &mut |_, _| {});
    let n = case.tokens;
    Bench::new(loaded.unwrap_or_else(|e| panic!("{}: {e}", case.name)))
        .logits_at(&case.prompt(), &[0, n / 2, n - 1])
}

/// GGUF against the safetensors of its widened blocks: both as f32, then the GGUF in its default form.
fn round_trip(case: &Case, dtype: GgmlDType) -> (Difference, Difference) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let widened = write_gguf(case, &path, dtype);
    let gguf = ModelFiles::open(&path).unwrap();
    let plain =
        logits(case, &write_safetensors(dir.path(), case, &widened), WeightChoice::As(WeightForm::F32));
    let exact = compare(&logits(case, &gguf, WeightChoice::As(WeightForm::F32)), &plain);
    let default = compare(&logits(case, &gguf, WeightChoice::AsStored), &plain);
    (exact, default)
}

#[test]
fn every_type_of_block_loads_and_keeps_its_values() {
    // The bound on the default form: what is stored is kept, K-quants lose less than their own step.
    let types = [
        (GgmlDType::F32, 1e-6),
        (GgmlDType::F16, 0.01),
        (GgmlDType::BF16, 0.01),
        (GgmlDType::Q8_0, 0.01),
        (GgmlDType::Q4_0, 0.01),
        (GgmlDType::Q4K, 0.05),
        (GgmlDType::Q6K, 0.05),
    ];
    for (dtype, bound) in types {
        let (exact, default) = round_trip(&wide(), dtype);
        println!(
            "{dtype:?}: as f32 {:.1e}, in its own form {:.1e} of scale",
            exact.relative_max, default.relative_max
        );
        assert!(exact.relative_max <= 1e-6, "{dtype:?}: {exact:?}");
        assert!(default.relative_max <= bound, "{dtype:?}: {default:?}");
    }
}

#[test]
fn every_family_loads_from_gguf() {
    let names = [
        "llama-gqa-tied",
        "llama-head-dim",
        "llama-rope-llama3",
        "llama-rope-linear",
        "llama-biases",
        "mistral-full",
        "phi3-window",
        "qwen2-rope-yarn",
        "qwen3-gqa",
        "phi3-partial-gqa",
        "phi3-longrope",
        "smollm3-tied",
    ];
    for case in names.map(Case::named) {
        let (exact, _) = round_trip(&case, GgmlDType::Q8_0);
        assert!(exact.relative_max <= 1e-5, "{}: {exact:?}", case.name);
    }
}
