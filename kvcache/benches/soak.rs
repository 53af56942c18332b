//! Millions of random operations, the integrity law held after each:
//! `cargo bench -p quire-kvcache --bench soak -- [operations] [seed] [tenants]`.
//!
//! First the device's cache beside the naive model, then all tiers beside the bytes they speak of, with
//! failing steps, lying disks, kills and purges, under whole names and under names of 16 bits.

#[path = "../tests/naive.rs"]
mod naive;
#[path = "../tests/soak.rs"]
mod soak;
#[path = "../tests/world.rs"]
mod world;

use base::{Clock, SystemClock};
use quire_kvcache::{Cache, EvictionKind, WritePolicy};
use world::{Names, Setup};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let (ops, seed) = (numbers.next().unwrap_or(1_000_000), numbers.next().unwrap_or(1));
    let tenants = numbers.next().unwrap_or(1_000);
    let clock = SystemClock::new();
    for policy in EvictionKind::ALL {
        let start = clock.now();
        let stats = soak::run(Cache::new(naive::config(32, policy)), ops as usize, seed);
        let took = clock.now().since(start).as_secs_f64();
        println!("{policy}: {ops} operations, seed {seed}, {took:.1} s, no leak: {:?}", stats.counters);
    }
    for names in [Names::Whole, Names::Weak] {
        let setup = Setup {
            device: 48,
            host: 96,
            nvme: 256,
            object: 512,
            write: WritePolicy::WriteThrough,
            policy: EvictionKind::default(),
            tenants,
            names,
            events_max: 1 << 20,
        };
        let start = clock.now();
        let hits = world::run(setup, seed, ops as usize);
        let took = clock.now().since(start).as_secs_f64();
        println!(
            "all tiers, {tenants} tenants, {names:?} names: {ops} operations, {took:.1} s, no wrong page; pages \
             hit on the device, restored, loaded: {hits:?}"
        );
    }
}
