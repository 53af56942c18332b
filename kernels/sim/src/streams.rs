//! Two streams of work that has been asked for and not yet run.
//!
//! Work runs as late as somebody asks for its outcome, copies as late or as early as the events between the two
//! streams allow: seed 0 lets copies run last, seed 1 first, others toss a coin before each piece. A wait that is missing
//! on either side therefore shows as a page that holds something else.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use base::SplitMix;
use kernels::cuda::driver::Stream;

/// Pieces of work that wait at most; the oldest is then run.
const WAITING_MAX: usize = 256;

/// One piece of work.
pub(crate) enum Piece<T> {
    Do(T),
    /// An event passes.
    Mark(u64),
    /// What comes behind waits for an event.
    Follow(u64),
}

/// The streams, and the marks that have passed.
pub(crate) struct Streams<T> {
    queues: RefCell<[VecDeque<Piece<T>>; 2]>,
    /// By event: the mark made last, 0 for none. Marks are numbered.
    events: RefCell<Vec<u64>>,
    /// By event and mark: those that have not passed.
    open: RefCell<Vec<u64>>,
    marks: Cell<u64>,
    seed: u64,
    coins: RefCell<SplitMix>,
}

impl<T> Streams<T> {
    pub fn new(seed: u64) -> Self {
        Self {
            queues: RefCell::default(),
            events: RefCell::default(),
            open: RefCell::default(),
            marks: Cell::new(0),
            seed,
            coins: RefCell::new(SplitMix::new(seed)),
        }
    }

    pub fn event(&self) -> u32 {
        let mut events = self.events.borrow_mut();
        events.push(0);
        events.len() as u32 - 1
    }

    /// Adds work; `run` does what has to be done now.
    pub fn give(&self, stream: Stream, work: T, run: &mut dyn FnMut(T)) {
        self.push(stream, Piece::Do(work));
        while self.queues.borrow()[stream as usize].len() > WAITING_MAX {
            self.advance(stream, run);
        }
        if stream == Stream::Copies && self.prefers_copies() {
            self.step(stream, run);
        }
    }

    pub fn mark(&self, event: u32, stream: Stream) {
        let mark = self.marks.get() + 1;
        self.marks.set(mark);
        self.events.borrow_mut()[event as usize] = mark;
        self.open.borrow_mut().push(mark);
        self.push(stream, Piece::Mark(mark));
    }

    pub fn follow(&self, stream: Stream, event: u32) {
        let mark = self.events.borrow()[event as usize];
        self.push(stream, Piece::Follow(mark));
    }

    /// Looks at an event; some of the copies have gone on meanwhile.
    pub fn has_passed(&self, event: u32, run: &mut dyn FnMut(T)) -> bool {
        self.step(Stream::Copies, run);
        self.has_event_passed(event)
    }

    /// Runs until an event has passed.
    pub fn pass(&self, event: u32, run: &mut dyn FnMut(T)) {
        while !self.has_event_passed(event) {
            assert!(self.any(run), "an event that nobody marked is waited for");
        }
    }

    /// Runs until `stream` is empty.
    pub fn drain(&self, stream: Stream, run: &mut dyn FnMut(T)) {
        while !self.queues.borrow()[stream as usize].is_empty() {
            assert!(self.any(run), "two streams wait for each other");
        }
    }

    fn push(&self, stream: Stream, piece: Piece<T>) {
        self.queues.borrow_mut()[stream as usize].push_back(piece);
    }

    fn has_event_passed(&self, event: u32) -> bool {
        !self.open.borrow().contains(&self.events.borrow()[event as usize])
    }

    fn prefers_copies(&self) -> bool {
        match self.seed {
            0 => false,
            1 => true,
            _ => self.coins.borrow_mut().below(2) == 1,
        }
    }

    /// Runs one piece of either stream; false if neither can go on.
    fn any(&self, run: &mut dyn FnMut(T)) -> bool {
        let order = [Stream::Work, Stream::Copies];
        let at = usize::from(self.prefers_copies());
        self.step(order[at], run) || self.step(order[1 - at], run)
    }

    /// The oldest piece of `stream`, and whatever it waits for.
    fn advance(&self, stream: Stream, run: &mut dyn FnMut(T)) {
        while !self.step(stream, run) {
            assert!(self.any(run), "two streams wait for each other");
        }
    }

    /// Runs the next piece of `stream`; false if there is none or it waits.
    fn step(&self, stream: Stream, run: &mut dyn FnMut(T)) -> bool {
        let piece = {
            let mut queues = self.queues.borrow_mut();
            let queue = &mut queues[stream as usize];
            match queue.front() {
                Some(Piece::Follow(mark)) if self.open.borrow().contains(mark) => return false,
                None => return false,
                Some(_) => queue.pop_front(),
            }
        };
        match piece {
            Some(Piece::Do(work)) => run(work),
            Some(Piece::Mark(mark)) => self.open.borrow_mut().retain(|&open| open != mark),
            Some(Piece::Follow(_)) | None => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `a` on the work stream, `b` on copies (behind `a` if `follows`), and waits for both.
    fn order(seed: u64, follows: bool) -> String {
        let streams = Streams::new(seed);
        let (first, last) = (streams.event(), streams.event());
        let mut done = String::new();
        let mut run = |name: char| done.push(name);
        streams.give(Stream::Work, 'a', &mut run);
        streams.mark(first, Stream::Work);
        if follows {
            streams.follow(Stream::Copies, first);
        }
        streams.give(Stream::Copies, 'b', &mut run);
        streams.mark(last, Stream::Copies);
        streams.pass(last, &mut run);
        streams.drain(Stream::Work, &mut run);
        done
    }

    #[test]
    fn streams_keep_no_order_but_what_events_say() {
        assert_eq!((order(0, false), order(1, false)), ("ab".into(), "ba".into()));
        let both = |follows| (2..40).map(move |seed| order(seed, follows));
        assert!(both(false).any(|order| order == "ab") && both(false).any(|order| order == "ba"));
        assert!((0..2).map(|seed| order(seed, true)).chain(both(true)).all(|order| order == "ab"));
    }

    #[test]
    fn an_event_is_where_it_was_marked_last() {
        let streams = Streams::new(0);
        let event = streams.event();
        let mut done = Vec::new();
        assert!(streams.has_passed(event, &mut |_: u32| {}), "never marked");
        for work in 0..2 {
            streams.give(Stream::Copies, work, &mut |w| done.push(w));
            streams.mark(event, Stream::Copies);
        }
        streams.pass(event, &mut |w| done.push(w));
        assert_eq!(done, [0, 1]);
    }

    #[test]
    fn work_that_waits_is_bounded() {
        let streams = Streams::new(0);
        let mut done = 0;
        for work in 0..1000 {
            streams.give(Stream::Work, work, &mut |_| done += 1);
        }
        assert!(done >= 1000 - WAITING_MAX);
    }
}
