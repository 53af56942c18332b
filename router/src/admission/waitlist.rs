//! Those that wait, found by ticket, by deadline and by turn, and the bounds on how many they are.

use std::collections::{BTreeSet, HashMap};

use base::Nanos;

use super::class::Class;
use super::config::{AdmissionConfig, QueueLimits};
use super::fair::FairQueue;
use super::offer::{Offer, Tenant, Ticket, Weight, Work};
use super::rank::Rank;
use super::turns::{Turns, Waiting};
use super::verdict::Reason;

#[derive(Debug)]
pub(super) struct Waitlist {
    limits: QueueLimits,
    shed_at_permille: [u16; Class::ALL.len()],
    queues: [FairQueue; Class::ALL.len()],
    turns: Turns,
    waiters: HashMap<Ticket, Waiter>,
    /// Waiters by deadline, then ticket.
    expiry: BTreeSet<Rank>,
    tenants: HashMap<Tenant, Held>,
    bytes: u64,
    arrivals: u64,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    offer: Offer,
    place: Rank,
}

/// What a tenant holds here, over all classes.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    entries: usize,
    bytes: u64,
}

impl Waitlist {
    pub fn new(config: &AdmissionConfig) -> Self {
        Self {
            limits: config.queue.clone(),
            shed_at_permille: config.classes.map(|class| class.shed_at_permille),
            queues: Class::ALL.map(|_| FairQueue::new(config.queue.tenants_max)),
            turns: Turns::new(config),
            waiters: HashMap::new(),
            expiry: BTreeSet::new(),
            tenants: HashMap::new(),
            bytes: 0,
            arrivals: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }
    pub fn has(&self, ticket: Ticket) -> bool {
        self.waiters.contains_key(&ticket)
    }
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    pub fn entries(&self, class: Class) -> usize {
        self.queues[class.index()].entries()
    }
    pub fn work(&self, class: Class) -> u64 {
        self.queues[class.index()].work()
    }
    pub fn work_total(&self) -> u64 {
        self.queues.iter().map(FairQueue::work).sum()
    }

    /// The waiter that expires first.
    pub fn first_to_expire(&self) -> Option<(Nanos, Ticket)> {
        self.expiry.first().map(|first| (Nanos(first.major()), Ticket(first.0 as u64)))
    }

    /// Why there is no place for `offer`, if so.
    pub fn no_place(&self, offer: &Offer) -> Option<Reason> {
        let limits = &self.limits;
        let held = self.tenants.get(&offer.tenant).copied().unwrap_or_default();
        if held.entries >= limits.tenant_entries_max || held.bytes + offer.bytes > limits.tenant_bytes_max {
            return Some(Reason::TenantLimit);
        }
        if !self.fits(offer, 1000) {
            return Some(Reason::Saturated);
        }
        if !self.fits(offer, self.shed_at_permille[offer.class.index()]) {
            return Some(Reason::Shed);
        }
        (!self.queues[offer.class.index()].has_lane_for(offer.tenant)).then_some(Reason::TenantsLimit)
    }

    fn fits(&self, offer: &Offer, permille: u16) -> bool {
        let entries_max = part(self.limits.entries_max as u64, permille);
        let bytes_max = part(self.limits.bytes_max, permille);
        (self.waiters.len() as u64) < entries_max && self.bytes + offer.bytes <= bytes_max
    }

    /// The work that goes before `offer` if nothing more comes: the higher classes' and its own share of
    /// its class's. Too little rather than too much.
    pub fn work_ahead(&self, offer: &Offer) -> u64 {
        let above: u64 = offer.class.above().iter().map(|class| self.work(*class)).sum();
        let place = Rank::of(offer.deadline.0, self.arrivals);
        above + self.queues[offer.class.index()].work_ahead(offer.tenant, offer.weight, place)
    }

    /// Adds a waiter for which [`Waitlist::no_place`] had no objection.
    pub fn push(&mut self, offer: Offer) {
        let place = Rank::of(offer.deadline.0, self.arrivals);
        self.arrivals += 1;
        self.queues[offer.class.index()].push(offer.tenant, offer.weight, place, offer.ticket, offer.work);
        self.expiry.insert(Rank::of(offer.deadline.0, offer.ticket.0));
        let held = self.tenants.entry(offer.tenant).or_default();
        held.entries += 1;
        held.bytes += offer.bytes;
        self.bytes += offer.bytes;
        self.waiters.insert(offer.ticket, Waiter { offer, place });
    }

    /// Whose turn it is; the tenant and the class are charged.
    pub fn pop(&mut self) -> Option<Offer> {
        let waiting = self.waiting();
        let class = self.turns.pick(waiting)?;
        let (ticket, work) = self.queues[class.index()].pop()?;
        self.turns.served(class, work, waiting);
        self.forget(ticket).map(|waiter| waiter.offer)
    }

    /// Takes one out of its turn, uncharged.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Offer> {
        let Waiter { offer, place } = *self.waiters.get(&ticket)?;
        self.queues[offer.class.index()].remove(offer.tenant, place);
        self.forget(ticket).map(|waiter| waiter.offer)
    }

