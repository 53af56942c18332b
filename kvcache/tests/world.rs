//! All tiers beside the bytes they speak of: a world in which every page of the device, every frame and
//! every slot holds what was last copied there, orders answer late, out of order or not at all, disks
//! lie, steps fail, the process dies and comes back with its journal, and tenants are purged. Whatever a
//! request is given to read must be the prefix it asked for, and whoever heard every event never believes that
//! a tier holds what it does not. Used by the tests and by `benches/soak.rs`.

use std::collections::{BTreeMap, VecDeque};

use base::{
    ChainHash, FrameId, Generation, ModelDigest, NamespaceId, NamespaceKey, PageId, SlotId, SplitMix, StepId,
    Tier, TokenId,
};
use quire_kvcache::{
    Cache, CacheConfig, ColdOrder, ColdOutcome, ColdWork, EvictionKind, Fault, Follower, JournalNote,
    KvChange, Lease, LowerConfig, PageMove, PurgeId, Scrubbed, SlotRecord, TierEvent, Tiers, TiersConfig,
    TreeKey, WritePolicy,
};

const SIZE: usize = 16;

/// What a place holds: the prefix whose last page it is, or nothing.
type Content = Option<(TreeKey, Vec<u32>)>;

#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub device: u32,
    pub host: u32,
    pub nvme: u32,
    pub object: u32,
    pub write: WritePolicy,
    pub policy: EvictionKind,
    pub tenants: u64,
    pub names: Names,
    pub events_max: usize,
}

/// How much of a page's name the disks look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    Whole,
    /// 16 bits: pages collide by the thousand, and nothing but the trees tells them apart.
    Weak,
}

pub struct Sequence {
    pub key: TreeKey,
    pub prompt: Vec<u32>,
    pub lease: Lease,
    pub private: Vec<PageId>,
}

pub struct World {
    pub setup: Setup,
    pub rng: SplitMix,
    pub tiers: Tiers,
    pub step: StepId,
    pub device: Vec<Content>,
    pub frames: Vec<Content>,
    pub cold: BTreeMap<(Tier, SlotId), (Content, [u8; 28])>,
    pub pending: VecDeque<ColdOrder>,
    pub journal: BTreeMap<(Tier, SlotId), SlotRecord>,
    pub generations: BTreeMap<u64, u64>,
    pub sequences: Vec<Sequence>,
    pub purges: Vec<PurgeId>,
    pub seals: u64,
    pub has_restarted: bool,
    pub refuses_to_erase: bool,
    pub hits: [usize; 3],
    /// A reader of the events, and how often it had to be told anew.
    pub follower: Follower,
    pub retold: usize,
}

pub fn tokens(prompt: &[u32]) -> Vec<TokenId> {
    prompt.iter().flat_map(|&p| std::iter::repeat_n(9, SIZE - 1).chain([p])).collect()
}

pub fn build(setup: Setup) -> Tiers {
    let lower = [(Tier::Host, setup.host), (Tier::Nvme, setup.nvme), (Tier::Object, setup.object)];
    let lower = lower.into_iter().filter(|(_, pages)| *pages > 0).map(|(tier, pages)| LowerConfig {
        policy: setup.policy,
        write: setup.write,
        watermark: 0.5,
        ..LowerConfig::new(tier, pages)
    });
    let device = CacheConfig {
        policy: setup.policy,
        events_max: setup.events_max,
        ..CacheConfig::new(setup.device, SIZE as u32)
    };
    let mut tiers = Tiers::new(TiersConfig { lower: lower.collect(), orders_max: 64, device });
    for tenant in 0..setup.tenants {
        tiers.register_namespace(NamespaceId(tenant), chain_key(tenant));
    }
    tiers
}

impl World {
    pub fn new(setup: Setup, seed: u64) -> Self {
        Self {
            setup,
            rng: SplitMix::new(seed),
            tiers: build(setup),
            step: StepId(0),
            device: vec![None; setup.device as usize],
            frames: vec![None; setup.host as usize],
            cold: BTreeMap::new(),
            pending: VecDeque::new(),
            journal: BTreeMap::new(),
            generations: BTreeMap::new(),
            sequences: Vec::new(),
            purges: Vec::new(),
            seals: 0,
            has_restarted: false,
            refuses_to_erase: false,
            hits: [0; 3],
            follower: Follower::default(),
            retold: 0,
        }
    }

