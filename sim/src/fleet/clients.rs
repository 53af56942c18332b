//! The clients: when they ask, whom, and what became of it. The ledger here is what "nothing is lost or
//! answered twice" is held against.
//!
//! A client behaves as the usual libraries do: it takes one router, and when the connection breaks before the
//! whole answer is there it asks another one, a few times. It does not ask again after an answer with a status.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Nanos;

use super::message::{End, Try};

/// Most tries of one call, the first included.
pub const TRIES_MAX: u32 = 4;

/// One call as its client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    pub at: Nanos,
    pub attempt: u32,
    pub router: usize,
    /// The first token of the present attempt.
    pub begun: Option<Nanos>,
    pub last_token: Option<Nanos>,
    pub end: Option<(Nanos, End)>,
}

/// What a client must never see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unheard {
    #[error("call {call} ended twice: {first:?}, then {second:?}")]
    Twice { call: usize, first: End, second: End },
    #[error("call {call} was answered and had never been asked")]
    Never { call: usize },
}

#[derive(Default)]
pub struct Clients {
    asked: BTreeMap<usize, Asked>,
    open: usize,
    ends: BTreeMap<&'static str, u64>,
}

impl Clients {
    /// A call is made, or made again.
    pub fn ask(&mut self, now: Nanos, call: usize, router: usize) -> Try {
        let fresh = Asked { at: now, attempt: 0, router, begun: None, last_token: None, end: None };
        let before = self.asked.get(&call).copied();
        self.open += usize::from(before.is_none());
        let asked = self.asked.entry(call).or_insert(fresh);
        if before.is_some() {
            *asked = Asked { at: asked.at, attempt: asked.attempt + 1, router, ..fresh };
        }
        Try { call, attempt: asked.attempt }
    }

    /// Whether the client still listens on this try's connection.
    pub fn listens(&self, of: Try) -> bool {
        self.asked.get(&of.call).is_some_and(|asked| asked.attempt == of.attempt)
    }

    pub fn begun(&mut self, now: Nanos, of: Try) -> Option<Duration> {
        let asked = self.asked.get_mut(&of.call)?;
        asked.begun = Some(now);
        Some(now.since(asked.at))
    }

    pub fn ended(&mut self, now: Nanos, of: Try, end: End) -> Result<(), Unheard> {
        let asked = self.asked.get_mut(&of.call).ok_or(Unheard::Never { call: of.call })?;
        if let Some((_, first)) = asked.end {
            return Err(Unheard::Twice { call: of.call, first, second: end });
        }
        asked.end = Some((now, end));
        self.open -= 1;
        *self.ends.entry(end.code()).or_default() += 1;
        Ok(())
    }

    /// The client went away: nothing that comes is heard any more.
    pub fn stop_listening(&mut self, call: usize) {
        if let Some(asked) = self.asked.get_mut(&call) {
            asked.attempt = u32::MAX;
        }
    }

    /// Tries that a router had when it died.
    pub fn open_at(&self, router: usize) -> Vec<Try> {
        let open = self.asked.iter().filter(|(_, asked)| asked.end.is_none() && asked.router == router);
        open.map(|(call, asked)| Try { call: *call, attempt: asked.attempt }).collect()
    }

    pub fn get(&self, call: usize) -> Option<&Asked> {
        self.asked.get(&call)
    }

    /// Calls that have been asked and have no end.
    pub fn open(&self) -> usize {
        self.open
    }

    pub fn first_open(&self) -> Option<usize> {
        self.asked.iter().find(|(_, asked)| asked.end.is_none()).map(|(call, _)| *call)
    }

    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    /// How often each end came.
    pub fn ends(&self) -> &BTreeMap<&'static str, u64> {
        &self.ends
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, &Asked)> {
        self.asked.iter().map(|(call, asked)| (*call, asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_end_and_an_answer_to_nobody_are_found() {
        let mut clients = Clients::default();
        let of = clients.ask(Nanos(0), 3, 0);
        assert_eq!(clients.ended(Nanos(1), of, End::Expired), Ok(()));
        assert!(matches!(clients.ended(Nanos(2), of, End::Expired), Err(Unheard::Twice { call: 3, .. })));
        assert_eq!(
            clients.ended(Nanos(2), Try { call: 9, attempt: 0 }, End::Expired),
            Err(Unheard::Never { call: 9 })
        );
        assert_eq!((clients.open(), clients.asked()), (0, 1));
    }

    #[test]
    fn asking_again_keeps_the_time_of_the_first_try_and_hears_no_more_of_it() {
        let mut clients = Clients::default();
        let first = clients.ask(Nanos(5), 3, 0);
        let second = clients.ask(Nanos(9), 3, 1);
        assert!(!clients.listens(first) && clients.listens(second));
        assert_eq!(clients.begun(Nanos(15), second), Some(Duration::from_nanos(10)));
        assert_eq!((clients.open(), clients.open_at(1)), (1, vec![second]));
    }
}
