//! The log of a run: a hash of everything that happened, and the last lines in words.
//!
//! Two runs are the same run if their hashes are. The hash is over numbers and never over text, so logging
//! costs a multiplication an event; words are made only when somebody wants to read.

use std::collections::VecDeque;

use base::Nanos;

/// How much of a run can be read afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verbosity {
    /// The hash alone.
    Hash,
    /// The last lines, too.
    Tail(usize),
}

/// One run's log.
#[derive(Clone, Debug)]
pub struct Journal {
    hash: u64,
    events: u64,
    verbosity: Verbosity,
    tail: VecDeque<(Nanos, &'static str, [u64; 3])>,
}

impl Journal {
    pub fn new(verbosity: Verbosity) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, verbosity, tail: VecDeque::new() }
    }

    /// Notes that `what` happened to `about`.
    pub fn note(&mut self, at: Nanos, what: &'static str, about: [u64; 3]) {
        self.events += 1;
        self.fold(at.0);
        what.bytes().for_each(|byte| self.fold(u64::from(byte)));
        about.into_iter().for_each(|number| self.fold(number));
        if let Verbosity::Tail(most) = self.verbosity {
            self.tail.push_back((at, what, about));
            if self.tail.len() > most {
                self.tail.pop_front();
            }
        }
    }

    /// Keeps the last lines as they are: what came before a law was broken is what one wants to read.
    pub fn freeze(&mut self) {
        self.verbosity = Verbosity::Hash;
    }

    fn fold(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    /// The last lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.tail
            .iter()
            .map(|(at, what, [a, b, c])| format!("{:>12.6} {what:<16} {a} {b} {c}", at.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_knows_order_and_every_number() {
        let of = |notes: &[(&'static str, u64)]| {
            let mut journal = Journal::new(Verbosity::Hash);
            notes.iter().for_each(|&(what, n)| journal.note(Nanos(1), what, [n, 0, 0]));
            journal.hash()
        };
        let base = of(&[("ask", 1), ("done", 2)]);
        assert_eq!(base, of(&[("ask", 1), ("done", 2)]));
        assert_ne!(base, of(&[("done", 2), ("ask", 1)]));
        assert_ne!(base, of(&[("ask", 1), ("done", 3)]));
    }

    #[test]
    fn the_tail_keeps_the_last_lines_only() {
        let mut journal = Journal::new(Verbosity::Tail(2));
        (0..5).for_each(|n| journal.note(Nanos(n), "tick", [n, 0, 0]));
        let lines: Vec<String> = journal.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains("tick") && lines[1].trim_end().ends_with("4 0 0"));
        assert_eq!(journal.events(), 5);
    }
}
