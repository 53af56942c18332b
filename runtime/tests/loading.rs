//! What loading promises beyond refusals: the digest, progress, the memory plan, random and built-in weights.

use std::path::Path;

use base::Bytes;
use kernels::{HostType, WeightForm};
use quire_runtime::files::ModelFiles;
use quire_runtime::model::{
    LoadFormat, LoadOptions, Loaded, PoolSize, WeightChoice, describe, expected, load,
};
use serde_json::json;

use crate::tiny::{Bench, Case, reference, write_safetensors};

const CASE: &str = "qwen2-rope-yarn";

fn options() -> LoadOptions {
    LoadOptions { pool: PoolSize::Pages(64), ..LoadOptions::default() }
}

fn loaded(files: &ModelFiles, options: &LoadOptions) -> Loaded {
    load(files, options, reference(), &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"))
}

fn written(dir: &Path) -> ModelFiles {
    Case::named(CASE).write(dir, HostType::Bf16)
}

/// Splits the case's weights over two files.
fn shard(dir: &Path) -> ModelFiles {
    let case = Case::named(CASE);
    let files = case.write(dir, HostType::Bf16);
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let all = expected(&case.describe());
    let mut map = serde_json::Map::new();
    for (i, half) in all.chunks(all.len().div_ceil(2)).enumerate() {
        let name = format!("model-{i}.safetensors");
        write_safetensors(&dir.join(&name), &case.source(HostType::Bf16), half);
        half.iter().for_each(|e| drop(map.insert(e.name.clone(), json!(name))));
    }
    let index = json!({"weight_map": map}).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    files
}

#[test]
fn the_digest_names_the_arithmetic_and_nothing_else() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = written(one.path());
    let base = loaded(&files, &options());
    let again = loaded(&shard(two.path()), &options());
    assert_eq!(base.digest, again.digest, "how weights are split into files does not count");
    let more_pages = loaded(&files, &LoadOptions { pool: PoolSize::Pages(65), ..options() });
    assert_eq!((base.digest, base.layout), (more_pages.digest, more_pages.layout));
    let shorter = loaded(&files, &LoadOptions { positions_max: Some(100), ..options() });
    assert_eq!(base.layout, shorter.layout, "the longest sequence served does not");
    let q8 = loaded(&files, &LoadOptions { weights: WeightChoice::As(WeightForm::Q8), ..options() });
    assert_ne!(base.digest, q8.digest, "the form of weights counts");
    let wide_pages = loaded(&files, &LoadOptions { page_tokens: 32, ..options() });
    assert_ne!(base.layout, wide_pages.layout, "the shape of pages counts");
    let path = one.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(base.digest, loaded(&files, &options()).digest, "a single bit counts");
}

#[test]
fn the_served_length_counts_where_it_picks_the_rope() {
    let load = |positions_max| {
        let case = Case { positions_max: Some(positions_max), ..Case::named("phi3-longrope") };
        case.load(HostType::Bf16, WeightForm::Bf16, 16, reference())
    };
    assert_eq!(load(256).layout, load(65).layout);
    assert_ne!(load(256).layout, load(64).layout);
}

#[test]
fn shards_give_the_logits_of_one_file() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |files| Bench::new(loaded(files, &options())).logits_at(&[1, 2, 3], &[0, 2]);
    assert_eq!(run(&written(one.path())), run(&shard(two.path())));
}

#[test]
fn progress_rises_to_the_total() {
    let dir = tempfile::tempdir().unwrap();
    let mut heard = Vec::new();
    let mut hear = |done, total| heard.push((done, total));
    load(&written(dir.path()), &options(), reference(), &mut hear).unwrap();
    assert!(heard.is_sorted(), "progress goes forward");
    let (done, total) = *heard.last().unwrap();
    assert_eq!(done, total);
    let d = Case::named(CASE).describe();
    assert_eq!(total, 2 * d.parameters(), "all bf16 weights");
}

#[test]
fn the_memory_plan_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let model = loaded(&written(dir.path()), &options());
    assert_eq!(model.memory.kv_pages, Bytes((64 * model.kv.page_bytes()) as u64));
    assert_eq!(model.memory.weights.0, model.backend.weight_bytes());
    assert_eq!(model.memory.tokens(), 64 * 16);
    let sum = model.memory.weights.0 + model.memory.kv_pages.0 + model.memory.activations.0;
    assert_eq!(model.memory.total().0, sum);
}

#[test]
fn random_weights_need_only_a_config() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), Case::named(CASE).config.to_string()).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    assert_eq!(describe(&files).unwrap().family, "qwen2");
    let with = |seed| loaded(&files, &LoadOptions { format: LoadFormat::Dummy { seed }, ..options() });
    let (a, b) = (with(1), with(2));
    assert_ne!(a.digest, b.digest);
    assert_eq!(a.digest, with(1).digest);
    let row = Bench::new(a).logits_at(&[1], &[0]).remove(0);
    assert!(row.iter().all(|x| x.is_finite()));
}

#[test]
fn a_model_inside_the_binary_is_the_model_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let on_disk = written(dir.path());
    let bytes = |name: &str| -> &'static [u8] { std::fs::read(dir.path().join(name)).unwrap().leak() };
    let list = vec![("config.json", bytes("config.json")), ("model.safetensors", bytes("model.safetensors"))];
    let built_in = ModelFiles::Embedded(list.leak());
    assert_eq!(loaded(&built_in, &options()).digest, loaded(&on_disk, &options()).digest);
}
