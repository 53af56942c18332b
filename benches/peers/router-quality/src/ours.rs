//! The router's own parts, unchanged, in the simulator's time: book, learned rates, decision. The glue is what a
//! proxy does: ask, reserve, tell when the first token and the end came.

use base::Nanos;
use router::book::{Book, BookLimits, Load, Reservation, Ticket};
use router::decide::{AdapterState, Ask, Heat, Pages, Policy, View, decide};
use router::fleet::{Fleet, Seating};
use router::{Held, Seat};
use rustc_hash::FxHashMap;
use uuid::Uuid;

pub struct Ours {
    policy: Policy,
    /// Of each worker.
    pages: u64,
    book: Book,
    heat: Heat,
    fleet: Fleet,
    tickets: FxHashMap<Uuid, (Ticket, u32)>,
    turn: u64,
    /// What an answer is expected to take: the mean of those that ended. A router does not know better.
    output_tokens: f64,
    views: Vec<View>,
}

/// One request as the simulator tells of it.
pub struct Request {
    pub id: Uuid,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub prefix: u64,
}

fn fleet(workers: usize) -> Fleet {
    let mut fleet = Fleet::default();
    let seating = Seating { block_tokens: crate::BLOCK_TOKENS as u32, ..Seating::default() };
    for _ in 0..workers {
        let seat =
            fleet.join(seating, Nanos(0)).expect("the simulator has at most as many workers as a pool");
        fleet.alive(seat, Nanos(0));
    }
    fleet
}

/// The simulator tells no load; caches are full in the steady state, but for what requests hold.
fn pages(total: u64, load: &Load) -> Pages {
    let used = load.resident_tokens.div_ceil(crate::BLOCK_TOKENS as u64);
    Pages { total, free: 0, cached: total.saturating_sub(used) }
}

impl Ours {
    pub fn new(policy: Policy, workers: usize, pages: usize) -> Self {
        Self {
            policy,
            pages: pages as u64,
            book: Book::new(BookLimits {
                ticket_ttl: std::time::Duration::from_secs(86_400),
                ..Default::default()
            }),
            heat: Heat::default(),
            fleet: fleet(workers),
            tickets: FxHashMap::default(),
            turn: 0,
            output_tokens: 256.0,
            views: Vec::new(),
        }
    }

    pub fn place(
        &mut self,
        request: &Request,
        names: &[u64],
        held: &[u32],
        now: Nanos,
    ) -> anyhow::Result<usize> {
        let ask = Ask {
            prompt_tokens: request.prompt_tokens,
            block_tokens: crate::BLOCK_TOKENS as u32,
            output_tokens: self.output_tokens as u32,
            hot: self.heat.note(names, now),
            prefix: request.prefix,
            turn: self.turn,
            seed: 1,
            ..Ask::default()
        };
        self.look(held, now);
        let decision = decide(&self.policy, &ask, &self.views)?;
        let reservation = Reservation {
            seat: decision.chosen,
            uncached_tokens: decision.score().uncached_tokens,
            total_tokens: ask.prompt_tokens,
            expected_output: ask.output_tokens,
        };
        let ticket = Ticket(self.turn);
        self.turn += 1;
        self.book.reserve(ticket, reservation, now)?;
        self.tickets.insert(request.id, (ticket, request.output_tokens));
        Ok(decision.chosen.index())
    }

    fn look(&mut self, held: &[u32], now: Nanos) {
        let held = |seat: Seat| Held { blocks: [held[seat.index()], 0, 0, 0] };
        self.fleet.views(&self.book, now, held, |_| AdapterState::Loaded, &mut self.views);
        self.views.iter_mut().for_each(|view| view.pages = pages(self.pages, &view.load));
    }

    /// What was learned, for a person who looks.
    pub fn rates(&self) -> String {
        let common = self.fleet.speeds().common();
        let paces = self.fleet.seats().map(|(seat, _)| self.fleet.speeds().rates(seat));
        let of = |r: router::fleet::Rates| {
            let (prefill, decode) = (r.prefill_ms_per_token, r.decode_fixed_ms);
            (prefill / common.prefill_ms_per_token, decode / common.decode_fixed_ms)
        };
        format!("{common:?} {:.2?}", paces.map(of).collect::<Vec<_>>())
    }

    pub fn prefilled(&mut self, id: Uuid, now: Nanos) {
        let Some((ticket, _)) = self.tickets.get(&id) else { return };
        if let Some(span) = self.book.prefill_done(*ticket, now).span() {
            self.fleet.speeds_mut().prefilled(&span);
        }
    }

    pub fn ended(&mut self, id: Uuid, now: Nanos) {
        let Some((ticket, generated)) = self.tickets.remove(&id) else { return };
        self.output_tokens += (f64::from(generated) - self.output_tokens) / 64.0;
        self.book.grew(ticket, generated, now);
        if let Some(span) = self.book.free(ticket, now).span() {
            self.fleet.speeds_mut().decoded(&span);
        }
    }
}
