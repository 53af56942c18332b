//! Names of machine code: the script that makes it and the binary that looks for it agree to the letter.

use std::process::Command;

use quire_kernels::cuda::source::UNITS;

#[test]
fn the_script_names_cubins_as_the_binary_looks_for_them() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cuda-check");
    let Ok(ran) = Command::new("python3").args([script, "--names"]).output() else {
        return println!("skipped: no python3");
    };
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let mut named: Vec<String> = String::from_utf8_lossy(&ran.stdout).lines().map(str::to_owned).collect();
    let mut wanted = Vec::new();
    for unit in UNITS {
        for target in ["sm_80", "sm_90a", "sm_100f", "sm_120"] {
            if unit.runs_on(target == "sm_90a") {
                wanted.push(unit.file(target));
            }
        }
    }
    named.sort();
    wanted.sort();
    assert_eq!(named, wanted);
}
