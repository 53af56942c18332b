//! Requests that wait: in order of priority and arrival, or aside until a prefix they share has been
//! computed by another sequence.
//!
//! Waiters on one prefix stand in one list under its hash, so that a thousand identical prompts cost
//! one wake-up when the prefix is there, not a scan in every step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::{Nanos, Priority, RequestId};

use super::Stream;
use super::sharing::PrefixHash;

type Rank = (Priority, u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spot {
    Ready,
    Blocked(PrefixHash),
}

#[derive(Default)]
pub(crate) struct WaitQueue {
    ready: BTreeMap<Rank, Stream>,
    blocked: HashMap<PrefixHash, BTreeMap<Rank, Stream>>,
    spots: HashMap<RequestId, (Rank, Spot)>,
    deadlines: BTreeSet<(Nanos, RequestId)>,
}

impl WaitQueue {
    pub fn len(&self) -> usize {
        self.spots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spots.is_empty()
    }

    pub fn push(&mut self, stream: Stream) {
        let rank = stream.rank();
        self.note(&stream, Spot::Ready);
        self.ready.insert(rank, stream);
    }

    /// Sets `stream` aside until `hash` is computed or given up.
    pub fn block(&mut self, stream: Stream, hash: PrefixHash) {
        let rank = stream.rank();
        self.note(&stream, Spot::Blocked(hash));
        self.blocked.entry(hash).or_default().insert(rank, stream);
    }

    /// Those that waited for `hash` stand in line again, at their old place.
    pub fn wake(&mut self, hash: PrefixHash) {
        for (rank, stream) in self.blocked.remove(&hash).unwrap_or_default() {
            self.spots.insert(stream.id(), (rank, Spot::Ready));
            self.ready.insert(rank, stream);
        }
    }

    /// Nobody computes anything any more: all stand in line again.
    pub fn wake_all(&mut self) {
        let hashes: Vec<PrefixHash> = self.blocked.keys().copied().collect();
        hashes.into_iter().for_each(|hash| self.wake(hash));
    }

    pub fn head(&self) -> Option<&Stream> {
        self.ready.first_key_value().map(|(_, stream)| stream)
    }

    pub fn pop(&mut self) -> Option<Stream> {
        let (_, stream) = self.ready.pop_first()?;
        self.forget(&stream);
        Some(stream)
    }

    pub fn remove(&mut self, id: RequestId) -> Option<Stream> {
        let (rank, spot) = *self.spots.get(&id)?;
        let stream = match spot {
            Spot::Ready => self.ready.remove(&rank),
            Spot::Blocked(hash) => {
                let waiters = self.blocked.get_mut(&hash)?;
                let stream = waiters.remove(&rank);
                if waiters.is_empty() {
                    self.blocked.remove(&hash);
                }
                stream
            }
        }?;
        self.forget(&stream);
        Some(stream)
    }

    /// Takes out what has not started and whose deadline has passed.
    pub fn expired(&mut self, now: Nanos) -> Vec<Stream> {
        let mut late = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline < now
        {
            self.deadlines.pop_first();
            late.extend(self.remove(id));
        }
        late
    }

    pub fn drain(&mut self) -> Vec<Stream> {
        let ids: Vec<RequestId> = self.spots.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    fn note(&mut self, stream: &Stream, spot: Spot) {
        self.spots.insert(stream.id(), (stream.rank(), spot));
        if let Some(deadline) = stream.request.deadline
            && !stream.has_started()
        {
            self.deadlines.insert((deadline, stream.id()));
        }
    }

    fn forget(&mut self, stream: &Stream) {
        self.spots.remove(&stream.id());
        if let Some(deadline) = stream.request.deadline {
            self.deadlines.remove(&(deadline, stream.id()));
        }
    }

    /// Each stream has one spot; nobody waits for a prefix that nobody computes.
    pub fn check(&self, is_computing: impl Fn(PrefixHash) -> bool) {
        let blocked: usize = self.blocked.values().map(BTreeMap::len).sum();
        assert_eq!(self.ready.len() + blocked, self.spots.len());
        assert!(self.deadlines.len() <= self.spots.len());
        for (&hash, waiters) in &self.blocked {
            assert!(!waiters.is_empty());
            assert!(is_computing(hash), "a blocked request waits for a prefix that nobody computes");
        }
    }
}
