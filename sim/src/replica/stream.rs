//! A replica's stream of events: a bounded log, the set it amounts to, and what a follower hears first.
//!
//! The set is the truth that routers are measured by. It is kept from the events and compared with the
//! cache's own snapshot, so a cache that told less or more than it did would be found, too.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base::{Generation, NamespaceId, Nanos};
use kvcache::{KvChange, KvEvent};

use super::wire::{Batch, Change, Load, Message, Owner, Position, Run};

/// Most blocks of one page of a snapshot.
const PAGE_BLOCKS: usize = 2_048;

pub struct Stream {
    incarnation: u64,
    next: u64,
    log: VecDeque<Arc<Batch>>,
    log_max: usize,
    /// What is held, by name. Looked up and counted only: its order decides nothing.
    held: HashMap<u64, Owner>,
}

impl Stream {
    pub fn new(incarnation: u64, log_max: usize) -> Self {
        Self { incarnation, next: 1, log: VecDeque::new(), log_max, held: HashMap::new() }
    }

    pub fn position(&self) -> Position {
        Position { incarnation: self.incarnation, next: self.next }
    }

    /// A process begins to tell: what it holds by now is what it found, and no event.
    pub fn begin(&mut self, incarnation: u64) {
        *self = Self { held: std::mem::take(&mut self.held), ..Self::new(incarnation, self.log_max) };
    }

    pub fn held(&self) -> &HashMap<u64, Owner> {
        &self.held
    }

    pub fn holds(&self, name: u64) -> bool {
        self.held.contains_key(&name)
    }

    pub fn owner(&self, name: u64) -> Option<Owner> {
        self.held.get(&name).copied()
    }

    /// Blocks held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What a process found at its start; told by its snapshot and by no event.
    pub fn adopt(&mut self, runs: &[Run]) {
        for run in runs {
            self.held.extend(run.names.iter().map(|&name| (name, run.owner)));
        }
    }

    /// Numbers the changes since the last call, if there are any.
    pub fn record(
        &mut self,
        events: Vec<KvEvent>,
        purged: Option<(NamespaceId, Generation)>,
        load: Load,
        now: Nanos,
    ) -> Option<Arc<Batch>> {
        let mut changes = Vec::new();
        // First what a purge makes useless: what is swept after it is nobody's news.
        changes.extend(purged.map(|(namespace, up_to)| self.purge(namespace, up_to)));
        events.into_iter().for_each(|event| self.apply(event.change, &mut changes));
        if changes.is_empty() {
            return None;
        }
        let batch = Arc::new(Batch { sequence: self.next, unix_ms: now.0 / 1_000_000, changes, load });
        self.next += 1;
        self.log.push_back(batch.clone());
        if self.log.len() > self.log_max {
            self.log.pop_front();
        }
        Some(batch)
    }

    fn purge(&mut self, namespace: NamespaceId, up_to: Generation) -> Change {
        let before = self.held.len();
        self.held.retain(|_, owner| owner.namespace != namespace || owner.generation > up_to);
        Change::Purged { namespace, up_to, blocks: (before - self.held.len()) as u64 }
    }

    fn apply(&mut self, change: KvChange, changes: &mut Vec<Change>) {
        match change {
            KvChange::Stored(stored) => {
                let run = Run::of(&stored);
                self.held.extend(run.names.iter().map(|&name| (name, run.owner)));
                changes.push(Change::Stored(run));
            }
            KvChange::Removed { names } => {
                for name in names.iter().map(|name| name.low64()) {
                    let Some(owner) = self.held.remove(&name) else { continue };
                    match changes.last_mut() {
                        Some(Change::Removed { namespace, names }) if *namespace == owner.namespace => {
                            names.push(name)
                        }
                        _ => changes.push(Change::Removed { namespace: owner.namespace, names: vec![name] }),
                    }
                }
            }
            KvChange::Cleared => {
                if !self.held.is_empty() {
                    self.held.clear();
                    changes.push(Change::Cleared);
                }
            }
            KvChange::Lost { .. } => unreachable!("the cache's log holds more than a step can tell"),
        }
    }

    /// What a follower hears first.
    pub fn follow(&self, resume: Option<Position>, snapshot: impl Fn() -> Vec<Run>) -> Vec<Message> {
        let oldest = self.log.front().map_or(self.next, |batch| batch.sequence);
        let mut messages = vec![Message::Hello { incarnation: self.incarnation, oldest, next: self.next }];
        match resume {
            Some(at) if at.incarnation == self.incarnation && (oldest..=self.next).contains(&at.next) => {
                let missed = self.log.iter().filter(|batch| batch.sequence >= at.next);
                messages.extend(missed.map(|batch| Message::Batch(batch.clone())));
                return messages;
            }
            Some(at) => {
                let first_missing = if at.incarnation == self.incarnation { at.next } else { 0 };
                messages.push(Message::Gap { first_missing, next: oldest });
            }
            None => {}
        }
        let runs = snapshot();
        let blocks = runs.iter().map(|run| run.names.len() as u64).sum();
        messages.extend(pages(runs).map(|runs| Message::Page { runs }));
        messages.push(Message::End { next: self.position(), blocks });
        messages
    }
}

/// Runs in pages of a bounded number of blocks; one page also where there is nothing, so that a follower forgets.
fn pages(runs: Vec<Run>) -> impl Iterator<Item = Vec<Run>> {
    let mut left = runs.into_iter().peekable();
    let mut is_first = true;
    std::iter::from_fn(move || {
        let (mut page, mut blocks) = (Vec::new(), 0);
        while let Some(run) = left.next_if(|run| blocks == 0 || blocks + run.names.len() <= PAGE_BLOCKS) {
            blocks += run.names.len();
            page.push(run);
        }
        let is_told = !page.is_empty() || is_first;
        is_first = false;
        is_told.then_some(page)
    })
}
