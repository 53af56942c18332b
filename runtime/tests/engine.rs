//! Hit ≡ miss through the whole engine, bit for bit: scheduler, cache, executor and kernels together.
//!
//! The yardstick is each request alone in a fresh engine whose cache is off. A crowd on a small pool
//! (shared prefixes, chunks, batch mates, preemption and resume, cancels) must give its tokens and the
//! bits of its logprobs.

use std::sync::Arc;

use base::{Priority, StepId, SystemClock, TokenId};
use kernels::{HostType, SamplingParams, WeightForm};
use proptest::prelude::*;
use quire_runtime::engine::{Engine, Running};
use quire_runtime::executor::threaded::ThreadedExecutor;
use quire_runtime::executor::{model as model_executor, sim};
use quire_runtime::model::{KvChoice, LoadOptions, PoolSize, WeightChoice, load_from};
use quire_runtime::request::{Event, Finish, Refusal, Request, Tenant};
use quire_runtime::scheduler::{PrefixCache, SchedulerConfig};
use quire_runtime::stats::EngineStats;

use crate::tiny::{Case, cpu};

/// What a client got, with logprobs as bits.
#[derive(Clone, Debug, Default, PartialEq)]
struct Heard {
    tokens: Vec<TokenId>,
    logprobs: Vec<u32>,
    alternatives: Vec<(TokenId, u32)>,
    end: Option<Result<Finish, Refusal>>,
    cached: u32,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    case: &'static str,
    form: WeightForm,
    page_tokens: u32,
}

/// A running engine; stopped when dropped.
struct Replica(Engine);

impl Drop for Replica {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn replica(shape: Shape, pages: u32, config: SchedulerConfig) -> Replica {
    let case = Case::named(shape.case);
    // A pool must hold the longest sequence served.
    let positions = (pages * shape.page_tokens).min(case.describe().positions_max as u32);
    let options = LoadOptions {
        weights: WeightChoice::As(shape.form),
        kv: KvChoice::Auto,
        positions_max: Some(positions),
        page_tokens: shape.page_tokens,
        pool: PoolSize::Pages(pages),
        step_tokens: 512,
        ..LoadOptions::default()
    };
    let source = case.source(HostType::Bf16);
    let loaded = load_from(&source, case.describe(), &options, cpu(), &mut |_, _| {}).expect("a tiny model");
    let clock = Arc::new(SystemClock::new());
    let executor = model_executor::start(loaded, clock.clone()).expect("an executor");
    Replica(Engine::start(Box::new(executor), config, clock).expect("an engine").0)
}

fn params(temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams { temperature, seed, logprobs: Some(3), ..SamplingParams::default() }
}

fn submit(engine: &Engine, prompt: &[TokenId], max_tokens: u32, params: SamplingParams) -> Running {
    engine.submit(request(engine, prompt, max_tokens, params)).expect("a valid request")
}

fn request(engine: &Engine, prompt: &[TokenId], max_tokens: u32, params: SamplingParams) -> Request {
    Request {
        id: engine.next_id(),
        tenant: Tenant::default(),
        prompt: prompt.into(),
        params: Arc::new(params),
        max_tokens,
        prompt_logprobs: None,
        priority: Priority(0),
        deadline: None,
    }
}

async fn listen(mut running: Running) -> Heard {
    let mut heard = Heard::default();
    while let Some(event) = running.next().await {
        match event {
            Event::Started { cached_tokens, .. } => heard.cached = cached_tokens,
            Event::Prompt(_) => {}
            Event::Token(drawn) => {
                heard.tokens.push(drawn.token);
                heard.logprobs.push(drawn.logprob.expect("asked for").to_bits());
                heard.alternatives.extend(drawn.top.iter().map(|(t, p)| (*t, p.to_bits())));
            }
            Event::Finished(finish) => heard.end = Some(Ok(finish)),
            Event::Failed(refusal) => heard.end = Some(Err(refusal)),
        }
    }
    heard
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
}

/// One request of a crowd.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<TokenId>,
    max_tokens: u32,
    temperature: f32,
    seed: u64,
}

/// Each request alone, nothing cached: what everything else is held against.
fn alone(shape: Shape, asks: &[Ask]) -> Vec<Heard> {
    let config = SchedulerConfig { prefix_cache: PrefixCache::Off, ..SchedulerConfig::default() };
    let replica = replica(shape, 128, config);
    let run = |ask: &Ask| {
        let running = submit(&replica.0, &ask.prompt, ask.max_tokens, params(ask.temperature, ask.seed));
        wait(listen(running))
    };
    asks.iter().map(run).collect()
}

fn crowd(replica: &Replica, asks: &[Ask]) -> Vec<Heard> {
    let running: Vec<Running> = asks
        .iter()
        .map(|a| submit(&replica.0, &a.prompt, a.max_tokens, params(a.temperature, a.seed)))
        .collect();
    wait(async {
        let mut heard = Vec::new();
        for one in running {
            heard.push(listen(one).await);
        }
        heard
    })
}

fn assert_same(got: &[Heard], expected: &[Heard]) {
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(Heard { cached: 0, ..got.clone() }, Heard { cached: 0, ..expected.clone() });
    }
}

fn prompt(family: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|i| (family * 31 + i * 7 + i / 11) % 128).collect()
}

fn counter(replica: &Replica, of: impl Fn(&EngineStats) -> &std::sync::atomic::AtomicU64) -> u64 {
    EngineStats::get(of(replica.0.stats()))
}

