//! What must not change a bit: how a prompt is cut, who shares a prefix, whether a step was recorded; and draws.

use base::{SplitMix, TokenId};
use kernels::cuda::CudaOptions;
use kernels::cuda::prefix_groups::{PrefixGroups, SharedLayer, SharingRule};
use kernels::sample::draw;
use kernels::{Backend, History, KvType, Precision, SampleRow, Sampled, SamplingParams, WeightForm};

use crate::bench::{Device, begin_decodes, bits, filled, plain_pool, relative, strict};
use crate::layer::{Case, Layer, Step};
use crate::report::Report;

const TILE: u32 = kernels::ATTENTION_TILE as u32;

pub fn run(device: &Device, report: &mut Report) {
    for (held, layer) in [("", &LAYER), (", 8 bits", &NARROW)] {
        let mut one = |what: &str, law: &dyn Fn(&Device, &Case, &str, &mut Report)| {
            let what = format!("{what}{held}");
            report.attempt(&what, |report| law(device, layer, &what, report));
        };
        one("recorded steps = launched steps", &recorded);
        one("prompt in pieces = prompt at once", &pieces);
        one("shared prefix read once = read by each", &cascade);
    }
    report.attempt("draws = the CPU's", |report| draws(device, "draws = the CPU's", report));
}

const LAYER: Case = Case {
    heads: 8,
    kv_heads: 2,
    head_dim: 128,
    page_tokens: 64,
    window: None,
    form: WeightForm::Bf16,
    kind: KvType::Bf16,
};
/// Weights, keys and values in 8 bits.
const NARROW: Case = Case { form: WeightForm::E4m3, kind: KvType::E4m3, ..LAYER };

/// Steps of several sequences of a bucket, one token each, then of another bucket; the bits of all logits.
fn decode(device: &Device, case: &Case, options: CudaOptions) -> Vec<f32> {
    let mut b = device.backend(options);
    let layer = Layer::load(&mut b, case, 20, 20, 5);
    let sizes: &[u32] =
        if device.is_small() { &[3, 4, 3, 2, 2, 2] } else { &[3, 4, 3, 3, 9, 12, 16, 9, 20, 17, 19] };
    let mut logits = Vec::new();
    for (at, &seqs) in sizes.iter().enumerate() {
        let mut step = Step::default();
        for i in 0..seqs {
            let start = (30 + 57 * i) % 600 + at as u32;
            let pages: Vec<u32> = (0..=start / 64).map(|page| i * 12 + page).collect();
            step.push(start, 1, &pages);
        }
        logits.extend(layer.run(&mut b, &step));
    }
    assert_eq!(options.graphs, layer.replays() > 0, "{} steps were replayed", layer.replays());
    logits
}

fn recorded(device: &Device, case: &Case, what: &str, report: &mut Report) {
    let graphs = |graphs: bool, options: CudaOptions| decode(device, case, CudaOptions { graphs, ..options });
    let (with, without) = (graphs(true, strict()), graphs(false, strict()));
    report.check(what, &format!("{} bits", with.len()), bits(&with) == bits(&without));
    let fast = graphs(true, CudaOptions::default());
    let error = relative(&fast, &without);
    report.check(&format!("{what}, fast"), &format!("{error:.2e} from strict"), error < 2e-2);
}

fn pieces(device: &Device, case: &Case, what: &str, report: &mut Report) {
    let (tokens, cuts): (u32, &[&[u32]]) =
        if device.is_small() { (280, &[&[257]]) } else { (900, &[&[1, 256, 700], &[100, 357, 358], &[899]]) };
    let table: Vec<u32> = (0..tokens.div_ceil(64)).collect();
    let run = |cuts: &[u32]| {
        let mut b = device.backend(strict());
        let layer = Layer::load(&mut b, case, tokens as usize, 1, 6);
        let (mut from, mut logits) = (0, Vec::new());
        for &to in cuts.iter().chain([&tokens]) {
            let mut step = Step::default();
            step.push(from, to - from, &table);
            logits.extend(layer.run(&mut b, &step));
            from = to;
        }
        bits(&logits)
    };
    let whole = run(&[]);
    for &cut in cuts {
        report.check(what, &format!("cut at {cut:?}"), run(cut) == whole);
    }
}

