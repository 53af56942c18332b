//! Claims about drawing, against a model that sorts the whole vocabulary.

use base::{CounterRng, SplitMix, TokenId};
use proptest::prelude::*;

use super::vector::mass;
use super::*;

/// The same definition, written the slow way: sort all, cut, put back in order of ids, draw.
fn naive(logits: &[f32], params: &SamplingParams, history: &History, position: u64) -> TokenId {
    let mut l: Vec<f32> = logits.iter().map(|&x| sanitized(x)).collect();
    let mut edits = Edits::new(&mut l);
    edits.apply(params, history);
    let mut order: Vec<(TokenId, f32)> = (0..).zip(l.iter().copied()).collect();
    order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    let max = order[0].1;
    if max == f32::NEG_INFINITY || params.temperature <= 0.0 {
        return order[0].0;
    }
    let of = |x: f32| vector::weight(x, max, params.temperature);
    let floor = if params.min_p > 0.0 { -params.min_p.ln() } else { f32::INFINITY };
    order.retain(|&(_, x)| x > f32::NEG_INFINITY && (max - x) / params.temperature <= floor);
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let total: f64 = order.iter().map(|&(_, x)| mass(of(x))).sum();
    if params.top_p < 1.0 {
        let mut before = 0.0;
        order.retain(|&(_, x)| {
            let keep = before == 0.0 || before < f64::from(params.top_p) * total;
            before += mass(of(x));
            keep
        });
    }
    order.sort_by_key(|&(token, _)| token);
    let total: f64 = order.iter().map(|&(_, x)| mass(of(x))).sum();
    let target = CounterRng::new(params.seed).uniform(position, 0) * total;
    let mut sum = 0.0;
    let cut = order.iter().position(|&(_, x)| {
        sum += mass(of(x));
        sum > target
    });
    order[cut.unwrap_or(order.len() - 1)].0
}

fn logits_strategy() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        20 => -12.0f32..12.0,
        4 => (-3i32..3).prop_map(|x| x as f32), // ties
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0]),
    ];
    prop_oneof![
        prop::collection::vec(-12.0f32..12.0, 1..2000),
        prop::collection::vec(value, 1..700),
        (any::<u64>(), 4_000usize..9_000, 0.1f64..4.0).prop_map(|(seed, n, spread)| {
            let mut rng = SplitMix::new(seed);
            (0..n).map(|_| ((rng.normal() * spread) as f32 * 64.0).round() / 64.0).collect()
        }),
        (1usize..500, prop::sample::select(vec![0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY]))
            .prop_map(|(n, x)| vec![x; n]),
    ]
}

fn params_strategy() -> impl Strategy<Value = SamplingParams> {
    let tokens = prop::collection::vec(0u32..800, 0..5);
    let bias = prop::collection::vec((0u32..800, -20.0f32..20.0), 0..5);
    let filters = (
        prop::sample::select(vec![0.0f32, 0.3, 1.0, 1.7, 50.0]),
        prop::sample::select(vec![0u32, 1, 2, 20, 300, 5000]),
        prop::sample::select(vec![1.0f32, 0.95, 0.5, 0.1, 0.0]),
        prop::sample::select(vec![0.0f32, 0.05, 0.5, 1.0]),
    );
    let penalties = prop::sample::select(vec![(1.0f32, 0.0f32, 0.0f32), (1.3, 0.0, 0.0), (0.8, 0.7, -1.0)]);
    (filters, penalties, tokens, bias, any::<u64>(), 0u32..4).prop_map(
        |((temperature, top_k, top_p, min_p), penalties, stop_ids, logit_bias, seed, min_tokens)| {
            SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty: penalties.0,
                frequency_penalty: penalties.1,
                presence_penalty: penalties.2,
                logit_bias,
                seed,
                min_tokens,
                stop_ids,
                logprobs: None,
            }
        },
    )
}

fn history_strategy() -> impl Strategy<Value = History> {
    (prop::collection::vec(0u32..800, 0..20), prop::collection::vec(0u32..50, 0..20)).prop_map(
        |(prompt, output)| {
            let mut history = History::from_prompt(&prompt);
            output.into_iter().for_each(|token| history.push(token));
            history
        },
    )
}

fn sampled(logits: &[f32], params: &SamplingParams, position: u64) -> Sampled {
    let history = History::default();
    draw(&mut logits.to_vec(), &SampleRow { params, history: &history, position, forced: None })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn draws_what_sorting_everything_draws(
        logits in logits_strategy(),
        params in params_strategy(),
        history in history_strategy(),
        position in 0u64..10_000,
    ) {
        let row = SampleRow { params: &params, history: &history, position, forced: None };
        let got = draw(&mut logits.clone(), &row);
        prop_assert_eq!(got.token, naive(&logits, &params, &history, position));
    }

    #[test]
    fn asking_for_logprobs_changes_no_token(
        logits in logits_strategy(),
        params in params_strategy(),
        history in history_strategy(),
        k in 0u32..30,
    ) {
        let row = SampleRow { params: &params, history: &history, position: 3, forced: None };
        let plain = draw(&mut logits.clone(), &row);
        let asked = SamplingParams { logprobs: Some(k), ..params.clone() };
        let told = draw(&mut logits.clone(), &SampleRow { params: &asked, ..row });
        prop_assert_eq!(plain.token, told.token);
        prop_assert!(plain.logprob.is_none() && told.logprob.is_some());
    }

    #[test]
    fn reports_the_raw_distribution(
        logits in prop::collection::vec(-12.0f32..12.0, 1..2000),
        params in params_strategy(),
        history in history_strategy(),
        k in 0u32..30,
        forced in prop::option::of(0u32..500),
    ) {
        let params = SamplingParams { logprobs: Some(k), ..params };
        let forced = forced.map(|t| t % logits.len() as u32);
        let row = SampleRow { params: &params, history: &history, position: 3, forced };
        let got = draw(&mut logits.clone(), &row);
        prop_assert_eq!(forced.unwrap_or(got.token), got.token);
        let lse = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        let near = |token: u32, logprob: f32| {
            (f64::from(logits[token as usize]) - lse - f64::from(logprob)).abs() < 1e-5
        };
        prop_assert!(near(got.token, got.logprob.unwrap()));
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        prop_assert_eq!(order[got.rank as usize - 1], got.token);
        let best: Vec<u32> = order.into_iter().take(k as usize).collect();
        prop_assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), best);
        prop_assert!(got.top.iter().all(|&(token, logprob)| near(token, logprob)));
    }
}

