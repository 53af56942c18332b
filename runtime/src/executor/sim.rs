//! An executor without a model: what it "computes" proves that the scheduler gave it the right pages.
//!
//! Each slot of its page pool holds a hash chained over every token up to that position, so the content
//! of one slot names the whole prefix it stands for. A draw is a function of that chain and the seed.
//! With [`Verify::On`] every step checks, for each sequence, that every page it is to read still holds
//! that sequence's own prefix: a page shared wrongly, reused too early or written by another fails the
//! step with the position. This is how scheduling is tested by the million steps, and how the API is
//! measured without the cost of a model.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use base::{CounterRng, ModelDigest, PageId, SeqId, StepId, TokenId};
use kernels::{Sampled, SamplingParams};
use kvcache::PageMove;

use transfer::{HostArena, OwnedRead, OwnedWrite};

use super::moves::{PageBytes, bytes_of, carry_out};
use super::threaded::StepModel;
use super::{ExecutorShape, Restores};
use crate::plan::{Draw, Input, Moved, Output, RowResult, SeqStart, StepPlan, StepResult, Work};

/// Whether every step checks the pages it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    On,
    Off,
}

#[derive(Clone, Debug)]
pub struct SimConfig {
    pub shape: ExecutorShape,
    pub verify: Verify,
    /// Tokens it may draw.
    pub draws: Range<TokenId>,
    /// Steps that panic, to test recovery.
    pub faults: Vec<StepId>,
    /// Steps after which a restore arrives if no work needs it before, under [`Restores::Beside`].
    pub landing_steps: u64,
}

impl SimConfig {
    /// A pool of `pages` pages of `page_tokens`, over a vocabulary of `vocab`.
    pub fn new(pages: u32, page_tokens: u32, vocab: u32) -> Self {
        let shape = ExecutorShape {
            pages,
            page_tokens,
            step_tokens_max: 8192,
            step_seqs_max: 1024,
            vocab,
            positions_max: 32_768,
            model: ModelDigest([0x51; 32]),
            layout: [page_tokens as u8; 32],
            page_bytes: page_tokens as usize * size_of::<u64>(),
            restores: Restores::First,
        };
        Self { shape, verify: Verify::On, draws: 0..vocab, faults: Vec::new(), landing_steps: 3 }
    }
}

/// The state behind the simulated device.
pub struct SimModel {
    config: SimConfig,
    slots: Vec<u64>,
    seqs: HashMap<SeqId, SimSeq>,
    host: Option<Arc<HostArena>>,
    /// Restores on their way, under [`Restores::Beside`]; oldest first.
    landing: VecDeque<Landing>,
    /// Times that work needed a page which was still on its way.
    pub waits: usize,
}

struct Landing {
    step: StepId,
    page: PageId,
    frame: OwnedRead,
}

struct SimSeq {
    params: Arc<SamplingParams>,
    prompt_logprobs: Option<u32>,
    /// Chain value expected at each position so far.
    chain: Vec<u64>,
    drawn: TokenId,
}

impl SimModel {
    pub fn new(config: SimConfig) -> Self {
        let slots = vec![0; (config.shape.pages * config.shape.page_tokens) as usize];
        Self { config, slots, seqs: HashMap::new(), host: None, landing: VecDeque::new(), waits: 0 }
    }

    /// The token that `params` draws after `tokens`; what a test expects.
    pub fn expected(config: &SimConfig, params: &SamplingParams, tokens: &[TokenId]) -> TokenId {
        let last = tokens.iter().fold(0, |chain, &token| link(chain, token));
        draw(&config.draws, params, last, tokens.len() as u64)
    }

    fn admit(&mut self, start: &SeqStart) {
        let history = start.prompt.iter().chain(&start.generated);
        let chain = history.scan(0, |chain, &token| {
            *chain = link(*chain, token);
            Some(*chain)
        });
        let seq = SimSeq {
            params: Arc::clone(&start.params),
            prompt_logprobs: start.prompt_logprobs,
            chain: chain.collect(),
            drawn: 0,
        };
        self.seqs.insert(start.seq, seq);
    }

