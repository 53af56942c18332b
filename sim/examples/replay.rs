//! Plays a trace from the command line: `replay TRACE|generated REPLICAS SPEED CALLS POLICY[,POLICY…] [FILE.svg]`.
//!
//! For measuring while `quire replay` is what users have.

use std::path::Path;

use quire_sim::trace::{Generator, Talk, Trace};
use quire_sim::{Replay, replay};
use router::decide::Policy;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, trace, replicas, speed, calls, policies, rest @ ..] = &args[..] else {
        panic!("replay TRACE REPLICAS SPEED CALLS POLICIES [SVG]")
    };
    let trace = match trace.as_str() {
        "generated" => Generator::new(1, [Talk::chat(600, 6.0), Talk::agents(60, 0.6)]).trace(),
        path => Trace::read(Path::new(path)).unwrap_or_else(|error| panic!("{error}")),
    };
    let policies = policies.split(',').map(|name| Policy::from_name(name).expect("a policy")).collect();
    let of = Replay {
        replicas: replicas.parse().expect("replicas"),
        speed: speed.parse().expect("speed"),
        policies,
        ..Replay::default()
    };
    let report =
        replay(&of, trace.truncated(calls.parse().expect("calls"))).unwrap_or_else(|error| panic!("{error}"));
    println!("{}", report.table());
    if let [svg, ..] = rest {
        std::fs::write(svg, report.svg()).expect("the drawing is written");
    }
}
