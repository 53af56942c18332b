//! Which beginnings of prompts everybody shares just now.
//!
//! Without this a system prompt that all have stays on the replica that had it first: for each single request, going
//! there is cheaper than computing it elsewhere. What it costs elsewhere is paid once and serves all who come after,
//! so that a beginning asked for often counts its share of that cost only. Counted are requests by the names at a few
//! depths, in a table of fixed size; a name that falls on another's slot takes it over once it is the hotter one. What
//! is lost by that, and by counting at sixteen depths per doubling, makes a beginning look shorter or colder, never
//! hotter than it is.

use base::Nanos;

const SLOTS: usize = 8192;
/// After this long, a request counts 1/e.
const MEMORY_SECONDS: f64 = 60.0;
/// Requests within that time that make a beginning hot.
const HOT: f64 = 8.0;

/// The beginning that a prompt shares with many.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Hot {
    pub blocks: u32,
    /// Requests of the last minute that had it, and so how many of the next are to be expected.
    pub uses: f64,
}

/// Requests by the names that they begin with.
#[derive(Clone, Debug)]
pub struct Heat {
    slots: Box<[Slot]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    name: u64,
    uses: f64,
    at: Nanos,
}

impl Default for Heat {
    fn default() -> Self {
        Self { slots: vec![Slot::default(); SLOTS].into() }
    }
}

impl Heat {
    /// Counts a request with blocks of these names, and says what of it is hot.
    pub fn note(&mut self, names: &[u64], now: Nanos) -> Hot {
        // All depths are counted, hot or not yet: else each would begin to warm up only after the one before.
        let mut hot = Some(Hot::default());
        let mut last = Hot::default();
        for depth in depths().take_while(|depth| *depth <= names.len()) {
            let uses = self.count(names[depth - 1], now);
            hot = hot.filter(|_| uses >= HOT).map(|_| Hot { blocks: depth as u32, uses });
            last = hot.unwrap_or(last);
        }
        last
    }

    fn count(&mut self, name: u64, now: Nanos) -> f64 {
        let slot = &mut self.slots[name as usize % SLOTS];
        let faded = slot.uses * (-now.since(slot.at).as_secs_f64() / MEMORY_SECONDS).exp();
        *slot = match slot.name == name {
            true => Slot { name, uses: faded + 1.0, at: now },
            false if faded < 1.0 => Slot { name, uses: 1.0, at: now },
            false => return 1.0,
        };
        slot.uses
    }
}

/// 1, 2, 3, … 32, 33, 35, 37, … 65, 69, …
fn depths() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1usize), |depth| Some(depth + (depth.next_power_of_two() / 32).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Nanos {
        Nanos::from_millis(s * 1000)
    }

    fn names(shared: u64, own: u64) -> Vec<u64> {
        (0..shared).chain(1000 * own..1000 * own + 40).collect()
    }

    #[test]
    fn what_many_begin_with_is_hot_and_what_they_go_on_with_is_not() {
        let mut heat = Heat::default();
        let hot: Vec<Hot> = (1..=20).map(|i| heat.note(&names(100, i), seconds(0))).collect();
        assert_eq!(hot[6], Hot::default());
        assert!((94..=100).contains(&hot[19].blocks), "{:?}", hot[19]);
        assert_eq!(hot[19].uses, 20.0);
    }

    #[test]
    fn heat_fades() {
        let mut heat = Heat::default();
        (1..=20).for_each(|i| {
            let _ = heat.note(&names(100, i), seconds(0));
        });
        assert_eq!(heat.note(&names(100, 30), seconds(120)), Hot::default());
    }

    #[test]
    fn a_cold_name_never_inherits_anothers_heat() {
        let mut heat = Heat::default();
        (0..50).for_each(|_| {
            let _ = heat.note(&[7], seconds(0));
        });
        assert_eq!(heat.note(&[7 + SLOTS as u64], seconds(0)), Hot::default());
        assert_eq!(heat.note(&[7], seconds(0)).blocks, 1);
    }

    #[test]
    fn depths_rise_by_no_more_than_a_sixteenth() {
        let depths: Vec<usize> = depths().take(200).collect();
        assert_eq!(depths[31..35], [32, 33, 35, 37]);
        assert!(depths.windows(2).all(|d| d[1] > d[0] && (d[1] - d[0] == 1 || (d[1] - d[0]) * 16 <= d[0])));
    }
}
