//! A million random operations beside the naive model, the integrity law held after each:
//! `cargo bench -p quire-kvcache --bench soak -- [operations] [seed]`.

#[path = "../tests/naive.rs"]
mod naive;
#[path = "../tests/soak.rs"]
mod soak;

use base::{Clock, SystemClock};
use quire_kvcache::{Cache, EvictionKind};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let (ops, seed) = (numbers.next().unwrap_or(1_000_000), numbers.next().unwrap_or(1));
    let clock = SystemClock::new();
    for policy in EvictionKind::ALL {
        let start = clock.now();
        let stats = soak::run(Cache::new(naive::config(32, policy)), ops as usize, seed);
        let took = clock.now().since(start).as_secs_f64();
        println!("{policy}: {ops} operations, seed {seed}, {took:.1} s, no leak: {:?}", stats.counters);
    }
}
