//! Pools by the names of their model.
//!
//! A pool begins when the first replica says which models it serves, and all that serve the same model under the
//! same first name are one pool. Readers take no lock: the table is replaced whole, which happens when a replica
//! of a new model appears and at no other time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use base::Clock;

use super::metrics::Metrics;
use super::refusal::{Reason, Refusal};
use super::upstream::lock;
use crate::desk::DeskConfig;
use crate::index::{Index, IndexConfig, Scope};
use crate::pool::Pool;

/// Most models that one router serves.
const MODELS_MAX: usize = 256;

/// A model's pool, and the scope under which text of its prompts is named.
#[derive(Clone)]
pub struct Model {
    pub name: Arc<str>,
    pub pool: Arc<Pool>,
    pub text_scope: Scope,
}

/// More models than [`MODELS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a router serves at most {MODELS_MAX} models")]
pub struct TooManyModels;

/// All pools of a router.
pub struct Pools {
    models: ArcSwap<BTreeMap<String, Model>>,
    writing: Mutex<()>,
    desk: DeskConfig,
    index: IndexConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl Pools {
    pub fn new(desk: DeskConfig, index: IndexConfig, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        let models = ArcSwap::from_pointee(BTreeMap::new());
        Self { models, writing: Mutex::new(()), desk, index, clock, metrics }
    }

    /// The pool of a model; of the only one, if the request names none.
    pub fn find(&self, model: Option<&str>) -> Result<Model, Refusal> {
        let models = self.models.load();
        let found = match model {
            Some(name) => models.get(name),
            None => models.values().next().filter(|first| models.values().all(|m| m.name == first.name)),
        };
        found.cloned().ok_or_else(|| self.unknown(model, models.is_empty()))
    }

    fn unknown(&self, model: Option<&str>, is_empty: bool) -> Refusal {
        match model {
            _ if is_empty => Refusal::new(Reason::NoReplica, "no replica has been reached yet"),
            Some(name) => {
                let message =
                    format!("the model {name:?} does not exist; GET /v1/models lists those that do");
                Refusal::new(Reason::UnknownModel, message).about("model")
            }
            None => {
                Refusal::new(Reason::UnknownModel, "there are several models here; name one").about("model")
            }
        }
    }

    /// The pool of a replica that serves a model under these names; begun if there is none. Its first name
    /// decides: a replica is of one pool.
    pub fn open(&self, names: &[String]) -> Result<Model, TooManyModels> {
        let _alone = lock(&self.writing);
        let models = self.models.load();
        let known = names.first().and_then(|name| models.get(name)).cloned();
        let model = match known {
            Some(model) => model,
            None => self.begin(names)?,
        };
        if names.iter().any(|name| !models.contains_key(name)) {
            let mut more = BTreeMap::clone(&models);
            for name in names {
                more.entry(name.clone()).or_insert_with(|| model.clone());
            }
            self.models.store(Arc::new(more));
        }
        Ok(model)
    }

    fn begin(&self, names: &[String]) -> Result<Model, TooManyModels> {
        if self.models.load().len() + names.len() > MODELS_MAX {
            return Err(TooManyModels);
        }
        let name: Arc<str> = names.first().map(String::as_str).unwrap_or_default().into();
        let (clock, metrics) = (Arc::clone(&self.clock), Arc::clone(&self.metrics));
        let pool = Pool::new(self.desk.clone(), Index::new(self.index), clock, metrics);
        tokio::spawn(Arc::clone(&pool).housekeep());
        Ok(Model { text_scope: Scope::foreign(&name, ""), name, pool })
    }

    /// Every name with its pool.
    pub fn all(&self) -> Arc<BTreeMap<String, Model>> {
        self.models.load_full()
    }

    /// Every pool once.
    pub fn pools(&self) -> Vec<Model> {
        let mut pools: Vec<Model> = self.all().values().cloned().collect();
        pools.dedup_by(|a, b| Arc::ptr_eq(&a.pool, &b.pool));
        pools.sort_by(|a, b| a.name.cmp(&b.name));
        pools.dedup_by(|a, b| a.name == b.name);
        pools
    }
}
