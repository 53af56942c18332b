//! What an upstream's answer says about the upstream.

use std::time::Duration;

/// How one request to a replica ended, as far as the replica's health is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A status below 400, and the stream came to its end.
    Success,
    /// 4xx: the request was at fault.
    ClientError,
    /// 429, 503 or 529: ask again later.
    Busy { retry_after: Option<Duration> },
    /// 5xx otherwise.
    ServerError,
    /// No connection, a reset, a broken stream, nonsense instead of HTTP.
    Transport,
    /// Nothing came in time.
    TimedOut,
    /// We or the client hung up first: it says nothing.
    Abandoned,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    Well,
    Broken,
    Unknown,
}

impl Answer {
    /// Every 503 is taken as busy, with or without `Retry-After`: engines answer so with a full queue,
    /// and a replica that keeps doing it is avoided by growing pauses all the same.
    pub fn of_status(status: u16, retry_after: Option<Duration>) -> Self {
        match status {
            429 | 503 | 529 => Answer::Busy { retry_after },
            504 => Answer::TimedOut,
            400..=499 => Answer::ClientError,
            500.. => Answer::ServerError,
            _ => Answer::Success,
        }
    }

    pub fn health(self) -> Health {
        match self {
            Answer::Success | Answer::ClientError | Answer::Busy { .. } => Health::Well,
            Answer::ServerError | Answer::Transport | Answer::TimedOut => Health::Broken,
            Answer::Abandoned => Health::Unknown,
        }
    }

    /// The metric label.
    pub fn kind(self) -> &'static str {
        match self {
            Answer::Success => "success",
            Answer::ClientError => "client_error",
            Answer::Busy { .. } => "busy",
            Answer::ServerError => "server_error",
            Answer::Transport => "transport",
            Answer::TimedOut => "timed_out",
            Answer::Abandoned => "abandoned",
        }
    }
}
