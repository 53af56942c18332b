//! Runs a model on any backend: what a plan means in the terms of kernels, and what is remembered of each sequence.
//!
//! The thread around it, the queue of steps and the fence against panics are [`ThreadedExecutor`]'s. A
//! panic here (a malformed plan, a bug) leaves nothing behind that matters: each step overwrites every
//! buffer that it reads, and [`StepModel::reset`] forgets the sequences.

use std::collections::HashMap;
use std::sync::Arc;

use base::{Clock, PageId, SeqId, StepId, TokenId};
use kernels::{Backend, Batch, History, SampleRow, Sampled, SamplingParams, SeqSpan};

use transfer::{HostArena, OwnedRead, OwnedWrite};

use super::moves::{PageBytes, bytes_of, carry_out};
use super::threaded::{StepModel, ThreadedExecutor};
use super::traffic::{Held, Traffic};
use super::{ExecutorShape, Restores};
use crate::model::{Loaded, ModelError};
use crate::plan::{Draw, Input, Moved, Output, RowResult, SeqStart, StepPlan, StepResult, Work};

/// Steps that may be in flight: one runs, one waits.
const DEPTH: usize = 2;

/// Starts a thread that runs `loaded`; `loaded.memory` says beforehand what it holds.
pub fn start(loaded: Loaded, clock: Arc<dyn Clock>) -> Result<ThreadedExecutor, ModelError> {
    ThreadedExecutor::start("executor", LoadedModel::new(loaded), DEPTH, clock).map_err(ModelError::Thread)
}

/// A loaded model and the sequences it runs.
pub struct LoadedModel {
    loaded: Loaded,
    /// Bounded by the plans: a sequence leaves when a plan retires it.
    sequences: HashMap<SeqId, Sequence>,
    host: Option<Arc<HostArena>>,
    traffic: Traffic,
}

impl LoadedModel {
    pub fn new(loaded: Loaded) -> Self {
        Self { loaded, sequences: HashMap::new(), host: None, traffic: Traffic::default() }
    }

    fn admit(&mut self, start: &SeqStart) {
        let mut history = History::from_prompt(&start.prompt);
        start.generated.iter().for_each(|&token| history.push(token));
        let prompt_params = SamplingParams { logprobs: start.prompt_logprobs, ..SamplingParams::default() };
        let last = start.generated.last().copied();
        let params = Arc::clone(&start.params);
        self.sequences.insert(start.seq, Sequence { params, prompt_params, history, last });
    }

    /// Panics with the reason if the plan exceeds what was planned for at load.
    fn check(&self, flat: &Flat) {
        let (rows, max) = (flat.tokens.len(), self.loaded.model.rows_max());
        assert!(rows <= max, "the step has {rows} tokens, the buffers hold {max}");
        let positions = self.loaded.model.positions;
        let end = flat.spans.iter().map(|s| (s.start + s.rows) as usize).max().unwrap_or(0);
        assert!(end <= positions, "the step reaches position {end}, the model serves {positions}");
        let (kv, vocab) = (&self.loaded.kv, self.loaded.model.description.vocab);
        flat.batch().check(kv.page_tokens, kv.pages, vocab);
    }

    /// Runs the flattened work; what was drawn, one for each wanted row.
    fn compute(&mut self, work: &[Work], flat: &Flat) -> Vec<Sampled> {
        let sequences = &self.sequences;
        let wanted: Vec<u32> = flat.wanted.iter().map(|w| w.row).collect();
        let mut drawn = Vec::with_capacity(wanted.len());
        let Loaded { model, backend, .. } = &mut self.loaded;
        model.step(&mut **backend, &flat.batch(), &wanted, &mut |backend, logits, slice| {
            let rows: Vec<SampleRow<'_>> =
                flat.wanted[slice].iter().map(|w| w.sample_row(work, sequences)).collect();
            drawn.extend(backend.sample(logits, &rows));
        });
        drawn
    }

