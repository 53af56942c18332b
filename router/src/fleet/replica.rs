//! One replica as the router knows it: whether it takes requests, what it said last, how fast it is.

use base::Nanos;
use proto::v1;
use serde::{Deserialize, Serialize};

use crate::decide::Pages;

/// Whether a replica takes requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// Nothing was heard yet.
    #[default]
    Unknown,
    Ready,
    /// It finishes what runs and takes nothing new.
    Draining,
    /// It says that it cannot serve, and may come back.
    Unhealthy,
    /// It has been silent too long, or its connections fail.
    Dead,
}

/// Which part of a request a replica does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Prefill,
    Decode,
    #[default]
    Both,
}

impl Role {
    pub fn serves_whole(self) -> bool {
        self == Role::Both
    }
    pub fn serves_prefill(self) -> bool {
        self != Role::Decode
    }
    pub fn serves_decode(self) -> bool {
        self != Role::Prefill
    }
}

/// What is known of a replica before it is heard of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Seating {
    pub role: Role,
    pub block_tokens: u32,
}

impl Default for Seating {
    fn default() -> Self {
        Self { role: Role::Both, block_tokens: 16 }
    }
}

/// What is known of one replica.
#[derive(Clone, Debug)]
pub struct Replica {
    pub readiness: Readiness,
    pub role: Role,
    /// Tokens of one of its pages.
    pub block_tokens: u32,
    last: Option<(v1::LoadRecord, Nanos)>,
    heard: Nanos,
}

impl Replica {
    pub(super) fn new(seating: Seating, now: Nanos) -> Self {
        let Seating { role, block_tokens } = seating;
        Self { readiness: Readiness::Unknown, role, block_tokens, last: None, heard: now }
    }

    /// Takes in a load record and gives back the one before. One that is older than that is dropped.
    pub(super) fn observe(&mut self, record: v1::LoadRecord, now: Nanos) -> Option<v1::LoadRecord> {
        self.heard = now;
        if self.last.as_ref().is_some_and(|(last, _)| last.unix_ms > record.unix_ms) {
            return None;
        }
        self.readiness = match record.readiness() {
            v1::Readiness::Ready => Readiness::Ready,
            v1::Readiness::Draining => Readiness::Draining,
            v1::Readiness::Unhealthy => Readiness::Unhealthy,
            v1::Readiness::Unspecified => self.readiness,
        };
        self.last.replace((record, now)).map(|(last, _)| last)
    }

    /// It was heard of, without a record: a probe answered, a stream moved.
    pub(super) fn alive(&mut self, now: Nanos) {
        self.heard = now;
        if matches!(self.readiness, Readiness::Unknown | Readiness::Dead) {
            self.readiness = Readiness::Ready;
        }
    }

    /// The last load record, and when it came.
    pub fn record(&self) -> Option<(&v1::LoadRecord, Nanos)> {
        self.last.as_ref().map(|(record, at)| (record, *at))
    }

    pub fn heard(&self) -> Nanos {
        self.heard
    }

    pub fn pages(&self) -> Pages {
        self.last.as_ref().map_or(Pages::default(), |(r, _)| Pages {
            total: r.pages_total,
            free: r.pages_free,
            cached: r.pages_cached,
        })
    }
}
