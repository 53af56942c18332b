//! The emulator itself: each wrapper alone, against the plain meaning of its PTX table, written here a second time.

mod faults;
mod hopper;
mod ptx;
mod schedules;
mod wrong;

use cusim::conformance::{Case, cases};
use cusim::{Options, kernel_names};

use crate::support::SEEDS;

/// What the case's kernel must write; written from the PTX tables alone.
fn expected(case: &Case) -> Vec<u32> {
    ptx::expected(case)
        .or_else(|| hopper::expected(case))
        .unwrap_or_else(|| panic!("{}: no meaning", case.name))
}

#[test]
fn every_wrapper_means_what_its_table_says() {
    for case in cases() {
        let want = expected(&case);
        for seed in SEEDS {
            let got =
                case.emulate(&Options::seeded(seed)).unwrap_or_else(|fault| panic!("{}: {fault}", case.name));
            if let Err(difference) = case.compare(&got, &want) {
                panic!("seed {seed}: {difference}");
            }
        }
    }
}

#[test]
fn every_conformance_kernel_has_a_case() {
    let cases = cases();
    let kernels: Vec<String> =
        kernel_names().into_iter().filter(|k| k.starts_with("quire_conform_")).collect();
    assert!(kernels.len() > 30, "{kernels:?}");
    for kernel in kernels {
        assert!(cases.iter().any(|case| case.kernel == kernel), "{kernel}");
    }
}

#[test]
fn every_case_tells_a_changed_word() {
    for case in cases() {
        let want = expected(&case);
        let mut changed = want.clone();
        let at = changed.len() / 2;
        changed[at] ^= 0x0008_0000;
        assert!(case.compare(&changed, &want).is_err(), "{}", case.name);
    }
}
