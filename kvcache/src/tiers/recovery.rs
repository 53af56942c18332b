//! Cold tiers after a restart: records of a journal become trees again.
//!
//! Records come in any order. They are put back path by path, longest shared parts once: a record whose
//! parent is not among them, whose name its tokens do not give, or whose namespace was purged since, is
//! lost, and its slot free. Readers were told nothing of what is back, so the next drain says that events
//! were lost. Costs one hash per page, which also proves the record's place in its path.

use std::collections::{HashMap, HashSet};

use base::{PageId, SlotId, StepId, Tier};

use super::Tiers;
use super::order::SlotRecord;
use crate::TreeKey;

impl Tiers {
    /// Puts recorded pages back into the trees of their tiers; answers with how many, and with the slots
    /// that were not. To be called before anything else.
    pub fn reinstate(&mut self, records: Vec<SlotRecord>) -> (usize, Vec<(Tier, SlotId)>) {
        let mut lost = Vec::new();
        let mut kept = 0;
        for tier in [Tier::Nvme, Tier::Object] {
            let of_tier: Vec<&SlotRecord> = records.iter().filter(|record| record.tier == tier).collect();
            let admitted = of_tier.iter().copied().filter(|record| self.fits(tier, record));
            let admitted: HashMap<SlotId, &SlotRecord> =
                admitted.map(|record| (record.slot, record)).collect();
            let placed = self.reinstate_tier(tier, &admitted);
            kept += placed.len();
            let is_lost = |record: &&&SlotRecord| !placed.contains_key(&record.slot);
            lost.extend(of_tier.iter().filter(is_lost).map(|record| (tier, record.slot)));
        }
        if kept > 0 {
            self.lose_events();
        }
        (kept, lost)
    }

    fn fits(&self, tier: Tier, record: &SlotRecord) -> bool {
        let lower = self.lower.get(&tier);
        let is_slot = lower.is_some_and(|lower| record.slot.0 < lower.index.config().pages);
        let is_whole = record.tokens.len() == self.device.config().page_tokens as usize;
        is_slot && is_whole && self.admits(&record.key) && self.keys.contains_key(&record.key.namespace)
    }

    /// The slots that were put back, with how deep they lie.
    fn reinstate_tier(
        &mut self,
        tier: Tier,
        records: &HashMap<SlotId, &SlotRecord>,
    ) -> HashMap<SlotId, usize> {
        let mut placed: HashMap<SlotId, usize> = HashMap::new();
        let mut slots: Vec<SlotId> = records.keys().copied().collect();
        slots.sort_unstable();
        let all: Vec<PageId> = slots.iter().map(|slot| PageId(slot.0)).collect();
        let claimed = self.lower.get_mut(&tier).is_some_and(|lower| lower.index.claim(&all));
        assert!(claimed || all.is_empty(), "nothing has used a slot before recovery");
        // Start at the leaves: every page above them is then put back with the first of them.
        let parents: HashSet<SlotId> = records.values().filter_map(|r| r.parent).collect();
        slots.sort_by_key(|slot| parents.contains(slot));
        for slot in slots {
            if !placed.contains_key(&slot)
                && let Some(path) = path_to(slot, records)
            {
                self.reinstate_path(tier, &path, records, &mut placed);
            }
        }
        let left: Vec<PageId> =
            all.into_iter().filter(|place| !placed.contains_key(&SlotId(place.0))).collect();
        if let Some(lower) = self.lower.get_mut(&tier) {
            lower.index.free(left, StepId(0));
            let _ = lower.note_gone();
        }
        placed
    }

    fn reinstate_path(
        &mut self,
        tier: Tier,
        path: &[SlotId],
        records: &HashMap<SlotId, &SlotRecord>,
        placed: &mut HashMap<SlotId, usize>,
    ) {
        let key: &TreeKey = &records[&path[0]].key;
        let tokens: Vec<u32> = path.iter().flat_map(|slot| records[slot].tokens.iter().copied()).collect();
        let Some(names) = self.device.names(key, &tokens) else { return };
        let right = names.iter().zip(path).take_while(|(name, slot)| **name == records[slot].name).count();
        let there = path.iter().take_while(|slot| placed.contains_key(slot)).count();
        if right <= there {
            return;
        }
        let fresh: Vec<PageId> = path[there..right].iter().map(|slot| PageId(slot.0)).collect();
        let Some(lower) = self.lower.get_mut(&tier) else { return };
        let tokens = &tokens[..right * lower.index.config().page_tokens as usize];
        if !lower.index.reinstate(key, tokens, there, &fresh) {
            return;
        }
        for (depth, slot) in path.iter().enumerate().take(right).skip(there) {
            lower.arrived(PageId(slot.0), key, Some(records[slot].seal));
            lower.was_there(PageId(slot.0));
            placed.insert(*slot, depth);
        }
    }
}

/// The slots from a first page down to `slot`; `None` if one is missing, of another key, or the records
/// go in a circle.
fn path_to(slot: SlotId, records: &HashMap<SlotId, &SlotRecord>) -> Option<Vec<SlotId>> {
    let mut path = vec![slot];
    let mut at = records[&slot];
    while let Some(parent) = at.parent {
        let above = records.get(&parent).filter(|above| above.key == at.key)?;
        path.push(parent);
        if path.len() > records.len() {
            return None;
        }
        at = above;
    }
    path.reverse();
    Some(path)
}