/// Two that share three tiles, a third that shares two of them, a fourth one, a fifth none.
fn cascade(device: &Device, held: &Case, what: &str, report: &mut Report) {
    let rule = SharingRule::Thresholds { tokens_min: TILE, rows_min: 2 };
    for (heads, kv_heads, head_dim, run) in [(8, 2, 128, 1), (7, 1, 64, 1), (4, 1, 128, 3)] {
        let case = Case { heads, kv_heads, head_dim, ..*held };
        let mut step = Step::default();
        for (i, tiles) in (0u32..).zip([3u32, 3, 2, 1, 0]) {
            let start = tiles * TILE + 90 * i + 1;
            let own = |page: u32| 16 + i * 20 + page;
            let page = |page: u32| if page < tiles * TILE / 64 { page } else { own(page) };
            let pages: Vec<u32> = (0..(start + run).div_ceil(64)).map(page).collect();
            step.push(start, run, &pages);
        }
        let layer =
            SharedLayer { group: (heads / kv_heads) as u32, kv_heads: kv_heads as u32, token_bytes: 1 };
        let groups = PrefixGroups::find(&step.batch(), 64, layer, rule).list().len();
        assert!(groups >= 3, "only {groups} groups: the case says nothing");
        let run_with = |sharing| {
            let mut b = device.backend(CudaOptions { sharing, ..strict() });
            let layer = Layer::load(&mut b, &case, step.rows(), 5, 7);
            bits(&layer.run(&mut b, &step))
        };
        let found = format!("{groups} groups, {heads} heads on {kv_heads} of {head_dim}, {run} new");
        report.check(what, &found, run_with(Some(rule)) == run_with(None));
    }
}

fn draws(device: &Device, what: &str, report: &mut Report) {
    let (rows, vocab) = if device.is_small() { (8, 5000) } else { (48, 128_256) };
    let mut b = device.backend(strict());
    let rng = &mut SplitMix::new(8);
    plain_pool(&mut b, rng, rows);
    let logits = filled(&mut b, rng, rows, vocab, Precision::Full);
    begin_decodes(&mut b, rows);
    let held = b.read(logits);
    let asks: Vec<(SamplingParams, History)> = (0..rows).map(|i| ask(rng, i, vocab)).collect();
    let forced = |i: usize| (i % 11 == 10).then_some(i as TokenId * 3);
    let row = |i: usize| {
        let (params, history) = &asks[i];
        SampleRow { params, history, position: 17 + i as u64, forced: forced(i) }
    };
    let wanted: Vec<SampleRow<'_>> = (0..rows).map(row).collect();
    let drawn = b.sample(logits, &wanted);
    let mut wrong = Vec::new();
    for (i, ours) in drawn.iter().enumerate() {
        let host = draw(&mut held[i * vocab..][..vocab].to_vec(), &wanted[i]);
        if !agree(ours, &host) {
            wrong.push(format!("row {i}: {} for {}, {:?}", ours.token, host.token, asks[i].0));
        }
    }
    let found = wrong.first().cloned().unwrap_or_else(|| format!("{rows} rows of {vocab}"));
    report.check(what, &found, wrong.is_empty());
}

fn ask(rng: &mut SplitMix, i: usize, vocab: usize) -> (SamplingParams, History) {
    let token = |rng: &mut SplitMix| rng.below(vocab as u64) as TokenId;
    let prompt: Vec<TokenId> = (0..40).map(|_| token(rng)).collect();
    let mut history = History::from_prompt(&prompt);
    (0..9).for_each(|_| history.push(token(rng)));
    let plain = SamplingParams { seed: rng.next_u64(), ..SamplingParams::default() };
    let edited = i % 2 == 1;
    let params = SamplingParams {
        temperature: [0.0, 0.7, 1.0, 1.5][i % 4],
        top_k: [0, 50, 0, 500, 0][i % 5],
        top_p: [1.0, 0.9, 0.5][i % 3],
        min_p: [0.0, 0.0, 0.05][i / 3 % 3],
        logprobs: [None, Some(5), Some(0)][i % 3],
        repetition_penalty: if edited { 1.3 } else { 1.0 },
        presence_penalty: if edited { 0.4 } else { 0.0 },
        logit_bias: if edited { (0..20).map(|_| (token(rng), 3.5)).collect() } else { Vec::new() },
        ..plain
    };
    (params, history)
}

fn agree(a: &Sampled, b: &Sampled) -> bool {
    let ids = |s: &Sampled| s.top.iter().map(|t| t.0).collect::<Vec<_>>();
    let values = |s: &Sampled| s.logprob.into_iter().chain(s.top.iter().map(|t| t.1)).collect::<Vec<f32>>();
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    let (va, vb) = (values(a), values(b));
    a.token == b.token
        && a.rank == b.rank
        && ids(a) == ids(b)
        && va.len() == vb.len()
        && va.iter().zip(&vb).all(close)
}
