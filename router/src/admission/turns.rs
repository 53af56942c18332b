//! Which class goes next: floors first, then order or weight.
//!
//! Every class that waits earns its floor of all work admitted meanwhile. A class that is owed goes
//! before a higher class that is not; what nobody is owed goes to the highest class that waits, or by
//! weight. Pure strictness would starve the lowest class for as long as the highest has work, and pure
//! weights would make a person wait for a batch.
//!
//! Limits: debts live only while a class waits. A class that was idle is owed nothing, and one that was
//! given more than its floor is not made to pay more than its last request for it.

use super::class::{Class, Rest};
use super::config::AdmissionConfig;
use super::offer::Work;

const CLASSES: usize = Class::ALL.len();

/// Which classes wait.
pub(super) type Waiting = [bool; CLASSES];

#[derive(Debug)]
pub(super) struct Turns {
    floor_permille: [i64; CLASSES],
    weight: [u64; CLASSES],
    rest: Rest,
    /// Work × 1000 that a class should have had and has not.
    owed: [i64; CLASSES],
    /// All work given, by weight (as the tags of `fair`).
    tag: [u128; CLASSES],
    virtual_time: u128,
}

impl Turns {
    pub fn new(config: &AdmissionConfig) -> Self {
        Self {
            floor_permille: config.classes.map(|c| i64::from(c.floor_permille)),
            weight: config.classes.map(|c| u64::from(c.weight)),
            rest: config.rest,
            owed: [0; CLASSES],
            tag: [0; CLASSES],
            virtual_time: 0,
        }
    }

    pub fn pick(&self, waiting: Waiting) -> Option<Class> {
        let waits = || Class::ALL.into_iter().filter(|class| waiting[class.index()]);
        let most_owed =
            waits().filter(|c| self.owed[c.index()] > 0).rev().max_by_key(|c| self.owed[c.index()]);
        most_owed.or_else(|| match self.rest {
            Rest::ByOrder => waits().next(),
            Rest::ByWeight => waits().min_by_key(|c| self.tag[c.index()].max(self.virtual_time)),
        })
    }

    /// `class` was given `work` while the classes in `waiting` (itself among them) waited.
    pub fn served(&mut self, class: Class, work: Work, waiting: Waiting) {
        let at = class.index();
        let work = i64::try_from(work.0).unwrap_or(i64::MAX / 1000).min(i64::MAX / 1_000_000);
        for other in Class::ALL.map(Class::index).into_iter().filter(|other| waiting[*other]) {
            self.owed[other] = self.owed[other].saturating_add(self.floor_permille[other] * work);
        }
        self.owed[at] = (self.owed[at] - 1000 * work).max(-1000 * work);
        self.virtual_time = self.virtual_time.max(self.tag[at]);
        self.tag[at] =
            self.tag[at].max(self.virtual_time) + ((work as u128) << 32) / u128::from(self.weight[at]);
    }

    /// `class` no longer waits: debts end.
    pub fn idle(&mut self, class: Class) {
        self.owed[class.index()] = 0;
    }

    /// # Panics
    /// If a class that does not wait is owed something.
    pub fn check(&self, waiting: Waiting) {
        for class in Class::ALL {
            let owed = self.owed[class.index()];
            assert!(waiting[class.index()] || owed == 0, "{} is idle and owed {owed}", class.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_WAIT: Waiting = [true; CLASSES];

    /// Of 1000 requests of like work, how many each class gets.
    fn shares(config: AdmissionConfig, waiting: Waiting) -> [u64; CLASSES] {
        let mut turns = Turns::new(&config);
        let mut work = [0; CLASSES];
        for n in 0..1000 {
            let class = turns.pick(waiting).unwrap();
            turns.served(class, Work(50 + n % 7), waiting);
            work[class.index()] += 1;
            turns.check(ALL_WAIT);
        }
        work
    }

    fn assert_near(got: [u64; CLASSES], expected: [u64; CLASSES]) {
        assert!(got.iter().zip(expected).all(|(g, e)| g.abs_diff(e) <= 2), "{got:?}, expected {expected:?}");
    }

    #[test]
    fn the_highest_class_gets_all_but_the_floors() {
        assert_near(shares(AdmissionConfig::default(), ALL_WAIT), [750, 200, 50]);
    }

    #[test]
    fn what_nobody_claims_goes_down_the_order() {
        assert_near(shares(AdmissionConfig::default(), [false, true, true]), [0, 950, 50]);
        assert_near(shares(AdmissionConfig::default(), [false, false, true]), [0, 0, 1000]);
    }

    #[test]
    fn by_weight_each_gets_its_part_or_its_floor_if_that_is_more() {
        let mut config = AdmissionConfig { rest: Rest::ByWeight, ..AdmissionConfig::default() };
        assert_near(shares(config.clone(), ALL_WAIT), [750, 200, 50]);
        config.classes.iter_mut().for_each(|class| class.floor_permille = 0);
        assert_near(shares(config.clone(), ALL_WAIT), [762, 190, 48]);
        assert_near(shares(config, [false, true, true]), [0, 800, 200]);
    }

    #[test]
    fn a_class_that_had_more_than_its_floor_does_not_pay_for_it_later() {
        let mut turns = Turns::new(&AdmissionConfig::default());
        for _ in 0..1000 {
            turns.served(Class::Batch, Work(100), [false, false, true]);
        }
        let mut turn = 0;
        while turns.pick([true, false, true]) != Some(Class::Batch) {
            turns.served(Class::Interactive, Work(100), [true, false, true]);
            turn += 1;
        }
        assert!(turn <= 21, "a floor of 5 % comes up after 20 requests, not {turn}");
    }
}
