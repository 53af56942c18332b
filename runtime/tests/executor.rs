//! The executor contract, held by a real (tiny) model on its own thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use base::{PageId, SeqId, StepId, SystemClock};
use kernels::{HostType, SamplingParams, WeightForm};
use quire_runtime::executor::threaded::ThreadedExecutor;
use quire_runtime::executor::{Executor, StepError, model as model_executor};
use quire_runtime::plan::{Draw, Input, Output, SeqStart, StepPlan, StepResult, Work};

use crate::tiny::{Bench, Case, argmax, cpu};

const CASE: &str = "qwen3-gqa";

struct Running {
    executor: ThreadedExecutor,
    results: Receiver<Result<StepResult, StepError>>,
}

fn start() -> Running {
    let loaded = Case::named(CASE).load(HostType::Bf16, WeightForm::Bf16, 16, cpu());
    let mut executor = model_executor::start(loaded, Arc::new(SystemClock::new())).unwrap();
    let (sink, results) = channel();
    executor.connect(Box::new(move |result| drop(sink.send(result))));
    Running { executor, results }
}

impl Running {
    fn submit(&mut self, id: u64, admit: Vec<SeqStart>, work: Vec<Work>) {
        self.executor.submit(StepPlan { id: StepId(id), retire: vec![], admit, moves: vec![], work });
    }
    fn result(&self) -> Result<StepResult, StepError> {
        self.results.recv().expect("every step answers")
    }
}

fn admitted(seq: u64, prompt: &[u32], prompt_logprobs: Option<u32>) -> SeqStart {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    SeqStart {
        seq: SeqId(seq),
        params: Arc::new(params),
        prompt: prompt.into(),
        prompt_logprobs,
        generated: vec![],
    }
}

/// Four pages of its own for each sequence.
fn work(seq: u64, start: usize, input: Input, output: Output) -> Work {
    let pages: Vec<PageId> = (0..4).map(|p| PageId(seq as u32 * 4 + p)).collect();
    Work { seq: SeqId(seq), start: start as u32, input, pages: pages.into(), output }
}

/// What greedy decoding gives, by running the whole sequence anew for each token.
fn greedy(prompt: &[u32], n: usize) -> Vec<u32> {
    let case = Case::named(CASE);
    let mut bench = Bench::new(case.load(HostType::Bf16, WeightForm::Bf16, 16, cpu()));
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        let last = bench.logits_at(&tokens, &[tokens.len() - 1]).remove(0);
        tokens.push(argmax(&last) as u32);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn a_step_may_be_queued_before_the_token_it_needs_is_drawn() {
    let prompt = Case::named(CASE).prompt()[..20].to_vec();
    let mut run = start();
    run.submit(
        1,
        vec![admitted(0, &prompt, None)],
        vec![work(0, 0, Input::Tokens(prompt.clone()), Output::Sample)],
    );
    run.submit(2, vec![], vec![work(0, 20, Input::Fed, Output::Sample)]);
    run.submit(3, vec![], vec![work(0, 21, Input::Fed, Output::Sample)]);
    let drawn: Vec<u32> =
        (0..3).map(|_| run.result().unwrap().rows[0].sampled.as_ref().unwrap().token).collect();
    assert_eq!(drawn, greedy(&prompt, 3));
}

#[test]
fn a_panic_fails_its_step_and_restart_brings_the_executor_back() {
    let prompt = Case::named(CASE).prompt()[..20].to_vec();
    let mut run = start();
    let mut bad = work(0, 0, Input::Tokens(prompt.clone()), Output::Sample);
    bad.pages = vec![PageId(0), PageId(u32::MAX)].into();
    run.submit(1, vec![admitted(0, &prompt, None)], vec![bad]);
    run.submit(2, vec![], vec![work(0, 20, Input::Fed, Output::Sample)]);
    let message = "page outside the pool".to_owned();
    assert_eq!(run.result().unwrap_err(), StepError::Panic { step: StepId(1), message });
    assert_eq!(run.result().unwrap_err(), StepError::Gone { step: StepId(2) });
    run.executor.restart().unwrap();
    run.submit(
        3,
        vec![admitted(0, &prompt, None)],
        vec![work(0, 0, Input::Tokens(prompt.clone()), Output::Sample)],
    );
    let token = run.result().unwrap().rows[0].sampled.as_ref().unwrap().token;
    assert_eq!(vec![token], greedy(&prompt, 1));
}

#[test]
fn a_preempted_sequence_goes_on_where_it_was() {
    let prompt = Case::named(CASE).prompt()[..20].to_vec();
    let want = greedy(&prompt, 4);
    let mut run = start();
    let mut again = admitted(0, &prompt, None);
    again.generated = want[..2].to_vec();
    let so_far: Vec<u32> = prompt.iter().chain(&want[..2]).copied().collect();
    run.submit(1, vec![again], vec![work(0, 0, Input::Tokens(so_far), Output::Sample)]);
    run.submit(2, vec![], vec![work(0, 22, Input::Fed, Output::Sample)]);
    let drawn: Vec<u32> =
        (0..2).map(|_| run.result().unwrap().rows[0].sampled.as_ref().unwrap().token).collect();
    assert_eq!(drawn, want[2..]);
}

#[test]
fn prompt_logprobs_do_not_depend_on_how_the_prompt_is_cut() {
    let case = Case::named(CASE);
    let prompt: Vec<u32> = case.prompt().into_iter().cycle().take(60).collect();
    let mut run = start();
    let whole = Output::Prompt { targets: prompt[1..].to_vec(), draw: Draw::Yes };
    let first = Output::Prompt { targets: prompt[1..26].to_vec(), draw: Draw::No };
    let second = Output::Prompt { targets: prompt[26..].to_vec(), draw: Draw::Yes };
    let admit = (0..2).map(|seq| admitted(seq, &prompt, Some(2))).collect();
    run.submit(
        1,
        admit,
        vec![
            work(0, 0, Input::Tokens(prompt.clone()), whole),
            work(1, 0, Input::Tokens(prompt[..25].to_vec()), first),
        ],
    );
    run.submit(2, vec![], vec![work(1, 25, Input::Tokens(prompt[25..].to_vec()), second)]);
    let (one, two) = (run.result().unwrap(), run.result().unwrap());
    let mut cut = one.rows[1].prompt.clone();
    cut.extend(two.rows[0].prompt.clone());
    assert_eq!(one.rows[0].prompt.len(), 59);
    assert_eq!(one.rows[0].prompt, cut);
    assert_eq!(one.rows[0].sampled, two.rows[0].sampled);
    assert!(cut.iter().all(|s| s.logprob.is_some() && s.top.len() == 2));
}
