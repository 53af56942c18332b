//! What admission may hold and how it divides it; checked once, where the configuration is read.

use std::time::Duration;

use super::class::{Class, ClassPolicy, Rest};
use super::offer::Work;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdmissionConfig {
    pub classes: [ClassPolicy; Class::ALL.len()],
    pub rest: Rest,
    pub queue: QueueLimits,
    /// The largest request. The budget may be exceeded by less than this, never by more.
    pub work_max: Work,
    /// Requests in flight, whatever their work.
    pub in_flight_max: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueLimits {
    pub entries_max: usize,
    pub bytes_max: u64,
    pub tenant_entries_max: usize,
    pub tenant_bytes_max: u64,
    /// Tenants remembered per class: those that wait, and those that still owe.
    pub tenants_max: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the classes' floors add up to {sum_permille} ‰ of the pool; at most 1000 can be promised")]
    FloorsTooHigh { sum_permille: u32 },
    #[error("class {} is shed at {permille} ‰ of the queue; it must lie in 1..=1000", class.name())]
    ShedOutOfRange { class: Class, permille: u16 },
    #[error("class {} is shed later than a class that comes before it", class.name())]
    ShedOutOfOrder { class: Class },
    #[error("{what} must be at least 1")]
    Zero { what: &'static str },
}

impl ConfigError {
    pub fn kind(&self) -> &'static str {
        match self {
            ConfigError::FloorsTooHigh { .. } => "floors_too_high",
            ConfigError::ShedOutOfRange { .. } => "shed_out_of_range",
            ConfigError::ShedOutOfOrder { .. } => "shed_out_of_order",
            ConfigError::Zero { .. } => "zero",
        }
    }
}

impl AdmissionConfig {
    pub fn policy(&self, class: Class) -> &ClassPolicy {
        &self.classes[class.index()]
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        let sum_permille = self.classes.iter().map(|c| u32::from(c.floor_permille)).sum();
        if sum_permille > 1000 {
            return Err(ConfigError::FloorsTooHigh { sum_permille });
        }
        self.validate_classes()?;
        self.validate_bounds()
    }

    fn validate_classes(&self) -> Result<(), ConfigError> {
        let mut before = 1000;
        for class in Class::ALL {
            let ClassPolicy { shed_at_permille: permille, weight, .. } = *self.policy(class);
            if !(1..=1000).contains(&permille) {
                return Err(ConfigError::ShedOutOfRange { class, permille });
            }
            if permille > before {
                return Err(ConfigError::ShedOutOfOrder { class });
            }
            if weight == 0 {
                return Err(ConfigError::Zero { what: "a class's weight" });
            }
            before = permille;
        }
        Ok(())
    }

    fn validate_bounds(&self) -> Result<(), ConfigError> {
        let zero = [
            (self.queue.tenants_max == 0, "queue.tenants_max"),
            (self.work_max.0 == 0, "work_max"),
            (self.in_flight_max == 0, "in_flight_max"),
        ];
        match zero.into_iter().find(|(is_zero, _)| *is_zero) {
            Some((_, what)) => Err(ConfigError::Zero { what }),
            None => Ok(()),
        }
    }
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        let class = |floor_permille, weight, shed_at_permille, wait_s| ClassPolicy {
            floor_permille,
            weight,
            shed_at_permille,
            wait_max: Duration::from_secs(wait_s),
        };
        Self {
            classes: [class(0, 16, 1000, 30), class(200, 4, 850, 120), class(50, 1, 600, 900)],
            rest: Rest::ByOrder,
            queue: QueueLimits {
                entries_max: 8192,
                bytes_max: 512 << 20,
                tenant_entries_max: 2048,
                tenant_bytes_max: 128 << 20,
                tenants_max: 4096,
            },
            work_max: Work(1 << 20),
            in_flight_max: 16_384,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut AdmissionConfig)) -> Result<(), ConfigError> {
        let mut config = AdmissionConfig::default();
        change(&mut config);
        config.validate()
    }

    #[test]
    fn the_default_is_valid_and_each_contradiction_is_named() {
        assert_eq!(with(|_| ()), Ok(()));
        let kind = |r: Result<(), ConfigError>| r.unwrap_err().kind();
        assert_eq!(kind(with(|c| c.classes[0].floor_permille = 900)), "floors_too_high");
        assert_eq!(kind(with(|c| c.classes[2].shed_at_permille = 0)), "shed_out_of_range");
        assert_eq!(kind(with(|c| c.classes[2].shed_at_permille = 900)), "shed_out_of_order");
        assert_eq!(kind(with(|c| c.classes[1].weight = 0)), "zero");
        assert_eq!(kind(with(|c| c.work_max = Work(0))), "zero");
    }
}