    pub fn key(&self, tenant: u64) -> TreeKey {
        let generation = Generation(self.generations.get(&tenant).copied().unwrap_or(0));
        TreeKey { generation, ..TreeKey::new(NamespaceId(tenant), ModelDigest([1; 32])) }
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.rng.below(n)
    }

    pub fn act(&mut self) {
        match self.below(100) {
            0..30 => self.arrive(),
            30..50 => self.finish_one(),
            50..75 => self.answer_some(),
            75..80 => self.prefetch(),
            80..84 => self.tiers.settle_levels(),
            84..86 => self.fail_step(),
            86..88 if self.below(4) == 0 => self.purge(),
            88 if self.below(4) == 0 => self.restart(),
            89 => {
                let n = self.below(8) as usize;
                self.tiers.device.evict(n);
            }
            90..92 => self.flip(),
            92 if self.below(4) == 0 => drop(self.tiers.clear()),
            _ => self.run_step(),
        }
        // Nobody drains after each call.
        if self.below(3) > 0 {
            self.record_notes();
        }
        self.tiers.check().expect("the integrity law holds in every tier");
        self.listen();
        self.check_follower();
    }

    /// What was told since: a reader that has lost something is told all anew.
    pub fn listen(&mut self) {
        let mut events = self.tiers.drain_events();
        if events.iter().any(|event| matches!(event.change, KvChange::Lost { .. })) {
            events = self.tiers.retell();
            self.retold += 1;
        }
        self.hear(&events);
    }

    fn hear(&mut self, events: &[TierEvent]) {
        for event in events {
            self.follower.hear(event).expect("an event follows from those before it");
        }
        // In debug builds the tiers look at it themselves, after each drain.
        if cfg!(not(debug_assertions)) {
            let truth = Follower::of(&self.tiers.snapshot()).expect("parents first");
            assert_eq!(self.follower, truth, "who hears every event knows what is there");
        }
    }

    /// The reader never believes more than a request would find, and no less once nothing is on its way.
    fn check_follower(&mut self) {
        let (key, prompt) = self.prompt();
        let all = tokens(&prompt);
        let names = self.tiers.device.names(&key, &all).expect("has a key");
        let reach = self.tiers.reach(&key, &all);
        assert_eq!(self.follower.prefix(Tier::Device, &names), reach.device);
        assert!(self.follower.prefix(Tier::Host, &names) <= reach.host);
        for tier in [Tier::Nvme, Tier::Object] {
            let most = reach.cold.map_or(reach.near(), |(_, pages)| pages);
            assert!(self.follower.prefix(tier, &names) <= most);
        }
        if self.tiers.is_settled() && !self.tiers.is_purging() {
            self.record_notes();
            for tier in Tier::ALL {
                let there = self.tiers.index(tier).map_or_else(Vec::new, Cache::snapshot);
                let mut there: Vec<ChainHash> = there.into_iter().flat_map(|stored| stored.names).collect();
                there.sort_unstable();
                assert_eq!(self.follower.names(tier), there, "all of the {tier} tier is told of");
                let records = self.journal.values().filter(|record| record.tier == tier);
                let mut recorded: Vec<ChainHash> = records.map(|record| record.name).collect();
                recorded.sort_unstable();
                assert!(tier <= Tier::Host || recorded == there, "the journal has the {tier} tier");
            }
        }
    }

    pub fn prompt(&mut self) -> (TreeKey, Vec<u32>) {
        let tenant = self.below(self.setup.tenants);
        let pages = 1 + self.below(6);
        (self.key(tenant), (0..pages).map(|_| self.rng.below(3) as u32).collect())
    }

