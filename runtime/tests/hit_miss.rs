//! Hit ≡ miss at the level of the forward pass: bit for bit, whatever computed the prefix and when.
//!
//! One step over a whole sequence is the yardstick. Everything else (chunks of any size, single tokens,
//! pages that another sequence computed, neighbours in the batch, rows left out) must give its bits.

use kernels::{Backend, HostType, WeightForm};
use proptest::prelude::*;
use quire_runtime::model::KvChoice;

use crate::tiny::{Bench, Case, Chunk, Seq, cpu};

const FORMS: [WeightForm; 5] =
    [WeightForm::F32, WeightForm::F16, WeightForm::Bf16, WeightForm::Q8, WeightForm::Q4];

/// What is run: a model, how it is held, and how its sequence is cut.
#[derive(Clone, Debug)]
pub struct Plan {
    case: &'static str,
    pub form: WeightForm,
    pub kv: KvChoice,
    page_tokens: u32,
    tokens: Vec<u32>,
    /// Chunk sizes, repeated until the sequence is done.
    chunks: Vec<usize>,
    /// Chunk sizes of a neighbour with another prompt; it stops when it runs out.
    mate: Vec<usize>,
    /// Whole pages taken over from the first run.
    reused_pages: usize,
}

pub fn plans() -> impl Strategy<Value = Plan> {
    let case = prop::sample::select(vec![
        "llama-gqa-tied",
        "llama-head-dim",
        "mistral-window",
        "qwen2-seven-heads-tied",
        "qwen3-gqa",
        "phi3-partial-gqa",
        "smollm3-listed",
    ]);
    let form = prop::sample::select(FORMS.to_vec());
    let page_tokens = prop::sample::select(vec![16u32, 32, 64]);
    // Past one attention tile (256) in a third of the runs.
    let length = prop_oneof![2 => 1usize..120, 1 => 250usize..330];
    let tokens = length.prop_flat_map(|n| prop::collection::vec(0u32..128, n));
    let sizes = || prop_oneof![Just(1usize), 2usize..20, Just(16), Just(64), 20usize..200];
    let (chunks, mate) = (prop::collection::vec(sizes(), 1..5), prop::collection::vec(sizes(), 0..4));
    (case, form, page_tokens, tokens, chunks, mate, 0usize..12).prop_map(
        |(case, form, page_tokens, tokens, chunks, mate, reused)| {
            let whole = (tokens.len() - 1) / page_tokens as usize;
            let reused_pages = reused.min(whole);
            Plan { case, form, kv: KvChoice::Auto, page_tokens, tokens, chunks, mate, reused_pages }
        },
    )
}

fn bench(plan: &Plan, backend: Box<dyn Backend>) -> Bench {
    let kind = match plan.form {
        WeightForm::F32 => HostType::F32,
        WeightForm::F16 => HostType::F16,
        _ => HostType::Bf16,
    };
    let case = Case::named(plan.case);
    let mut bench = Bench::new(case.load_with_kv(kind, plan.form, plan.kv, plan.page_tokens, backend));
    // Slots that hold no token may hold anything.
    bench.poison();
    bench
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Runs `seq` to the end of `tokens` in chunks beside a neighbour, and compares every wanted row.
fn run_in_chunks(bench: &mut Bench, plan: &Plan, mut seq: Seq, whole: &[Vec<f32>]) {
    let mut mate = Seq::default();
    let mut mate_sizes = plan.mate.iter();
    for size in plan.chunks.iter().cycle() {
        let start = seq.len as usize;
        if start == plan.tokens.len() {
            return;
        }
        let tokens = &plan.tokens[start..(start + size).min(plan.tokens.len())];
        // Every row in small chunks; only the last in large ones, as a scheduler would ask.
        let wanted: Vec<usize> =
            if tokens.len() <= 20 { (0..tokens.len()).collect() } else { vec![tokens.len() - 1] };
        let mate_tokens: Vec<u32> =
            (0..mate_sizes.next().copied().unwrap_or(0) as u32).map(|t| t % 97).collect();
        let mut chunks = Vec::new();
        if !mate_tokens.is_empty() {
            chunks.push(Chunk { seq: &mut mate, tokens: &mate_tokens, wanted: vec![] });
        }
        chunks.push(Chunk { seq: &mut seq, tokens, wanted: wanted.clone() });
        for (w, row) in wanted.iter().zip(bench.step(&mut chunks)) {
            assert_eq!(bits(&row), bits(&whole[start + w]), "position {}", start + w);
        }
    }
}

pub fn hit_equals_miss(plan: &Plan, backend: fn() -> Box<dyn Backend>) {
    let mut bench = bench(plan, backend());
    let mut first = Seq::default();
    let all: Vec<usize> = (0..plan.tokens.len()).collect();
    let whole = bench.step(&mut [Chunk { seq: &mut first, tokens: &plan.tokens, wanted: all }]);
    run_in_chunks(&mut bench, plan, Seq::default(), &whole);
    let pages = first.pages[..plan.reused_pages].to_vec();
    let len = plan.reused_pages as u32 * plan.page_tokens;
    run_in_chunks(&mut bench, plan, Seq { pages, len }, &whole);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_a_sequence_gives_the_bits_of_one_step(plan in plans()) {
        hit_equals_miss(&plan, cpu);
    }
}

fn fixed(form: WeightForm, n: usize, chunks: Vec<usize>, reused_pages: usize) -> Plan {
    let tokens = Case::named("llama-long").prompt()[..n].to_vec();
    let (case, page_tokens, mate) = ("llama-gqa-tied", 16, vec![3, 1, 40]);
    Plan { case, form, kv: KvChoice::Auto, page_tokens, tokens, chunks, mate, reused_pages }
}

#[test]
fn decode_gives_the_bits_of_prefill() {
    for form in FORMS {
        hit_equals_miss(&fixed(form, 40, vec![1], 0), cpu);
    }
}

#[test]
fn a_prompt_of_whole_pages_may_reuse_all_but_its_last() {
    for form in FORMS {
        hit_equals_miss(&fixed(form, 64, vec![64], 3), cpu);
    }
}

#[test]
fn sixteen_neighbours_do_not_change_a_row() {
    let plan = fixed(WeightForm::Bf16, 20, vec![20], 0);
    let mut bench = bench(&plan, cpu());
    let alone = bench.logits_at(&plan.tokens, &[19]).remove(0);
    let mut seqs: Vec<Seq> = (0..16).map(|_| Seq::default()).collect();
    let tokens: Vec<Vec<u32>> =
        (0..16u32).map(|i| if i == 9 { plan.tokens.clone() } else { vec![i, 5, i] }).collect();
    let mut chunks: Vec<Chunk<'_>> = (seqs.iter_mut().zip(&tokens))
        .map(|(seq, tokens)| Chunk { seq, tokens, wanted: vec![tokens.len() - 1] })
        .collect();
    let rows = bench.step(&mut chunks);
    assert_eq!(bits(&rows[9]), bits(&alone));
}
