//! How much work a pool may hold at once.
//!
//! By Little's law: what the replicas finish per second, times how long admitted work may take. More in
//! flight only moves the queue from here, where it is fair and can be cancelled, into the replicas,
//! where it is neither. The rates come from the fleet, which learns them per replica.

use std::time::Duration;

use super::offer::Work;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capacity {
    /// Work in flight up to which more is admitted.
    pub budget: Work,
    /// Work finished per second; 0 is "not known yet".
    pub work_per_s: u64,
}

impl Capacity {
    /// Of ready replicas with these rates, when admitted work may take `target`.
    pub fn of(work_per_s: impl IntoIterator<Item = u64>, target: Duration) -> Self {
        let work_per_s = work_per_s.into_iter().fold(0, u64::saturating_add);
        let budget = u128::from(work_per_s) * target.as_micros() / 1_000_000;
        Self { budget: Work(budget.min(u128::from(u64::MAX)) as u64), work_per_s }
    }

    /// How long the pool needs for `work`; `None` while its rate is not known.
    pub fn time_for(&self, work: u64) -> Option<Duration> {
        let nanos = (u128::from(work) * 1_000_000_000).checked_div(u128::from(self.work_per_s))?;
        Some(Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_rate_times_target() {
        let capacity = Capacity::of([8_000, 2_000], Duration::from_millis(1500));
        assert_eq!(capacity, Capacity { budget: Work(15_000), work_per_s: 10_000 });
        assert_eq!(capacity.time_for(5_000), Some(Duration::from_millis(500)));
    }

    #[test]
    fn an_unknown_rate_predicts_nothing() {
        assert_eq!(Capacity::default().time_for(1), None);
    }
}
