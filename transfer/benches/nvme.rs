//! How close the disk tier comes to the disk: sealed stores and loads against raw O_DIRECT reads and
//! writes of the same size, depth and order, in the same run and interleaved. Ratios are medians of each round's.
//!
//! `cargo bench -p quire-transfer --bench nvme -- [DIR] [--bytes N] [--rounds N] [--depth N]
//! [--workers N] [--threads] [--only KIB] [--json disk|copies|recovery]`. `--json` prints a JSON line for each
//! round and nothing else; with `disk` a round waits for a line on standard input, so that whoever compares
//! runs its other side in between (`scripts/bench-peers tiers`). The raw side is one thread on one io_uring with registered buffers,
//! which is what `fio --ioengine=io_uring --direct=1 --fixedbufs` does. Also: the cipher alone,
//! copying into frames against copying, and how long an index takes to recover.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use base::{ChainHash, Clock, FrameId, Generation, NamespaceId, SlotId, SplitMix, SystemClock, Tier};
use io_uring::{IoUring, opcode, types};
use quire_transfer::{
    DataKey, Done, Entry, Finished, HostArena, IoChoice, Job, Journal, JournalConfig, KeyRing, NvmeConfig,
    NvmeTier, PageLabel, PageSeal, PageTier, StartWith,
};
use serde_json::json;

const SIZES: [usize; 4] = [64 << 10, 256 << 10, 1 << 20, 4 << 20];
const COPIED: [usize; 2] = [192 << 10, 4 << 20];
/// Bytes and tokens of the pages whose index recovers.
const RECOVERED: [(u64, usize); 3] = [(196_608, 64), (65_536, 16), (65_536, 64)];

struct Args {
    dir: PathBuf,
    bytes: usize,
    rounds: usize,
    depth: usize,
    workers: usize,
    io: IoChoice,
    /// One size, in KiB, and nothing else.
    only: Option<usize>,
    json: Option<Part>,
}

/// What `--json` measures.
#[derive(Clone, Copy)]
enum Part {
    Disk,
    Copies,
    Recovery,
}

fn main() {
    let args = args();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    match args.json {
        None => everything(&args, &clock),
        Some(Part::Disk) => paced(&args, &clock),
        Some(Part::Copies) => COPIED.into_iter().for_each(|size| {
            for (frame, memcpy) in copied(&clock, size, args.rounds).0 {
                println!("{}", json!({"bytes": size, "frame": frame, "memcpy": memcpy}));
            }
        }),
        Some(Part::Recovery) => RECOVERED.into_iter().for_each(|shape| {
            let found = recovered(&args, &clock, shape);
            for ms in &found.ms {
                println!(
                    "{}",
                    json!({"page_bytes": shape.0, "tokens": shape.1, "pages": found.pages, "ms": ms, "index_bytes": found.index_bytes})
                );
            }
        }),
    }
    let _ = std::fs::remove_dir_all(&args.dir);
}

fn everything(args: &Args, clock: &Arc<dyn Clock>) {
    println!(
        "depth {} workers {} {} MiB per leg, {} rounds",
        args.depth,
        args.workers,
        args.bytes >> 20,
        args.rounds
    );
    if args.only.is_none() {
        cipher(clock, args.rounds);
        copies(clock, args.rounds);
    }
    println!(
        "{:>6} {:>10} {:>10} {:>7} {:>10} {:>10} {:>7}",
        "size", "raw write", "store", "ratio", "raw read", "load", "ratio"
    );
    for size in SIZES.into_iter().filter(|s| args.only.is_none_or(|only| only == s >> 10)) {
        disk(args, clock, size);
    }
    if args.only.is_none() {
        recovery(args, clock);
    }
}

