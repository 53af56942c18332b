//! From the engine's types to the contract's. Nothing is decided here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use base::{AdapterId, Generation, NamespaceId, Tier};
use kvcache::{CacheStats, TierStats};
use proto::v1::{self, Readiness};

use crate::api::App;
use crate::api::error::ApiError;
use crate::engine::{CacheReport, Engine, Health};
use crate::events::{Owner, Run};
use crate::purge::{Guarantee, PurgeReport, SignedReport, TierLine};
use crate::stats::EngineStats;

pub(super) fn tier(of: Tier) -> v1::Tier {
    match of {
        Tier::Device => v1::Tier::Device,
        Tier::Host => v1::Tier::Host,
        Tier::Nvme => v1::Tier::Nvme,
        Tier::Object => v1::Tier::Object,
    }
}

/// Names of namespaces by their numbers. They do not change while the process lives.
#[derive(Clone)]
pub(super) struct Names(Arc<[(NamespaceId, String)]>);

impl Names {
    pub fn new(names: Arc<[(NamespaceId, String)]>) -> Self {
        Self(names)
    }

    pub fn of(&self, id: NamespaceId) -> String {
        let known = self.0.iter().find(|(other, _)| *other == id);
        known.map_or_else(|| format!("#{id}"), |(_, name)| name.clone())
    }

    /// Whose a run is that was told.
    pub fn owner(&self, run: &v1::StoredRun) -> Option<Owner> {
        let (id, _) = self.0.iter().find(|(_, name)| *name == run.namespace)?;
        let (generation, adapter) = (Generation(run.generation), AdapterId(run.adapter));
        Some(Owner { namespace: *id, generation, adapter })
    }

    /// Several at once, ascending and each once; or the place of the first that is unknown.
    pub fn find(&self, names: &[String]) -> Result<Vec<NamespaceId>, usize> {
        let known: HashMap<&str, NamespaceId> =
            self.0.iter().map(|(id, name)| (name.as_str(), *id)).collect();
        let ids = names.iter().enumerate().map(|(at, name)| known.get(name.as_str()).copied().ok_or(at));
        Ok(ids.collect::<Result<BTreeSet<_>, _>>()?.into_iter().collect())
    }
}

/// A run without its tokens.
pub(super) fn run(of: &Run, names: &Names) -> v1::StoredRun {
    v1::StoredRun {
        namespace: names.of(of.owner.namespace),
        generation: of.owner.generation.0,
        adapter: of.owner.adapter.0,
        tiers: of.tiers.iter().map(|of| tier(of).into()).collect(),
        parent: of.parent,
        hashes: of.hashes.clone(),
        token_ids: Vec::new(),
    }
}

/// How busy the replica is right now.
pub(super) fn load(app: &App) -> Result<v1::LoadRecord, ApiError> {
    let engine = &app.replica()?.engine;
    let stats = engine.stats();
    let get = EngineStats::get;
    let readiness = readiness(engine.health(), app.is_draining());
    Ok(v1::LoadRecord {
        unix_ms: app.clock().unix_ms(),
        readiness: readiness.into(),
        in_flight: get(&stats.in_flight),
        running: get(&stats.running),
        waiting: get(&stats.waiting),
        in_flight_max: engine.requests_max() as u64,
        pages_total: get(&stats.pages_total),
        pages_free: get(&stats.pages_free),
        pages_cached: get(&stats.pages_cached),
        prefix_query_tokens: get(&stats.prefix_query_tokens),
        prefix_hit_tokens: get(&stats.prefix_hit_tokens),
        computed_tokens: get(&stats.computed_tokens),
        generated_tokens: get(&stats.generation_tokens),
        steps: get(&stats.steps),
        step_ns: get(&stats.step_ns),
        preemptions: get(&stats.preemptions),
    })
}

/// Draining wins: what is unhealthy may come back, what drains will not.
fn readiness(health: Health, is_draining: bool) -> Readiness {
    match (health, is_draining) {
        (Health::Draining, _) | (_, true) => Readiness::Draining,
        (Health::Unhealthy | Health::Lost, false) => Readiness::Unhealthy,
        (Health::Ready, false) => Readiness::Ready,
    }
}

pub(super) fn stats(report: &CacheReport, names: &Names, engine: &Engine) -> v1::CacheStatsResponse {
    let (page_tokens, page_bytes) = (engine.shape().page_tokens, engine.shape().page_bytes);
    let generations = engine.generations();
    let of = |id: &NamespaceId| generations.get(id).copied().unwrap_or_default();
    let namespaces = report.namespaces.iter().map(|(id, used)| v1::NamespaceStats {
        namespace: names.of(*id),
        id: id.0,
        generation: of(id).generation.0,
        floor: of(id).floor.0,
        pages: used
            .iter()
            .map(|&(of, pages)| v1::TierPages { tier: tier(of).into(), pages: pages as u64 })
            .collect(),
    });
    v1::CacheStatsResponse {
        page_tokens,
        page_bytes: page_bytes as u64,
        tiers: report.tiers.iter().map(|of| tier_stats(of, report)).collect(),
        namespaces: namespaces.collect(),
        purges_under_way: report.purges.len() as u32,
        is_settled: report.is_settled,
    }
}

