//! How pages travel: saved to the host, stored in cold tiers, loaded back, restored to the device.
//!
//! ```text
//!            save (a step)              store (an order)
//!   device ───────────────►  host  ───────────────────────►  nvme, object
//!          ◄───────────────        ◄───────────────────────
//!            restore (a step)           load (an order)
//! ```

use base::{FrameId, PageId, StepId, Tier, TokenId};

use super::lower::{Lower, frame, slot};
use super::order::{ColdOrder, ColdWork, Label, PageMove, Ticket};
use super::run::{Run, RunId};
use super::{Tiers, WritePolicy};
use crate::lease::Lease;
use crate::{CacheStats, Spans, TreeKey};

/// Leaves looked at in one round of write-back.
const COLDEST: usize = 4;

/// How far a prompt is held, in pages, by tier; what is on its way does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reach {
    pub device: usize,
    pub host: usize,
    /// The cold tier that holds most, if it holds more than device and host do.
    pub cold: Option<(Tier, usize)>,
}

impl Reach {
    /// Pages that can be had without waiting.
    pub fn near(&self) -> usize {
        self.device.max(self.host)
    }
}

/// Host pages that continue a prompt's device pages, leased until they are restored.
#[derive(Debug)]
pub struct Fetch {
    lease: Lease,
    pub frames: Vec<FrameId>,
}

/// Names a prefetch until it ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PrefetchId(pub u32);

/// A prefetch is over: `arrived` of its pages can be fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefetchEnd {
    pub id: PrefetchId,
    pub from: Tier,
    pub asked: usize,
    pub arrived: usize,
}

/// Only ever grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierCounters {
    pub saved_pages: u64,
    pub restored_pages: u64,
    pub stored_pages: u64,
    pub loaded_pages: u64,
    /// Copies not made because too many were on their way or no place could be had.
    pub shed_pages: u64,
    /// Pages whose copy failed, and those of them whose bytes were wrong.
    pub failed_pages: u64,
    pub wrong_pages: u64,
}

/// One tier at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TierStats {
    pub tier: Tier,
    pub cache: CacheStats,
    pub spans: Spans,
}

impl Tiers {
    /// Where the pages of `tokens` lie.
    pub fn reach(&self, key: &TreeKey, tokens: &[TokenId]) -> Reach {
        let device = (self.device.peek(key, tokens) / self.page_tokens() as u32) as usize;
        let held = |lower: &Lower| lower.ready_prefix(&lower.index.find(key, tokens));
        let host = self.lower.get(&Tier::Host).map_or(0, held);
        let cold = self.lower.values().filter(|lower| lower.tier > Tier::Host);
        let best = cold
            .map(|lower| (held(lower), lower.tier))
            .max_by_key(|&(pages, tier)| (pages, std::cmp::Reverse(tier)));
        let near = device.max(host);
        Reach { device, host, cold: best.filter(|best| best.0 > near).map(|(pages, tier)| (tier, pages)) }
    }

    /// Pages of `tokens` that can be had without waiting.
    pub fn near(&self, key: &TreeKey, tokens: &[TokenId]) -> usize {
        let device = (self.device.peek(key, tokens) / self.page_tokens() as u32) as usize;
        let held = |lower: &Lower| lower.ready_prefix(&lower.index.find(key, tokens));
        device.max(self.lower.get(&Tier::Host).map_or(0, held))
    }

    pub(super) fn page_tokens(&self) -> usize {
        self.device.config().page_tokens as usize
    }

    /// `pages` now hold all of `tokens` on the device: they are copied down if the policy says so.
    pub fn published(&mut self, key: &TreeKey, tokens: &[TokenId], pages: &[PageId]) {
        if self.writes(Tier::Host) == Some(WritePolicy::WriteThrough) {
            self.save(key, tokens, pages);
        }
    }

    /// A request uses the `pages` of `tokens`: every tier's policy hears of it.
    pub fn used(&mut self, key: &TreeKey, tokens: &[TokenId], pages: &[PageId]) {
        for lower in self.lower.values_mut().filter(|lower| lower.index.peek(key, tokens) > 0) {
            let lease = lower.index.lease(key, tokens);
            lower.index.release(lease, StepId(0));
        }
        let tokens = &tokens[..pages.len() * self.page_tokens()];
        if let Some(WritePolicy::WriteThroughSelective { uses }) = self.writes(Tier::Host)
            && self.device.frequency(key, tokens) >= uses
        {
            self.save(key, tokens, pages);
        }
        for tier in self.cold_tiers() {
            if let Some(WritePolicy::WriteThroughSelective { uses }) = self.writes(tier)
                && self.lower[&Tier::Host].index.frequency(key, tokens) >= uses
            {
                self.store(tier, key, tokens);
            }
        }
    }

