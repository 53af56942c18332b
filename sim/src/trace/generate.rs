//! Traffic made up from a seed, for where no trace is at hand and for what no trace shows.
//!
//! Everything is a *talk*: somebody begins with a system prompt and a question, reads the answer, thinks, and
//! asks again with all that was said before. One turn makes it a plain request, short thinking and long results
//! make it an agent. Three knobs decide what a router sees of it: how many share a system prompt (drawn by
//! Zipf's law), how much a conversation grows, how long its cache must survive between turns.
//!
//! Lengths are log-normal with the stated mean (sigma 0.7, cut at eight means), times between arrivals and
//! thinking exponential. Same seed, same calls, on every machine.

use std::time::Duration;

use base::{Nanos, SplitMix};

use super::{CALLS_MAX, Call, Class, Segment, Start, Trace, own_text};

/// Talks of one kind.
#[derive(Clone, PartialEq, Debug)]
pub struct Talk {
    /// Begun per second.
    pub per_s: f64,
    pub talks: usize,
    /// Turns of a talk: uniform between both, inclusive.
    pub turns: (u32, u32),
    /// Different system prompts; the k-th most popular is drawn with weight 1/k.
    pub systems: u32,
    pub system_tokens: u32,
    /// Mean tokens of what is asked, or of what a tool brings.
    pub ask_tokens: f64,
    /// Mean tokens of an answer.
    pub answer_tokens: f64,
    /// Mean time between an answer and the next question.
    pub think: Duration,
    /// Tenants, equally busy; each has system prompts of its own.
    pub tenants: u16,
    pub class: Class,
    pub deadline: Option<Duration>,
}

impl Talk {
    /// People who chat: a handful of system prompts, some turns, seconds of thought.
    pub fn chat(talks: usize, per_s: f64) -> Self {
        Self {
            per_s,
            talks,
            turns: (1, 6),
            systems: 4,
            system_tokens: 800,
            ask_tokens: 120.0,
            answer_tokens: 180.0,
            think: Duration::from_secs(12),
            tenants: 1,
            class: Class::Interactive,
            deadline: None,
        }
    }

    /// Agents: long instructions, many quick turns, results of tools as prompts.
    pub fn agents(talks: usize, per_s: f64) -> Self {
        Self {
            turns: (6, 20),
            systems: 2,
            system_tokens: 3_000,
            ask_tokens: 600.0,
            answer_tokens: 90.0,
            think: Duration::from_millis(1500),
            ..Self::chat(talks, per_s)
        }
    }

    /// Requests that have nothing to do with one another but a system prompt.
    pub fn single(talks: usize, per_s: f64) -> Self {
        Self { turns: (1, 1), systems: 1, ..Self::chat(talks, per_s) }
    }
}

/// A seed and what is to be talked.
#[derive(Clone, PartialEq, Debug)]
pub struct Generator {
    pub seed: u64,
    pub talks: Vec<Talk>,
}

impl Generator {
    pub fn new(seed: u64, talks: impl Into<Vec<Talk>>) -> Self {
        Self { seed, talks: talks.into() }
    }

    /// The calls, at most [`CALLS_MAX`].
    pub fn trace(&self) -> Trace {
        let mut begun: Vec<(Nanos, Vec<Call>)> = Vec::new();
        let mut rng = SplitMix::new(self.seed ^ 0x7261_6666_6963);
        for (kind, talk) in self.talks.iter().enumerate() {
            let mut at = 0.0;
            for number in 0..talk.talks {
                at += exponential(&mut rng, 1.0 / talk.per_s);
                let texts = Texts { seed: self.seed, kind: kind as u64, talk: number as u64 };
                begun.push((Nanos((at * 1e9) as u64), one(talk, texts, &mut rng)));
            }
        }
        begun.sort_by_key(|(at, _)| *at);
        let tenants = self.talks.iter().map(|talk| talk.tenants).max().unwrap_or(1).max(1);
        let mut calls: Vec<Call> = Vec::new();
        for (at, talk) in begun {
            let base = calls.len();
            if base + talk.len() > CALLS_MAX {
                break;
            }
            calls.extend(talk.into_iter().enumerate().map(|(turn, call)| Call {
                start: match call.start {
                    Start::After { think, .. } if turn > 0 => Start::After { call: base + turn - 1, think },
                    _ => Start::At(at),
                },
                session: Some(base as u64),
                ..call
            }));
        }
        Trace {
            name: format!("generated-{}", self.seed),
            tenants: (0..tenants).map(|number| format!("tenant-{number}")).collect(),
            calls,
        }
    }
}