/// Chi-square of many draws against the exact distribution of the kept tokens.
fn chi_square(params: SamplingParams, keep: impl Fn(&[(usize, f64)]) -> usize) {
    const DRAWS: u64 = 120_000;
    let mut rng = SplitMix::new(5);
    let logits: Vec<f32> = (0..150).map(|_| (rng.normal() * 1.5) as f32).collect();
    let mut order: Vec<(usize, f64)> = logits
        .iter()
        .enumerate()
        .map(|(i, &x)| (i, (f64::from(x) / f64::from(params.temperature)).exp()))
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let total: f64 = order.iter().map(|o| o.1).sum();
    order.iter_mut().for_each(|o| o.1 /= total);
    order.truncate(keep(&order));
    let total: f64 = order.iter().map(|o| o.1).sum();
    let mut counts = vec![0u32; logits.len()];
    for position in 0..DRAWS {
        counts[sampled(&logits, &params, position).token as usize] += 1;
    }
    let mut chi = 0.0;
    for (token, p) in &order {
        let expected = p / total * DRAWS as f64;
        chi += (f64::from(counts[*token]) - expected).powi(2) / expected;
        counts[*token] = 0;
    }
    assert!(counts.iter().all(|&c| c == 0), "drew a token that the filter removed");
    let freedom = (order.len() - 1) as f64;
    // Five standard deviations of the chi-square distribution: the seed is fixed, so this is a constant.
    assert!(chi < freedom + 5.0 * (2.0 * freedom).sqrt(), "chi² {chi} at {freedom} degrees of freedom");
}

fn prefix_of(order: &[(usize, f64)], p: f64) -> usize {
    let mut before = 0.0;
    let end = order.iter().position(|o| {
        let done = before >= p;
        before += o.1;
        done
    });
    end.unwrap_or(order.len())
}

#[test]
fn draws_follow_the_softmax() {
    chi_square(SamplingParams::default(), |order| order.len());
    chi_square(SamplingParams { temperature: 0.6, seed: 9, ..SamplingParams::default() }, |order| {
        order.len()
    });
}

#[test]
fn draws_follow_the_filtered_softmax() {
    chi_square(SamplingParams { top_k: 12, ..SamplingParams::default() }, |_| 12);
    chi_square(SamplingParams { top_p: 0.7, seed: 3, ..SamplingParams::default() }, |o| {
        prefix_of(o, f64::from(0.7f32))
    });
    chi_square(SamplingParams { min_p: 0.1, seed: 4, ..SamplingParams::default() }, |o| {
        o.iter().filter(|t| t.1 >= 0.1 * o[0].1).count()
    });
}

#[test]
fn a_draw_is_a_function_of_seed_and_position() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 * 0.02).collect();
    let params = |seed| SamplingParams { seed, ..SamplingParams::default() };
    let run = |seed| (0..64).map(|p| sampled(&logits, &params(seed), p).token).collect::<Vec<_>>();
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert!(run(1).windows(2).any(|w| w[0] != w[1]));
}

#[test]
fn min_tokens_keeps_stops_away_until_they_are_due() {
    let params =
        SamplingParams { temperature: 0.0, min_tokens: 2, stop_ids: vec![1], ..SamplingParams::default() };
    let mut history = History::from_prompt(&[7]);
    let mut tokens = Vec::new();
    for position in 1..4 {
        let row = SampleRow { params: &params, history: &history, position, forced: None };
        let token = draw(&mut [0.0, 9.0, 3.0], &row).token;
        history.push(token);
        tokens.push(token);
    }
    assert_eq!(tokens, [2, 2, 1]);
}

#[test]
fn penalties_act_on_prompt_and_output_as_documented() {
    let mut history = History::from_prompt(&[0, 1]);
    history.push(1);
    history.push(1);
    history.push(2);
    let params = SamplingParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        ..SamplingParams::default()
    };
    let mut logits = [4.0, 4.0, -4.0, 4.0];
    Edits::new(&mut logits).apply(&params, &history);
    assert_eq!(logits, [2.0, 2.0 - 1.0 - 0.25, -8.0 - 0.5 - 0.25, 4.0]);
}

#[test]
fn rows_of_nothing_give_token_zero() {
    for temperature in [0.0, 1.0] {
        let params = SamplingParams { temperature, logprobs: Some(2), ..SamplingParams::default() };
        for logits in [[f32::NAN; 5], [f32::NEG_INFINITY; 5]] {
            let got = sampled(&logits, &params, 1);
            assert_eq!((got.token, got.rank, got.top.len()), (0, 1, 0));
        }
    }
}

#[test]
fn forced_tokens_outside_the_vocabulary_are_impossible_not_fatal() {
    let (params, history) = (SamplingParams::default(), History::default());
    let row = SampleRow { params: &params, history: &history, position: 0, forced: Some(99) };
    let got = draw(&mut [1.0, 2.0], &row);
    assert_eq!((got.token, got.logprob, got.rank), (99, Some(f32::NEG_INFINITY), 3));
}