    /// One round of write-back: where a tier is nearly full, its coldest leaves are copied down before
    /// they are evicted.
    pub fn settle_levels(&mut self) {
        if self.writes(Tier::Host) == Some(WritePolicy::WriteBack) && self.device_is_low() {
            for path in self.device.coldest(COLDEST) {
                self.save(&path.key, &path.tokens, &path.pages);
            }
        }
        for tier in self.cold_tiers() {
            let watermark = self.lower[&tier].watermark;
            let above = &self.lower[&Tier::Host];
            if self.writes(tier) == Some(WritePolicy::WriteBack) && above.free_share() < watermark {
                for path in above.index.coldest(COLDEST) {
                    self.store(tier, &path.key, &path.tokens);
                }
            }
        }
    }

    fn device_is_low(&self) -> bool {
        let stats = self.device.stats();
        (stats.pages_free as f32) < stats.pages_total as f32 * self.lower[&Tier::Host].watermark
    }

    pub(super) fn writes(&self, tier: Tier) -> Option<WritePolicy> {
        self.lower.get(&tier).map(|lower| lower.write)
    }

    pub(super) fn cold_tiers(&self) -> Vec<Tier> {
        self.lower.keys().copied().filter(|tier| *tier > Tier::Host).collect()
    }

    /// Orders the copy of what the host lacks of a path that is whole on the device.
    fn save(&mut self, key: &TreeKey, tokens: &[TokenId], pages: &[PageId]) {
        if !self.admits(key) {
            return;
        }
        let Some((to, first, places)) = self.make_places(Tier::Host, key, tokens, pages.len(), usize::MAX)
        else {
            return;
        };
        for (&page, &place) in pages[first..].iter().zip(&places) {
            self.moves.push(PageMove::Save { page, frame: frame(place) });
        }
        self.counters.saved_pages += places.len() as u64;
        let tokens = tokens[..(first + places.len()) * self.page_tokens()].to_vec();
        let id = self.next_run();
        self.runs.insert(id, Run::new(key, tokens, Tier::Host, to, first, places));
    }

    /// Orders the copy of what `tier` lacks of a path, as far as the host has it.
    pub(super) fn store(&mut self, tier: Tier, key: &TreeKey, tokens: &[TokenId]) {
        if !self.admits(key) || !self.keys.contains_key(&key.namespace) {
            return;
        }
        if self.in_flight >= self.orders_max {
            self.counters.shed_pages += 1;
            return;
        }
        let Some(host) = self.lower.get_mut(&Tier::Host) else { return };
        let from = host.index.hold(key, tokens);
        let ready = host.ready_prefix(from.pages());
        let frames: Vec<PageId> = from.pages()[..ready].to_vec();
        let tokens = &tokens[..ready * self.page_tokens()];
        let most = self.orders_max - self.in_flight;
        let Some((to, first, places)) = self.make_places(tier, key, tokens, ready, most) else {
            self.give_back(Tier::Host, from);
            return;
        };
        let id = self.next_run();
        for (i, (&source, &place)) in frames[first..].iter().zip(&places).enumerate() {
            let work = ColdWork::Store { frame: frame(source), label: self.label(tier, key, place) };
            self.orders.push(ColdOrder { ticket: Ticket::new(id, i), tier, work });
        }
        self.in_flight += places.len();
        let tokens = tokens[..(first + places.len()) * self.page_tokens()].to_vec();
        let run = Run { source: Some((Tier::Host, from)), ..Run::new(key, tokens, tier, to, first, places) };
        self.runs.insert(id, run);
    }

    /// Loads pages of `tokens` from a cold tier into host memory, as far as that tier goes and frames
    /// can be had. `None` if there is nothing to load or too much is on its way.
    pub fn prefetch(&mut self, key: &TreeKey, tokens: &[TokenId], from: Tier) -> Option<PrefetchId> {
        if !self.admits(key) || self.in_flight >= self.orders_max {
            self.counters.shed_pages += 1;
            return None;
        }
        self.cover_device_prefix(key, tokens);
        let cold = self.lower.get_mut(&from)?;
        let source = cold.index.hold(key, tokens);
        let ready = cold.ready_prefix(source.pages());
        let slots: Vec<PageId> = source.pages()[..ready].to_vec();
        let tokens = &tokens[..ready * self.page_tokens()];
        let most = self.orders_max - self.in_flight;
        let Some((to, first, places)) = self.make_places(Tier::Host, key, tokens, ready, most) else {
            self.give_back(from, source);
            return None;
        };
        let id = self.next_run();
        for (i, (&place, &target)) in slots[first..].iter().zip(&places).enumerate() {
            let (label, seal) = (self.label(from, key, place), self.lower[&from].seal(place));
            let work = ColdWork::Load { frame: frame(target), label, seal };
            self.orders.push(ColdOrder { ticket: Ticket::new(id, i), tier: from, work });
        }
        self.in_flight += places.len();
        // A use only now: who asks in vain, and may ask again before each step, has used nothing.
        if let Some(cold) = self.lower.get_mut(&from) {
            cold.index.count_use(&source, tokens.len());
        }
        let tokens = tokens[..(first + places.len()) * self.page_tokens()].to_vec();
        let prefetch = PrefetchId(id.0);
        let mut run = Run::new(key, tokens, Tier::Host, to, first, places);
        run.source = Some((from, source));
        run.prefetch = Some(prefetch);
        self.runs.insert(id, run);
        Some(prefetch)
    }

