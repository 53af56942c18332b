//! A fleet of ideal replicas in a page: each prefills its queue in order and decodes the rest at its own pace. No
//! engine, so that what shows is the decision: who gets what, when one prompt is everybody's.

use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;

use base::{Nanos, SplitMix};

use super::*;
use crate::Held;
use crate::book::{Book, BookLimits, Reservation, Ticket};
use crate::fleet::{Fleet, Rates, Seating};

const REPLICAS: usize = 8;
const SYSTEM_TOKENS: u32 = 4096;
const USER_TOKENS: u32 = 256;
const BLOCK_TOKENS: u32 = 16;

/// What happens next: a prefill or an answer ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    Prefill,
    Answer,
}

#[derive(Debug, Default)]
struct Outcome {
    token_work: [u64; REPLICAS],
    requests: u64,
    reused_prefix_tokens: u64,
    /// The longest that one replica had no prefill while another had a second one waiting.
    idle_ms_max: f64,
}

struct Fluid {
    fleet: Fleet,
    book: Book,
    heat: Heat,
    warm: HashSet<Seat>,
    /// Until when each replica's prefills take.
    busy_until: [Nanos; REPLICAS],
    ends: BinaryHeap<std::cmp::Reverse<(Nanos, End, u64, u16)>>,
    out: Outcome,
}

/// The system prompt's blocks, then the request's own.
fn names(turn: u64) -> Vec<u64> {
    let own = (turn + 1) << 32;
    (0..u64::from(SYSTEM_TOKENS / BLOCK_TOKENS))
        .chain(own..own + u64::from(USER_TOKENS / BLOCK_TOKENS))
        .collect()
}

fn after(now: Nanos, ms: f64) -> Nanos {
    now.plus(Duration::from_secs_f64(ms / 1e3))
}

impl Fluid {
    fn new() -> Self {
        let mut fleet = Fleet::default();
        for _ in 0..REPLICAS {
            let seat = fleet.join(Seating::default(), Nanos(0)).unwrap();
            fleet.alive(seat, Nanos(0));
        }
        let book = Book::new(BookLimits::default());
        let (warm, busy_until, ends) = (HashSet::new(), [Nanos(0); REPLICAS], BinaryHeap::new());
        Self { fleet, book, heat: Heat::default(), warm, busy_until, ends, out: Outcome::default() }
    }

    fn request(&mut self, turn: u64, output_tokens: u32, now: Nanos) {
        let block = |seat| if self.warm.contains(&seat) { SYSTEM_TOKENS / BLOCK_TOKENS } else { 0 };
        let held = |seat| Held { blocks: [block(seat), 0, 0, 0] };
        let mut views = Vec::new();
        self.fleet.views(&self.book, now, held, |_| AdapterState::Loaded, &mut views);
        let prompt_tokens = SYSTEM_TOKENS + USER_TOKENS;
        let hot = self.heat.note(&names(turn), now);
        let ask =
            Ask { prompt_tokens, block_tokens: BLOCK_TOKENS, output_tokens, turn, hot, ..Ask::default() };
        let decision = decide(&Policy::default(), &ask, &views).unwrap();
        let (seat, uncached_tokens) = (decision.chosen, decision.score().uncached_tokens);
        let reservation = Reservation {
            seat,
            uncached_tokens,
            total_tokens: prompt_tokens,
            expected_output: output_tokens,
        };
        self.book.reserve(Ticket(turn), reservation, now).unwrap();
        self.serve(turn, seat, uncached_tokens, output_tokens, now);
    }

    /// The replica's side.
    fn serve(&mut self, turn: u64, seat: Seat, uncached_tokens: u32, output_tokens: u32, now: Nanos) {
        let rates = Rates::default();
        let busy = &mut self.busy_until[seat.index()];
        let begins = (*busy).max(now);
        *busy = after(begins, rates.prefill_ms(f64::from(uncached_tokens), f64::from(SYSTEM_TOKENS)));
        let answered = after(*busy, f64::from(output_tokens) * rates.decode_step_ms(8.0, 35_000.0));
        self.ends.push(std::cmp::Reverse((*busy, End::Prefill, turn, seat.0)));
        self.ends.push(std::cmp::Reverse((answered, End::Answer, turn, seat.0)));
        let wait_ms = begins.since(now).as_secs_f64() * 1e3;
        if self.busy_until.iter().any(|until| *until <= now) {
            self.out.idle_ms_max = self.out.idle_ms_max.max(wait_ms);
        }
        self.out.requests += 1;
        self.out.token_work[seat.index()] += u64::from(uncached_tokens + output_tokens);
        self.out.reused_prefix_tokens +=
            u64::from((SYSTEM_TOKENS + USER_TOKENS - uncached_tokens).min(SYSTEM_TOKENS));
    }

    fn advance(&mut self, now: Nanos) {
        while let Some(std::cmp::Reverse((at, end, turn, seat))) = self.ends.peek().copied()
            && at <= now
        {
            self.ends.pop();
            match end {
                End::Prefill => {
                    self.warm.insert(Seat(seat));
                    if let Some(span) = self.book.prefill_done(Ticket(turn), at).span() {
                        self.fleet.speeds_mut().prefilled(&span);
                    }
                }
                End::Answer => {
                    self.book.free(Ticket(turn), at);
                }
            }
        }
    }
}

/// `per_second` requests on average, for so many seconds.
fn run(per_second: f64, seconds: f64, seed: u64) -> Outcome {
    let (mut fluid, mut rng) = (Fluid::new(), SplitMix::new(seed));
    let (mut now, mut turn) = (Nanos(0), 0);
    while now.as_secs_f64() < seconds {
        now = after(now, -(1.0 - rng.unit()).ln() * 1e3 / per_second);
        fluid.advance(now);
        let output_tokens = 32 + rng.below(256) as u32;
        fluid.request(turn, output_tokens, now);
        turn += 1;
    }
    fluid.book.check().unwrap();
    fluid.out
}

#[test]
fn a_prompt_that_all_share_is_everywhere_soon_and_computed_hardly_ever() {
    for (per_second, seconds) in [(10.0, 200.0), (40.0, 60.0), (150.0, 30.0), (300.0, 20.0)] {
        for seed in 0..4 {
            let out = run(per_second, seconds, seed);
            let (least, most) = (out.token_work.iter().min().unwrap(), out.token_work.iter().max().unwrap());
            let reused = out.reused_prefix_tokens as f64 / (out.requests * u64::from(SYSTEM_TOKENS)) as f64;
            let balance = *most as f64 / *least as f64;
            assert!(balance <= 1.5, "{per_second}/s seed {seed}: {balance:.2} of {out:?}");
            assert!(reused >= 0.95, "{per_second}/s seed {seed}: {reused:.3}");
            assert!(out.idle_ms_max <= 1000.0, "{per_second}/s seed {seed}: {out:?}");
        }
    }
}
