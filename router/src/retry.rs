//! Whether a failed attempt may be tried once more, and where.
//!
//! Only before the first byte went to the client (after it, a second answer would be spliced onto the
//! first), only on a replica that has not been tried, and only out of a budget that grows with requests:
//! retries multiply load exactly when there is too much of it, and a budget caps the factor at 1.1. A
//! fixed number of attempts per request caps it at that number.
//!
//! Limits: the bucket lends its burst once, so over any stretch retries are at most the budgeted share
//! of the requests in it plus the burst.

use base::Nanos;

use crate::SeatSet;
use crate::breaker::Answer;

const WHOLE: u64 = 1000;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetryConfig {
    /// Retries per thousand requests.
    pub share_permille: u16,
    /// Most retries saved up, and what the bucket begins with.
    pub burst: u32,
    /// Attempts of one request, its first included.
    pub attempts_max: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { share_permille: 100, burst: 10, attempts_max: 3 }
    }
}

/// How far a request has come when it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    pub answer: Answer,
    pub sent: Sent,
    /// The replicas tried, this one included.
    pub tried: SeatSet,
    /// Replicas that would take it now.
    pub usable: SeatSet,
    pub deadline: Nanos,
}

/// What the client has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Nothing,
    FirstByte,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryVerdict {
    /// Paid for: try one of these.
    Retry {
        among: SeatSet,
    },
    GiveUp(NoRetry),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRetry {
    /// Nothing failed that another replica would do better.
    NotRetryable,
    FirstByteSent,
    DeadlinePassed,
    AttemptsSpent,
    NoOtherReplica,
    BudgetSpent,
}

impl NoRetry {
    /// The metric label.
    pub fn code(self) -> &'static str {
        match self {
            NoRetry::NotRetryable => "not_retryable",
            NoRetry::FirstByteSent => "first_byte_sent",
            NoRetry::DeadlinePassed => "deadline_passed",
            NoRetry::AttemptsSpent => "attempts_spent",
            NoRetry::NoOtherReplica => "no_other_replica",
            NoRetry::BudgetSpent => "budget_spent",
        }
    }
}

#[derive(Debug)]
pub struct RetryBudget {
    config: RetryConfig,
    /// Thousandths of a retry.
    saved: u64,
}

impl RetryBudget {
    pub fn new(config: RetryConfig) -> Self {
        let saved = u64::from(config.burst) * WHOLE;
        Self { config, saved }
    }

    /// A request came: its first attempt pays in.
    pub fn request(&mut self) {
        let most = u64::from(self.config.burst) * WHOLE;
        self.saved = (self.saved + u64::from(self.config.share_permille)).min(most);
    }

    /// A retry that is allowed is paid for.
    pub fn ask(&mut self, now: Nanos, attempt: &Attempt) -> RetryVerdict {
        let among = attempt.usable.and(SeatSet(!attempt.tried.0));
        if let Some(why) = self.refuse(now, attempt, among) {
            return RetryVerdict::GiveUp(why);
        }
        self.saved -= WHOLE;
        RetryVerdict::Retry { among }
    }

    /// Whole retries at hand.
    pub fn left(&self) -> u64 {
        self.saved / WHOLE
    }

    fn refuse(&self, now: Nanos, attempt: &Attempt, among: SeatSet) -> Option<NoRetry> {
        let reasons = [
            (!is_retryable(attempt.answer), NoRetry::NotRetryable),
            (attempt.sent == Sent::FirstByte, NoRetry::FirstByteSent),
            (attempt.deadline <= now, NoRetry::DeadlinePassed),
            (attempt.tried.len() >= self.config.attempts_max as usize, NoRetry::AttemptsSpent),
            (among.is_empty(), NoRetry::NoOtherReplica),
            (self.left() == 0, NoRetry::BudgetSpent),
        ];
        reasons.into_iter().find_map(|(holds, why)| holds.then_some(why))
    }
}

/// A busy replica is worth leaving for another; a wrong request is wrong everywhere.
fn is_retryable(answer: Answer) -> bool {
    match answer {
        Answer::Busy { .. } | Answer::ServerError | Answer::Transport | Answer::TimedOut => true,
        Answer::Success | Answer::ClientError | Answer::Abandoned => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Seat;

    fn failed() -> Attempt {
        Attempt {
            answer: Answer::Transport,
            sent: Sent::Nothing,
            tried: SeatSet::of(Seat(1)),
            usable: SeatSet::of(Seat(1)).with(Seat(2)),
            deadline: Nanos(10),
        }
    }

    fn verdict(attempt: Attempt) -> RetryVerdict {
        RetryBudget::new(RetryConfig::default()).ask(Nanos(0), &attempt)
    }

    #[test]
    fn another_replica_is_tried_before_the_first_byte() {
        assert_eq!(verdict(failed()), RetryVerdict::Retry { among: SeatSet::of(Seat(2)) });
        let busy = Answer::Busy { retry_after: None };
        assert_eq!(verdict(Attempt { answer: busy, ..failed() }), verdict(failed()));
    }

    #[test]
    fn each_reason_not_to_is_named() {
        let why = |attempt| match verdict(attempt) {
            RetryVerdict::GiveUp(why) => why.code(),
            retry => panic!("{retry:?}"),
        };
        assert_eq!(why(Attempt { answer: Answer::of_status(422, None), ..failed() }), "not_retryable");
        assert_eq!(why(Attempt { answer: Answer::Abandoned, ..failed() }), "not_retryable");
        assert_eq!(why(Attempt { sent: Sent::FirstByte, ..failed() }), "first_byte_sent");
        assert_eq!(why(Attempt { deadline: Nanos(0), ..failed() }), "deadline_passed");
        assert_eq!(why(Attempt { tried: SeatSet(0b111_000), ..failed() }), "attempts_spent");
        assert_eq!(why(Attempt { usable: SeatSet::of(Seat(1)), ..failed() }), "no_other_replica");
        let mut spent = RetryBudget::new(RetryConfig { burst: 0, ..RetryConfig::default() });
        assert_eq!(spent.ask(Nanos(0), &failed()), RetryVerdict::GiveUp(NoRetry::BudgetSpent));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn retries_stay_within_a_tenth_of_the_requests(
            asks in proptest::collection::vec(0..4u32, 1..400),
            share_permille in 0..=100u16,
        ) {
            let config = RetryConfig { share_permille, ..RetryConfig::default() };
            let burst = u64::from(config.burst);
            let mut budget = RetryBudget::new(config);
            let mut retries_before = vec![0u64];
            for asked in &asks {
                budget.request();
                let retried = (0..*asked)
                    .filter(|_| matches!(budget.ask(Nanos(0), &failed()), RetryVerdict::Retry { .. }))
                    .count();
                retries_before.push(retries_before[retries_before.len() - 1] + retried as u64);
            }
            for from in 0..asks.len() {
                for to in from + 1..=asks.len() {
                    let retries = retries_before[to] - retries_before[from];
                    let allowed = (to - from) as u64 * u64::from(share_permille) / WHOLE + burst + 1;
                    prop_assert!(retries <= allowed, "{retries} retries in {} requests", to - from);
                }
            }
        }
    }
}
