//! The classes of service, and what each may ask for.
//!
//! Three fixed classes rather than a list: a class is a promise to a person ("someone waits", "someone
//! will look", "nobody waits"), and a fourth promise that differs from these has not been seen.

use std::time::Duration;

/// What a request was promised. The first comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    Interactive,
    Standard,
    Batch,
}

impl Class {
    pub const ALL: [Class; 3] = [Class::Interactive, Class::Standard, Class::Batch];

    pub fn index(self) -> usize {
        self as usize
    }
    /// The metric label and the value of the request header.
    pub fn name(self) -> &'static str {
        match self {
            Class::Interactive => "interactive",
            Class::Standard => "standard",
            Class::Batch => "batch",
        }
    }
    pub fn parse(name: &str) -> Option<Class> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
    /// The classes that come before this one.
    pub fn above(self) -> &'static [Class] {
        &ALL[..self.index()]
    }
}

static ALL: [Class; 3] = Class::ALL;

/// What one class may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassPolicy {
    /// Of the work admitted while the class waits, at least so much is its own.
    pub floor_permille: u16,
    /// Its part of all work under [`Rest::ByWeight`], where that is more than its floor.
    pub weight: u16,
    /// It may join the queue while the queue is filled below this; the room above is for the others.
    pub shed_at_permille: u16,
    /// The longest wait, whatever deadline the request names: no waiter stays for ever.
    pub wait_max: Duration,
}

/// Who gets the work that no floor claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rest {
    /// The highest class that waits.
    ByOrder,
    /// Of those that wait, the one that had least for its weight.
    ByWeight,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_found_by_its_name() {
        for class in Class::ALL {
            assert_eq!(Class::parse(class.name()), Some(class));
            assert_eq!(class.above().len(), class.index());
        }
        assert_eq!(Class::parse("gold"), None);
    }
}
