//! The book against a naive list of requests, and what it promises about silence.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn limits() -> BookLimits {
    BookLimits {
        tickets_max: 24,
        routers_max: 2,
        ticket_ttl: Duration::from_secs(100),
        remote_ttl: Duration::from_secs(3),
    }
}

fn reservation(seat: u16, uncached_tokens: u32, total_tokens: u32) -> Reservation {
    Reservation { seat: Seat(seat), uncached_tokens, total_tokens, expected_output: 100 }
}

fn seconds(s: u64) -> Nanos {
    Nanos::from_millis(s * 1000)
}

#[derive(Clone, Debug)]
enum Op {
    Reserve { ticket: u64, seat: u16, uncached: u32, cached: u32 },
    PrefillDone { ticket: u64 },
    Grew { ticket: u64, tokens: u32 },
    Free { ticket: u64 },
    DropSeat { seat: u16 },
    Expire,
}

fn op() -> impl Strategy<Value = (Op, u64)> {
    let ticket = 0..32u64;
    let op = prop_oneof![
        6 => (ticket.clone(), 0..4u16, 0..5000u32, 0..5000u32)
            .prop_map(|(ticket, seat, uncached, cached)| Op::Reserve { ticket, seat, uncached, cached }),
        4 => ticket.clone().prop_map(|ticket| Op::PrefillDone { ticket }),
        4 => (ticket.clone(), 0..300u32).prop_map(|(ticket, tokens)| Op::Grew { ticket, tokens }),
        3 => ticket.prop_map(|ticket| Op::Free { ticket }),
        1 => (0..4u16).prop_map(|seat| Op::DropSeat { seat }),
        1 => Just(Op::Expire),
    ];
    (op, 0..30u64)
}

/// One request as a list would keep it: its reservation, whether it prefills, tokens, and when it was last heard of.
#[derive(Clone, Copy)]
struct Naive {
    reservation: Reservation,
    pending: bool,
    generated: u64,
}

fn naive_load(naive: &HashMap<u64, Naive>, seat: Seat) -> (u64, u32, u32, u64, u64) {
    let here = || naive.values().filter(|n| n.reservation.seat == seat);
    let pending = || here().filter(|n| n.pending);
    (
        pending().map(|n| u64::from(n.reservation.uncached_tokens)).sum(),
        pending().count() as u32,
        here().count() as u32,
        here().map(|n| u64::from(n.reservation.total_tokens) + n.generated).sum(),
        here().map(|n| u64::from(n.reservation.expected_output).saturating_sub(n.generated)).sum(),
    )
}

proptest! {
    #[test]
    fn sums_are_those_of_a_list_of_requests(ops in prop::collection::vec(op(), 1..200)) {
        let mut book = Book::new(limits());
        let mut naive: HashMap<u64, Naive> = HashMap::new();
        let mut now = Nanos(0);
        for (op, wait) in ops {
            now = now.plus(Duration::from_secs(wait));
            match op {
                Op::Reserve { ticket, seat, uncached, cached } => {
                    let reservation = reservation(seat, uncached, uncached + cached);
                    let expected = if naive.contains_key(&ticket) {
                        Err(BookError::Taken { ticket: Ticket(ticket) })
                    } else if naive.len() >= 24 {
                        Err(BookError::Full { tickets: 24 })
                    } else {
                        naive.insert(ticket, Naive { reservation, pending: true, generated: 0 });
                        Ok(())
                    };
                    prop_assert_eq!(book.reserve(Ticket(ticket), reservation, now), expected);
                }
                Op::PrefillDone { ticket } => {
                    let told = book.prefill_done(Ticket(ticket), now);
                    prop_assert_eq!(told.is_known(), naive.contains_key(&ticket));
                    if let Some(n) = naive.get_mut(&ticket) { n.pending = false }
                }
                Op::Grew { ticket, tokens } => {
                    let told = book.grew(Ticket(ticket), tokens, now);
                    prop_assert_eq!(told.is_known(), naive.contains_key(&ticket));
                    if let Some(n) = naive.get_mut(&ticket) { n.generated += u64::from(tokens) }
                }
                Op::Free { ticket } => {
                    let told = book.free(Ticket(ticket), now);
                    prop_assert_eq!(told.is_known(), naive.remove(&ticket).is_some());
                }
                Op::DropSeat { seat } => {
                    let before = naive.len();
                    naive.retain(|_, n| n.reservation.seat != Seat(seat));
                    prop_assert_eq!(book.drop_seat(Seat(seat)), before - naive.len());
                }
                Op::Expire => {
                    book.expire(now);
                    naive.retain(|ticket, _| book.entries.contains_key(&Ticket(*ticket)));
                }
            }
            prop_assert_eq!(book.check(), Ok(()));
            for seat in (0..4).map(Seat) {
                let load = book.own_load(seat, now);
                let got = (
                    load.pending_prefill_tokens, load.pending_prefills, load.active,
                    load.resident_tokens, load.expected_tokens,
                );
                prop_assert_eq!(got, naive_load(&naive, seat));
                prop_assert!(load.recent_tokens.is_finite() && load.recent_tokens >= 0.0);
                prop_assert!(load.head_elapsed_ms >= 0.0);
            }
        }
    }
}

