//! What a GPU says of our kernels: that it does what the emulator does, and how fast.
//!
//! ```text
//! gpu [--cubins DIR] [--json FILE] [--parts conformance,correct,speed] [--emulate 80|90]
//! ```
//!
//! Three parts. *Conformance*: each instruction wrapper alone, word for word against the emulator: first,
//! because everything else rests on it. *Correct*: chains of ops against f64 and against the emulator. *Speed*:
//! rows of a table, each with the least time that bytes and operations allow on this device, measured with
//! the ceilings of the same run. `--emulate` runs the first two on the emulator itself, which proves this
//! program where there is no GPU; without a device it says so and ends well.

mod bench;
mod conformance;
mod correct;
mod report;
mod speed;

use std::path::PathBuf;

use kernels::cuda::gpu::{Gpu, GpuError, GpuOptions};

use report::Report;

/// What to run, and where.
#[derive(Debug)]
pub struct Arguments {
    cubins: Option<PathBuf>,
    json: Option<PathBuf>,
    parts: Vec<String>,
    emulate: Option<u32>,
}

fn main() {
    let arguments = arguments();
    let mut report = Report::new();
    match arguments.emulate {
        Some(arch) => run(&arguments, &bench::Device::Emulated(arch), &mut report),
        None => match Gpu::open(&options(&arguments)) {
            Ok(gpu) => {
                report.describe(&gpu);
                drop(gpu);
                run(&arguments, &bench::Device::Gpu(options(&arguments)), &mut report);
            }
            Err(GpuError::NoDriver) => return println!("skipped: no device"),
            Err(error) => {
                eprintln!("error: {error}");
                std::process::exit(1);
            }
        },
    }
    report.print();
    if let Some(path) = &arguments.json {
        report.write(path);
    }
    std::process::exit(i32::from(report.failures() > 0));
}

fn run(arguments: &Arguments, device: &bench::Device, report: &mut Report) {
    let wanted = |part: &str| arguments.parts.is_empty() || arguments.parts.iter().any(|p| p == part);
    if wanted("conformance") {
        conformance::run(device, report);
    }
    if wanted("correct") {
        correct::run(device, report);
    }
    if wanted("speed") && !device.is_emulated() {
        speed::run(device, report);
    }
}

fn options(arguments: &Arguments) -> GpuOptions {
    GpuOptions { index: 0, cache: None, cubins: arguments.cubins.clone(), with_checks: true }
}

fn arguments() -> Arguments {
    let mut parsed = Arguments { cubins: None, json: None, parts: Vec::new(), emulate: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| usage(&format!("{word} needs a value")));
        match word.as_str() {
            "--cubins" => parsed.cubins = Some(value().into()),
            "--json" => parsed.json = Some(value().into()),
            "--parts" => parsed.parts = value().split(',').map(str::to_owned).collect(),
            "--emulate" => {
                parsed.emulate = Some(value().parse().unwrap_or_else(|_| usage("--emulate 80 or 90")))
            }
            "--bench" => {} // what cargo bench adds
            other => usage(&format!("unknown argument {other}")),
        }
    }
    parsed
}

fn usage(why: &str) -> ! {
    eprintln!("error: {why}\nusage: gpu [--cubins DIR] [--json FILE] [--parts A,B] [--emulate 80|90]");
    std::process::exit(2);
}
