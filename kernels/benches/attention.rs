//! Attention of the CPU backend alone: what part of the multiplier (prefill) and of the memory (decode)
//! it reaches. Explains the figures of the whole engine; claims nothing by itself.
//!
//! `cargo bench -p quire-kernels --bench attention [-- --threads N --only TEXT]` prints one line per case: the
//! fastest of the rounds, because on a shared machine the slower ones measure the neighbours.

use base::{Clock, SplitMix, SystemClock};
use quire_kernels::cpu::arena::{Rows, RowsMut, StepRows};
use quire_kernels::cpu::attend::{AttendInput, Attention};
use quire_kernels::cpu::cores;
use quire_kernels::cpu::isa::Isa;
use quire_kernels::cpu::pages::{KvPages, Side};
use quire_kernels::cpu::pool::Pool;
use quire_kernels::{AttentionShape, Batch, KvShape, KvType, SeqSpan};

const PAGE_TOKENS: usize = 16;
/// Layers in the pool, used in turn so that decode reads memory, not a cache.
const LAYERS: usize = 24;

/// One model shape.
#[derive(Clone, Copy)]
struct Heads {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const SHAPES: [Heads; 4] = [
    Heads { name: "0.5B 14/2x64", heads: 14, kv_heads: 2, head_dim: 64 },
    Heads { name: "1.1B 32/4x64", heads: 32, kv_heads: 4, head_dim: 64 },
    Heads { name: "8B 32/8x128", heads: 32, kv_heads: 8, head_dim: 128 },
    Heads { name: "mha 12/12x64", heads: 12, kv_heads: 12, head_dim: 64 },
];

/// Sequences of a step: `(context before, new tokens)`, all alike.
#[derive(Clone, Copy)]
struct Work {
    sequences: usize,
    past: usize,
    new: usize,
}

struct Bench {
    pool: Pool,
    isa: Isa,
    clock: SystemClock,
}

fn main() {
    let quick = std::env::args().any(|a| a == "--test");
    let rounds = if quick { 1 } else { 40 };
    let threads = option("--threads").and_then(|t| t.parse().ok()).unwrap_or_else(cores::physical);
    let only = option("--only").unwrap_or_default();
    let bench = Bench {
        pool: Pool::new(threads).expect("threads"),
        isa: Isa::detect(),
        clock: SystemClock::default(),
    };
    println!("attention on {} with {} threads", bench.isa.name(), bench.pool.workers());
    for shape in SHAPES.into_iter().filter(|s| s.name.contains(&only)) {
        for kind in [KvType::Bf16, KvType::F32] {
            for (past, new) in [(0, 256), (0, 2048), (1920, 128)] {
                bench.case(shape, kind, Work { sequences: 1, past, new }, rounds);
            }
            for (sequences, past) in [(1, 512), (1, 4096), (16, 1024)] {
                bench.case(shape, kind, Work { sequences, past, new: 1 }, rounds);
            }
        }
    }
}

/// The argument after `name`.
fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|a| a != name).nth(1)
}

impl Bench {
    fn case(&self, heads: Heads, kind: KvType, work: Work, rounds: usize) {
        let layers = if work.new == 1 { LAYERS } else { 2 };
        let shape = AttentionShape {
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            scale: (heads.head_dim as f32).powf(-0.5),
            window: None,
        };
        let tokens = work.past + work.new;
        let per_sequence = tokens.div_ceil(PAGE_TOKENS);
        let mut pages = KvPages::new(KvShape {
            pages: per_sequence * work.sequences,
            page_tokens: PAGE_TOKENS,
            layers,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            kind,
        })
        .expect("pages");
        let table: Vec<u32> = shuffled(per_sequence * work.sequences);
        fill(&mut pages, &table, layers);
        let step = step(&work, per_sequence, &table);
        let rows = work.sequences * work.new;
        let qkv = random(rows * shape.qkv_cols());
        let mut out = vec![0.0f32; rows * shape.q_cols()];
        let mut attention = Attention::new();
        let mut best = f64::INFINITY;
        for _ in 0..rounds {
            self.pool.begin();
            for layer in 0..layers {
                let input = AttendInput {
                    step: &step,
                    pages: &pages,
                    layer,
                    shape,
                    qkv: Rows::new(&qkv, rows, shape.qkv_cols()),
                };
                let from = self.clock.now();
                attention.run(&self.pool, self.isa, &input, RowsMut::new(&mut out, rows, shape.q_cols()));
                best = best.min(self.clock.now().since(from).as_nanos() as f64);
            }
            self.pool.end();
        }
        report(heads, kind, work, best, out.iter().sum());
    }
}

fn report(heads: Heads, kind: KvType, work: Work, nanos: f64, check: f32) {
    let pairs: usize = (work.past + 1..=work.past + work.new).sum::<usize>() * work.sequences;
    let flops = 4.0 * pairs as f64 * (heads.heads * heads.head_dim) as f64;
    let bytes =
        (work.sequences * (work.past + work.new) * 2 * heads.kv_heads * heads.head_dim * kind.bytes()) as f64;
    println!(
        "{:14} {:4} {:2} x {:4}+{:<4} {:9.1} us  {:6.0} GFLOP/s  {:5.1} GB/s  [{check:.3}]",
        heads.name,
        if kind == KvType::F32 { "f32" } else { "bf16" },
        work.sequences,
        work.past,
        work.new,
        nanos / 1e3,
        flops / nanos,
        bytes / nanos,
    );
}

fn step(work: &Work, per_sequence: usize, table: &[u32]) -> StepRows {
    let spans: Vec<SeqSpan> = (0..work.sequences)
        .map(|s| SeqSpan {
            row: (s * work.new) as u32,
            rows: work.new as u32,
            start: work.past as u32,
            table: (s * per_sequence) as u32,
        })
        .collect();
    let tokens = vec![0; work.sequences * work.new];
    let mut step = StepRows::default();
    step.fill(&Batch { tokens: &tokens, spans: &spans, page_table: table });
    step
}

fn fill(pages: &mut KvPages, table: &[u32], layers: usize) {
    let shape = *pages.shape();
    let values = random(8192);
    let mut at = 0;
    let writer = pages.writer();
    for &page in table {
        for (layer, head) in (0..layers).flat_map(|l| (0..shape.kv_heads).map(move |h| (l, h))) {
            for (slot, side) in (0..shape.page_tokens).flat_map(|s| [(s, Side::K), (s, Side::V)]) {
                at = (at + 61) % (values.len() - shape.head_dim);
                // SAFETY: one thread.
                unsafe { writer.put((page, slot), layer, side, head, &values[at..at + shape.head_dim]) };
            }
        }
    }
}

fn random(n: usize) -> Vec<f32> {
    let mut rng = SplitMix::new(1);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Page numbers in the order a used pool hands them out.
fn shuffled(n: usize) -> Vec<u32> {
    let mut rng = SplitMix::new(2);
    let mut table: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        table.swap(i, rng.below(i as u64 + 1) as usize);
    }
    table
}
