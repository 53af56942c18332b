//! Oracle 1: candle-transformers, in the same process, on the cases that it computes as Hugging Face does.
//!
//! Left out, because candle 0.11 differs from `transformers` there (mlx covers them): Llama with biases,
//! its own head size, linear or YaRN rope (not read); Qwen2's window (applied to every layer) and YaRN;
//! Phi-3's window (not read) and LongRoPE (frequencies multiplied by the factors instead of divided).
//! Mistral's window is one token wider in candle, so candle is given one less.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, phi3, qwen2, qwen3, smol::smollm3};
use kernels::{HostType, WeightForm};
use quire_runtime::model::expected;
use serde_json::{Value, json};

use crate::tiny::{Bench, Case, compare, cpu};

const CASES: [&str; 14] = [
    "llama-mha",
    "llama-gqa-tied",
    "llama-five-heads",
    "llama-rope-llama3",
    "llama-long",
    "mistral-full",
    "mistral-window",
    "qwen2-seven-heads-tied",
    "qwen3-gqa",
    "qwen3-three-heads-tied",
    "phi3-mha",
    "phi3-partial-gqa",
    "smollm3-tied",
    "smollm3-listed",
];

fn builder(case: &Case, kind: HostType, dtype: DType) -> VarBuilder<'static> {
    let source = case.source(kind);
    let tensor = |e: &quire_runtime::model::Expected| {
        // bf16 weights are rounded first, so that both dtypes compute with the same ones.
        let mut values = source.values(e);
        if kind == HostType::Bf16 {
            values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
        }
        let t = Tensor::from_vec(values, e.shape.clone(), &Device::Cpu).unwrap();
        (e.name.clone(), t.to_dtype(dtype).unwrap())
    };
    let all: HashMap<String, Tensor> = expected(&case.describe()).iter().map(tensor).collect();
    VarBuilder::from_tensors(all, dtype, &Device::Cpu)
}

/// The case's config with candle's own needs filled in.
fn config<T: serde::de::DeserializeOwned>(case: &Case, more: &[(&str, Value)]) -> T {
    let mut config = case.config.clone();
    for (name, value) in more {
        config[*name] = value.clone();
    }
    serde_json::from_value(config).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

/// Candle's logits of the last token of `tokens`, computed from nothing.
type LastLogits = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;

fn oracle(case: &Case, kind: HostType, dtype: DType) -> LastLogits {
    let vb = builder(case, kind, dtype);
    let window = case.config.get("sliding_window").and_then(Value::as_u64).map(|w| w - 1);
    match case.config["model_type"].as_str().unwrap() {
        "llama" => {
            let c = config::<llama::LlamaConfig>(case, &[]).into_config(false);
            let model = llama::Llama::load(vb, &c).unwrap();
            Box::new(move |t| model.forward(t, 0, &mut llama::Cache::new(true, dtype, &c, &Device::Cpu)?))
        }
        "mistral" => {
            let c = config(case, &[("sliding_window", json!(window)), ("use_flash_attn", json!(false))]);
            let mut model = mistral::Model::new(&c, vb).unwrap();
            Box::new(move |t| {
                model.clear_kv_cache();
                model.forward(t, 0)
            })
        }
        "qwen2" => {
            let mut model = qwen2::ModelForCausalLM::new(&config(case, &[]), vb).unwrap();
            Box::new(move |t| {
                model.clear_kv_cache();
                model.forward(t, 0)
            })
        }
        "qwen3" => {
            let more = [("max_window_layers", json!(0)), ("use_sliding_window", json!(false))];
            let mut model = qwen3::ModelForCausalLM::new(&config(case, &more), vb).unwrap();
            Box::new(move |t| {
                model.clear_kv_cache();
                model.forward(t, 0)
            })
        }
        "phi3" => {
            let mut model = phi3::Model::new(&config(case, &[]), vb).unwrap();
            Box::new(move |t| {
                model.clear_kv_cache();
                model.forward(t, 0)
            })
        }
        "smollm3" => {
            let mut model = smollm3::ModelForCausalLM::new(&config(case, &[]), vb).unwrap();
            Box::new(move |t| {
                model.clear_kv_cache();
                model.forward(t, 0)
            })
        }
        other => panic!("no oracle for {other}"),
    }
}

/// Prompt lengths at whose ends logits are compared.
fn lengths(case: &Case) -> Vec<usize> {
    vec![2, case.tokens / 2, case.tokens]
}

fn candles(case: &Case, kind: HostType, dtype: DType) -> Vec<Vec<f32>> {
    let (mut last, prompt) = (oracle(case, kind, dtype), case.prompt());
    let row = |n: usize| {
        let tokens = Tensor::new(&prompt[..n], &Device::Cpu)?.unsqueeze(0)?;
        last(&tokens)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
    };
    lengths(case).into_iter().map(row).collect::<candle_core::Result<_>>().unwrap()
}

fn ours(case: &Case, kind: HostType, form: WeightForm) -> Vec<Vec<f32>> {
    let mut bench = Bench::new(case.load(kind, form, 16, cpu()));
    let positions: Vec<usize> = lengths(case).iter().map(|n| n - 1).collect();
    bench.logits_at(&case.prompt(), &positions)
}

#[test]
fn f32_logits_match_candle() {
    for case in CASES.map(Case::named) {
        let wanted = candles(&case, HostType::F32, DType::F32);
        let d = compare(&ours(&case, HostType::F32, WeightForm::F32), &wanted);
        assert!(d.relative_max <= 1e-4, "{}: {d:?}", case.name);
    }
}

#[test]
fn bf16_logits_stay_within_twice_the_floor_of_candle() {
    for case in CASES.map(Case::named) {
        let exact = candles(&case, HostType::Bf16, DType::F32);
        let floor = compare(&candles(&case, HostType::Bf16, DType::BF16), &exact);
        let d = compare(&ours(&case, HostType::Bf16, WeightForm::Bf16), &exact);
        println!(
            "{:24} mean |Δ logprob| {:.4} (candle {:.4}), regret {:.3} nat",
            case.name, d.logprob_mean, floor.logprob_mean, d.regret
        );
        assert!(d.logprob_mean <= 2.0 * floor.logprob_mean, "{}: {d:?}, floor {floor:?}", case.name);
        assert!(d.regret <= 0.2, "{}: {d:?}", case.name);
    }
}
