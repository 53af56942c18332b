//! Files that are not a model: each refusal is one typed error that names what is wrong.

use std::path::Path;

use expect_test::{Expect, expect};
use kernels::HostType;
use quire_runtime::files::ModelFiles;
use quire_runtime::model::{LoadOptions, ModelError, PoolSize, expected, load};
use serde_json::{Value, json};

use crate::tiny::{Case, reference, write_safetensors};

/// A good tiny model that `damage` is done to; what loading it says, without the directory's name.
fn check(damage: impl FnOnce(&Path, &Case), want: Expect) {
    let dir = tempfile::tempdir().unwrap();
    let case = Case::named("llama-gqa-tied");
    case.write(dir.path(), HostType::Bf16);
    damage(dir.path(), &case);
    want.assert_eq(&refusal(dir.path(), &ModelFiles::Dir(dir.path().to_owned())));
}

fn refusal(dir: &Path, files: &ModelFiles) -> String {
    let options = LoadOptions { pool: PoolSize::Pages(64), ..LoadOptions::default() };
    match load(files, &options, reference(), &mut |_, _| {}) {
        Ok(_) => "loaded".into(),
        Err(e) => format!("{}: {}", e.kind(), e.to_string().replace(&*dir.to_string_lossy(), "DIR")),
    }
}

