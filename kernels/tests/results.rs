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

/// What `scripts/gpu-check keep` makes of a run's cascade: made up from known costs, it has to find them.
#[test]
fn the_costs_of_sharing_are_found_again_in_what_was_measured() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/gpu-check");
    let program = "
import importlib.machinery, importlib.util, sys
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader('check', sys.argv[1])
check = importlib.util.module_from_spec(importlib.util.spec_from_loader('check', loader))
loader.exec_module(check)
def found(group_us):
    rows = []
    for n, tokens in [(2, 1024), (2, 8192), (4, 512), (8, 256), (8, 2048), (16, 4096), (32, 2048), (128, 512)]:
        spared = (n - 1) * tokens * 4096
        rows.append([n * 32, spared, 100.0, 100.0 + spared * 233e-9 - group_us - n * 32 * 50e-6])
    return check.sharing_costs(rows)
print(found(2.0), found(-1.0)[1], check.sharing_costs([[64, 1, 1, 1]]))
";
    let Ok(ran) = std::process::Command::new("python3").args(["-c", program, script]).output() else {
        return println!("skipped: no python3");
    };
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert_eq!(said.trim(), "(233, 2000, 50) 0 None");
}
