//! Time on the device: by events, around a recorded graph where the work can be recorded.
//!
//! Launching from the host takes longer than small kernels run; a graph of many rounds hides it, as it is hidden
//! when steps are replayed. Clocks of a card that was idle are low: each measurement begins with work for
//! [`WARM_MS`]. On the emulator the host's clock stands in, which proves this program and measures nothing.

use base::{Clock, SystemClock};
use kernels::cuda::Driver;
use kernels::cuda::gpu::Gpu;

use crate::bench::Device;
use crate::lease;

const WARM_MS: f32 = 80.0;
const SAMPLES: usize = 9;
/// A sample is at least so long; events have half a microsecond of resolution.
const SAMPLE_MS: f32 = 2.0;

/// Seconds of one round.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub median: f64,
    pub best: f64,
}

impl Timing {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self { median: samples[samples.len() / 2], best: samples[0] }
    }
}

/// One of `rounds` launches of `work`, which only launches; it gets the number of the round, to rotate operands.
pub fn recorded(device: &Device, rounds: usize, work: &mut dyn FnMut(usize)) -> Timing {
    if device.is_emulated() {
        return emulated(rounds, work);
    }
    (0..rounds).for_each(&mut *work); // loads kernels, chooses algorithms
    lease::with(Gpu::synchronize);
    lease::with(Gpu::record);
    (0..rounds).for_each(&mut *work);
    let graph = lease::with(Gpu::recorded).expect("the device can record launches");
    sampled(rounds, &mut || lease::with(|gpu| gpu.replay(graph)))
}

/// One of `rounds` calls of `work`, with all that the host does between launches.
pub fn launched(device: &Device, rounds: usize, work: &mut dyn FnMut(usize)) -> Timing {
    if device.is_emulated() {
        return emulated(rounds, work);
    }
    sampled(rounds, &mut || (0..rounds).for_each(&mut *work))
}

fn sampled(rounds: usize, batch: &mut dyn FnMut()) -> Timing {
    let mut time = |batches: usize| lease::with(|gpu| gpu.time(&mut || (0..batches).for_each(|_| batch())));
    let (mut warm, mut batches, mut last) = (0.0, 0, 0.0);
    while warm < WARM_MS && batches < 100_000 {
        last = time(1);
        warm += last.max(1e-3);
        batches += 1;
    }
    let batches = (SAMPLE_MS / last.max(1e-3)).ceil().clamp(1.0, 1000.0) as usize;
    let second = |ms: f32| f64::from(ms) / 1e3 / (batches * rounds) as f64;
    Timing::of((0..SAMPLES).map(|_| second(time(batches))).collect())
}

fn emulated(rounds: usize, work: &mut dyn FnMut(usize)) -> Timing {
    let clock = SystemClock::new();
    let begun = clock.now();
    (0..rounds).for_each(work);
    Timing::of(vec![clock.now().since(begun).as_secs_f64() / rounds as f64])
}
