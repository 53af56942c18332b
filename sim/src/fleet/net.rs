//! The network: how long a word takes, and whether it comes once, twice or not at all.
//!
//! Requests, answers and event streams go over connections: in order, held up by a partition until it heals
//! (the sender retransmits), lost only with a process. Gossip, and event streams where a run says so, are
//! datagrams: dropped, doubled and overtaken by chance.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Nanos, SplitMix};

use super::message::{Node, Word};

/// Chances, in thousandths.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Loss {
    pub drop_permille: u64,
    pub double_permille: u64,
    /// Delayed by up to ten times the longest delay.
    pub late_permille: u64,
}

impl Loss {
    pub const NONE: Loss = Loss { drop_permille: 0, double_permille: 0, late_permille: 0 };

    pub fn permille(each: u64) -> Self {
        Self { drop_permille: each, double_permille: each, late_permille: each }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetConfig {
    pub delay_min: Duration,
    pub delay_max: Duration,
    /// Of event streams; [`Loss::NONE`] makes them connections.
    pub events: Loss,
    pub gossip: Loss,
}

impl NetConfig {
    /// One data centre.
    pub fn near() -> Self {
        Self {
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_micros(250),
            events: Loss::NONE,
            gossip: Loss::NONE,
        }
    }
}

pub struct Net {
    pub config: NetConfig,
    rng: SplitMix,
    /// When the last word of a direction arrives: later ones do not overtake it.
    last: BTreeMap<(Node, Node), Nanos>,
    /// Pairs that do not reach each other, until when.
    cuts: Vec<(Node, Node, Nanos)>,
}

impl Net {
    pub fn new(config: NetConfig, seed: u64) -> Self {
        Self { config, rng: SplitMix::new(seed), last: BTreeMap::new(), cuts: Vec::new() }
    }

    /// Nothing passes between the two until `until`.
    pub fn cut(&mut self, a: Node, b: Node, until: Nanos) {
        self.cuts.push((a, b, until));
    }

    /// When a word sent now arrives: once, twice or never.
    pub fn arrivals(&mut self, now: Nanos, from: Node, to: Node, word: &Word) -> [Option<Nanos>; 2] {
        let is_cut = self.cut_until(now, from, to);
        match self.loss(word) {
            Some(_) if is_cut.is_some() => [None, None],
            Some(loss) => self.datagram(now, loss),
            None => [Some(self.in_order(is_cut.unwrap_or(now), from, to)), None],
        }
    }

    /// `None` for what goes over a connection.
    fn loss(&self, word: &Word) -> Option<Loss> {
        let loss = match word {
            Word::Gossip(_) => self.config.gossip,
            Word::Stream { message: crate::replica::Message::Batch(_), .. } => self.config.events,
            _ => Loss::NONE,
        };
        (loss != Loss::NONE).then_some(loss)
    }

    fn datagram(&mut self, now: Nanos, loss: Loss) -> [Option<Nanos>; 2] {
        let [drop, double, late] = [(); 3].map(|()| self.rng.below(1000));
        if drop < loss.drop_permille {
            return [None, None];
        }
        let mut first = self.delay();
        if late < loss.late_permille {
            first += self.config.delay_max * 10;
        }
        let second = (double < loss.double_permille).then(|| now.plus(self.delay()));
        [Some(now.plus(first)), second]
    }

    fn in_order(&mut self, from_when: Nanos, from: Node, to: Node) -> Nanos {
        let at = from_when.plus(self.delay());
        let last = self.last.entry((from, to)).or_default();
        *last = at.max(*last);
        *last
    }

    fn delay(&mut self) -> Duration {
        let spread = (self.config.delay_max - self.config.delay_min).as_nanos() as u64;
        self.config.delay_min + Duration::from_nanos(self.rng.below(spread.max(1)))
    }

    /// When the cut between two ends, if there is one.
    fn cut_until(&mut self, now: Nanos, a: Node, b: Node) -> Option<Nanos> {
        self.cuts.retain(|(.., until)| *until > now);
        let between = self.cuts.iter().filter(|(x, y, _)| (*x, *y) == (a, b) || (*x, *y) == (b, a));
        between.map(|(.., until)| *until).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_keeps_order_and_waits_out_a_cut() {
        let mut net = Net::new(NetConfig::near(), 1);
        let (a, b) = (Node::Router(0), Node::Replica(1));
        let send = |net: &mut Net, now| net.arrivals(Nanos(now), a, b, &Word::Tick)[0].unwrap();
        let times: Vec<Nanos> = (0..200).map(|i| send(&mut net, i * 1000)).collect();
        assert!(times.is_sorted());
        net.cut(b, a, Nanos(5_000_000_000));
        assert!(send(&mut net, 1_000_000) >= Nanos(5_000_000_000));
        assert_eq!(net.arrivals(Nanos(5_100_000_000), Node::Clients, a, &Word::Tick)[1], None);
    }
}