    /// Sorts what was drawn by work item and remembers new tokens.
    fn collect(&mut self, work: &[Work], flat: &Flat, drawn: Vec<Sampled>) -> Vec<RowResult> {
        let empty = |w: &Work| RowResult { seq: w.seq, ..RowResult::default() };
        let mut results: Vec<RowResult> = work.iter().map(empty).collect();
        for (wanted, sampled) in flat.wanted.iter().zip(drawn) {
            let result = &mut results[wanted.work];
            if wanted.forced.is_some() {
                result.prompt.push(sampled);
                continue;
            }
            let sequence = self.sequences.get_mut(&result.seq).expect("checked when flattened");
            sequence.last = Some(sampled.token);
            sequence.history.push(sampled.token);
            result.sampled = Some(sampled);
        }
        results
    }
}

impl StepModel for LoadedModel {
    fn shape(&self) -> ExecutorShape {
        let Loaded { model, kv, options, digest, layout, backend, .. } = &self.loaded;
        ExecutorShape {
            pages: kv.pages as u32,
            page_tokens: kv.page_tokens as u32,
            step_tokens_max: model.rows_max() as u32,
            step_seqs_max: options.step_seqs,
            vocab: model.description.vocab as u32,
            positions_max: model.positions as u32,
            model: *digest,
            layout: *layout,
            page_bytes: kv.page_bytes(),
            restores: if backend.copies_beside() { Restores::Beside } else { Restores::First },
        }
    }

    fn forward(&mut self, plan: &StepPlan) -> StepResult {
        for seq in &plan.retire {
            self.sequences.remove(seq);
        }
        plan.admit.iter().for_each(|start| self.admit(start));
        let mut result = StepResult { id: plan.id, ..StepResult::default() };
        if plan.work.is_empty() {
            return result;
        }
        let flat = Flat::of(&plan.work, &self.sequences);
        self.check(&flat);
        let drawn = self.compute(&plan.work, &flat);
        result.rows = self.collect(&plan.work, &flat, drawn);
        result
    }

    fn attach_host(&mut self, host: Arc<HostArena>) {
        let (start, bytes) = host.range();
        if !self.loaded.backend.pin_host(start, bytes) {
            tracing::warn!(
                bytes,
                "the device does not reach the host tier directly: pages are copied more slowly"
            );
        }
        self.host = Some(host);
    }

    fn move_pages(&mut self, plan: &StepPlan) -> Moved {
        let page_bytes = self.loaded.kv.page_bytes();
        let Self { loaded, traffic, host, .. } = self;
        let backend = &mut *loaded.backend;
        let is_beside = backend.copies_beside();
        let mut pages = Pool { backend, traffic, step: plan.id, page_bytes };
        let mut moved = carry_out(&plan.moves, &mut pages, host.as_ref());
        traffic.end_batch(backend, plan.id);
        if !is_beside {
            moved.bytes = bytes_of(&plan.moves, page_bytes);
        }
        moved
    }

    fn settle_moves(&mut self, plan: &StepPlan, moved: &mut Moved) {
        let Self { loaded, traffic, .. } = self;
        let backend = &mut *loaded.backend;
        match plan.work.is_empty() {
            // Nothing runs that the wait would hold up.
            true => traffic.settle_all(backend),
            false => traffic.settle_saves(backend),
        }
        moved.landing = traffic.landing();
        let copied = backend.take_copied();
        moved.bytes += copied.bytes;
        moved.took_ns += copied.took_ns;
    }

    fn check_device(&self) -> Result<(), String> {
        self.loaded.backend.check_device().map_err(|lost| lost.to_string())
    }

    fn reset(&mut self) {
        // What a step began that failed halfway is waited for like everything else.
        self.traffic.end_batch(&mut *self.loaded.backend, StepId(0));
        self.traffic.settle_all(&mut *self.loaded.backend);
        self.sequences.clear();
        let pages: Vec<u32> = (0..self.loaded.kv.pages as u32).collect();
        self.loaded.backend.page_zero(&pages);
    }
}

/// The backend's page pool, and the frames that its copies hold.
struct Pool<'a> {
    backend: &'a mut dyn Backend,
    traffic: &'a mut Traffic,
    step: StepId,
    page_bytes: usize,
}

