//! Which names may meet: a scope is what one table speaks of.
//!
//! Our replicas' names are chain hashes whose root contains namespace and generation, so names of different
//! scopes never meet and nothing is lost by keeping them apart; what is won is that a purge is the end of
//! some tables, counted, and that a tenant's share is visible. One table for everything would have to be
//! searched for what a purge means, and could not say whose a name is.

use std::fmt;
use std::sync::Arc;

use base::Generation;

/// Scopes that differ in generation only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// A namespace of our replicas.
    Namespace(Arc<str>),
    /// What an engine of another make caches for a model and an adapter (empty: the model itself).
    Foreign { model: Arc<str>, adapter: Arc<str> },
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Family::Namespace(name) => f.write_str(name),
            Family::Foreign { model, adapter } if adapter.is_empty() => f.write_str(model),
            Family::Foreign { model, adapter } => write!(f, "{model}+{adapter}"),
        }
    }
}

/// A set of names that may meet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Scope {
    pub family: Family,
    pub generation: Generation,
}

impl Scope {
    pub fn namespace(name: &str, generation: Generation) -> Self {
        Self { family: Family::Namespace(name.into()), generation }
    }

    pub fn foreign(model: &str, adapter: &str) -> Self {
        let family = Family::Foreign { model: model.into(), adapter: adapter.into() };
        Self { family, generation: Generation(0) }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.family, self.generation)
    }
}