    /// A request: leases, restores, computes the rest, publishes.
    pub fn arrive(&mut self) {
        let (key, prompt) = self.prompt();
        let all = tokens(&prompt);
        let mut lease = self.tiers.device.lease(&key, &all);
        self.verify_device(&key, &prompt, lease.pages());
        let held = lease.pages().len();
        let Ok(private) = self.tiers.device.reserve(prompt.len() - held) else {
            self.tiers.device.release(lease, self.step);
            return;
        };
        let fetch = self.tiers.fetch(&key, &all, held);
        let restored = fetch.as_ref().map_or(0, |fetch| fetch.frames.len());
        if let Some(fetch) = fetch {
            self.tiers.restore(fetch, &private[..restored]);
        }
        self.hits[0] += held;
        self.hits[1] += restored;
        self.run_step();
        for (i, &page) in private[..restored].iter().enumerate() {
            let is_right = self.device[page.0 as usize] == Some((key.clone(), prompt[..=held + i].to_vec()));
            assert!(is_right, "restored {:?} for {key:?} {prompt:?}", self.device[page.0 as usize]);
        }
        for (i, &page) in private.iter().enumerate().skip(restored) {
            self.device[page.0 as usize] = Some((key.clone(), prompt[..=held + i].to_vec()));
        }
        if !self.tiers.admits(&key) {
            self.sequences.push(Sequence { key, prompt, lease, private });
            return;
        }
        let done = self.tiers.device.publish(&mut lease, &all, &private, self.step).pages.len();
        let private = private[done..].to_vec();
        self.tiers.published(&key, &all[..lease.tokens() as usize], lease.pages());
        self.tiers.used(&key, &all, lease.pages());
        self.sequences.push(Sequence { key, prompt, lease, private });
        if self.sequences.len() > 4 {
            self.finish_one();
        }
    }

    pub fn verify_device(&self, key: &TreeKey, prompt: &[u32], pages: &[PageId]) {
        for (i, page) in pages.iter().enumerate() {
            let content = &self.device[page.0 as usize];
            assert_eq!(*content, Some((key.clone(), prompt[..=i].to_vec())), "the page of the prefix");
        }
    }

    pub fn finish_one(&mut self) {
        if self.sequences.is_empty() {
            return;
        }
        let at = self.below(self.sequences.len() as u64) as usize;
        let Sequence { key, prompt, lease, private } = self.sequences.swap_remove(at);
        self.verify_device(&key, &prompt, lease.pages());
        self.tiers.device.free(private, self.step);
        self.tiers.device.release(lease, self.step);
    }

    /// A step: its moves in order; what it saved and overwrote is there once it has answered.
    pub fn run_step(&mut self) {
        self.step.0 += 1;
        let step = self.step;
        let moves = self.tiers.take_moves(step);
        self.tiers.device.begin_step(step);
        let mut unsaved = Vec::new();
        for page_move in moves {
            match page_move {
                PageMove::Save { frame, .. } if self.below(40) == 0 => unsaved.push(frame),
                PageMove::Save { page, frame } => {
                    self.frames[frame.0 as usize] = self.device[page.0 as usize].clone();
                }
                PageMove::Scrub { page } => self.device[page.0 as usize] = None,
                PageMove::Restore { frame, page } => {
                    self.device[page.0 as usize] = self.frames[frame.0 as usize].clone();
                }
            }
        }
        self.tiers.device.complete(step);
        self.tiers.complete(step, step, &unsaved);
        self.tiers.scrubbed(step, &Scrubbed::default());
        self.advance_purges();
    }

    pub fn advance_purges(&mut self) {
        let (step, sequences) = (self.step, &self.sequences);
        self.tiers.advance_purges(step, |namespace, up_to| {
            let of = |s: &&Sequence| s.key.namespace == namespace && s.key.generation <= up_to;
            sequences.iter().filter(of).map(|s| s.private.len()).sum()
        });
        self.pending.extend(self.tiers.take_orders());
    }

    pub fn answer_some(&mut self) {
        self.pending.extend(self.tiers.take_orders());
        for _ in 0..self.below(6) {
            if self.pending.is_empty() {
                return;
            }
            let at = self.below(self.pending.len() as u64) as usize;
            let order = self.pending.swap_remove_back(at).expect("within the queue");
            let outcome = self.carry_out(&order);
            self.tiers.answer(order.ticket, outcome);
            self.record_notes();
        }
    }

