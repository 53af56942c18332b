//! One class's waiters: a lane per tenant, lanes in order of the work they have been given.
//!
//! Start-time fair queueing, the tokens-served counter of the LLM-fairness literature with a virtual
//! clock. A lane's tag is the work its tenant was given, divided by its weight; the lane with the least
//! goes next. Two tenants that both wait never differ by more than one maximal request each. A tenant
//! that was idle joins at the virtual time, the tag of the lane served last: it neither collects credit
//! while it is away nor pays for having used an empty pool. Round robin over tenants would be fair in
//! requests, and requests differ by a factor of a thousand.
//!
//! Within a lane the earliest deadline goes first.
//!
//! Predictions are mended: when a request ends, its lane's tag moves by what the prediction was off.
//!
//! Limits: a lane of a tenant that does not wait is kept only while its tag is ahead of the virtual time
//! (it still owes). At the bound the one that owes least is forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::offer::{Tenant, Ticket, Weight, Work};
use super::rank::Rank;

/// Parts of one token of work at weight 1: division by the weight loses nothing worth counting.
const STEP: u128 = 1 << 32;

#[derive(Debug)]
pub(super) struct FairQueue {
    lanes: HashMap<Tenant, Lane>,
    /// Lanes that wait, by tag.
    active: BTreeSet<(Rank, Tenant)>,
    /// Lanes that do not wait and still owe, by tag.
    idle: BTreeSet<(Rank, Tenant)>,
    virtual_time: u128,
    lanes_max: usize,
    work: u64,
    entries: usize,
    /// Sum over `active`.
    weight: u64,
}

#[derive(Debug)]
struct Lane {
    /// By deadline, then arrival.
    waiting: BTreeMap<Rank, (Ticket, Work)>,
    tag: u128,
    weight: Weight,
    work: u64,
}