fn args() -> Args {
    let mut out = Args {
        dir: std::env::temp_dir().join("quire-bench-nvme"),
        bytes: 512 << 20,
        rounds: 5,
        depth: 16,
        workers: 2,
        io: IoChoice::Auto,
        only: None,
        json: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--json" {
            out.json = Some(match words.next().as_deref() {
                Some("disk") => Part::Disk,
                Some("copies") => Part::Copies,
                Some("recovery") => Part::Recovery,
                other => panic!("--json takes disk, copies or recovery, not {other:?}"),
            });
            continue;
        }
        let mut number = || words.next().and_then(|n| n.parse().ok()).expect("a number");
        match word.as_str() {
            "--bytes" => out.bytes = number(),
            "--rounds" => out.rounds = number(),
            "--depth" => out.depth = number(),
            "--workers" => out.workers = number(),
            "--only" => out.only = Some(number()),
            "--threads" => out.io = IoChoice::Threads,
            "--bench" => (),
            dir => out.dir = PathBuf::from(dir),
        }
    }
    out
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// GB/s of `work`, which moves `bytes`.
fn rate(clock: &Arc<dyn Clock>, bytes: usize, work: impl FnOnce()) -> f64 {
    let began = clock.now();
    work();
    bytes as f64 / clock.now().since(began).as_nanos() as f64
}

fn label(slot: u32, bytes: usize) -> PageLabel {
    PageLabel {
        namespace: NamespaceId(1),
        generation: Generation(1),
        name: ChainHash([slot as u8; 32]),
        layout: [1; 32],
        tier: Tier::Nvme,
        slot: SlotId(slot),
        bytes: bytes as u32,
    }
}

fn keys() -> Arc<KeyRing> {
    let keys = KeyRing::new();
    keys.insert(NamespaceId(1), Generation(1), DataKey::random().unwrap());
    Arc::new(keys)
}

fn cipher(clock: &Arc<dyn Clock>, rounds: usize) {
    let keys = keys();
    for size in SIZES {
        let plain = vec![7u8; size];
        let mut sealed = vec![0u8; size + 16];
        let mut out = vec![0u8; size];
        let times = (64 << 20) / size;
        let (mut seals, mut opens) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let mut seal = PageSeal { nonce: [0; 12], tag: [0; 16] };
            seals.push(rate(clock, size * times, || {
                for _ in 0..times {
                    seal = keys.seal(&label(0, size), &plain, &mut sealed).unwrap();
                }
            }));
            opens.push(rate(clock, size * times, || {
                for _ in 0..times {
                    keys.open(&label(0, size), &seal, &sealed[..size], &mut out).unwrap();
                }
            }));
        }
        println!(
            "cipher {:>5}K  seal {:6.2} GB/s  open {:6.2} GB/s",
            size >> 10,
            median(seals),
            median(opens)
        );
    }
}

fn copies(clock: &Arc<dyn Clock>, rounds: usize) {
    for size in COPIED {
        let (rates, arena) = copied(clock, size, rounds);
        let (framed, raw) = rates.into_iter().unzip();
        let (framed, raw) = (median(framed), median(raw));
        println!(
            "copy {:>5}K  frame {framed:6.2} GB/s  memcpy {raw:6.2} GB/s  ratio {:.2}  (pinned {}, huge {})",
            size >> 10,
            framed / raw,
            arena.is_pinned(),
            arena.is_huge()
        );
    }
}

/// GB/s of copying into frames and into plain memory, each round.
fn copied(clock: &Arc<dyn Clock>, size: usize, rounds: usize) -> (Vec<(f64, f64)>, HostArena) {
    let frames = (256 << 20) / size;
    let arena = HostArena::new(frames as u32, size).unwrap();
    let from = vec![3u8; frames * size];
    let mut plain = vec![0u8; frames * size];
    let mut rates = Vec::new();
    for _ in 0..=rounds {
        let framed = rate(clock, frames * size, || {
            for (frame, bytes) in from.chunks(size).enumerate() {
                arena.write(FrameId(frame as u32)).unwrap().copy_from_slice(bytes);
            }
        });
        let raw = rate(clock, frames * size, || {
            for (to, bytes) in plain.chunks_mut(size).zip(from.chunks(size)) {
                to.copy_from_slice(bytes);
            }
        });
        rates.push((framed, raw));
    }
    // The first round touches the memory for the first time.
    rates.remove(0);
    (rates, arena)
}