    /// Charges one that was served without waiting.
    pub fn charge(&mut self, offer: &Offer) {
        self.queues[offer.class.index()].charge(offer.tenant, offer.weight, offer.work);
    }

    /// See [`FairQueue::correct`].
    pub fn correct(&mut self, class: Class, tenant: Tenant, weight: Weight, predicted: Work, actual: Work) {
        self.queues[class.index()].correct(tenant, weight, predicted, actual);
    }

    /// Takes one that has left its lane out of everything else.
    fn forget(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        let Offer { class, tenant, bytes, deadline, .. } = waiter.offer;
        self.expiry.remove(&Rank::of(deadline.0, ticket.0));
        self.bytes -= bytes;
        if let Some(held) = self.tenants.get_mut(&tenant) {
            held.entries -= 1;
            held.bytes -= bytes;
            if held.entries == 0 {
                self.tenants.remove(&tenant);
            }
        }
        if self.queues[class.index()].is_empty() {
            self.turns.idle(class);
        }
        Some(waiter)
    }

    fn waiting(&self) -> Waiting {
        std::array::from_fn(|at| !self.queues[at].is_empty())
    }

    /// # Panics
    /// If the parts contradict each other or a bound is broken.
    pub fn check(&self) {
        self.turns.check(self.waiting());
        self.queues.iter().for_each(FairQueue::check);
        let limits = &self.limits;
        assert!(self.waiters.len() <= limits.entries_max && self.bytes <= limits.bytes_max);
        for (tenant, held) in &self.tenants {
            assert!((1..=limits.tenant_entries_max).contains(&held.entries), "tenant {tenant} {held:?}");
            assert!(held.bytes <= limits.tenant_bytes_max, "tenant {tenant} {held:?}");
        }
        self.check_sums();
    }

    fn check_sums(&self) {
        let entries: usize = self.queues.iter().map(FairQueue::entries).sum();
        assert_eq!(self.waiters.len(), entries, "each waiter is in one lane");
        assert_eq!(self.waiters.len(), self.expiry.len(), "each waiter has one deadline");
        assert_eq!(self.waiters.len(), self.tenants.values().map(|held| held.entries).sum::<usize>());
        assert_eq!(self.bytes, self.waiters.values().map(|waiter| waiter.offer.bytes).sum::<u64>());
        assert_eq!(self.bytes, self.tenants.values().map(|held| held.bytes).sum::<u64>());
    }
}

/// So many thousandths of `whole`, rounded down; at least 1 of anything.
fn part(whole: u64, permille: u16) -> u64 {
    ((u128::from(whole) * u128::from(permille) / 1000) as u64).max(whole.min(1))
}
