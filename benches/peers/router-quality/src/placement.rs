//! The simulator's placement contract over any of the policies.

use aisimulate_core::engine::KvEvent;
use aisimulate_core::replay::loadgen::{ReplayRequestHashes, ReplayRequestPayload};
use aisimulate_core::replay::{
    EngineEventBatch, Placement, PlacementDecision, PlacementEffects, PlacementPolicy,
    ReplayAdmissionMetadata, ReplayComposition, ReplayEngineObservation, RequestIdentity, WorkerStage,
    WorkerTopology,
};
use anyhow::{Context, Result, bail};
use base::Nanos;
use router::decide::{Policy, Weights};
use uuid::Uuid;

use crate::BLOCK_TOKENS;
use crate::dynamo::Dynamo;
use crate::holdings::Holdings;
use crate::ours::{Ours, Request};
use crate::policy::Kind;

#[derive(Default)]
pub struct Events(Vec<(usize, KvEvent)>);

impl EngineEventBatch for Events {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

pub struct Observation;

impl ReplayEngineObservation for Observation {
    type Batch = Events;
    const CAPTURE_ENGINE_KV_EVENTS: bool = true;
    fn observe_engine_events(_: WorkerStage, worker: usize, _: u32, events: Vec<KvEvent>) -> Events {
        Events(events.into_iter().map(|e| (worker, e)).collect())
    }
}

pub struct Metadata(Option<ReplayRequestHashes>);

impl ReplayAdmissionMetadata for Metadata {
    fn from_hashes(hashes: Option<ReplayRequestHashes>) -> Self {
        Self(hashes)
    }
    fn for_prefill(self) -> Self {
        self
    }
    fn max_output_tokens_override(&self) -> Option<usize> {
        None
    }
    fn into_hashes(self) -> Option<ReplayRequestHashes> {
        self.0
    }
}

/// What the simulator makes its placement from.
pub struct Composition {
    pub kind: Kind,
    pub weights: Weights,
    pub pages: usize,
}

impl ReplayComposition for Composition {
    type Metadata = Metadata;
    type Observation = Observation;
    type AggregatedPlacement = Placer;
    type DisaggregatedPlacement = Placer;

    fn create_aggregated_placement(&mut self, _: u32, workers: Vec<WorkerTopology>) -> Result<Placer> {
        let schedulers: Vec<usize> = workers.iter().map(|w| w.scheduler_ids[0]).collect();
        let count = schedulers.len();
        let pages = self.pages;
        let ours = |policy| Who::Ours(Box::new(Ours::new(policy, count, pages)));
        let who = match self.kind {
            Kind::Dynamo => Who::Dynamo(Dynamo::new(count)),
            Kind::KvAware => ours(Policy::KvAware(self.weights)),
            Kind::LeastLoaded => ours(Policy::LeastLoaded),
            Kind::PrefixHash => ours(Policy::PrefixHash),
            Kind::RoundRobin | Kind::PeerRoundRobin => ours(Policy::RoundRobin),
        };
        Ok(Placer { who, schedulers, holdings: Holdings::default() })
    }

    fn create_disaggregated_placements(
        &mut self,
        _: u32,
        _: Vec<WorkerTopology>,
        _: u32,
        _: Vec<WorkerTopology>,
    ) -> Result<(Placer, Placer)> {
        bail!("one pool only")
    }
}

enum Who {
    Ours(Box<Ours>),
    Dynamo(Dynamo),
}

pub struct Placer {
    who: Who,
    schedulers: Vec<usize>,
    holdings: Holdings,
}

impl PlacementPolicy<ReplayRequestPayload> for Placer {
    type Metadata = Metadata;
    type Observation = Events;

    fn place(
        &mut self,
        request: &ReplayRequestPayload,
        metadata: Metadata,
        _session: Option<String>,
        now_ms: f64,
    ) -> Result<PlacementEffects> {
        let id = request.request_id().context("a request without an id")?;
        let hashes = metadata.0.map(|h| h.sequence_hashes).unwrap_or_default();
        let held = self.holdings.lookup(&hashes, self.schedulers.len());
        let worker = match &mut self.who {
            Who::Ours(ours) => ours.place(&described(id, request, &hashes), &hashes, &held, nanos(now_ms))?,
            Who::Dynamo(dynamo) => {
                let blocks = request.input_length().div_ceil(BLOCK_TOKENS) as u64;
                dynamo.place(id, blocks, hashes, &held)
            }
        };
        let placement = Placement {
            request_id: id,
            scheduler_id: self.schedulers[worker],
            reported_overlap_tokens: held[worker] as usize * BLOCK_TOKENS,
            cache_sample: None,
            placement_replica_id: None,
        };
        Ok(PlacementEffects { decision: PlacementDecision::Immediate(placement), released: vec![] })
    }

    fn observe(&mut self, events: Events, _: f64) -> Result<Vec<Placement>> {
        events.0.into_iter().for_each(|(worker, event)| self.holdings.apply(worker, event));
        Ok(vec![])
    }

    fn prefill_completed(&mut self, id: Uuid, now_ms: f64) -> Result<Vec<Placement>> {
        match &mut self.who {
            Who::Ours(ours) => ours.prefilled(id, nanos(now_ms)),
            Who::Dynamo(dynamo) => dynamo.prefilled(id),
        }
        Ok(vec![])
    }

    fn request_terminal(&mut self, id: Uuid, now_ms: f64) -> Result<Vec<Placement>> {
        match &mut self.who {
            Who::Ours(ours) => ours.ended(id, nanos(now_ms)),
            Who::Dynamo(dynamo) => dynamo.ended(id),
        }
        Ok(vec![])
    }

    fn cancel_pending(&mut self, _: Uuid) -> bool {
        false
    }
    fn pending_count(&self) -> usize {
        0
    }
    fn worker_ready(&mut self, _: WorkerTopology, _: f64) -> Result<Vec<Placement>> {
        Ok(vec![])
    }
    fn worker_draining(&mut self, _: WorkerTopology, _: f64) -> Result<Vec<Placement>> {
        Ok(vec![])
    }
    fn worker_removed(&mut self, _: WorkerTopology, _: f64) -> Result<Vec<Placement>> {
        Ok(vec![])
    }
    fn topology_settled(&mut self, _: f64) -> Result<Vec<Placement>> {
        Ok(vec![])
    }
}

fn described(id: Uuid, request: &ReplayRequestPayload, hashes: &[u64]) -> Request {
    Request {
        id,
        prompt_tokens: request.input_length() as u32,
        output_tokens: request.metadata().max_output_tokens as u32,
        prefix: hashes.get(512 / BLOCK_TOKENS).or(hashes.first()).copied().unwrap_or(0),
    }
}

fn nanos(ms: f64) -> Nanos {
    Nanos((ms * 1e6) as u64)
}

impl Drop for Placer {
    fn drop(&mut self) {
        if let (Who::Ours(ours), true) = (&self.who, std::env::var_os("RATES").is_some()) {
            eprintln!("{}", ours.rates());
        }
    }
}