fn disk(args: &Args, clock: &Arc<dyn Clock>, size: usize) {
    let mut pair = Pair::new(args, clock, size);
    let mut figures: [Vec<f64>; 4] = Default::default();
    for _ in 0..args.rounds {
        figures.iter_mut().zip(pair.round(clock)).for_each(|(all, leg)| all.push(leg));
    }
    let stats = pair.tier.tier.stats();
    let ratio = |tier: usize, raw: usize| {
        median(figures[tier].iter().zip(&figures[raw]).map(|(tier, raw)| tier / raw).collect())
    };
    let ratios = (ratio(1, 0), ratio(3, 2));
    let [raw_write, store, raw_read, load] = figures.map(median);
    println!(
        "{:>5}K {raw_write:>10.3} {store:>10.3} {:>7.3} {raw_read:>10.3} {load:>10.3} {:>7.3}  direct {} uring {} registered {} failures {:?}",
        size >> 10,
        ratios.0,
        ratios.1,
        stats.direct,
        stats.uring,
        stats.registered,
        stats.failures
    );
    drop(pair);
    let _ = std::fs::remove_dir_all(&args.dir);
}

/// A line of JSON for each line read; the first says that the files are there.
fn paced(args: &Args, clock: &Arc<dyn Clock>) {
    let kib = args.only.expect("--json disk needs --only KIB");
    let mut pair = Pair::new(args, clock, kib << 10);
    let stats = pair.tier.tier.stats();
    println!("{}", json!({"direct": stats.direct, "uring": stats.uring, "registered": stats.registered}));
    for _ in io::stdin().lines() {
        let [raw_write, store, raw_read, load] = pair.round(clock);
        let failures: u64 = pair.tier.tier.stats().failures.iter().map(|(_, n)| n).sum();
        println!(
            "{}",
            json!({"raw_write": raw_write, "store": store, "raw_read": raw_read, "load": load, "failures": failures})
        );
    }
}

/// The tier and the raw disk under the same work.
struct Pair {
    raw: Raw,
    tier: Driver,
    order: Vec<u32>,
    rng: SplitMix,
    size: usize,
    rounds: usize,
}

impl Pair {
    fn new(args: &Args, clock: &Arc<dyn Clock>, size: usize) -> Self {
        let count = (args.bytes / size).max(4);
        let _ = std::fs::remove_dir_all(&args.dir);
        std::fs::create_dir_all(&args.dir).unwrap();
        let raw = Raw::new(&args.dir.join("raw"), size, count, args.depth);
        let tier = Driver::new(args, clock, size, count);
        let order = (0..count as u32).collect();
        let mut pair = Self { raw, tier, order, rng: SplitMix::new(size as u64), size, rounds: 0 };
        // The first round makes the files' blocks.
        pair.round(clock);
        pair
    }

    /// GB/s of a raw write, a store, a raw read and a load of everything, in an order of their own.
    fn round(&mut self, clock: &Arc<dyn Clock>) -> [f64; 4] {
        let Self { raw, tier, order, rng, size, rounds } = self;
        for index in (1..order.len()).rev() {
            order.swap(index, rng.below(index as u64 + 1) as usize);
        }
        // Who goes second meets what the first left in the machine's caches: they take turns.
        let mut legs = [0.0; 4];
        for step in 0..4 {
            let leg = step ^ (*rounds % 2);
            legs[leg] = rate(clock, *size * order.len(), || match leg {
                0 => raw.run(order, true),
                1 => tier.store(order),
                2 => raw.run(order, false),
                _ => tier.load(order),
            });
        }
        *rounds += 1;
        legs
    }
}

/// The tier, and frames enough that those in use differ.
struct Driver {
    tier: NvmeTier,
    answers: Arc<Answers>,
    seals: Vec<PageSeal>,
    window: usize,
    size: usize,
}

