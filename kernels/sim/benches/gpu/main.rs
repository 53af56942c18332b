//! What a GPU says of our kernels: that it does what the emulator does, and how fast.
//!
//! ```text
//! gpu [--cubins DIR] [--json FILE] [--parts PART,…] [--emulate 80|90]
//!     [--cases N] [--no-twin] [--single] [--ceilings BYTES/S,FLOP/S] [--after N]
//! ```
//!
//! Parts, in the order in which they rest on each other. *conformance*: each instruction wrapper alone, word for
//! word against the emulator. *correct*: chains of ops against the emulator, and the laws (cut, shared, recorded,
//! alone or among others: the same bits). *attention*, *cascade*, *linears*, *rows*: rows of a table, each with the
//! least time that bytes and operations allow, by ceilings that *attention* measures first and others are told.
//! Each part is meant for a process of its own, since a dead kernel takes its process along; the next one goes on
//! `--after` the attempts that were begun (scripts/gpu-check).
//! `--emulate` runs all of it on the emulator, with small sizes: it proves this program. Without a device it says
//! so and ends well. `--single`: allocations one by one, for memory checkers; `--no-twin`: no emulator beside.

mod bench;
mod conformance;
mod correct;
mod laws;
mod layer;
mod lease;
mod linear_laws;
mod report;
mod sizes;
mod speed;
mod speed_rows;
mod timing;

use std::path::PathBuf;

use kernels::cuda::gpu::{Gpu, GpuError, GpuOptions};

use bench::Device;
use lease::Allocations;
use report::{Panics, Report};
use speed::Ceilings;

/// What to run, and where.
#[derive(Debug)]
pub struct Arguments {
    cubins: Option<PathBuf>,
    json: Option<PathBuf>,
    parts: Vec<String>,
    emulate: Option<u32>,
    cases: Option<usize>,
    twin: Twin,
    allocations: Allocations,
    ceilings: Option<Ceilings>,
    after: usize,
}

/// Whether results are held against the emulator as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Twin {
    Beside,
    Without,
}

fn main() {
    let arguments = arguments();
    let panics = if arguments.emulate.is_some() { Panics::Fail } else { Panics::End };
    let mut report = Report::new(arguments.json.as_deref(), arguments.after, panics);
    match arguments.emulate {
        Some(arch) => {
            report.describe(&format!("emulated sm_{arch}"), "none", None);
            run(&arguments, &Device::Emulated(arch), &mut report);
        }
        None => match Gpu::open(&options(&arguments)) {
            Ok(gpu) => {
                describe_and_share(gpu, &mut report);
                run(&arguments, &Device::Gpu(arguments.allocations), &mut report);
            }
            Err(GpuError::NoDriver) => return println!("skipped: no device"),
            Err(error) => {
                report.check("open", &error.to_string(), false);
                std::process::exit(1);
            }
        },
    }
    report.end();
    std::process::exit(i32::from(report.failures() > 0));
}

fn describe_and_share(gpu: Gpu, report: &mut Report) {
    use kernels::cuda::Driver as _;
    let info = gpu.device().clone();
    for (unit, origin) in gpu.origins() {
        println!("kernels {unit}: {origin:?}");
    }
    let library = lease::share(gpu);
    let device = format!("{}, {} SMs, {}", info.name, info.sms, info.arch.target());
    report.describe(&device, &info.driver, library.as_deref());
}

fn run(arguments: &Arguments, device: &Device, report: &mut Report) {
    let wanted = |part: &str| arguments.parts.is_empty() || arguments.parts.iter().any(|p| p == part);
    if wanted("conformance") {
        conformance::run(device, report);
    }
    if wanted("correct") {
        correct::run(device, arguments.cases, arguments.twin, report);
        laws::run(device, report);
        linear_laws::run(device, report);
    }
    let mut ceilings = arguments.ceilings.unwrap_or_default();
    if wanted("attention") {
        speed::ceilings(device, &mut ceilings, report);
        speed::attention(device, ceilings, report);
    }
    if wanted("cascade") {
        speed::cascades(device, ceilings, report);
        speed::shared(device, report);
    }
    if wanted("linears") {
        speed::linears(device, ceilings, report);
    }
    if wanted("rows") {
        speed_rows::rows(device, ceilings, report);
        speed_rows::sampling(device, ceilings, report);
    }
}

fn options(arguments: &Arguments) -> GpuOptions {
    GpuOptions { index: 0, cache: None, cubins: arguments.cubins.clone(), with_checks: true }
}

fn arguments() -> Arguments {
    let mut parsed = Arguments {
        cubins: None,
        json: None,
        parts: Vec::new(),
        emulate: None,
        cases: None,
        twin: Twin::Beside,
        allocations: Allocations::Shared,
        ceilings: None,
        after: 0,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| usage(&format!("{word} needs a value")));
        let number = |text: String| text.parse().unwrap_or_else(|_| usage(&format!("{word}: {text}")));
        match word.as_str() {
            "--cubins" => parsed.cubins = Some(value().into()),
            "--json" => parsed.json = Some(value().into()),
            "--parts" => parsed.parts = value().split(',').map(str::to_owned).collect(),
            "--emulate" => parsed.emulate = Some(number(value())),
            "--cases" => parsed.cases = Some(number(value()) as usize),
            "--after" => parsed.after = number(value()) as usize,
            "--no-twin" => parsed.twin = Twin::Without,
            "--single" => parsed.allocations = Allocations::Single,
            "--ceilings" => {
                let text = value();
                let found = Ceilings::parse(&text);
                parsed.ceilings = Some(found.unwrap_or_else(|| usage("--ceilings 4.3e12,7.8e14")));
            }
            "--bench" => {} // what cargo bench adds
            other => usage(&format!("unknown argument {other}")),
        }
    }
    parsed
}

fn usage(why: &str) -> ! {
    eprintln!("error: {why}\nusage: gpu [--cubins DIR] [--json FILE] [--parts A,B] [--emulate 80|90] …");
    std::process::exit(2);
}
