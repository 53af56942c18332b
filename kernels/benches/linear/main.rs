//! Linear layers against the ceilings of the machine, both measured in the same run.
//!
//! `cargo bench -p quire-kernels --bench linear [-- --json] [--form bf16] [--rows 512] [--rounds 9]`
//!
//! Each case is one op on enough copies of a weight that no copy is in a cache when its turn comes, as in a
//! model. Rounds go over all ceilings and cases in turn, and the best round of each counts, so that what
//! else runs on the machine disturbs all alike. The hash is of the results' bits.
//!
//! Only the shares are worth comparing: on a virtual machine the read ceiling of two cores was seen to jump
//! between 50 and 85 GB/s within a process, as the host moved them on or off a common memory link.

mod ceilings;

use base::{Clock, SplitMix, SystemClock};
use ceilings::Ceiling;
use quire_kernels::cpu::arena::{Region, Rows, RowsMut, Slab};
use quire_kernels::cpu::linear::{Form, Linear, Machine, Scratch, linear};
use quire_kernels::cpu::pool::Pool;
use quire_kernels::cpu::{CpuOptions, Isa};
use quire_kernels::{HostTensor, HostType};

/// Name, outputs, inputs.
const SHAPES: [(&str, usize, usize); 8] = [
    ("tinyllama qkv", 2560, 2048),
    ("tinyllama o", 2048, 2048),
    ("tinyllama gate|up", 11264, 2048),
    ("tinyllama down", 2048, 5632),
    ("tinyllama head", 32000, 2048),
    ("qwen-0.5b qkv", 1152, 896),
    ("qwen-0.5b gate|up", 9728, 896),
    ("qwen-0.5b down", 896, 4864),
];
const FORMS: [(&str, Form); 5] =
    [("bf16", Form::Bf16), ("q8", Form::Q8), ("q4", Form::Q4), ("f16", Form::F16), ("f32", Form::F32)];
const ROWS: [usize; 3] = [1, 16, 512];
/// Weights of one case, over its copies.
const COLD_BYTES: usize = 192 << 20;

struct Options {
    json: bool,
    form: Option<String>,
    rows: Option<usize>,
    shape: Option<String>,
    rounds: usize,
    threads: usize,
}

fn options() -> Options {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let number = |name: &str| value(name).map(|v| v.parse().expect("a number"));
    Options {
        json: args.iter().any(|a| a == "--json"),
        form: value("--form"),
        rows: number("--rows"),
        shape: value("--shape"),
        rounds: number("--rounds").unwrap_or(7),
        threads: number("--threads").unwrap_or(CpuOptions::default().threads),
    }
}

/// One shape in one form for some number of rows, with its weights.
struct Case {
    shape: &'static str,
    form: &'static str,
    rows: usize,
    copies: Vec<Linear>,
    slab: Slab,
    x: Vec<f32>,
    out: Vec<f32>,
    best_s: f64,
}