impl Driver {
    fn new(args: &Args, clock: &Arc<dyn Clock>, size: usize, count: usize) -> Self {
        let window = count.min(args.depth * 64);
        let arena = Arc::new(HostArena::new(window as u32, size).unwrap());
        for frame in 0..window as u32 {
            arena.write(FrameId(frame)).unwrap().fill(frame as u8);
        }
        let config = NvmeConfig {
            depth: args.depth,
            workers: args.workers,
            io: args.io,
            start: StartWith::Nothing,
            queue_max: count,
            queue_timeout: Duration::from_secs(600),
            ..NvmeConfig::new(&args.dir.join("tier"), count as u32, size)
        };
        let answers = Arc::new(Answers::default());
        let theirs = Arc::clone(&answers);
        let sink = Box::new(move |done| theirs.take(done));
        let tier = NvmeTier::open(config, arena, keys(), Arc::clone(clock), sink).unwrap();
        let seals = vec![PageSeal { nonce: [0; 12], tag: [0; 16] }; count];
        Self { tier, answers, seals, window, size }
    }

    fn store(&mut self, order: &[u32]) {
        let size = self.size;
        self.drive(order, |slot, frame, ticket, _| Job::Store { ticket, frame, label: label(slot, size) });
    }

    fn load(&mut self, order: &[u32]) {
        let size = self.size;
        self.drive(order, |slot, frame, ticket, seals| Job::Load {
            ticket,
            frame,
            label: label(slot, size),
            seal: seals[slot as usize],
        });
    }

    /// One batch of everything, as a restore or a write-back sends it; waits for the last answer.
    fn drive(&mut self, order: &[u32], job: impl Fn(u32, FrameId, u64, &[PageSeal]) -> Job) {
        let jobs = order.iter().zip((0..self.window as u32).cycle());
        let jobs = jobs.map(|(slot, frame)| job(*slot, FrameId(frame), u64::from(*slot), &self.seals));
        let jobs = jobs.collect();
        self.answers.expect(order.len());
        self.tier.submit(jobs).expect("room in the queue");
        for done in self.answers.wait() {
            if let Finished::Stored(seal) = done.outcome.unwrap() {
                self.seals[done.ticket as usize] = seal;
            }
        }
    }
}

/// Collects answers; wakes who waits for them once.
#[derive(Default)]
struct Answers {
    done: Mutex<(Vec<Done>, usize)>,
    all: Condvar,
}

impl Answers {
    fn expect(&self, count: usize) {
        *self.done.lock().unwrap() = (Vec::with_capacity(count), count);
    }
    fn take(&self, answer: Done) {
        let mut done = self.done.lock().unwrap();
        done.0.push(answer);
        if done.0.len() == done.1 {
            self.all.notify_one();
        }
    }
    fn wait(&self) -> Vec<Done> {
        let done = self.done.lock().unwrap();
        let mut done = self.all.wait_while(done, |(all, count)| all.len() < *count).unwrap();
        std::mem::take(&mut done.0)
    }
}

/// The disk as fio sees it.
struct Raw {
    file: File,
    ring: IoUring,
    buffers: Vec<*mut u8>,
    _memory: HostArena,
    size: usize,
}

impl Raw {
    fn new(path: &Path, size: usize, count: usize, depth: usize) -> Self {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT);
        let file = file
            .open(path)
            .or_else(|_| OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path));
        let file = file.unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, (size * count) as u64).unwrap();
        let memory = HostArena::new(depth as u32, size).unwrap();
        let at = |frame| {
            let mut bytes = memory.write(FrameId(frame)).unwrap();
            bytes.fill(frame as u8);
            bytes.as_mut_ptr()
        };
        let buffers: Vec<*mut u8> = (0..depth as u32).map(at).collect();
        let ring = IoUring::new((depth as u32).next_power_of_two()).unwrap();
        let vectors: Vec<_> =
            buffers.iter().map(|b| libc::iovec { iov_base: b.cast(), iov_len: size }).collect();
        // SAFETY: the arena outlives the ring's operations: `run` waits for all of them.
        unsafe { ring.submitter().register_buffers(&vectors) }.unwrap();
        Self { file, ring, buffers, _memory: memory, size }
    }

    fn run(&mut self, order: &[u32], writes: bool) {
        let mut next = order.iter();
        let mut free: Vec<usize> = (0..self.buffers.len()).collect();
        let mut open = 0;
        loop {
            while let Some(lane) = free.pop() {
                let Some(slot) = next.next() else { break };
                self.push(lane, u64::from(*slot) * self.size as u64, writes);
                open += 1;
            }
            if open == 0 {
                return;
            }
            self.ring.submit_and_wait(1).unwrap();
            for event in self.ring.completion() {
                assert_eq!(
                    event.result(),
                    self.size as i32,
                    "{}",
                    io::Error::from_raw_os_error(-event.result())
                );
                free.push(event.user_data() as usize);
                open -= 1;
            }
        }
    }

    fn push(&mut self, lane: usize, offset: u64, writes: bool) {
        let fd = types::Fd(self.file.as_raw_fd());
        let (at, bytes, index) = (self.buffers[lane], self.size as u32, lane as u16);
        let entry = if writes {
            opcode::WriteFixed::new(fd, at, bytes, index).offset(offset).build()
        } else {
            opcode::ReadFixed::new(fd, at, bytes, index).offset(offset).build()
        };
        // SAFETY: the lane's buffer is free and stays until its completion.
        unsafe { self.ring.submission().push(&entry.user_data(lane as u64)) }.unwrap();
    }
}