/// Rewrites fields of the config; `null` in `fields` removes one.
fn with_config(dir: &Path, case: &Case, fields: Value) {
    let mut config = case.config.clone();
    for (name, value) in fields.as_object().unwrap() {
        config.as_object_mut().unwrap().remove(name);
        if !value.is_null() {
            config[name] = value.clone();
        }
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn check_config(fields: Value, want: Expect) {
    check(|dir, case| with_config(dir, case, fields), want);
}

#[test]
fn a_good_model_loads() {
    check(|_, _| {}, expect!["loaded"]);
}

#[test]
fn a_place_without_a_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let named =
        |e: quire_runtime::files::FilesError| e.to_string().replace(&*dir.path().to_string_lossy(), "DIR");
    let absent = ModelFiles::open(&dir.path().join("absent")).map(|_| ()).unwrap_err();
    expect!["no model at DIR/absent: no such file or directory"].assert_eq(&named(absent));
    let empty = ModelFiles::open(dir.path()).map(|_| ()).unwrap_err();
    expect!["DIR is neither a model directory (with config.json) nor a .gguf file"].assert_eq(&named(empty));
}

#[test]
fn configs_are_refused_by_field() {
    check_config(
        json!({"architectures": ["FalconForCausalLM"]}),
        expect![
            "architecture: architecture FalconForCausalLM is not supported; supported are LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM"
        ],
    );
    check_config(
        json!({"hidden_size": null}),
        expect!["field_missing: config.json: field `hidden_size` is missing"],
    );
    check_config(
        json!({"rms_norm_eps": null}),
        expect!["field_missing: config.json: field `rms_norm_eps` is missing"],
    );
    check_config(
        json!({"vocab_size": "many"}),
        expect![[r#"field_type: config.json: field `vocab_size` must be a positive integer, not "many""#]],
    );
    check_config(
        json!({"num_hidden_layers": -2}),
        expect!["field_type: config.json: field `num_hidden_layers` must be a positive integer, not -2"],
    );
    check_config(
        json!({"num_key_value_heads": 4}),
        expect![
            "field_unsupported: config.json: `num_key_value_heads` = 4 is not supported: it does not divide 6 heads"
        ],
    );
    check_config(
        json!({"hidden_act": "gelu"}),
        expect![[r#"field_unsupported: config.json: `hidden_act` = "gelu" is not supported: only silu is"#]],
    );
    check_config(
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        expect![[
            r#"field_unsupported: config.json: `rope_scaling` = {"rope_type":"dynamic","factor":2.0} is not supported: dynamic NTK changes cached keys as a sequence grows"#
        ]],
    );
    check_config(
        json!({"final_logit_softcapping": 30.0}),
        expect![
            "field_unsupported: config.json: `final_logit_softcapping` = 30.0 is not supported: it changes the arithmetic in a way that is not implemented"
        ],
    );
    check_config(
        json!({"quantization_config": {"quant_method": "gptq"}}),
        expect![[
            r#"field_unsupported: config.json: `quantization_config` = {"quant_method":"gptq"} is not supported: quantized checkpoints are not read; load the plain one and pass --quantize"#
        ]],
    );
    check(
        |dir, _| std::fs::write(dir.join("config.json"), "{\"a\": ").unwrap(),
        expect!["json: config.json is not valid JSON: EOF while parsing a value at line 1 column 6"],
    );
}

#[test]
fn weights_that_do_not_fit_the_config_are_refused_by_tensor() {
    check_config(
        json!({"intermediate_size": 128}),
        expect![
            "tensor_shape: DIR/model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight` has shape [96, 96], the config asks for [128, 96]"
        ],
    );
    check_config(
        json!({"num_hidden_layers": 3}),
        expect![
            "tensor_missing: DIR/model.safetensors: tensor `model.layers.2.input_layernorm.weight` is missing"
        ],
    );
    check_config(
        json!({"num_hidden_layers": 1}),
        expect![
            "tensor_unexpected: DIR/model.safetensors: tensor `model.layers.1.input_layernorm.weight` has no place in this architecture; the config and the weights disagree"
        ],
    );
    check_config(
        json!({"attention_bias": true}),
        expect![
            "tensor_missing: DIR/model.safetensors: tensor `model.layers.0.self_attn.q_proj.bias` is missing"
        ],
    );
}

#[test]
fn damaged_weights_are_refused_by_file() {
    let weights = |dir: &Path| dir.join("model.safetensors");
    let cut = |dir: &Path, len: usize| {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("model.safetensors"), &bytes[..len]).unwrap();
    };
    check(
        |dir, _| std::fs::remove_file(weights(dir)).unwrap(),
        expect!["files: cannot read DIR/model.safetensors: No such file or directory (os error 2)"],
    );
    check(
        |dir, _| std::fs::write(weights(dir), "").unwrap(),
        expect![
            "damaged: DIR/model.safetensors is damaged: its safetensors header does not fit the file (header too small)"
        ],
    );
    check(
        |dir, _| cut(dir, 5),
        expect![
            "damaged: DIR/model.safetensors is damaged: its safetensors header does not fit the file (header too small)"
        ],
    );
    check(
        |dir, _| cut(dir, 100),
        expect![
            "damaged: DIR/model.safetensors is damaged: its safetensors header does not fit the file (invalid header length)"
        ],
    );
    check(
        |dir, _| cut(dir, 100_000),
        expect![
            "damaged: DIR/model.safetensors is damaged: its safetensors header does not fit the file (incomplete metadata, file not fully covered)"
        ],
    );
    let flip_header = |dir: &Path| {
        let mut bytes = std::fs::read(weights(dir)).unwrap();
        bytes[8] = b'!';
        std::fs::write(weights(dir), bytes).unwrap();
    };
    check(
        |dir, _| flip_header(dir),
        expect![
            "damaged: DIR/model.safetensors is damaged: its safetensors header does not fit the file (invalid JSON in header: expected value at line 1 column 1)"
        ],
    );
    check(
        |dir, case| {
            let all = expected(&case.describe());
            let keep: Vec<_> = all.into_iter().filter(|e| !e.name.contains("1.mlp.down")).collect();
            write_safetensors(&weights(dir), &case.source(HostType::Bf16), &keep);
        },
        expect![
            "tensor_missing: DIR/model.safetensors: tensor `model.layers.1.mlp.down_proj.weight` is missing"
        ],
    );
}

#[test]
fn shards_are_checked_before_anything_is_loaded() {
    let split = |dir: &Path, case: &Case, missing: bool| {
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        let all = expected(&case.describe());
        let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let mut map = serde_json::Map::new();
        for (half, name) in all.chunks(all.len().div_ceil(2)).zip(names) {
            half.iter().for_each(|e| drop(map.insert(e.name.clone(), json!(name))));
            if !missing || name == names[0] {
                write_safetensors(&dir.join(name), &case.source(HostType::Bf16), half);
            }
        }
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    check(|dir, case| split(dir, case, false), expect!["loaded"]);
    check(
        |dir, case| split(dir, case, true),
        expect![
            "shard_missing: DIR/model.safetensors.index.json names shard model-00002-of-00002.safetensors, which is missing"
        ],
    );
    let outside = json!({"weight_map": {"a": "../secret.safetensors"}});
    check(
        |dir, _| std::fs::write(dir.join("model.safetensors.index.json"), outside.to_string()).unwrap(),
        expect![[
            r#"damaged: DIR/model.safetensors.index.json is damaged: shard name "../secret.safetensors" is not a plain file name"#
        ]],
    );
}

#[test]
fn gguf_files_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\0\0\0\0\0\0\0\0").unwrap();
    expect![
        "damaged: DIR/model.gguf is damaged: gguf: tensor_count 9223372036854775807 exceeds max 1073741824"
    ]
    .assert_eq(&refusal(dir.path(), &ModelFiles::Gguf(path.clone())));
    std::fs::write(&path, b"not a gguf file at all").unwrap();
    expect!["damaged: DIR/model.gguf is damaged: unknown magic 0x20746f6e"]
        .assert_eq(&refusal(dir.path(), &ModelFiles::Gguf(path)));
}

#[test]
fn impossible_options_are_refused_by_name() {
    let case = Case::named("llama-gqa-tied");
    let dir = tempfile::tempdir().unwrap();
    let files = case.write(dir.path(), HostType::Bf16);
    let with = |change: fn(&mut LoadOptions)| {
        let mut options = LoadOptions { pool: PoolSize::Pages(64), ..LoadOptions::default() };
        change(&mut options);
        let refused: ModelError = match load(&files, &options, reference(), &mut |_, _| {}) {
            Ok(_) => return "loaded".to_owned(),
            Err(e) => e,
        };
        refused.to_string()
    };
    expect!["option `max-model-len` = 100000 is out of range: the model allows 1 to 512"]
        .assert_eq(&with(|o| o.positions_max = Some(100_000)));
    expect!["option `block-size` = 24 is out of range: 16, 32 and 64 are possible"]
        .assert_eq(&with(|o| o.page_tokens = 24));
    expect!["the KV pool holds 3 pages of 4.0 KiB; one step of one sequence needs 32"]
        .assert_eq(&with(|o| o.pool = PoolSize::Pages(3)));
}