    /// Restores arrive in order, up to the last that `is_needed`.
    fn land(&mut self, is_needed: impl Fn(&Landing) -> bool) {
        let Some(last) = self.landing.iter().rposition(is_needed) else { return };
        let page_tokens = self.config.shape.page_tokens as usize;
        for Landing { page, frame, .. } in self.landing.drain(..=last) {
            Pool { slots: &mut self.slots, page_tokens }.put(page, &frame);
        }
    }

    /// Those that `moves` and work of this plan would otherwise overtake.
    fn land_before(&mut self, plan: &StepPlan) {
        let touched: HashSet<PageId> = (plan.moves.iter().filter_map(|of| match of {
            PageMove::Save { page, .. } | PageMove::Scrub { page } => Some(*page),
            PageMove::Restore { .. } => None,
        }))
        .collect();
        self.land(|landing| touched.contains(&landing.page));
    }

    fn work(&mut self, work: &Work) -> RowResult {
        let before = self.landing.len();
        self.land(|landing| work.pages.contains(&landing.page));
        self.waits += usize::from(self.landing.len() < before);
        let seq = self.seqs.get_mut(&work.seq).expect("work for a sequence that was not admitted");
        let pool = Pool { slots: &mut self.slots, page_tokens: self.config.shape.page_tokens as usize };
        if self.config.verify == Verify::On {
            pool.verify(&work.pages, &seq.chain[..work.start as usize]);
        }
        let last = seq.advance(work, pool);
        let end = work.start as u64 + work.input.len() as u64;
        let (draws, targets): (bool, &[TokenId]) = match &work.output {
            Output::None => (false, &[]),
            Output::Sample => (true, &[]),
            Output::Prompt { targets, draw } => (*draw == Draw::Yes, targets),
        };
        let sampled = draws.then(|| {
            seq.drawn = draw(&self.config.draws, &seq.params, last, end);
            scored(seq.drawn, seq.params.logprobs)
        });
        let prompt = targets.iter().map(|&token| scored(token, seq.prompt_logprobs)).collect();
        RowResult { seq: work.seq, sampled, prompt }
    }
}

impl StepModel for SimModel {
    fn shape(&self) -> ExecutorShape {
        self.config.shape.clone()
    }

    fn forward(&mut self, plan: &StepPlan) -> StepResult {
        assert!(!self.config.faults.contains(&plan.id), "injected fault");
        for seq in &plan.retire {
            self.seqs.remove(seq);
        }
        for start in &plan.admit {
            self.admit(start);
        }
        let rows = plan.work.iter().map(|work| self.work(work)).collect();
        StepResult { id: plan.id, rows, ..StepResult::default() }
    }

    fn attach_host(&mut self, host: Arc<HostArena>) {
        self.host = Some(host);
    }

    fn move_pages(&mut self, plan: &StepPlan) -> Moved {
        self.land_before(plan);
        let (bytes, page_tokens) = (self.config.shape.page_bytes, self.config.shape.page_tokens as usize);
        let late = match self.config.shape.restores {
            Restores::First => None,
            Restores::Beside => Some((plan.id, &mut self.landing)),
        };
        let mut pool = Moving { pool: Pool { slots: &mut self.slots, page_tokens }, late };
        let moved = carry_out(&plan.moves, &mut pool, self.host.as_ref());
        Moved { bytes: bytes_of(&plan.moves, bytes), ..moved }
    }

    fn settle_moves(&mut self, plan: &StepPlan, moved: &mut Moved) {
        let arrived = plan.id.0.saturating_sub(self.config.landing_steps);
        self.land(|landing| plan.work.is_empty() || landing.step.0 <= arrived);
        moved.landing = self.landing.front().map(|landing| landing.step);
    }

    fn reset(&mut self) {
        self.landing.clear();
        self.seqs.clear();
        self.slots.fill(0);
    }
}