impl FairQueue {
    pub fn new(lanes_max: usize) -> Self {
        Self {
            lanes: HashMap::new(),
            active: BTreeSet::new(),
            idle: BTreeSet::new(),
            virtual_time: 0,
            lanes_max,
            work: 0,
            entries: 0,
            weight: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
    pub fn entries(&self) -> usize {
        self.entries
    }
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Whether a lane for `tenant` exists or can be made.
    pub fn has_lane_for(&self, tenant: Tenant) -> bool {
        self.lanes.contains_key(&tenant) || self.lanes.len() < self.lanes_max || !self.idle.is_empty()
    }

    /// The work that would be given out before a new waiter at `place`, if all lanes kept waiting.
    pub fn work_ahead(&self, tenant: Tenant, weight: Weight, place: Rank) -> u64 {
        let Some(lane) = self.lanes.get(&tenant).filter(|lane| lane.is_behind(place)) else {
            return 0;
        };
        let others = self.weight.saturating_sub(lane.weight.get());
        let share = u128::from(lane.work) * u128::from(others + weight.get()) / u128::from(weight.get());
        share.min(u128::from(self.work)) as u64
    }

    /// # Panics
    /// If there is no lane for the tenant; ask [`FairQueue::has_lane_for`] first.
    pub fn push(&mut self, tenant: Tenant, weight: Weight, place: Rank, ticket: Ticket, work: Work) {
        self.take_lane_out(tenant);
        let lane = self.lane(tenant);
        lane.weight = weight;
        lane.waiting.insert(place, (ticket, work));
        lane.work += work.0;
        self.work += work.0;
        self.entries += 1;
        self.put_lane_back(tenant);
    }

    /// Who goes next; its tenant is charged.
    pub fn pop(&mut self) -> Option<(Ticket, Work)> {
        let (tag, tenant) = *self.active.first()?;
        self.take_lane_out(tenant);
        let lane = self.lanes.get_mut(&tenant)?;
        let (_, (ticket, work)) = lane.waiting.pop_first()?;
        lane.work -= work.0;
        lane.tag += step(work, lane.weight);
        self.virtual_time = self.virtual_time.max(tag.0);
        self.left(work);
        self.put_lane_back(tenant);
        self.forgive();
        Some((ticket, work))
    }

    /// Takes one waiter out, uncharged.
    pub fn remove(&mut self, tenant: Tenant, place: Rank) -> Option<Work> {
        let (_, work) = self.lanes.get_mut(&tenant)?.waiting.remove(&place)?;
        self.take_lane_out(tenant);
        self.lane(tenant).work -= work.0;
        self.left(work);
        self.put_lane_back(tenant);
        Some(work)
    }

    /// Charges a tenant that was served without waiting.
    pub fn charge(&mut self, tenant: Tenant, weight: Weight, work: Work) {
        if !self.has_lane_for(tenant) {
            return;
        }
        self.take_lane_out(tenant);
        let lane = self.lane(tenant);
        lane.weight = weight;
        let start = lane.tag;
        lane.tag += step(work, weight);
        self.virtual_time = self.virtual_time.max(start);
        self.put_lane_back(tenant);
        self.forgive();
    }

    /// Mends the charge of a request that was predicted at `predicted` and took `actual`.
    pub fn correct(&mut self, tenant: Tenant, weight: Weight, predicted: Work, actual: Work) {
        let owes_more = actual > predicted && self.has_lane_for(tenant);
        if predicted == actual || !(owes_more || self.lanes.contains_key(&tenant)) {
            return;
        }
        self.take_lane_out(tenant);
        let lane = self.lane(tenant);
        lane.tag = lane.tag.saturating_sub(step(predicted, weight)) + step(actual, weight);
        self.put_lane_back(tenant);
    }

    fn left(&mut self, work: Work) {
        self.work -= work.0;
        self.entries -= 1;
    }

    /// The tenant's lane, made at the virtual time if it has none.
    fn lane(&mut self, tenant: Tenant) -> &mut Lane {
        if !self.lanes.contains_key(&tenant) && self.lanes.len() >= self.lanes_max {
            let (_, least) = self.idle.pop_first().expect("room for a lane was asked for");
            self.lanes.remove(&least);
        }
        let tag = self.virtual_time;
        let new = || Lane { waiting: BTreeMap::new(), tag, weight: Weight::ONE, work: 0 };
        self.lanes.entry(tenant).or_insert_with(new)
    }

    /// Before a lane changes: out of both orders.
    fn take_lane_out(&mut self, tenant: Tenant) {
        let Some(lane) = self.lanes.get(&tenant) else { return };
        let key = (Rank(lane.tag), tenant);
        if self.active.remove(&key) {
            self.weight -= lane.weight.get();
        } else {
            self.idle.remove(&key);
        }
    }

    /// After a lane changed: into the order it belongs to, or forgotten.
    fn put_lane_back(&mut self, tenant: Tenant) {
        let Some(lane) = self.lanes.get(&tenant) else { return };
        let key = (Rank(lane.tag), tenant);
        if !lane.waiting.is_empty() {
            self.weight += lane.weight.get();
            self.active.insert(key);
        } else if lane.tag > self.virtual_time {
            self.idle.insert(key);
        } else {
            self.lanes.remove(&tenant);
        }
    }

    /// Forgets the idle lanes that the virtual time has overtaken.
    fn forgive(&mut self) {
        while let Some(&(tag, tenant)) = self.idle.first()
            && tag.0 <= self.virtual_time
        {
            self.idle.pop_first();
            self.lanes.remove(&tenant);
        }
    }

    /// # Panics
    /// If the parts contradict each other.
    pub fn check(&self) {
        assert!(self.lanes.len() <= self.lanes_max, "{} lanes of {}", self.lanes.len(), self.lanes_max);
        assert_eq!(self.lanes.len(), self.active.len() + self.idle.len(), "a lane is in one order");
        for (tenant, lane) in &self.lanes {
            lane.check();
            let key = (Rank(lane.tag), *tenant);
            assert_ne!(self.active.contains(&key), lane.waiting.is_empty(), "tenant {tenant} active");
            assert!(
                !self.idle.contains(&key) || lane.tag > self.virtual_time,
                "tenant {tenant} owes nothing"
            );
        }
        let lanes = || self.lanes.values();
        let waiting = lanes().filter(|lane| !lane.waiting.is_empty());
        assert_eq!(self.weight, waiting.map(|lane| lane.weight.get()).sum::<u64>(), "weight");
        assert_eq!(self.work, lanes().map(|lane| lane.work).sum::<u64>(), "work");
        assert_eq!(self.entries, lanes().map(|lane| lane.waiting.len()).sum::<usize>(), "entries");
    }
}

impl Lane {
    /// Whether a waiter at `place` would come after all of this lane.
    fn is_behind(&self, place: Rank) -> bool {
        self.waiting.last_key_value().is_some_and(|(last, _)| *last <= place)
    }
    fn check(&self) {
        assert_eq!(self.work, self.waiting.values().map(|(_, work)| work.0).sum::<u64>(), "a lane's work");
    }
}

/// How far `work` moves a tag.
fn step(work: Work, weight: Weight) -> u128 {
    u128::from(work.0) * STEP / u128::from(weight.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> FairQueue {
        FairQueue::new(8)
    }

    fn push(queue: &mut FairQueue, tenant: u64, ticket: u64, work: u64) {
        queue.push(Tenant(tenant), Weight::ONE, Rank::of(0, ticket), Ticket(ticket), Work(work));
        queue.check();
    }

    fn order(queue: &mut FairQueue) -> Vec<u64> {
        let order = std::iter::from_fn(|| queue.pop()).map(|(ticket, _)| ticket.0).collect();
        queue.check();
        order
    }

    #[test]
    fn work_not_requests_is_shared() {
        let mut queue = queue();
        (0..2).for_each(|n| push(&mut queue, 1, n, 400));
        (10..18).for_each(|n| push(&mut queue, 2, n, 100));
        assert_eq!(order(&mut queue), [0, 10, 11, 12, 13, 1, 14, 15, 16, 17]);
    }

    #[test]
    fn an_idle_tenant_collects_no_credit() {
        let mut queue = queue();
        (0..20).for_each(|n| push(&mut queue, 1, n, 100));
        (0..10).for_each(|_| assert!(queue.pop().is_some()));
        (30..34).for_each(|n| push(&mut queue, 2, n, 100));
        assert_eq!(order(&mut queue)[..6], [30, 10, 31, 11, 32, 12], "turns, not a burst of tenant 2");
    }

    #[test]
    fn who_used_an_empty_pool_owes_at_most_one_request() {
        let mut queue = queue();
        (0..50).for_each(|_| queue.charge(Tenant(1), Weight::ONE, Work(100)));
        queue.charge(Tenant(2), Weight::ONE, Work(100));
        (0..3).for_each(|n| push(&mut queue, 1, n, 100));
        (10..13).for_each(|n| push(&mut queue, 2, n, 100));
        assert_eq!(order(&mut queue), [0, 10, 1, 11, 2, 12]);
    }

    #[test]
    fn a_weight_of_three_gets_three_times_the_work() {
        let mut queue = queue();
        for n in 0..12 {
            push(&mut queue, 1, n, 100);
            queue.push(Tenant(2), Weight::new(3), Rank::of(0, n), Ticket(100 + n), Work(100));
        }
        let first = &order(&mut queue)[..8];
        assert_eq!(first.iter().filter(|ticket| **ticket >= 100).count(), 6, "{first:?}");
    }

    #[test]
    fn an_underestimated_tenant_pays_when_the_truth_is_known() {
        let mut queue = queue();
        (0..6).for_each(|n| push(&mut queue, 1, n, 100));
        (10..16).for_each(|n| push(&mut queue, 2, n, 100));
        assert_eq!(queue.pop(), Some((Ticket(0), Work(100))));
        queue.correct(Tenant(1), Weight::ONE, Work(100), Work(400));
        queue.check();
        assert_eq!(order(&mut queue)[..5], [10, 11, 12, 13, 1], "ties go to the lower tenant");
    }

    #[test]
    fn the_earliest_deadline_of_a_tenant_goes_first() {
        let mut queue = queue();
        for (deadline, ticket) in [(30, 1), (10, 2), (20, 3)] {
            queue.push(Tenant(1), Weight::ONE, Rank::of(deadline, ticket), Ticket(ticket), Work(1));
        }
        assert_eq!(order(&mut queue), [2, 3, 1]);
    }

    #[test]
    fn at_the_bound_who_owes_least_is_forgotten_and_waiters_never() {
        let mut queue = FairQueue::new(2);
        queue.charge(Tenant(1), Weight::ONE, Work(100));
        queue.charge(Tenant(2), Weight::ONE, Work(50));
        push(&mut queue, 3, 0, 1);
        assert!(!queue.lanes.contains_key(&Tenant(2)) && queue.lanes.contains_key(&Tenant(1)));
        push(&mut queue, 4, 1, 1);
        assert!(!queue.has_lane_for(Tenant(5)), "both lanes wait");
        assert!(queue.has_lane_for(Tenant(3)));
    }
}
