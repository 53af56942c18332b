//! What the gRPC side counts: calls by method and code, and what is open.
//!
//! Methods and codes are few and known, so that a caller cannot make series.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Paths by the name that they are counted under; whatever else is asked for is `unknown`.
const METHODS: [(&str, &str); 12] = [
    ("/quire.v1.Cache/KvEvents", "KvEvents"),
    ("/quire.v1.Cache/Purge", "Purge"),
    ("/quire.v1.Cache/CacheStats", "CacheStats"),
    ("/quire.v1.Cache/ChainRoot", "ChainRoot"),
    ("/quire.v1.Replica/ModelInfo", "ModelInfo"),
    ("/quire.v1.Replica/TextAssets", "TextAssets"),
    ("/quire.v1.Replica/Load", "Load"),
    ("/quire.v1.Replica/Drain", "Drain"),
    ("/grpc.health.v1.Health/Check", "HealthCheck"),
    ("/grpc.health.v1.Health/Watch", "HealthWatch"),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "Reflection"),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "ReflectionAlpha"),
];
const UNKNOWN: usize = METHODS.len();

/// Names of the codes by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// How many there are right now.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

/// One of those that a gauge counts.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Gauge {
    pub fn enter(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counters and gauges of the gRPC server.
#[derive(Debug, Default)]
pub struct RpcMetrics {
    ended: [[AtomicU64; CODES.len()]; UNKNOWN + 1],
    pub connections: Gauge,
    pub event_streams: Gauge,
    pub load_streams: Gauge,
    pub health_streams: Gauge,
    pub snapshots: Gauge,
}

impl RpcMetrics {
    /// A call of `path` ended with a code.
    pub fn ended(&self, path: &str, code: usize) {
        let method = METHODS.iter().position(|(known, _)| *known == path).unwrap_or(UNKNOWN);
        self.ended[method][code.min(CODES.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// `(method, code, calls)` of those that there were.
    pub fn calls(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        let methods = METHODS.iter().map(|(_, name)| *name).chain(["unknown"]);
        methods.zip(&self.ended).flat_map(|(method, codes)| {
            let counts = CODES.into_iter().zip(codes.iter().map(|count| count.load(Ordering::Relaxed)));
            counts.filter(|(_, count)| *count > 0).map(move |(code, count)| (method, code, count))
        })
    }

    /// `(kind, streams)`.
    pub fn streams(&self) -> [(&'static str, u64); 3] {
        [
            ("events", self.event_streams.get()),
            ("load", self.load_streams.get()),
            ("health", self.health_streams.get()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code_and_a_caller_makes_no_series() {
        let metrics = RpcMetrics::default();
        metrics.ended("/quire.v1.Cache/Purge", 0);
        metrics.ended("/quire.v1.Cache/Purge", 7);
        metrics.ended("/any/thing", 12);
        metrics.ended("/any/other", 99);
        let calls: Vec<_> = metrics.calls().collect();
        let expected = [
            ("Purge", "OK", 1),
            ("Purge", "PERMISSION_DENIED", 1),
            ("unknown", "UNIMPLEMENTED", 1),
            ("unknown", "UNAUTHENTICATED", 1),
        ];
        assert_eq!(calls, expected);
    }

    #[test]
    fn a_gauge_counts_what_is_there() {
        let gauge = Gauge::default();
        let one = gauge.enter();
        let two = gauge.enter();
        drop(one);
        assert_eq!(gauge.get(), 1);
        drop(two);
        assert_eq!(gauge.get(), 0);
    }
}
