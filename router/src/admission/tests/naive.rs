//! The same policy written down in the plainest way: one list of waiters, searched from end to end, and
//! tags of tenants that are never forgotten. Weights are a function of the tenant, [`weight_of`].

use std::collections::BTreeMap;

use super::*;

pub fn weight_of(tenant: Tenant) -> Weight {
    Weight::new(1 + (tenant.0 % 3) as u16)
}

pub struct Naive {
    pub config: AdmissionConfig,
    pub capacity: Capacity,
    pub closed: Option<Waiters>,
    pub waiters: Vec<(Offer, u64)>,
    pub flights: Vec<Offer>,
    tags: BTreeMap<(Class, Tenant), u128>,
    time: [u128; 3],
    owed: [i64; 3],
    arrivals: u64,
}

fn step(work: u64, tenant: Tenant) -> u128 {
    (u128::from(work) << 32) / u128::from(weight_of(tenant).get())
}

impl Naive {
    pub fn new(config: AdmissionConfig, capacity: Capacity) -> Self {
        Self {
            config,
            capacity,
            closed: None,
            waiters: Vec::new(),
            flights: Vec::new(),
            tags: BTreeMap::new(),
            time: [0; 3],
            owed: [0; 3],
            arrivals: 0,
        }
    }

    pub fn offer(&mut self, now: Nanos, offer: Offer) -> Verdict {
        let latest = now.plus(self.config.policy(offer.class).wait_max);
        let offer = Offer { deadline: offer.deadline.min(latest), ..offer };
        let verdict = self.judge(now, &offer);
        match verdict {
            Verdict::Admitted => {
                self.charge(&offer);
                self.flights.push(offer);
            }
            Verdict::Queued { .. } => {
                if !self.waits(offer.class, offer.tenant) {
                    self.lift(&offer);
                }
                self.waiters.push((offer, self.arrivals));
                self.arrivals += 1;
            }
            _ => {}
        }
        verdict
    }

    fn judge(&self, now: Nanos, offer: &Offer) -> Verdict {
        let never = |reason| Verdict::Rejected(Refusal { reason, retry_after: None });
        let known =
            self.waiters.iter().map(|(o, _)| o).chain(&self.flights).any(|o| o.ticket == offer.ticket);
        if known {
            return never(Reason::DuplicateTicket);
        }
        if offer.work > self.config.work_max || offer.bytes > self.config.queue.bytes_max {
            return never(Reason::TooLarge);
        }
        if self.closed.is_some() {
            return self.later(Reason::Draining);
        }
        if offer.deadline <= now {
            return Verdict::ExpiredBeforeStart;
        }
        if self.waiters.is_empty() && self.has_room() {
            return Verdict::Admitted;
        }
        if let Some(reason) = self.no_place(offer) {
            return self.later(reason);
        }
        let wait_expected = self.capacity.time_for(self.ahead(offer));
        match wait_expected {
            Some(wait) if now.plus(wait) >= offer.deadline => self.later(Reason::DeadlineUnreachable),
            _ => Verdict::Queued { wait_expected },
        }
    }

    fn no_place(&self, offer: &Offer) -> Option<Reason> {
        let limits = &self.config.queue;
        let own: Vec<&Offer> =
            self.waiters.iter().map(|(o, _)| o).filter(|o| o.tenant == offer.tenant).collect();
        let own_bytes: u64 = own.iter().map(|o| o.bytes).sum::<u64>() + offer.bytes;
        let bytes: u64 = self.waiters.iter().map(|(o, _)| o.bytes).sum::<u64>() + offer.bytes;
        let permille = u64::from(self.config.policy(offer.class).shed_at_permille);
        let entries = self.waiters.len() as u64;
        let entries_max = limits.entries_max as u64;
        if own.len() >= limits.tenant_entries_max || own_bytes > limits.tenant_bytes_max {
            Some(Reason::TenantLimit)
        } else if entries >= entries_max || bytes > limits.bytes_max {
            Some(Reason::Saturated)
        } else if entries >= (entries_max * permille / 1000).max(1)
            || bytes > (limits.bytes_max * permille / 1000).max(1)
        {
            Some(Reason::Shed)
        } else {
            None
        }
    }

    fn ahead(&self, offer: &Offer) -> u64 {
        let above = self.work_of(|o| o.class < offer.class);
        let lane = |o: &Offer| o.class == offer.class && o.tenant == offer.tenant;
        let is_last = self.waiters.iter().filter(|(o, _)| lane(o)).all(|(o, _)| o.deadline <= offer.deadline);
        if !is_last {
            return above;
        }
        let mut weights: BTreeMap<Tenant, u64> = BTreeMap::new();
        for (o, _) in self.waiters.iter().filter(|(o, _)| o.class == offer.class) {
            weights.insert(o.tenant, o.weight.get());
        }
        let weight: u64 = weights.values().sum();
        let share = self.work_of(lane) * weight / offer.weight.get();
        above + share.min(self.work_of(|o| o.class == offer.class))
    }

    fn work_of(&self, which: impl Fn(&Offer) -> bool) -> u64 {
        self.waiters.iter().filter(|(o, _)| which(o)).map(|(o, _)| o.work.0).sum()
    }