fn tier_stats(of: &TierStats, report: &CacheReport) -> v1::TierStats {
    let CacheStats {
        pages_total, pages_free, pages_private, pages_leased, pages_cached, pages_fenced, ..
    } = of.cache;
    let counters = of.cache.counters;
    v1::TierStats {
        tier: tier(of.tier).into(),
        pages_total: pages_total as u64,
        pages_free: pages_free as u64,
        pages_private: pages_private as u64,
        pages_leased: pages_leased as u64,
        pages_cached: pages_cached as u64,
        pages_fenced: pages_fenced as u64,
        queried_tokens: counters.queried_tokens,
        hit_tokens: counters.hit_tokens,
        published_pages: counters.published_pages,
        evicted_pages: counters.evicted_pages,
        evicted_at_quota_pages: counters.quota_pages,
        io: tier_io(of.tier, report),
    }
}

fn tier_io(of: Tier, report: &CacheReport) -> Option<v1::TierIo> {
    let (_, io) = report.storage.tiers.iter().find(|(tier, _)| *tier == of)?;
    Some(v1::TierIo {
        stores: io.stores,
        loads: io.loads,
        store_bytes: io.store_bytes,
        load_bytes: io.load_bytes,
        queued: io.queued as u64,
        in_flight: io.in_flight as u64,
        refused: io.refused,
        failures: io.failures.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect(),
    })
}

pub(super) fn purged(signed: &SignedReport) -> Result<v1::PurgeResponse, ApiError> {
    let json = serde_json::to_string(signed).map_err(|error| ApiError::internal(error.to_string()))?;
    let (public_key, signature) =
        signed.key_and_signature().ok_or_else(|| ApiError::internal("a report without a signature"))?;
    Ok(v1::PurgeResponse {
        report: Some(report(&signed.report)),
        signed_payload: signed.payload(),
        algorithm: signed.algorithm.clone(),
        public_key,
        signature,
        signed_report_json: json,
    })
}

fn report(of: &PurgeReport) -> v1::PurgeReport {
    v1::PurgeReport {
        version: of.version,
        namespace: of.namespace.clone(),
        namespace_id: of.namespace_id,
        generation: of.generation,
        model: of.model.clone(),
        begun_unix_ms: of.begun_unix_ms,
        ended_unix_ms: of.ended_unix_ms,
        data_keys_destroyed: of.data_keys_destroyed,
        tiers: of.tiers.iter().map(erasure).collect(),
        guarantee: guarantee(of.guarantee).into(),
    }
}

fn erasure(of: &TierLine) -> v1::TierErasure {
    let named = Tier::ALL.into_iter().find(|tier| tier.name() == of.tier);
    v1::TierErasure {
        tier: named.map_or(v1::Tier::Unspecified, tier).into(),
        pages: of.pages,
        bytes: of.bytes,
        method: of.method.clone(),
        verified: of.verified,
        failed: of.failed,
        outstanding: of.outstanding,
        has_unknown_past: of.has_unknown_past,
        found_by_probe: of.found_by_probe,
        guarantee: guarantee(of.guarantee).into(),
    }
}

fn guarantee(of: Guarantee) -> v1::Guarantee {
    match of {
        Guarantee::Incomplete => v1::Guarantee::Incomplete,
        Guarantee::CryptoErased => v1::Guarantee::CryptoErased,
        Guarantee::Erased => v1::Guarantee::Erased,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drains_does_not_come_back() {
        assert_eq!(readiness(Health::Unhealthy, true), Readiness::Draining);
        assert_eq!(readiness(Health::Unhealthy, false), Readiness::Unhealthy);
        assert_eq!(readiness(Health::Ready, true), Readiness::Draining);
        assert_eq!(readiness(Health::Draining, false), Readiness::Draining);
        assert_eq!(readiness(Health::Ready, false), Readiness::Ready);
    }

    #[test]
    fn names_are_found_once_each_and_the_first_unknown_is_named() {
        let names = [(NamespaceId(2), "b".to_owned()), (NamespaceId(1), "a".to_owned())];
        let names = Names::new(names.into());
        let find =
            |asked: &[&str]| names.find(&asked.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(find(&["b", "a", "b"]), Ok(vec![NamespaceId(1), NamespaceId(2)]));
        assert_eq!(find(&["a", "x", "y"]), Err(1));
    }
}
