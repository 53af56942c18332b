//! Integration tests of the runtime, in one binary: models against oracles, hits against misses, bad
//! files, and the executor contract.

/// As the router's own tests call it: some of their parts are used here.
extern crate router as quire_router;

mod api;
mod bad_models;
mod cuda;
mod cuda_lost;
mod cuda_memory;
mod engine;
mod executor;
mod gguf;
mod hit_miss;
mod loading;
mod oracle_candle;
mod oracle_mlx;
mod rpc;
mod tiers;
mod tiny;