impl Case {
    fn new(
        shape: (&'static str, usize, usize),
        form: (&'static str, Form),
        rows: usize,
        m: Machine<'_>,
    ) -> Self {
        let (name, outputs, inputs) = shape;
        let mut rng = SplitMix::new(1);
        let mut draw = || (rng.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let values: Vec<f32> = (0..outputs * inputs).map(|_| draw() * 0.04).collect();
        let x = (0..rows * inputs).map(|_| draw()).collect();
        let tensor =
            HostTensor::new(HostType::F32, outputs, inputs, bytemuck::cast_slice(&values)).expect("a tensor");
        let mut slab = Slab::default();
        let mut copies = Vec::new();
        while copies.is_empty() || (rows < 64 && copies.len() * Linear::bytes(&copies[0]) < COLD_BYTES) {
            copies.push(Linear::load(&[tensor], form.1, m.isa, m.pool, &mut slab).expect("memory"));
        }
        Self {
            shape: name,
            form: form.0,
            rows,
            copies,
            slab,
            x,
            out: vec![0.0; rows * outputs],
            best_s: f64::MAX,
        }
    }

    /// One op on each copy; keeps the best time per op.
    fn round(&mut self, m: Machine<'_>, scratch: &mut Scratch, clock: &SystemClock) {
        let start = clock.now();
        for weight in &self.copies {
            let x = Rows::new(&self.x, self.rows, weight.inputs);
            let out = RowsMut::new(&mut self.out, self.rows, weight.outputs);
            linear(m, weight, &self.slab, &x, None, &out, scratch);
        }
        let each = clock.now().since(start).as_secs_f64() / self.copies.len() as f64;
        self.best_s = self.best_s.min(each);
    }

    fn gb_s(&self) -> f64 {
        self.copies[0].bytes() as f64 / 1e9 / self.best_s
    }
    fn gop_s(&self) -> f64 {
        let w = &self.copies[0];
        (2 * self.rows * w.outputs * w.inputs) as f64 / 1e9 / self.best_s
    }
    /// The ceiling that binds this case, by index, and the fraction reached.
    fn fraction(&self, ceilings: &[(Ceiling, f64)]) -> (&'static str, f64) {
        let dot = match self.form {
            "bf16" => 2,
            "q8" | "q4" => 4,
            _ => 3,
        };
        let at = |i: usize| ceilings.get(i).map_or(("", f64::NAN), |(c, best)| (c.name, c.giga / best));
        let (read, dot) = (at(1), at(dot));
        let (of_read, of_dot) = (self.gb_s() / read.1, self.gop_s() / dot.1);
        if of_read > of_dot { (read.0, of_read) } else { (dot.0, of_dot) }
    }
    fn hash(&self) -> u64 {
        let bits = self.out.iter().flat_map(|v| v.to_le_bytes());
        bits.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    }
}

fn main() {
    let options = options();
    let (pool, clock) = (Pool::new(options.threads).expect("threads"), SystemClock::new());
    let machine = Machine { pool: &pool, isa: Isa::detect() };
    let mut scratch = Scratch::new().expect("memory");
    let memory = ceilings::memory();
    let mut limits: Vec<(Ceiling, f64)> = Vec::new();
    if ceilings::available() {
        limits = ceilings::all(pool.workers()).into_iter().map(|c| (c, f64::MAX)).collect();
    }
    pool.begin();
    if !options.json {
        println!("{} threads, {}, best of {} rounds", pool.workers(), machine.isa.name(), options.rounds);
    }
    let mut results = Vec::new();
    for form in FORMS.into_iter().filter(|f| options.form.as_deref().is_none_or(|want| want == f.0)) {
        for rows in ROWS.into_iter().filter(|r| options.rows.is_none_or(|want| want == *r)) {
            for shape in
                SHAPES.into_iter().filter(|s| options.shape.as_deref().is_none_or(|want| s.0.contains(want)))
            {
                let mut case = Case::new(shape, form, rows, machine);
                for _ in 0..options.rounds {
                    measure_limits(&mut limits, &pool, &memory, &clock);
                    case.round(machine, &mut scratch, &clock);
                }
                case.slab = Slab::default(); // gives the memory back, keeps the figures
                results.push(case);
            }
        }
    }
    pool.end();
    if options.json { print_json(&limits, &results) } else { print_table(&limits, &results) }
}

fn measure_limits(limits: &mut [(Ceiling, f64)], pool: &Pool, memory: &Region, clock: &SystemClock) {
    for (limit, best) in limits {
        let start = clock.now();
        limit.run(pool, memory);
        *best = best.min(clock.now().since(start).as_secs_f64());
    }
}

fn print_table(limits: &[(Ceiling, f64)], cases: &[Case]) {
    for (limit, best) in limits {
        println!("{:<18} {:8.1} {}", limit.name, limit.giga / best, limit.unit);
    }
    println!(
        "{:<20}{:<6}{:>5}{:>10}{:>9}{:>10}   share of      hash",
        "shape", "form", "rows", "us", "GB/s", "GOP/s"
    );
    for case in cases {
        let (of, share) = case.fraction(limits);
        println!(
            "{:<20}{:<6}{:>5}{:>10.1}{:>9.1}{:>10.1}{:>6.0} % {of:<17}{:016x}",
            case.shape,
            case.form,
            case.rows,
            case.best_s * 1e6,
            case.gb_s(),
            case.gop_s(),
            share * 100.0,
            case.hash()
        );
    }
}

fn print_json(limits: &[(Ceiling, f64)], cases: &[Case]) {
    let ceilings: Vec<String> = limits
        .iter()
        .map(|(c, best)| {
            format!("{{\"name\":\"{}\",\"value\":{:.1},\"unit\":\"{}\"}}", c.name, c.giga / best, c.unit)
        })
        .collect();
    let cases: Vec<String> = cases
        .iter()
        .map(|c| {
            let (of, share) = c.fraction(limits);
            format!(
                "{{\"shape\":\"{}\",\"form\":\"{}\",\"rows\":{},\"us\":{:.1},\"gb_s\":{:.2},\"gop_s\":{:.1},\"ceiling\":\"{of}\",\"share\":{share:.3},\"hash\":\"{:016x}\"}}",
                c.shape, c.form, c.rows, c.best_s * 1e6, c.gb_s(), c.gop_s(), c.hash()
            )
        })
        .collect();
    println!("{{\"ceilings\":[{}],\"cases\":[{}]}}", ceilings.join(","), cases.join(",\n"));
}