fn recovery(args: &Args, clock: &Arc<dyn Clock>) {
    for (page_bytes, tokens) in RECOVERED {
        let found = recovered(args, clock, (page_bytes, tokens));
        println!(
            "index of 10 GiB at {page_bytes} B/page, {tokens} tokens: {} pages, {:.1} MiB ({:.2} % of the pages), recovered in {:.1} ms; written at {:.0} pages/s",
            found.pages,
            found.index_bytes as f64 / (1 << 20) as f64,
            100.0 * found.index_bytes as f64 / (10u64 << 30) as f64,
            median(found.ms),
            found.pages as f64 / found.wrote.as_secs_f64()
        );
    }
    let _ = std::fs::remove_dir_all(&args.dir);
}

struct Recovery {
    pages: u64,
    index_bytes: u64,
    wrote: Duration,
    /// Each round.
    ms: Vec<f64>,
}

/// An index of 10 GiB of pages, written and then read again and again.
fn recovered(args: &Args, clock: &Arc<dyn Clock>, shape: (u64, usize)) -> Recovery {
    let entries = index_of_10_gib(shape);
    let pages = (10u64 << 30) / shape.0;
    let _ = std::fs::remove_dir_all(&args.dir);
    let keys = keys();
    let config = JournalConfig::new(&args.dir, [1; 32]);
    let (journal, _) = Journal::open(&config, Arc::clone(&keys), &**clock).unwrap();
    let began = clock.now();
    for chunk in entries.chunks(8192) {
        journal.submit(chunk.to_vec()).unwrap();
        journal.flush().unwrap();
    }
    let wrote = clock.now().since(began);
    drop(journal);
    let index_bytes = std::fs::metadata(args.dir.join("index.log")).unwrap().len();
    let mut ms = Vec::new();
    for _ in 0..args.rounds {
        let (_, recovered) = Journal::open(&config, Arc::clone(&keys), &**clock).unwrap();
        assert_eq!(recovered.pages.len() as u64, pages);
        ms.push(recovered.took_ns as f64 / 1e6);
    }
    Recovery { pages, index_bytes, wrote, ms }
}

/// Chains of 64 pages, as prompts make them.
fn index_of_10_gib((page_bytes, tokens): (u64, usize)) -> Vec<Entry> {
    let count = (10u64 << 30) / page_bytes;
    let tree =
        |tree| Entry::Tree { tree, namespace: NamespaceId(1), generation: Generation(1), key: vec![1; 100] };
    let page = |page: u64| {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&page.to_le_bytes());
        Entry::Page {
            tier: Tier::Nvme,
            slot: SlotId(page as u32),
            tree: page / 1024,
            parent: (!page.is_multiple_of(64)).then(|| (Tier::Nvme, SlotId(page as u32 - 1))),
            name: ChainHash(name),
            seal: PageSeal { nonce: [1; 12], tag: [2; 16] },
            tokens: vec![page as u32; tokens],
        }
    };
    (0..count / 1024 + 1).map(tree).chain((0..count).map(page)).collect()
}