const FORMS: [WeightForm; 3] = [WeightForm::Bf16, WeightForm::Q8, WeightForm::Q4];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_crowd_gets_the_bits_that_each_would_get_alone(
        case in prop::sample::select(vec!["llama-gqa-tied", "qwen3-gqa", "mistral-window"]),
        form in prop::sample::select(FORMS.to_vec()),
        page_tokens in prop::sample::select(vec![16u32, 32, 64]),
        chunk_tokens in prop_oneof![1u32..24, 24u32..300],
        asks in prop::collection::vec((0u32..2, 1usize..90, 1u32..24, 0u32..2, 0u64..3), 2..8),
    ) {
        let shape = Shape { case, form, page_tokens };
        let ask = |(family, len, max_tokens, hot, seed): (u32, usize, u32, u32, u64)| Ask {
            prompt: prompt(family, len),
            max_tokens,
            temperature: hot as f32,
            seed,
        };
        let asks: Vec<Ask> = asks.into_iter().map(ask).collect();
        let expected = alone(shape, &asks);
        // Room for about two of them: the others wait, preempt and come back.
        let replica = replica(shape, 256 / page_tokens, SchedulerConfig { chunk_tokens, ..SchedulerConfig::default() });
        for _ in 0..2 {
            assert_same(&crowd(&replica, &asks), &expected);
        }
    }
}

#[test]
fn preempted_requests_come_back_to_the_same_bits() {
    for form in FORMS {
        let shape = Shape { case: "qwen3-gqa", form, page_tokens: 16 };
        let ask =
            |i: u32| Ask { prompt: prompt(i, 20), max_tokens: 60, temperature: 1.0, seed: u64::from(i) };
        let asks: Vec<Ask> = (0..4).map(ask).collect();
        let small = replica(shape, 12, SchedulerConfig::default());
        assert_same(&crowd(&small, &asks), &alone(shape, &asks));
        assert!(counter(&small, |s| &s.preemptions) > 0, "the pool is too small not to preempt");
    }
}

#[test]
fn known_triggers_prompt_of_a_page_and_full_prompt_hit() {
    for page_tokens in [16u32, 32, 64] {
        for len in [page_tokens as usize - 1, page_tokens as usize, page_tokens as usize + 1, 192] {
            let shape = Shape { case: "qwen3-gqa", form: WeightForm::Bf16, page_tokens };
            let asks = [Ask { prompt: prompt(1, len), max_tokens: 6, temperature: 0.0, seed: 0 }];
            let expected = alone(shape, &asks);
            let replica = replica(shape, 64, SchedulerConfig::default());
            for turn in 0..3 {
                let heard = crowd(&replica, &asks);
                assert_same(&heard, &expected);
                let reusable = (len as u32 - 1) / page_tokens * page_tokens;
                assert_eq!(heard[0].cached, if turn == 0 { 0 } else { reusable });
            }
        }
    }
}

#[test]
fn thirty_two_way_fan_out_on_a_cold_prefix_computes_it_once() {
    let shape = Shape { case: "qwen3-gqa", form: WeightForm::Bf16, page_tokens: 16 };
    let asks: Vec<Ask> =
        (0..32).map(|i| Ask { prompt: prompt(1, 161), max_tokens: 4, temperature: 1.0, seed: i }).collect();
    let replica = replica(shape, 256, SchedulerConfig::default());
    let heard = crowd(&replica, &asks);
    assert_eq!(counter(&replica, |s| &s.computed_tokens), 161 + 31);
    assert_same(&heard, &alone(shape, &asks));
}

#[test]
fn cancels_with_a_shared_prefix_leave_the_others_bits_alone() {
    let shape = Shape { case: "llama-gqa-tied", form: WeightForm::Q8, page_tokens: 16 };
    let asks: Vec<Ask> =
        (0..6).map(|i| Ask { prompt: prompt(1, 70), max_tokens: 20, temperature: 1.0, seed: i }).collect();
    let expected = alone(shape, &asks);
    let config = SchedulerConfig { chunk_tokens: 8, ..SchedulerConfig::default() };
    for cancel_after in 0..8 {
        let replica = replica(shape, 64, config.clone());
        let mut running: Vec<Running> =
            asks.iter().map(|a| submit(&replica.0, &a.prompt, a.max_tokens, params(1.0, a.seed))).collect();
        let rest = running.split_off(1);
        let heard = wait(async {
            for _ in 0..cancel_after {
                running[0].next().await;
            }
            running.clear();
            let mut heard = Vec::new();
            for one in rest {
                heard.push(listen(one).await);
            }
            heard
        });
        assert_same(&heard, &expected[1..]);
    }
}

#[test]
fn a_panic_in_a_step_fails_its_requests_and_the_engine_serves_on() {
    let mut config = sim::SimConfig::new(64, 16, 100);
    config.faults = vec![StepId(3)];
    let clock = Arc::new(SystemClock::new());
    let executor =
        ThreadedExecutor::start("sim", sim::SimModel::new(config), 1, clock.clone()).expect("a thread");
    let replica =
        Replica(Engine::start(Box::new(executor), SchedulerConfig::default(), clock).expect("an engine").0);
    let hot = || SamplingParams { logprobs: Some(0), ..SamplingParams::default() };
    let first = wait(listen(submit(&replica.0, &[1, 2, 3], 10, hot())));
    let Some(Err(Refusal::Engine(why))) = first.end else { panic!("not failed: {first:?}") };
    assert_eq!(why, "step 3 panicked: injected fault");
    assert_eq!(first.tokens.len(), 2, "what was drawn before the fault was delivered");
    // Readiness comes back with the executor.
    let second = loop {
        match replica.0.submit(request(&replica.0, &[1, 2, 3], 5, hot())) {
            Ok(running) => break wait(listen(running)),
            Err(Refusal::Engine(_)) => std::thread::yield_now(),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(second.end, Some(Ok(Finish::Length)));
    assert_eq!(counter(&replica, |s| &s.executor_restarts), 1);
}