    pub fn carry_out(&mut self, order: &ColdOrder) -> ColdOutcome {
        let luck = self.below(12);
        let erases = matches!(order.work, ColdWork::Erase { .. } | ColdWork::ScrubFrames { .. });
        if erases && self.refuses_to_erase {
            return ColdOutcome::Failed(Fault::Unavailable);
        }
        match &order.work {
            ColdWork::Store { frame, label } => {
                let content = self.frames[frame.0 as usize].clone();
                let (key, _) = content.as_ref().expect("only what is there is stored");
                assert_eq!((key.namespace, key.generation), (label.namespace, label.generation));
                assert_eq!(self.name(&content), self.seen(label.name), "a page is sealed under its own name");
                self.seals += 1;
                let seal = std::array::from_fn(|i| (self.seals >> (i % 8 * 8)) as u8);
                // A torn write: the tier says it failed, or the bytes are gone and it does not know.
                match luck {
                    0 => return ColdOutcome::Failed(Fault::Unavailable),
                    1 => drop(self.cold.insert((order.tier, label.slot), (None, seal))),
                    _ => drop(self.cold.insert((order.tier, label.slot), (content, seal))),
                }
                ColdOutcome::Stored(seal)
            }
            ColdWork::Load { frame, label, seal } => {
                if luck == 0 {
                    return ColdOutcome::Failed(Fault::Unavailable);
                }
                // Sealing: only the very bytes that were written under this label open.
                let held = self.cold.get(&(order.tier, label.slot));
                let opens = held.filter(|(content, tag)| tag == seal && content.is_some());
                let Some((content, _)) =
                    opens.filter(|(content, _)| self.name(content) == self.seen(label.name))
                else {
                    self.frames[frame.0 as usize] = None;
                    return ColdOutcome::Failed(Fault::Wrong);
                };
                self.frames[frame.0 as usize] = content.clone();
                self.hits[2] += 1;
                ColdOutcome::Loaded
            }
            ColdWork::Erase { slots } => {
                slots.iter().for_each(|slot| drop(self.cold.remove(&(order.tier, *slot))));
                ColdOutcome::Erased { probed: slots.len() as u32 }
            }
            ColdWork::ScrubFrames { frames } => {
                frames.iter().for_each(|frame: &FrameId| self.frames[frame.0 as usize] = None);
                ColdOutcome::Erased { probed: frames.len() as u32 }
            }
        }
    }

    /// What a disk sees of a name.
    pub fn seen(&self, name: ChainHash) -> ChainHash {
        let mut name = name;
        if self.setup.names == Names::Weak {
            name.0[2..].fill(0);
        }
        name
    }

    pub fn name(&self, content: &Content) -> ChainHash {
        let (key, prompt) = content.as_ref().expect("a page with content");
        let names = self.tiers.device.names(key, &tokens(prompt)).expect("has a key");
        self.seen(*names.last().expect("has a page"))
    }

    pub fn prefetch(&mut self) {
        let (key, prompt) = self.prompt();
        let all = tokens(&prompt);
        if let Some((tier, pages)) = self.tiers.reach(&key, &all).cold {
            self.tiers.prefetch(&key, &all[..pages * SIZE], tier);
        }
        self.tiers.drain_ended();
    }

    /// What the step wrote is unknown, on the device and where it saved to.
    pub fn fail_step(&mut self) {
        let moves = self.tiers.take_moves(StepId(self.step.0 + 1));
        for page_move in moves {
            if let PageMove::Save { frame, .. } = page_move {
                self.frames[frame.0 as usize] = None;
            }
        }
        self.step.0 += 1;
        self.sequences.clear();
        self.device.fill(None);
        self.tiers.reset_device();
        // The executor that restarts has emptied the pool.
        self.run_step();
    }

    pub fn purge(&mut self) {
        let tenant = self.below(self.setup.tenants);
        self.purge_tenant(tenant);
    }

