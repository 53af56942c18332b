//! What the fleet promises about readiness, and learning about speed.

use std::time::Duration;

use base::{Nanos, SplitMix, Tier};
use proptest::prelude::*;
use proto::v1;

use super::*;
use crate::book::{DecodeSpan, PrefillSpan};

fn span(seat: Seat, tokens: u64, before: f64, ms: f64) -> PrefillSpan {
    let context = tokens as f64 * (before + tokens as f64 / 2.0);
    PrefillSpan { seat, requests: 1, tokens, token_context: context, ms }
}

fn truth_ms(truth: &Rates, tokens: u64, before: f64) -> f64 {
    truth.prefill_ms(tokens as f64, before)
}

/// Feeds `samples` of what a replica with `truth` takes, each with some noise and one in `outlier_every` ten times
/// as long.
fn teach(
    speeds: &mut Speeds,
    seat: Seat,
    truth: &Rates,
    samples: u32,
    outlier_every: u64,
    rng: &mut SplitMix,
) {
    for _ in 0..samples {
        let tokens = 64 + rng.below(12_000);
        let before = rng.below(20_000) as f64;
        let noise = (rng.normal() * 0.1).exp();
        let outlier = if rng.below(outlier_every) == 0 { 10.0 } else { 1.0 };
        speeds.prefilled(&span(seat, tokens, before, truth_ms(truth, tokens, before) * noise * outlier));
        let (sequences, resident) = (1.0 + rng.below(64) as f64, rng.below(200_000) as f64);
        let step_ms = truth.decode_step_ms(sequences, resident) * noise * outlier;
        speeds.decoded(&DecodeSpan { seat, step_ms, sequences, resident_tokens: resident });
    }
}

fn scaled(prefill: f64, decode: f64) -> Rates {
    Rates::default().paced(prefill, decode)
}

fn within(got: f64, want: f64, part: f64) -> bool {
    (got / want).ln().abs() < part
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn predictions_come_near_the_truth_whatever_the_prior(
        seed: u64, prefill in 0.05f64..20.0, decode in 0.05f64..20.0
    ) {
        let truth = scaled(prefill, decode);
        let mut speeds = Speeds::default();
        teach(&mut speeds, Seat(0), &truth, 1500, 50, &mut SplitMix::new(seed));
        let rates = speeds.rates(Seat(0));
        for (tokens, before) in [(512, 0.0), (4096, 0.0), (8192, 8192.0)] {
            let (got, want) = (truth_ms(&rates, tokens, before), truth_ms(&truth, tokens, before));
            prop_assert!(within(got, want, 0.25), "{tokens} after {before}: {got} and not {want}");
        }
        let (got, want) = (rates.decode_step_ms(32.0, 1e5), truth.decode_step_ms(32.0, 1e5));
        prop_assert!(within(got, want, 0.25), "a step takes {got} and not {want}");
    }

    #[test]
    fn no_sample_makes_a_rate_that_is_no_time(
        samples in prop::collection::vec((any::<f64>(), any::<u64>(), any::<f64>(), any::<u32>(), 0..70u16), 1..300)
    ) {
        let mut speeds = Speeds::default();
        for (ms, tokens, context, requests, seat) in samples {
            let seat = Seat(seat);
            speeds.prefilled(&PrefillSpan { seat, requests, tokens, token_context: context, ms });
            speeds.decoded(&DecodeSpan { seat, step_ms: ms, sequences: context, resident_tokens: ms });
            speeds.restored(Tier::Host, requests, ms);
            speeds.transferred(requests, ms);
            speeds.adapter_loaded(ms);
            prop_assert_eq!(speeds.rates(seat).check(), Ok(()));
        }
    }

    #[test]
    fn one_outlier_moves_little(seed: u64, stalled_ms in 1e4f64..3e6) {
        let truth = Rates::default();
        let mut speeds = Speeds::default();
        teach(&mut speeds, Seat(0), &truth, 300, u64::MAX, &mut SplitMix::new(seed));
        let before = truth_ms(&speeds.rates(Seat(0)), 4096, 0.0);
        speeds.prefilled(&span(Seat(0), 1000, 0.0, stalled_ms));
        prop_assert!(within(truth_ms(&speeds.rates(Seat(0)), 4096, 0.0), before, 0.1));
    }
}

