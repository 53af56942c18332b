//! Committed results say which kernels they were measured with.

use std::path::Path;

use quire_kernels::cuda::source::hash_of_all;

#[test]
fn a_result_of_other_kernels_says_that_it_is_stale() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/results/gpu.json");
    let Ok(text) = std::fs::read_to_string(path) else { return println!("no GPU result is kept") };
    let is_of_these = text.contains(&format!("\"kernels\": \"{}\"", hash_of_all()));
    let says_stale = text.contains("\"stale\": true");
    if !is_of_these {
        println!("benches/results/gpu.json is of other kernels than {}", hash_of_all());
    }
    assert!(
        is_of_these || says_stale,
        "benches/results/gpu.json is of other kernels: measure again (scripts/gpu-check) or give it \"stale\": true"
    );
}
