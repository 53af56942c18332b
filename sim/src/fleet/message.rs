//! Who speaks to whom in a fleet, and what is said.

use base::{Generation, NamespaceId, Nanos};
use router::book::Gossip;

use crate::replica::{Message, Position, Progress, Refusal, Submission, Ticket};

/// A process, or all clients together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Node {
    Clients,
    Router(usize),
    Replica(usize),
}

impl Node {
    /// For logs and tables.
    pub fn number(self) -> u64 {
        match self {
            Node::Clients => 0,
            Node::Router(at) => 1_000 + at as u64,
            Node::Replica(at) => 2_000 + at as u64,
        }
    }
}

/// One try of a client's call at one router.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Try {
    pub call: usize,
    pub attempt: u32,
}

/// The last word on a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum End {
    Answered {
        tokens: u32,
    },
    /// Never started; the code is the machine-readable reason.
    Refused {
        status: u16,
        code: &'static str,
    },
    /// Its deadline passed before it started.
    Expired,
    /// Started and broken off, with the reason.
    Failed {
        code: &'static str,
    },
}

impl End {
    pub fn code(self) -> &'static str {
        match self {
            End::Answered { .. } => "answered",
            End::Refused { code, .. } => code,
            End::Expired => "expired_before_start",
            End::Failed { code } => code,
        }
    }
}

/// What is said.
#[derive(Clone, Debug)]
pub enum Word {
    // clients → router
    Ask {
        of: Try,
        asked: Nanos,
    },
    /// The client went away.
    Hangup {
        of: Try,
    },
    // router → clients
    Begun {
        of: Try,
    },
    Ended {
        of: Try,
        end: End,
    },
    // router → replica
    Submit(Box<Submission>),
    Cancel(Ticket),
    Follow {
        resume: Option<Position>,
        subscription: u64,
    },
    // replica → router
    Heard {
        replica: usize,
        items: Vec<(Ticket, Progress)>,
    },
    Refused {
        ticket: Ticket,
        refusal: Refusal,
    },
    Stream {
        replica: usize,
        subscription: u64,
        message: Message,
    },
    // the network's own
    /// Nobody listens there.
    NoConnection {
        replica: usize,
        ticket: Option<Ticket>,
    },
    /// The process at the other end is gone, and all connections to it.
    Reset {
        peer: Node,
        epoch: u32,
        tickets: Vec<Ticket>,
    },
    // router → router
    Gossip(Box<Gossip>),
    // control → everybody
    Purge {
        namespace: NamespaceId,
        up_to: Generation,
    },
    /// Time passes for a router.
    Tick,
}

impl Word {
    pub fn name(&self) -> &'static str {
        match self {
            Word::Ask { .. } => "ask",
            Word::Hangup { .. } => "hangup",
            Word::Begun { .. } => "begun",
            Word::Ended { .. } => "ended",
            Word::Submit(_) => "submit",
            Word::Cancel(_) => "cancel",
            Word::Follow { .. } => "follow",
            Word::Heard { .. } => "heard",
            Word::Refused { .. } => "refused",
            Word::Stream { .. } => "stream",
            Word::NoConnection { .. } => "no_connection",
            Word::Reset { .. } => "reset",
            Word::Gossip(_) => "gossip",
            Word::Purge { .. } => "purge",
            Word::Tick => "tick",
        }
    }

    /// A number that tells two words of one kind apart, for the log.
    pub fn number(&self) -> u64 {
        match self {
            Word::Ask { of, .. } | Word::Hangup { of } | Word::Begun { of } | Word::Ended { of, .. } => {
                (of.call as u64) << 8 | u64::from(of.attempt)
            }
            Word::Submit(submission) => submission.ticket.0,
            Word::Cancel(ticket) | Word::Refused { ticket, .. } => ticket.0,
            Word::Follow { subscription, .. } => *subscription,
            Word::Heard { items, .. } => items.iter().fold(0, |sum, (ticket, progress)| {
                sum.rotate_left(7)
                    ^ ticket.0
                    ^ match progress {
                        Progress::First { cached_tokens } => u64::from(*cached_tokens) << 1,
                        Progress::Token { gap_ns } => *gap_ns,
                        Progress::Finished { tokens } => u64::from(*tokens) << 2,
                    }
            }),
            Word::Stream { message, .. } => match message {
                Message::Batch(batch) => batch.sequence,
                Message::Heartbeat { next, .. } | Message::End { next, .. } => next.next << 1,
                Message::Hello { incarnation, .. } => *incarnation,
                Message::Page { runs } => runs.len() as u64,
                Message::Gap { next, .. } => next << 2,
            },
            Word::NoConnection { replica, ticket } => ticket.map_or(*replica as u64, |ticket| ticket.0),
            Word::Reset { peer, epoch, .. } => peer.number() << 32 | u64::from(*epoch),
            Word::Gossip(gossip) => gossip.sequence,
            Word::Purge { namespace, up_to } => namespace.0 << 32 | up_to.0,
            Word::Tick => 0,
        }
    }
}

/// A word on its way. `to_epoch` is the process it was meant for: another one at the same place never had the
/// connection.
#[derive(Clone, Debug)]
pub struct Letter {
    pub from: Node,
    pub from_epoch: u32,
    pub to: Node,
    pub to_epoch: u32,
    pub sent: Nanos,
    pub word: Word,
}