impl SimSeq {
    /// Writes the work's positions; answers with the chain at the last one.
    fn advance(&mut self, work: &Work, mut pool: Pool<'_>) -> u64 {
        let fed = [self.drawn];
        let tokens: &[TokenId] = match &work.input {
            Input::Tokens(tokens) => tokens,
            Input::Fed => &fed,
        };
        self.chain.truncate(work.start as usize);
        for &token in tokens {
            let position = self.chain.len();
            // Read the past from the page, not from our own notes: a wrong page changes the draw.
            let past = position.checked_sub(1).map_or(0, |p| *pool.slot(&work.pages, p));
            let value = link(past, token);
            *pool.slot(&work.pages, position) = value;
            self.chain.push(value);
        }
        self.chain[self.chain.len() - 1]
    }
}

struct Pool<'a> {
    slots: &'a mut [u64],
    page_tokens: usize,
}

/// The pool while a plan's moves are carried out.
struct Moving<'a> {
    pool: Pool<'a>,
    /// Where restores wait, if they do.
    late: Option<(StepId, &'a mut VecDeque<Landing>)>,
}

impl PageBytes for Moving<'_> {
    fn save(&mut self, page: PageId, mut frame: OwnedWrite) {
        let bytes = bytemuck::cast_slice(&self.pool.slots[self.pool.range(page)]);
        frame[..bytes.len()].copy_from_slice(bytes);
    }
    fn restore(&mut self, page: PageId, frame: OwnedRead) {
        match &mut self.late {
            Some((step, landing)) => landing.push_back(Landing { step: *step, page, frame }),
            None => self.pool.put(page, &frame),
        }
    }
    fn scrub(&mut self, pages: &[PageId]) -> Vec<PageId> {
        for &page in pages {
            let range = self.pool.range(page);
            self.pool.slots[range].fill(0);
        }
        let is_dirty = |page: &PageId| self.pool.slots[self.pool.range(*page)].iter().any(|&slot| slot != 0);
        pages.iter().copied().filter(is_dirty).collect()
    }
}

impl Pool<'_> {
    fn put(&mut self, page: PageId, frame: &[u8]) {
        let range = self.range(page);
        let slots: &mut [u64] = &mut self.slots[range];
        let bytes = size_of_val(slots);
        slots.copy_from_slice(bytemuck::cast_slice(&frame[..bytes]));
    }

    fn range(&self, page: PageId) -> Range<usize> {
        let start = page.0 as usize * self.page_tokens;
        start..start + self.page_tokens
    }

    fn slot(&mut self, pages: &[PageId], position: usize) -> &mut u64 {
        let page = pages[position / self.page_tokens].0 as usize;
        &mut self.slots[page * self.page_tokens + position % self.page_tokens]
    }

    /// The last slot of every page, and the last one before the new tokens, hold this sequence's chain.
    fn verify(&self, pages: &[PageId], chain: &[u64]) {
        for (page, held) in pages.iter().zip(chain.chunks(self.page_tokens)) {
            let slot = page.0 as usize * self.page_tokens + held.len() - 1;
            assert_eq!(Some(&self.slots[slot]), held.last(), "page {page} holds another prefix");
        }
    }
}

fn link(chain: u64, token: TokenId) -> u64 {
    let mixed = (chain ^ u64::from(token)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let folded = u128::from(mixed) * 0xD6E8_FEB8_6659_FD93_u128;
    (folded as u64) ^ ((folded >> 64) as u64)
}

fn draw(draws: &Range<TokenId>, params: &SamplingParams, chain: u64, position: u64) -> TokenId {
    let seed = if params.temperature == 0.0 { 0 } else { params.seed };
    let [word, ..] = CounterRng::new(seed ^ chain).words(position, 0);
    let span = u64::from(draws.end - draws.start);
    draws.start + ((u64::from(word) * span) >> 32) as TokenId
}

fn scored(token: TokenId, wanted: Option<u32>) -> Sampled {
    let Some(k) = wanted else { return Sampled { token, ..Sampled::default() } };
    let top = (0..k).map(|i| (token + i, -0.5 - i as f32)).collect();
    Sampled { token, logprob: Some(-0.5), rank: 1, top }
}