    /// kill -9: memory is gone, orders in flight may or may not have reached the disk.
    pub fn restart(&mut self) {
        self.has_restarted = true;
        while let Some(order) = self.pending.pop_front() {
            if self.below(2) == 0 {
                self.carry_out(&order);
            }
        }
        self.sequences.clear();
        self.purges.clear();
        self.device.fill(None);
        self.frames.fill(None);
        self.tiers = build(self.setup);
        for (&tenant, &generation) in &self.generations {
            self.tiers.purge(NamespaceId(tenant), Generation(generation - 1));
        }
        self.tiers.drain_notes();
        let records: Vec<SlotRecord> = self.journal.values().cloned().collect();
        let (kept, lost) = self.tiers.reinstate(records);
        assert_eq!(kept + lost.len(), self.journal.len());
        for slot in lost {
            self.journal.remove(&slot);
        }
        // Its readers know another stream by another name, and begin with all that is there.
        self.follower = Follower::default();
        let events = self.tiers.retell();
        self.hear(&events);
    }

    /// The bytes of a slot go bad.
    pub fn flip(&mut self) {
        let n = self.below(self.cold.len().max(1) as u64) as usize;
        if let Some((content, _)) = self.cold.values_mut().nth(n) {
            *content = None;
        }
    }

    pub fn record_notes(&mut self) {
        self.pending.extend(self.tiers.take_orders());
        for note in self.tiers.drain_notes() {
            match note {
                JournalNote::Page(record) => drop(self.journal.insert((record.tier, record.slot), record)),
                JournalNote::Drop { tier, slot } => drop(self.journal.remove(&(tier, slot))),
                JournalNote::Forget { namespace, up_to } => {
                    self.journal.retain(|_, r| r.key.namespace != namespace || r.key.generation > up_to);
                }
            }
        }
        self.listen();
    }

    /// Steps and orders until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            self.run_step();
            self.pending.extend(self.tiers.take_orders());
            while let Some(order) = self.pending.pop_front() {
                let outcome = self.carry_out(&order);
                self.tiers.answer(order.ticket, outcome);
            }
            self.record_notes();
        }
    }

    /// Everything ends; every purge must come to its end and leave nothing of what it purged.
    pub fn wind_up(&mut self) {
        while !self.sequences.is_empty() {
            self.finish_one();
        }
        self.settle();
        self.tiers.check().expect("the integrity law holds in every tier");
        assert_eq!(self.tiers.in_flight(), 0);
        self.check_follower();
        for id in std::mem::take(&mut self.purges) {
            let state = self.tiers.purge_state(id).expect("an open purge is known");
            assert!(state.is_done, "{state:?}");
            assert!(state.tiers.iter().all(|t| t.erasure.outstanding == 0));
            assert!(state.tiers.iter().all(|t| t.erasure.failed == 0), "{state:?}");
            assert!(self.tiers.remaining(state.namespace, state.up_to).iter().all(|(_, pages)| *pages == 0));
        }
        let stale = |content: &&Content| {
            content.as_ref().is_some_and(|(key, _)| {
                key.generation.0 < self.generations.get(&key.namespace.0).copied().unwrap_or(0)
            })
        };
        assert_eq!(self.device.iter().filter(stale).count(), 0, "purged bytes on the device");
        assert_eq!(self.frames.iter().filter(stale).count(), 0, "purged bytes in host memory");
        // What a killed process left in slots that no record names, nobody can know of.
        if !self.has_restarted {
            let cold = self.cold.values().map(|(content, _)| content);
            assert_eq!(cold.filter(stale).count(), 0, "purged bytes in cold tiers");
        }
    }
}

/// Runs `steps` random actions and winds up; answers with pages hit on the device, restored from the
/// host, and loaded from cold tiers.
pub fn run(setup: Setup, seed: u64, steps: usize) -> [usize; 3] {
    let mut world = World::new(setup, seed);
    for _ in 0..steps {
        world.act();
    }
    world.wind_up();
    world.hits
}

impl World {
    pub fn purge_tenant(&mut self, tenant: u64) {
        let up_to = self.key(tenant).generation;
        self.generations.insert(tenant, up_to.0 + 1);
        let id = self.tiers.purge(NamespaceId(tenant), up_to);
        self.purges.push(id);
    }
}

/// One of its own for each tenant: two that shared a key would share names, and a follower knows names only.
fn chain_key(tenant: u64) -> NamespaceKey {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&tenant.to_le_bytes());
    NamespaceKey(key)
}
