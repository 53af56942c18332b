//! One request's place at a replica, from admission to its last byte.
//!
//! A value that gives everything back when it ends, in whatever way: the book's promise, admission's budget, the
//! breaker's permit. Dropped without a word it counts as cancelled, so that no path, a panic or a client that
//! hangs up included, can leak a seat. Each request has exactly one [`Ending`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base::Nanos;

use crate::admission::{Completion, FailureKind, Work};
use crate::breaker::{Answer, Permit};
use crate::decide::{Ask, Decision};
use crate::desk::{Failed, NotPlaced, Placed};
use crate::index::Matches;
use crate::pool::Pool;
use crate::replica::{Lost, Replica};
use crate::{SeatSet, Ticket};

/// How a request that was admitted ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    Completed,
    /// The replica refused it, in its own words.
    Refused,
    /// The replica answered that it had failed, or broke off.
    ReplicaFailed,
    /// It could not be reached, or was found dead.
    ReplicaLost,
    /// No replica took it.
    NoReplica,
    /// The client went away.
    Cancelled,
    TimedOut,
}

impl Ending {
    pub const ALL: [Ending; 7] = [
        Ending::Completed,
        Ending::Refused,
        Ending::ReplicaFailed,
        Ending::ReplicaLost,
        Ending::NoReplica,
        Ending::Cancelled,
        Ending::TimedOut,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Ending::Completed => "completed",
            Ending::Refused => "refused",
            Ending::ReplicaFailed => "replica_failed",
            Ending::ReplicaLost => "replica_lost",
            Ending::NoReplica => "no_replica",
            Ending::Cancelled => "cancelled",
            Ending::TimedOut => "timed_out",
        }
    }

    fn completion(self) -> Completion {
        match self {
            Ending::Completed => Completion::Completed,
            Ending::Refused => Completion::Failed(FailureKind::Refused),
            Ending::ReplicaFailed => Completion::Failed(FailureKind::Upstream),
            Ending::ReplicaLost | Ending::NoReplica => Completion::Failed(FailureKind::Transport),
            Ending::Cancelled => Completion::Cancelled,
            Ending::TimedOut => Completion::TimedOut,
        }
    }

    /// What the end of a stream says of the replica.
    fn answer(self) -> Answer {
        match self {
            Ending::Completed => Answer::Success,
            Ending::Refused => Answer::ClientError,
            Ending::ReplicaFailed | Ending::ReplicaLost => Answer::Transport,
            Ending::NoReplica | Ending::Cancelled => Answer::Abandoned,
            Ending::TimedOut => Answer::TimedOut,
        }
    }
}

/// An admitted request that holds no place at a replica yet.
pub(crate) struct Admitted {
    pool: Arc<Pool>,
    pub(crate) ticket: Ticket,
    pub(crate) ask: Ask,
    pub(crate) matches: Box<Matches>,
    arrived: Nanos,
    deadline: Nanos,
    /// Tokens computed or generated, for fair shares.
    work: u64,
    is_over: bool,
}

impl Admitted {
    pub(crate) fn new(
        pool: Arc<Pool>,
        ticket: Ticket,
        ask: Ask,
        matches: Box<Matches>,
        (arrived, deadline): (Nanos, Nanos),
    ) -> Self {
        Self { pool, ticket, ask, matches, arrived, deadline, work: 0, is_over: false }
    }

    /// Takes the place that was chosen for it.
    pub(crate) fn at(self, placed: Placed, replica: Arc<Replica>) -> Placement {
        let Placed { decision, permit } = placed;
        let lost = replica.enter(self.ticket);
        let tried = SeatSet::of(decision.chosen);
        Placement { admitted: self, replica, decision, permit: Some(permit), lost, tried, is_first: true }
    }

    pub(crate) fn finish(mut self, ending: Ending) {
        self.end(ending);
    }

    fn end(&mut self, ending: Ending) {
        if !std::mem::replace(&mut self.is_over, true) {
            let work = Work(self.work);
            self.pool.ended(self.ticket, work, ending, ending.completion(), self.arrived);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.end(Ending::Cancelled);
    }
}

/// See the file's head.
pub struct Placement {
    admitted: Admitted,
    replica: Arc<Replica>,
    decision: Decision,
    permit: Option<Permit>,
    lost: Lost,
    tried: SeatSet,
    /// Nothing of the answer was seen yet.
    is_first: bool,
}

impl Placement {
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    pub fn deadline(&self) -> Nanos {
        self.admitted.deadline
    }

    /// Resolves when the replica is found dead.
    pub fn lost(&mut self) -> impl Future<Output = ()> {
        let lost = &mut self.lost;
        async move {
            let _ = lost.await;
        }
    }

    /// The same for those who poll.
    pub fn is_lost(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(Pin::new(&mut self.lost).poll(cx), Poll::Ready(_))
    }

    /// Something of the answer is here; heard once.
    pub fn first_byte(&mut self) {
        if std::mem::take(&mut self.is_first) {
            self.admitted.work = u64::from(self.decision.score().uncached_tokens);
            self.admitted.pool.first_byte(self.admitted.ticket, self.admitted.arrived);
        }
    }

    /// Somebody else answers than was chosen: what comes says nothing of the one that was.
    pub fn is_served_elsewhere(&mut self) {
        self.answered(Answer::Abandoned);
    }

    /// The answer has grown by so many tokens.
    pub fn grew(&mut self, tokens: u32) {
        self.admitted.work += u64::from(tokens);
        self.admitted.pool.grew(self.admitted.ticket, tokens);
    }

    pub fn finish(mut self, ending: Ending) {
        self.answered(ending.answer());
        self.admitted.end(ending);
    }

    /// Goes to another replica, because this one `answered` so and nothing was sent to the client.
    pub fn elsewhere(mut self, answer: Answer, ending: Ending) -> Result<Placement, (NotPlaced, Ending)> {
        self.answered(answer);
        self.replica.leave(self.admitted.ticket);
        let failed = Failed { answer, tried: self.tried, deadline: self.admitted.deadline };
        let pool = Arc::clone(&self.admitted.pool);
        match pool.place_again(self.admitted.ticket, &self.admitted.ask, &self.admitted.matches, failed) {
            Ok((placed, replica)) => {
                self.lost = replica.enter(self.admitted.ticket);
                self.tried = self.tried.with(placed.decision.chosen);
                self.decision = placed.decision;
                self.permit = Some(placed.permit);
                self.replica = replica;
                Ok(self)
            }
            Err(why) => {
                self.admitted.end(ending);
                Err((why, ending))
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        if let Some(permit) = self.permit.take() {
            self.admitted.pool.answered(permit, answer);
        }
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        self.answered(Answer::Abandoned);
        self.replica.leave(self.admitted.ticket);
    }
}
