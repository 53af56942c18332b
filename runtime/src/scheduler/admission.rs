//! Who gets a seat and pages, and who has to give them back.
//!
//! A request is admitted with all the pages its known tokens need, so that a prefill never runs dry
//! half-way; decodes take pages one at a time and, when there are none, the last admitted of the lowest
//! priority goes back to the queue. Its computed pages stay in the tree: coming back costs a lookup
//! unless someone needed them.

use base::{Nanos, PageId, SeqId, StepId};
use kvcache::{Lease, TreeKey};

use super::resident::Resident;
use super::sharing::{Owner, PrefixHash, page_hashes};
use super::{Place, PrefixCache, Scheduler, Stream};
use crate::request::{Event, Refusal};
use crate::stats::EngineStats;
use crate::storage::Retention;

/// What stands between the head of the queue and a seat.
enum Verdict {
    Admit {
        key: TreeKey,
        hashes: Vec<PrefixHash>,
    },
    /// Another sequence computes a prefix it shares.
    Wait(PrefixHash),
    /// No seat or no pages.
    Full,
}

impl Scheduler {
    /// Fails waiting requests whose deadline passed before they started.
    pub(super) fn expire(&mut self, now: Nanos) {
        for stream in self.queue.expired(now) {
            EngineStats::add(&self.stats.expired, 1);
            self.end(stream, Event::Failed(Refusal::Expired));
        }
    }

    /// Admits the next request that can run, setting aside those that share a prefix in the making.
    pub(super) fn admit_next(&mut self, now: Nanos) -> Option<SeqId> {
        loop {
            self.promote_head(now);
            match self.judge_head()? {
                Verdict::Admit { key, hashes } => return self.admit_head(key, &hashes, now),
                Verdict::Wait(hash) => {
                    let stream = self.queue.pop()?;
                    self.queue.block(stream, hash);
                }
                Verdict::Full => return None,
            }
        }
    }

    fn judge_head(&self) -> Option<Verdict> {
        let stream = self.queue.head()?;
        if self.running.len() >= self.seats() {
            return Some(Verdict::Full);
        }
        let key = self.tree_key(stream);
        let reusable = self.reusable(stream);
        let hashes = page_hashes(&key, reusable, self.shape.page_tokens);
        let held = (self.tiers.device.peek(&key, reusable) / self.shape.page_tokens) as usize;
        if let Some(hash) = self.computing.shared_run(&hashes[held..]) {
            return Some(Verdict::Wait(hash));
        }
        // Pages that the host holds are as good as here; what follows them may be on its way.
        let near = self.tiers.near(&key, reusable);
        if let Some(hash) = hashes.get(near..).and_then(|after| self.computing.shared_run(after)) {
            return Some(Verdict::Wait(hash));
        }
        Some(Verdict::Admit { key, hashes })
    }

    pub(super) fn seats(&self) -> usize {
        self.config.step_seqs.min(self.shape.step_seqs_max) as usize
    }

    fn admit_head(&mut self, key: TreeKey, hashes: &[PrefixHash], now: Nanos) -> Option<SeqId> {
        let (lease, private) = self.take_pages(&key)?;
        let stream = self.queue.pop()?;
        self.last_seq = SeqId(self.last_seq.0 + 1);
        let restored = self.restore(&key, &stream, &lease, &private);
        self.count_lookup(&stream, lease.tokens(), restored);
        let reusable = self.reusable(&stream);
        self.tiers.used(&key, reusable, lease.pages());
        let mut resident = Resident::new(self.last_seq, key, stream, lease, private, restored);
        // The step being put together is the one that restores.
        resident.lands_with = (restored > 0).then(|| StepId(self.last_step.0 + 1));
        resident.stream.start(resident.applied, now);
        resident.claims = hashes[resident.lease.pages().len()..].to_vec();
        self.computing.claim(Owner::Sequence(self.last_seq), &resident.claims);
        self.places.insert(resident.stream.id(), Place::Running(self.last_seq));
        self.running.insert(self.last_seq, resident);
        Some(self.last_seq)
    }

    /// What is cached of the head's tokens, and pages for the rest; `None` if there are not enough. That is
    /// asked before each step while the head waits, so its prefix is neither used by it nor kept: it would
    /// otherwise outlive what others do use, though it is not the next to run.
    fn take_pages(&mut self, key: &TreeKey) -> Option<(Lease, Vec<PageId>)> {
        let stream = self.queue.head()?;
        let reusable = self.reusable(stream);
        let pages = stream.tokens.len().div_ceil(self.shape.page_tokens as usize);
        // One page of room for each running sequence, so that newcomers do not push them out at once.
        let running = self.running.len();
        let device = &mut self.tiers.device;
        let lease = device.hold(key, reusable);
        let needed = pages - lease.pages().len();
        if device.available() < needed + running {
            // No step reads it.
            device.release(lease, StepId(0));
            return None;
        }
        device.count_use(&lease, reusable.len());
        let private = device.reserve(needed).expect("there is room for more");
        Some((lease, private))
    }