/// What makes the texts of one talk different from all others.
#[derive(Clone, Copy)]
struct Texts {
    seed: u64,
    kind: u64,
    talk: u64,
}

impl Texts {
    fn id(self, what: u64) -> u64 {
        own_text(0x10 + self.kind, (self.seed << 40) ^ (self.talk << 12) ^ what)
    }
    /// Of a system prompt: the same for all talks of the kind and tenant.
    fn system(self, tenant: u16, number: u32) -> u64 {
        own_text(0x20 + self.kind, (self.seed << 40) ^ u64::from(tenant) << 20 ^ u64::from(number))
    }
}

fn one(talk: &Talk, texts: Texts, rng: &mut SplitMix) -> Vec<Call> {
    let tenant = rng.below(u64::from(talk.tenants.max(1))) as u16;
    let system = texts.system(tenant, zipf(rng, talk.systems.max(1)));
    let mut said = Vec::new();
    if talk.system_tokens > 0 {
        said.push(Segment { id: system, tokens: talk.system_tokens });
    }
    let (least, most) = talk.turns;
    let turns = least + rng.below(u64::from(most.saturating_sub(least)) + 1) as u32;
    let mut calls = Vec::new();
    for turn in 0..turns.max(1) {
        said.push(Segment { id: texts.id(u64::from(turn) * 2), tokens: length(rng, talk.ask_tokens) });
        let output =
            Segment { id: texts.id(u64::from(turn) * 2 + 1), tokens: length(rng, talk.answer_tokens) };
        let think = Duration::from_secs_f64(exponential(rng, talk.think.as_secs_f64()));
        calls.push(Call {
            start: Start::After { call: 0, think },
            tenant,
            class: talk.class,
            prompt: said.clone(),
            output,
            deadline: talk.deadline,
            session: None,
        });
        said.push(output);
    }
    calls
}

fn exponential(rng: &mut SplitMix, mean: f64) -> f64 {
    -(1.0 - rng.unit()).ln() * mean
}

fn length(rng: &mut SplitMix, mean: f64) -> u32 {
    const SIGMA: f64 = 0.7;
    let drawn = mean * (SIGMA * rng.normal() - SIGMA * SIGMA / 2.0).exp();
    drawn.clamp(1.0, (mean * 8.0).max(1.0)) as u32
}

/// 0 for the most popular of `count`.
fn zipf(rng: &mut SplitMix, count: u32) -> u32 {
    let whole: f64 = (1..=count).map(|k| 1.0 / f64::from(k)).sum();
    let mut left = rng.unit() * whole;
    for k in 1..=count {
        left -= 1.0 / f64::from(k);
        if left <= 0.0 {
            return k - 1;
        }
    }
    count - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_calls_and_another_seed_others() {
        let of = |seed| Generator::new(seed, [Talk::chat(50, 2.0), Talk::agents(5, 0.2)]).trace();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn a_turn_repeats_all_that_was_said_and_follows_the_turn_before() {
        let trace = Generator::new(3, [Talk::agents(4, 1.0)]).trace();
        let mut turns = 0;
        for (index, call) in trace.calls.iter().enumerate() {
            if let Start::After { call: before, .. } = call.start {
                let earlier = &trace.calls[before];
                assert_eq!(before + 1, index);
                assert!(call.prompt.starts_with(&earlier.prompt));
                assert_eq!(call.prompt[earlier.prompt.len()], earlier.output);
                turns += 1;
            }
        }
        assert!(turns > 15, "{turns} turns");
    }

    #[test]
    fn lengths_and_rates_have_the_stated_means() {
        let talk = Talk { turns: (1, 1), tenants: 3, ..Talk::chat(4000, 10.0) };
        let trace = Generator::new(9, [talk]).trace();
        let asked: f64 = trace.calls.iter().map(|call| f64::from(call.prompt[1].tokens)).sum();
        assert!((asked / 4000.0 / 120.0 - 1.0).abs() < 0.05, "mean {}", asked / 4000.0);
        let Start::At(last) = trace.calls.last().unwrap().start else { panic!("one turn") };
        assert!((last.as_secs_f64() / 400.0 - 1.0).abs() < 0.1, "{} s", last.as_secs_f64());
        assert!(trace.calls.iter().any(|call| call.tenant == 2));
    }
}