#[test]
fn a_slow_replica_is_told_apart_and_noise_is_not() {
    let mut speeds = Speeds::default();
    let mut rng = SplitMix::new(3);
    for _ in 0..40 {
        for seat in 0..8 {
            let truth = if seat == 5 { scaled(3.0, 2.0) } else { scaled(1.0, 1.0) };
            teach(&mut speeds, Seat(seat), &truth, 10, 100, &mut rng);
        }
    }
    let ms = |seat| truth_ms(&speeds.rates(Seat(seat)), 4096, 0.0);
    assert!((0..8).filter(|s| *s != 5).all(|s| ms(s) == ms(0)), "equals are equal to the last bit");
    assert!(within(ms(5) / ms(0), 3.0, 0.2), "{}", ms(5) / ms(0));
}

#[test]
fn a_seat_given_away_again_starts_at_the_pools_pace() {
    let mut fleet = Fleet::default();
    let seat = fleet.join(Seating::default(), Nanos(0)).unwrap();
    teach(fleet.speeds_mut(), Seat(9), &scaled(1.0, 1.0), 300, 100, &mut SplitMix::new(1));
    teach(fleet.speeds_mut(), seat, &scaled(3.0, 3.0), 60, 100, &mut SplitMix::new(1));
    assert_ne!(fleet.speeds().rates(seat), fleet.speeds().common());
    fleet.leave(seat);
    assert_eq!(fleet.join(Seating::default(), Nanos(0)), Ok(seat));
    assert_eq!(fleet.speeds().rates(seat), fleet.speeds().common());
}

#[test]
fn two_load_records_without_a_prefill_teach_a_step() {
    let mut fleet = Fleet::default();
    let seat = fleet.join(Seating::default(), Nanos(0)).unwrap();
    let mut record = v1::LoadRecord { pages_total: 1000, pages_free: 1000, ..Default::default() };
    record.set_readiness(v1::Readiness::Ready);
    let before = fleet.speeds().rates(seat).decode_step_ms(4.0, 0.0);
    for at in 0..200 {
        fleet.observe(seat, record, Nanos(at));
        record.unix_ms += 100;
        record.steps += 10;
        record.step_ns += 10 * 40_000_000;
        record.generated_tokens += 40;
    }
    let after = fleet.speeds().rates(seat).decode_step_ms(4.0, 0.0);
    assert!(within(after, 40.0, 0.1), "{before} became {after}");
    assert_eq!(fleet.check(), Ok(()));
}

#[test]
fn silence_is_death_and_a_word_is_life() {
    let mut fleet = Fleet::default();
    let seat = fleet.join(Seating::default(), Nanos(0)).unwrap();
    let at = |ms| Nanos(0).plus(Duration::from_millis(ms));
    assert!(fleet.silence(at(5000)).is_empty(), "who never spoke cannot fall silent");
    fleet.alive(seat, at(5000));
    assert!(fleet.silence(at(6000)).is_empty());
    assert_eq!(fleet.silence(at(6001)), SeatSet::of(seat));
    assert!(fleet.silence(at(6002)).is_empty(), "told once");
    assert_eq!(fleet.replica(seat).unwrap().readiness, Readiness::Dead);
    fleet.alive(seat, at(7000));
    assert_eq!(fleet.replica(seat).unwrap().readiness, Readiness::Ready);
}

#[test]
fn a_probe_does_not_overrule_a_replica_that_drains() {
    let mut fleet = Fleet::default();
    let seat = fleet.join(Seating::default(), Nanos(0)).unwrap();
    let mut record = v1::LoadRecord::default();
    record.set_readiness(v1::Readiness::Draining);
    fleet.observe(seat, record, Nanos(0));
    fleet.alive(seat, Nanos(1));
    assert_eq!(fleet.replica(seat).unwrap().readiness, Readiness::Draining);
}

#[test]
fn a_pool_has_as_many_seats_as_a_set() {
    let mut fleet = Fleet::default();
    let seats: Vec<Seat> =
        (0..Seat::MAX).map(|_| fleet.join(Seating::default(), Nanos(0)).unwrap()).collect();
    assert_eq!(fleet.join(Seating::default(), Nanos(0)), Err(FleetFull));
    fleet.leave(seats[7]);
    assert_eq!(fleet.join(Seating::default(), Nanos(0)), Ok(seats[7]));
}