    /// Orders the restore of what the host holds after the lease's pages; answers with its tokens.
    fn restore(&mut self, key: &TreeKey, stream: &Stream, lease: &Lease, private: &[PageId]) -> u32 {
        let reusable = self.reusable(stream);
        let Some(fetch) = self.tiers.fetch(key, reusable, lease.pages().len()) else { return 0 };
        let pages = fetch.frames.len();
        if !self.is_copy_worth(pages) {
            self.tiers.give_up(fetch);
            return 0;
        }
        self.tiers.restore(fetch, &private[..pages]);
        pages as u32 * self.shape.page_tokens
    }

    fn count_lookup(&self, stream: &Stream, leased: u32, restored: u32) {
        let cached = leased + restored;
        EngineStats::add(&self.stats.host_hit_tokens, u64::from(restored));
        EngineStats::add(&self.stats.prefix_query_tokens, stream.tokens.len() as u64);
        EngineStats::add(&self.stats.prefix_hit_tokens, u64::from(cached));
        if !stream.has_started() {
            EngineStats::add(&self.stats.prompt_tokens, stream.prompt_len() as u64);
        }
    }

    pub(super) fn tree_key(&self, stream: &Stream) -> TreeKey {
        let tenant = &stream.request.tenant;
        TreeKey {
            namespace: tenant.namespace,
            generation: self.generation(tenant.namespace),
            model: self.shape.model,
            adapter: tenant.adapter,
            salt: tenant.salt.clone(),
        }
    }

    pub(super) fn reusable<'a>(&self, stream: &'a Stream) -> &'a [u32] {
        if self.retains(stream) { stream.reusable() } else { &[] }
    }

    /// Whether anything of the stream may be found by others, or outlive it.
    pub(super) fn retains(&self, stream: &Stream) -> bool {
        self.config.prefix_cache == PrefixCache::On && stream.request.tenant.retention == Retention::Keep
    }

    /// Before a step is drafted: if someone more important waits and there is no seat or no page,
    /// the least important sequence makes room. At most one a step.
    pub(super) fn yield_to_priority(&mut self) {
        let Some(head) = self.queue.head() else { return };
        let pages = head.tokens.len().div_ceil(self.shape.page_tokens as usize);
        let is_full = self.running.len() >= self.seats() || self.tiers.device.available() < pages;
        let Some(worst) = self.least_important() else { return };
        if is_full && head.request.priority < self.running[&worst].stream.request.priority {
            self.preempt(worst);
        }
    }

    /// The last admitted of the lowest priority.
    pub(super) fn least_important(&self) -> Option<SeqId> {
        self.running.values().map(|r| (r.stream.request.priority, r.seq)).max().map(|(_, seq)| seq)
    }

    /// Sends a sequence back to the queue; what it computed stays in the tree.
    pub(super) fn preempt(&mut self, seq: SeqId) {
        let Some(mut stream) = self.dissolve(seq) else { return };
        EngineStats::add(&self.stats.preemptions, 1);
        stream.forget_prompt_scores();
        self.places.insert(stream.id(), Place::Queued);
        self.queue.push(stream);
    }

    /// Ends a running sequence.
    pub(super) fn finish(&mut self, seq: SeqId, event: Event) {
        if let Some(stream) = self.dissolve(seq) {
            self.end(stream, event);
        }
    }

    /// Takes a sequence off the device. Steps in flight may still write its private pages, so they are
    /// freed behind the newest of them.
    fn dissolve(&mut self, seq: SeqId) -> Option<Stream> {
        let resident = self.running.remove(&seq)?;
        self.retire.push(seq);
        for hash in self.computing.release(Owner::Sequence(seq), &resident.claims[resident.settled..]) {
            self.queue.wake(hash);
        }
        let (stream, lease, private) = resident.dissolve();
        let fence = self.fence();
        self.tiers.device.release(lease, fence);
        self.tiers.device.free(private, fence);
        if self.flights.is_empty() {
            self.tiers.device.complete(fence);
        }
        Some(stream)
    }

    /// Gives `seq` the pages for `tokens` more positions; preempts for them if it must. False if the
    /// sequence cannot be part of this step.
    pub(super) fn ensure_pages(&mut self, seq: SeqId, tokens: u32) -> bool {
        loop {
            let Some(resident) = self.running.get_mut(&seq) else { return false };
            let missing = resident.pages_missing(tokens, self.shape.page_tokens);
            if missing == 0 {
                return true;
            }
            if let Ok(pages) = self.tiers.device.reserve(missing) {
                resident.add_pages(pages);
                return true;
            }
            // Pages on their way back are waited for; nobody is preempted for them.
            if self.tiers.device.stats().pages_fenced >= missing {
                return false;
            }
            let Some(victim) = self.least_important() else { return false };
            self.preempt(victim);
            if victim == seq || !self.flights.is_empty() {
                return false;
            }
        }
    }
}