    fn later(&self, reason: Reason) -> Verdict {
        let second = std::time::Duration::from_secs(1);
        let drained = self.capacity.time_for(self.work_of(|_| true)).unwrap_or(second);
        Verdict::Rejected(Refusal { reason, retry_after: Some(drained.clamp(second, 60 * second)) })
    }

    pub fn has_room(&self) -> bool {
        let work: u64 = self.flights.iter().map(|o| o.work.0).sum();
        work < self.capacity.budget.0 && self.flights.len() < self.config.in_flight_max
    }

    pub fn next(&mut self, now: Nanos) -> Option<Settled> {
        let first = self.waiters.iter().map(|(o, _)| (o.deadline, o.ticket)).min()?;
        let (deadline, ticket) = first;
        if deadline <= now {
            self.cancel(ticket);
            return Some(Settled { ticket, outcome: Outcome::ExpiredBeforeStart });
        }
        if self.closed == Some(Waiters::Refuse) {
            self.cancel(ticket);
            let Verdict::Rejected(refusal) = self.later(Reason::Draining) else { unreachable!() };
            return Some(Settled { ticket, outcome: Outcome::Rejected(refusal) });
        }
        self.has_room().then(|| self.admit())
    }

    fn admit(&mut self) -> Settled {
        let class = self.pick_class();
        let lanes = self.waiters.iter().filter(|(o, _)| o.class == class).map(|(o, _)| o.tenant);
        let tenant = lanes.min_by_key(|tenant| (self.tags[&(class, *tenant)], *tenant)).unwrap();
        let lane = self.waiters.iter().filter(|(o, _)| o.class == class && o.tenant == tenant);
        let (offer, _) = *lane.min_by_key(|(o, arrival)| (o.deadline, *arrival)).unwrap();
        self.turn(class, offer.work.0 as i64);
        self.charge(&offer);
        self.take(offer.ticket);
        self.flights.push(offer);
        Settled { ticket: offer.ticket, outcome: Outcome::Admitted }
    }

    fn pick_class(&self) -> Class {
        let waits = |class: &Class| self.waiters.iter().any(|(o, _)| o.class == *class);
        let mut best: Option<Class> = None;
        for class in Class::ALL.into_iter().filter(waits) {
            let owed = self.owed[class.index()];
            if owed > 0 && best.is_none_or(|b| owed > self.owed[b.index()]) {
                best = Some(class);
            }
        }
        best.or_else(|| Class::ALL.into_iter().find(waits)).unwrap()
    }

    fn turn(&mut self, class: Class, work: i64) {
        for other in Class::ALL {
            if self.waiters.iter().any(|(o, _)| o.class == other) {
                self.owed[other.index()] += i64::from(self.config.policy(other).floor_permille) * work;
            }
        }
        self.owed[class.index()] = (self.owed[class.index()] - 1000 * work).max(-1000 * work);
    }

    fn waits(&self, class: Class, tenant: Tenant) -> bool {
        self.waiters.iter().any(|(o, _)| o.class == class && o.tenant == tenant)
    }

    fn lift(&mut self, offer: &Offer) -> u128 {
        let time = self.time[offer.class.index()];
        let tag = self.tags.entry((offer.class, offer.tenant)).or_insert(0);
        *tag = time.max(*tag);
        *tag
    }

    fn charge(&mut self, offer: &Offer) {
        let waits = self.waits(offer.class, offer.tenant);
        let start = if waits { self.tags[&(offer.class, offer.tenant)] } else { self.lift(offer) };
        *self.tags.get_mut(&(offer.class, offer.tenant)).unwrap() += step(offer.work.0, offer.tenant);
        let time = &mut self.time[offer.class.index()];
        *time = start.max(*time);
    }

    pub fn finish(&mut self, at: usize, actual: Work) -> Ticket {
        let offer = self.flights.remove(at);
        let actual = actual.min(self.config.work_max).0;
        let owes = self.tags[&(offer.class, offer.tenant)] > self.time[offer.class.index()];
        if owes || self.waits(offer.class, offer.tenant) || actual > offer.work.0 {
            if !self.waits(offer.class, offer.tenant) {
                self.lift(&offer);
            }
            let tag = self.tags.get_mut(&(offer.class, offer.tenant)).unwrap();
            *tag = tag.saturating_sub(step(offer.work.0, offer.tenant)) + step(actual, offer.tenant);
        }
        offer.ticket
    }

    pub fn cancel(&mut self, ticket: Ticket) -> Cancel {
        if self.flights.iter().any(|o| o.ticket == ticket) {
            return Cancel::InFlight;
        }
        if self.take(ticket) { Cancel::Waited } else { Cancel::Unknown }
    }

    fn take(&mut self, ticket: Ticket) -> bool {
        let before = self.waiters.len();
        self.waiters.retain(|(o, _)| o.ticket != ticket);
        for class in Class::ALL {
            if !self.waiters.iter().any(|(o, _)| o.class == class) {
                self.owed[class.index()] = 0;
            }
        }
        before != self.waiters.len()
    }
}