    /// The host holds whole prefixes: what only the device has of this one is saved first.
    fn cover_device_prefix(&mut self, key: &TreeKey, tokens: &[TokenId]) {
        let pages = self.device.find(key, tokens);
        let covered = self.lower.get(&Tier::Host).map_or(0, |host| host.index.find(key, tokens).len());
        if pages.len() > covered {
            let tokens = &tokens[..pages.len() * self.page_tokens()];
            self.save(key, tokens, &pages);
        }
    }

    /// Places in `tier` for what it lacks of a path of `pages` pages, entered into its tree, not ready:
    /// the lease on the path, how many pages it had, and the new places.
    fn make_places(
        &mut self,
        tier: Tier,
        key: &TreeKey,
        tokens: &[TokenId],
        pages: usize,
        most: usize,
    ) -> Option<(Lease, usize, Vec<PageId>)> {
        self.note_gone(tier);
        let lower = self.lower.get_mut(&tier)?;
        let mut lease = lower.index.hold(key, tokens);
        let first = lease.pages().len();
        let wanted = pages.saturating_sub(first).min(most);
        if wanted == 0 {
            lower.index.release(lease, StepId(0));
            return None;
        }
        // A namespace at its quota makes room among its own pages, never among others'.
        let room = lower.index.admit(key.namespace, wanted);
        let places = lower.index.reserve(room.min(lower.index.available())).unwrap_or_default();
        let entered = lower.index.publish(&mut lease, tokens, &places, StepId(0)).pages.len();
        lower.index.free(places[entered..].to_vec(), StepId(0));
        self.counters.shed_pages += (wanted - entered) as u64;
        places[..entered].iter().for_each(|&place| lower.soil(place, key));
        self.note_gone(tier);
        if entered == 0 {
            self.give_back(tier, lease);
            return None;
        }
        Some((lease, first, places[..entered].to_vec()))
    }

    fn label(&self, tier: Tier, key: &TreeKey, place: PageId) -> Label {
        let name = self.lower[&tier].name(place).expect("a namespace with cold pages has a key");
        Label { namespace: key.namespace, generation: key.generation, name, tier, slot: slot(place) }
    }

    /// Leases the host pages that continue the first `from` pages of `tokens`; `None` if there are none.
    pub fn fetch(&mut self, key: &TreeKey, tokens: &[TokenId], from: usize) -> Option<Fetch> {
        let host = self.lower.get_mut(&Tier::Host)?;
        if host.ready_prefix(&host.index.find(key, tokens)) <= from {
            return None;
        }
        let lease = host.index.lease(key, tokens);
        let ready = host.ready_prefix(lease.pages());
        let frames = lease.pages()[from..ready].iter().copied().map(frame).collect();
        Some(Fetch { lease, frames })
    }

    /// Orders the restore of fetched frames to `pages`, one each, in the next step.
    pub fn restore(&mut self, fetch: Fetch, pages: &[PageId]) {
        assert_eq!(fetch.frames.len(), pages.len(), "each frame has its page");
        let moves = fetch.frames.iter().zip(pages);
        self.moves.extend(moves.map(|(&frame, &page)| PageMove::Restore { frame, page }));
        self.counters.restored_pages += pages.len() as u64;
        self.reading.push((None, fetch.lease));
    }

    /// Gives fetched frames back unread.
    pub fn give_up(&mut self, fetch: Fetch) {
        self.give_back(Tier::Host, fetch.lease);
    }

    /// Whether a step must come even if nothing is to be computed.
    pub fn has_moves(&self) -> bool {
        !self.moves.is_empty() || self.purges.needs_step()
    }

    pub fn counters(&self) -> TierCounters {
        self.counters
    }

    /// Nearest tier first.
    pub fn tier_stats(&self) -> Vec<TierStats> {
        let device =
            TierStats { tier: Tier::Device, cache: self.device.stats(), spans: *self.device.spans() };
        let lower = self.lower.values().map(|lower| TierStats {
            tier: lower.tier,
            cache: lower.index.stats(),
            spans: *lower.index.spans(),
        });
        std::iter::once(device).chain(lower).collect()
    }

    /// Whether nothing is on its way or waits to be.
    pub fn is_settled(&self) -> bool {
        self.runs.is_empty() && self.moves.is_empty() && self.orders.is_empty() && self.reading.is_empty()
    }

    /// Pages of orders without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn next_run(&mut self) -> RunId {
        self.last_run = self.last_run.wrapping_add(1);
        RunId(self.last_run)
    }
}
