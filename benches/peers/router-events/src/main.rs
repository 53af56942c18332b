//! Decodes random batches of KV events with this router and with `dynamo-kv-router`, and compares every field.
//!
//! Batches are drawn in both live dialects, with every optional field there or not, lists that end early, hashes of
//! either sign, pairs of tokens, salts where vLLM and where SGLang put them, and fields of later versions. What only
//! one of the two reads (hashes in bytes, batches as maps) is left out: there is nothing to compare.

use dynamo_kv_router::zmq_wire::{KvEventBatch, Locality, RawKvEvent, decode_event_batch};
use quire_base::{Clock, SplitMix, SystemClock};
use quire_router::source::wire::{Event, Group, Scratch, decode};

/// One event as both can say it.
#[derive(Debug, PartialEq, Default)]
struct Said {
    tag: &'static str,
    hashes: Vec<u64>,
    parent: Option<u64>,
    tokens: Vec<u32>,
    is_paired: bool,
    block_tokens: u64,
    medium: Option<String>,
    lora: Option<String>,
    salt: Option<String>,
    group: Option<u32>,
    kind: Option<String>,
    window: Option<u32>,
    locality: Option<String>,
    owner: Option<String>,
}

fn ours(bytes: &[u8], scratch: &mut Scratch) -> Result<(f64, Option<i32>, Vec<Said>), String> {
    let mut said = Vec::new();
    let batch = decode(bytes, scratch, |event| said.push(of_ours(&event))).map_err(|error| error.to_string())?;
    Ok((batch.time, batch.rank, said))
}

fn of_ours(event: &Event<'_>) -> Said {
    let own = |text: Option<&str>| text.map(str::to_owned);
    let grouped = |group: &Group<'_>, said: Said| Said {
        group: group.index,
        kind: own(group.kind),
        window: group.window,
        locality: own(group.locality),
        owner: own(group.owner),
        ..said
    };
    match event {
        Event::Ignored => Said { tag: "ignored", ..Said::default() },
        Event::Cleared { owner } => Said { tag: "cleared", owner: own(*owner), ..Said::default() },
        Event::Removed { hashes, medium, group } => {
            let said = Said { tag: "removed", hashes: hashes.to_vec(), medium: own(*medium), ..Said::default() };
            grouped(group, said)
        }
        Event::Stored(stored) => {
            let said = Said {
                tag: "stored",
                hashes: stored.hashes.to_vec(),
                parent: stored.parent,
                tokens: stored.tokens.to_vec(),
                is_paired: stored.is_paired,
                block_tokens: u64::from(stored.block_tokens),
                medium: own(stored.medium),
                lora: own(stored.lora),
                salt: own(stored.salt),
                ..Said::default()
            };
            grouped(&stored.group, said)
        }
    }
}

fn theirs(bytes: &[u8]) -> Result<(f64, Option<i32>, Vec<Said>), String> {
    let KvEventBatch { ts, events, data_parallel_rank } =
        decode_event_batch(bytes).map_err(|error| error.to_string())?;
    Ok((ts, data_parallel_rank, events.into_iter().map(of_theirs).collect()))
}

fn place(locality: Option<Locality>) -> Option<String> {
    locality.map(|locality| match locality {
        Locality::Local => "LOCAL".into(),
        Locality::Remote => "REMOTE".into(),
        Locality::Unknown => "ELSEWHERE".into(),
    })
}

fn of_theirs(event: RawKvEvent) -> Said {
    match event {
        RawKvEvent::Ignored => Said { tag: "ignored", ..Said::default() },
        RawKvEvent::AllBlocksCleared { ownership } => {
            Said { tag: "cleared", owner: ownership, ..Said::default() }
        }
        RawKvEvent::BlockRemoved {
            block_hashes,
            medium,
            group_idx,
            kv_cache_spec_kind,
            kv_cache_spec_sliding_window,
            locality,
            ownership,
        } => Said {
            tag: "removed",
            hashes: block_hashes.into_iter().map(|hash| hash.into_u64()).collect(),
            medium,
            group: group_idx,
            kind: kv_cache_spec_kind.map(word),
            window: kv_cache_spec_sliding_window,
            locality: place(locality),
            owner: ownership,
            ..Said::default()
        },
        RawKvEvent::BlockStored {
            block_hashes,
            parent_block_hash,
            token_ids,
            block_size,
            medium,
            lora_name,
            cache_namespace,
            is_eagle,
            group_idx,
            kv_cache_spec_kind,
            kv_cache_spec_sliding_window,
            locality,
            ownership,
            ..
        } => Said {
            tag: "stored",
            hashes: block_hashes.into_iter().map(|hash| hash.into_u64()).collect(),
            parent: parent_block_hash.map(|hash| hash.into_u64()),
            tokens: token_ids,
            is_paired: is_eagle.unwrap_or(false),
            block_tokens: block_size as u64,
            medium,
            lora: lora_name,
            // They make of an empty salt none when they use it, we when we read it.
            salt: cache_namespace.filter(|salt| !salt.is_empty()),
            group: group_idx,
            kind: kv_cache_spec_kind.map(word),
            window: kv_cache_spec_sliding_window,
            locality: place(locality),
            owner: ownership,
        },
    }
}