impl PageBytes for Pool<'_> {
    fn save(&mut self, page: PageId, mut frame: OwnedWrite) {
        self.backend.page_save(page.0, &mut frame[..self.page_bytes]);
        self.traffic.hold(Held::Write(frame));
    }
    fn restore(&mut self, page: PageId, frame: OwnedRead) {
        if self.traffic.is_saving() {
            self.traffic.end_batch(self.backend, self.step);
        }
        self.backend.page_restore(page.0, &frame[..self.page_bytes]);
        self.traffic.hold(Held::Read(frame));
    }
    fn scrub(&mut self, pages: &[PageId]) -> Vec<PageId> {
        // Saves come before scrubs and are a batch of their own: the step's answer waits for them alone.
        self.traffic.end_batch(self.backend, self.step);
        let numbers: Vec<u32> = pages.iter().map(|page| page.0).collect();
        self.backend.page_zero(&numbers);
        self.backend.page_unclean(&numbers).into_iter().map(PageId).collect()
    }
}

/// What a step needs to know of a sequence.
struct Sequence {
    params: Arc<SamplingParams>,
    /// Only says how many alternatives a prompt token's report lists.
    prompt_params: SamplingParams,
    history: History,
    /// What it drew last, for [`Input::Fed`].
    last: Option<TokenId>,
}

/// One row whose logits are wanted.
struct Wanted {
    row: u32,
    work: usize,
    /// Position of the token that follows.
    position: u64,
    forced: Option<TokenId>,
}

impl Wanted {
    fn sample_row<'a>(&self, work: &[Work], sequences: &'a HashMap<SeqId, Sequence>) -> SampleRow<'a> {
        let sequence = &sequences[&work[self.work].seq];
        SampleRow {
            params: if self.forced.is_some() { &sequence.prompt_params } else { &sequence.params },
            history: &sequence.history,
            position: self.position,
            forced: self.forced,
        }
    }
}

/// A plan's work in the terms of kernels.
#[derive(Default)]
struct Flat {
    tokens: Vec<u32>,
    spans: Vec<SeqSpan>,
    page_table: Vec<u32>,
    /// Ascending by row.
    wanted: Vec<Wanted>,
}

impl Flat {
    fn of(work: &[Work], sequences: &HashMap<SeqId, Sequence>) -> Self {
        let mut flat = Flat::default();
        for (i, w) in work.iter().enumerate() {
            let Some(sequence) = sequences.get(&w.seq) else {
                panic!("sequence {} has work but was not admitted", w.seq);
            };
            flat.add(i, w, sequence);
        }
        flat
    }

    fn add(&mut self, i: usize, w: &Work, sequence: &Sequence) {
        let row = self.tokens.len() as u32;
        match &w.input {
            Input::Tokens(tokens) => self.tokens.extend(tokens),
            Input::Fed => match sequence.last {
                Some(token) => self.tokens.push(token),
                None => panic!("sequence {} is fed its last token but has drawn none", w.seq),
            },
        }
        let rows = self.tokens.len() as u32 - row;
        let table = self.page_table.len() as u32;
        self.page_table.extend(w.pages.iter().map(|p| p.0));
        self.spans.push(SeqSpan { row, rows, start: w.start, table });
        let mut want = |r: u32, forced| {
            let position = u64::from(w.start) + u64::from(r) + 1;
            self.wanted.push(Wanted { row: row + r, work: i, position, forced });
        };
        match &w.output {
            Output::None => {}
            Output::Sample => want(rows - 1, None),
            Output::Prompt { targets, draw } => {
                let free = usize::from(*draw == Draw::Yes);
                assert!(targets.len() + free <= rows as usize, "more targets than rows to hold them");
                targets.iter().enumerate().for_each(|(r, &t)| want(r as u32, Some(t)));
                if *draw == Draw::Yes {
                    want(rows - 1, None);
                }
            }
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch { tokens: &self.tokens, spans: &self.spans, page_table: &self.page_table }
    }
}