#[test]
fn a_request_that_is_heard_of_outlives_its_first_deadline() {
    let mut book = Book::new(limits());
    book.reserve(Ticket(1), reservation(0, 10, 10), seconds(0)).unwrap();
    book.reserve(Ticket(2), reservation(0, 10, 10), seconds(0)).unwrap();
    book.grew(Ticket(1), 1, seconds(90));
    assert_eq!(book.expire(seconds(99)), 0);
    assert_eq!(book.expire(seconds(100)), 1);
    assert!(!book.free(Ticket(2), seconds(100)).is_known());
    assert_eq!(book.expire(seconds(190)), 1);
    assert!(book.is_empty());
}

#[test]
fn other_routers_count_until_they_fall_silent() {
    let mut far = Book::new(limits());
    far.reserve(Ticket(7), reservation(3, 500, 800), seconds(0)).unwrap();
    let mut book = Book::new(limits());
    book.reserve(Ticket(7), reservation(3, 100, 100), seconds(0)).unwrap();
    book.merge(far.gossip(RouterId(1), 5, seconds(0)), seconds(0)).unwrap();
    let load = book.load(Seat(3), seconds(1));
    assert_eq!((load.pending_prefill_tokens, load.active, load.resident_tokens), (600, 2, 900));
    assert_eq!(book.own_load(Seat(3), seconds(1)).active, 1);
    assert_eq!(book.load(Seat(3), seconds(3)).active, 1, "its word is three seconds old");
}

#[test]
fn of_a_routers_messages_only_the_newest_counts() {
    let mut book = Book::new(limits());
    let told = |sequence, active| Gossip {
        router: RouterId(1),
        sequence,
        loads: vec![(Seat(0), Load { active, ..Load::default() })],
    };
    book.merge(told(2, 5), seconds(0)).unwrap();
    book.merge(told(1, 9), seconds(0)).unwrap();
    book.merge(told(2, 9), seconds(0)).unwrap();
    assert_eq!(book.load(Seat(0), seconds(0)).active, 5);
    book.merge(told(3, 1), seconds(0)).unwrap();
    assert_eq!(book.load(Seat(0), seconds(0)).active, 1);
}

#[test]
fn more_routers_than_the_limit_are_refused_until_one_is_gone() {
    let mut book = Book::new(limits());
    let told = |router| Gossip { router: RouterId(router), sequence: 1, loads: vec![] };
    book.merge(told(1), seconds(0)).unwrap();
    book.merge(told(2), seconds(2)).unwrap();
    assert_eq!(book.merge(told(3), seconds(2)), Err(BookError::RoutersFull { routers: 2 }));
    book.expire(seconds(4));
    assert_eq!(book.merge(told(3), seconds(4)), Ok(()));
}

#[test]
fn a_hostile_load_changes_no_sum_into_nonsense() {
    let mut book = Book::new(limits());
    let bad = Load { recent_tokens: f64::NAN, head_elapsed_ms: -5.0, ..Load::default() };
    let loads =
        vec![(Seat(0), bad), (Seat(0), Load { active: u32::MAX, ..Load::default() }), (Seat(900), bad)];
    book.merge(Gossip { router: RouterId(1), sequence: 1, loads }, seconds(0)).unwrap();
    let load = book.load(Seat(0), seconds(0));
    assert_eq!((load.recent_tokens, load.head_elapsed_ms), (0.0, 0.0));
}

#[test]
fn a_busy_span_says_how_long_its_prefills_took_together() {
    let mut book = Book::new(limits());
    book.reserve(Ticket(1), reservation(0, 1000, 1500), seconds(1)).unwrap();
    book.reserve(Ticket(2), reservation(0, 3000, 3000), seconds(2)).unwrap();
    assert_eq!(book.prefill_done(Ticket(1), seconds(4)), Told::Counted);
    let span = book.prefill_done(Ticket(2), seconds(4)).span().expect("nothing is pending any more");
    assert_eq!((span.requests, span.tokens, span.ms), (2, 4000, 3000.0));
    assert_eq!(span.token_context, 1000.0 * 1000.0 + 3000.0 * 1500.0);
}

#[test]
fn a_request_that_ends_before_its_first_token_teaches_nothing() {
    let mut book = Book::new(limits());
    book.reserve(Ticket(1), reservation(0, 1000, 1000), seconds(0)).unwrap();
    assert_eq!(book.free(Ticket(1), seconds(60)), Told::Counted);
    book.reserve(Ticket(2), reservation(0, 1000, 1000), seconds(60)).unwrap();
    let span = book.prefill_done(Ticket(2), seconds(61)).span().expect("alone");
    assert_eq!((span.requests, span.ms), (1, 1000.0));
}