/// Their kind as it stands on the wire, from its name in Rust.
fn word(kind: impl std::fmt::Debug) -> String {
    let mut out = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

/// Writes random batches.
struct Writer {
    rng: SplitMix,
    out: Vec<u8>,
}

const MEDIA: [&str; 6] = ["GPU", "CPU_PINNED", "DISK", "EXTERNAL", "FS", ""];
const KINDS: [&str; 4] = ["full_attention", "mla_attention", "sliding_window", "mamba"];
const PLACES: [&str; 3] = ["LOCAL", "REMOTE", "ELSEWHERE"];

impl Writer {
    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    fn batch(&mut self) -> Vec<u8> {
        self.out.clear();
        let events = self.rng.below(5) as usize;
        let rank = if self.one_in(3) { None } else { Some(self.rng.below(8)) };
        self.list(3);
        let time = self.rng.unit() * 1e9;
        self.out.push(0xcb);
        self.out.extend(time.to_be_bytes());
        self.list(events);
        for _ in 0..events {
            if self.one_in(2) { self.listed() } else { self.named() }
        }
        match rank {
            Some(rank) => self.int(rank),
            None => self.nil(),
        }
        self.out.clone()
    }

    fn listed(&mut self) {
        match self.rng.below(10) {
            0 => {
                let with_owner = self.one_in(2);
                self.list(1 + usize::from(with_owner));
                self.text("AllBlocksCleared");
                if with_owner {
                    self.optional(|w| w.text("kvcr"));
                }
            }
            1..=3 => {
                let last = 2 + self.rng.below(8) as usize;
                self.list(last);
                self.text("BlockRemoved");
                self.hashes();
                self.tail(last, 2, |w| w.pick(&MEDIA));
            }
            _ => {
                let last = 5 + self.rng.below(11) as usize;
                self.list(last);
                self.text("BlockStored");
                let blocks = self.hashes();
                self.optional(Self::hash);
                self.tokens(blocks);
                self.int(16);
                if last > 5 {
                    self.optional(|w| w.int(3));
                }
                if last > 6 {
                    self.optional(|w| w.pick(&MEDIA));
                }
                if last > 7 {
                    self.optional(|w| if w.one_in(3) { w.sglang() } else { w.text("sql") });
                }
                if last > 8 {
                    self.optional(|w| w.extra(blocks));
                }
                self.group(last, 9);
            }
        }
    }

    /// Medium at `at`, then the group.
    fn tail(&mut self, last: usize, at: usize, medium: impl Fn(&mut Self)) {
        if last > at {
            self.optional(medium);
        }
        self.group(last, at + 1);
    }

    /// The fields from `at` on; behind them those of a later version.
    fn group(&mut self, last: usize, at: usize) {
        for place in at..last {
            match place - at {
                0 | 2 => self.optional(|w| w.small()),
                1 => self.optional(|w| w.pick(&KINDS)),
                3 => self.optional(|w| w.pick(&PLACES)),
                4 => self.optional(|w| w.text("kvcr")),
                _ => self.list(0),
            }
        }
    }

    fn named(&mut self) {
        let (tag, needs) = match self.rng.below(10) {
            0 => ("AllBlocksCleared", 0),
            1..=3 => ("BlockRemoved", 1),
            _ => ("BlockStored", 3),
        };
        let at = self.out.len();
        self.out.push(0);
        let mut fields = 1;
        self.pair("type", |w| w.text(tag));
        let mut blocks = 0;
        if needs > 0 {
            fields += 1;
            self.text("block_hashes");
            blocks = self.hashes();
        }
        if needs > 1 {
            fields += 2;
            self.text("token_ids");
            self.tokens(blocks);
            self.pair("block_size", |w| w.int(16));
            fields += self.maybe("parent_block_hash", Self::hash);
            fields += self.maybe("lora_name", |w| w.text("sql"));
            fields += self.maybe("cache_salt", |w| w.pick(&["salt", ""]));
            fields += self.maybe("extra_keys", |w| w.extra(blocks));
            fields += self.maybe("lora_id", |w| w.int(4));
        }
        if needs > 0 {
            fields += self.maybe("medium", |w| w.pick(&MEDIA));
            fields += self.maybe("group_idx", Self::small);
            fields += self.maybe("kv_cache_spec_kind", |w| w.pick(&KINDS));
            fields += self.maybe("kv_cache_spec_sliding_window", Self::small);
            fields += self.maybe("locality", |w| w.pick(&PLACES));
        }
        fields += self.maybe("ownership", |w| w.text("kvcr"));
        fields += self.maybe("of_a_later_version", |w| w.list(0));
        // At most fifteen: the short form.
        self.out[at] = 0x80 | fields.min(15);
        assert!(fields <= 15, "{fields}");
    }

    fn pair(&mut self, name: &str, value: impl Fn(&mut Self)) {
        self.text(name);
        value(self);
    }

    fn maybe(&mut self, name: &str, value: impl Fn(&mut Self)) -> u8 {
        if self.one_in(2) {
            return 0;
        }
        self.text(name);
        self.optional(value);
        1
    }

    fn optional(&mut self, value: impl Fn(&mut Self)) {
        if self.one_in(3) { self.nil() } else { value(self) }
    }

    fn hashes(&mut self) -> usize {
        let count = self.rng.below(6) as usize;
        self.list(count);
        (0..count).for_each(|_| self.hash());
        count
    }

    fn hash(&mut self) {
        let word = self.rng.next_u64();
        match self.rng.below(3) {
            0 => self.int(word % 1000),
            1 => {
                self.out.push(0xcf);
                self.out.extend(word.to_be_bytes());
            }
            _ => {
                self.out.push(0xd3);
                self.out.extend((word as i64).to_be_bytes());
            }
        }
    }

    fn tokens(&mut self, blocks: usize) {
        let count = blocks * 16;
        let is_paired = self.one_in(5);
        self.list(count);
        for _ in 0..count {
            if is_paired {
                self.list(2);
                self.small();
            }
            self.small();
        }
    }

    fn sglang(&mut self) {
        self.out.push(0x81);
        self.text("cache_salt");
        self.pick(&["s", ""]);
    }

    fn extra(&mut self, blocks: usize) {
        self.list(blocks);
        for _ in 0..blocks {
            self.optional(|w| {
                w.list(2);
                w.text("image");
                w.list(2);
                w.text("0123");
                w.int(7);
            });
        }
    }

    fn small(&mut self) {
        let value = match self.rng.below(3) {
            0 => self.rng.below(100),
            1 => self.rng.below(60_000),
            _ => self.rng.below(200_000),
        };
        self.int(value);
    }

    fn pick(&mut self, of: &[&str]) {
        let at = self.rng.below(of.len() as u64) as usize;
        self.text(of[at]);
    }

    fn nil(&mut self) {
        self.out.push(0xc0);
    }

    fn int(&mut self, value: u64) {
        match value {
            0..=127 => self.out.push(value as u8),
            128..=0xffff => {
                self.out.push(0xcd);
                self.out.extend((value as u16).to_be_bytes());
            }
            _ => {
                self.out.push(0xce);
                self.out.extend((value as u32).to_be_bytes());
            }
        }
    }

    fn text(&mut self, text: &str) {
        assert!(text.len() < 32);
        self.out.push(0xa0 | text.len() as u8);
        self.out.extend(text.as_bytes());
    }

    fn list(&mut self, len: usize) {
        match len {
            0..=15 => self.out.push(0x90 | len as u8),
            _ => {
                self.out.push(0xdc);
                self.out.extend((len as u16).to_be_bytes());
            }
        }
    }
}

fn main() {
    let count = std::env::args().nth(1).map_or(100_000, |typed| typed.parse().expect("a number of batches"));
    let mut writer = Writer { rng: SplitMix::new(1), out: Vec::new() };
    let batches: Vec<Vec<u8>> = (0..count).map(|_| writer.batch()).collect();
    let mut scratch = Scratch::default();
    let (mut events, mut refused) = (0, 0);
    for (at, bytes) in batches.iter().enumerate() {
        let (mine, other) = (ours(bytes, &mut scratch), theirs(bytes));
        match (&mine, &other) {
            (Ok(mine), Ok(other)) => {
                assert_eq!(mine, other, "batch {at}: {bytes:02x?}");
                events += mine.2.len();
            }
            (Err(_), Err(_)) => refused += 1,
            _ => panic!("batch {at}: {mine:?} but {other:?}: {bytes:02x?}"),
        }
    }
    println!("{count} batches, {events} events: all fields equal ({refused} refused by both)");
    let bytes: usize = batches.iter().map(Vec::len).sum();
    let clock = SystemClock::new();
    for round in 0..5 {
        let begun = clock.now();
        let mut mine = 0;
        for batch in &batches {
            let _ = decode(batch, &mut scratch, |_| mine += 1);
        }
        let us = clock.now().since(begun);
        let begun = clock.now();
        let other: usize = batches.iter().map(|batch| decode_event_batch(batch).map_or(0, |read| read.events.len())).sum();
        let them = clock.now().since(begun);
        println!(
            "round {round}: {:.0} MB/s against {:.0} MB/s, {:.1} times",
            bytes as f64 / us.as_secs_f64() / 1e6,
            bytes as f64 / them.as_secs_f64() / 1e6,
            them.as_secs_f64() / us.as_secs_f64()
        );
        assert!(mine >= other);
    }
}
