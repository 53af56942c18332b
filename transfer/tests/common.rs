//! What the tests share: a tier's surroundings, answers by ticket, and disks that misbehave.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use base::{
    ChainHash, Clock, FrameId, Generation, ManualClock, NamespaceId, SlotId, SplitMix, SystemClock, Tier,
};
use quire_transfer::{
    DataKey, Done, DoneSink, Finished, HostArena, Job, KeyRing, NvmeConfig, NvmeTier, ObjectConfig,
    ObjectTier, PageLabel, PageSeal, PageTier, TierError,
};

pub const PAGE: usize = 3 * 4096;

/// A page's label; its name follows from the number.
pub fn label(slot: u32, number: u64) -> PageLabel {
    let mut name = [0; 32];
    name[..8].copy_from_slice(&number.to_le_bytes());
    PageLabel {
        namespace: NamespaceId(1),
        generation: Generation(1),
        name: ChainHash(name),
        layout: [7; 32],
        tier: Tier::Nvme,
        slot: SlotId(slot),
        bytes: PAGE as u32,
    }
}

/// The bytes of page `number`.
pub fn page(number: u64, bytes: usize) -> Vec<u8> {
    let mut rng = SplitMix::new(number);
    let mut out = vec![0; bytes];
    for chunk in out.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
    }
    out
}

/// A tier and what it stands on.
pub struct Bench {
    pub arena: Arc<HostArena>,
    pub keys: Arc<KeyRing>,
    pub manual: Arc<ManualClock>,
    tier: Option<Box<dyn PageTier>>,
    answers: Receiver<Done>,
    early: HashMap<u64, Done>,
    next: u64,
}

pub type Start = dyn Fn(Arc<HostArena>, Arc<KeyRing>, Arc<dyn Clock>, DoneSink) -> Box<dyn PageTier>;

impl Bench {
    pub fn start(start: &Start) -> Self {
        Self::with_keys(&[(1, 1), (1, 2), (2, 1)], start)
    }

    pub fn with_keys(keys: &[(u64, u64)], start: &Start) -> Self {
        let arena = Arc::new(HostArena::new(32, PAGE).unwrap());
        let ring = Arc::new(KeyRing::new());
        for (namespace, generation) in keys {
            let key = DataKey::new(&mut [(namespace * 16 + generation) as u8; 32]);
            ring.insert(NamespaceId(*namespace), Generation(*generation), key);
        }
        let manual = Arc::new(ManualClock::default());
        let (send, answers) = channel();
        let sink: DoneSink = Box::new(move |done| drop(send.send(done)));
        let tier = start(Arc::clone(&arena), Arc::clone(&ring), Arc::clone(&manual) as Arc<dyn Clock>, sink);
        Self { arena, keys: ring, manual, tier: Some(tier), answers, early: HashMap::new(), next: 1 }
    }

    pub fn nvme(config: NvmeConfig) -> Self {
        Self::start(&move |arena, keys, clock, sink| {
            Box::new(NvmeTier::open(config.clone(), arena, keys, clock, sink).unwrap())
        })
    }

    pub fn objects(dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self::start(&move |arena, keys, clock, sink| {
            let config = ObjectConfig::new(20, PAGE);
            Box::new(ObjectTier::open_dir(dir.clone(), config, arena, keys, clock, sink).unwrap())
        })
    }

    pub fn tier(&self) -> &dyn PageTier {
        &**self.tier.as_ref().unwrap()
    }

    /// Ends the tier; what it still answered stays readable.
    pub fn end(&mut self) {
        self.tier = None;
    }

    pub fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn send(&mut self, jobs: Vec<Job>) {
        self.tier().submit(jobs).expect("room in the queue");
    }

    pub fn answer(&mut self, ticket: u64) -> Done {
        loop {
            if let Some(done) = self.early.remove(&ticket) {
                return done;
            }
            let done = self.answers.recv().expect("every job is answered");
            self.early.insert(done.ticket, done);
        }
    }

    pub fn fill(&self, frame: u32, number: u64) {
        self.arena.write(FrameId(frame)).unwrap().copy_from_slice(&page(number, PAGE));
    }

    pub fn begin_store(&mut self, frame: u32, label: PageLabel) -> u64 {
        let ticket = self.ticket();
        self.send(vec![Job::Store { ticket, frame: FrameId(frame), label }]);
        ticket
    }

    pub fn begin_load(&mut self, frame: u32, label: PageLabel, seal: PageSeal) -> u64 {
        let ticket = self.ticket();
        self.send(vec![Job::Load { ticket, frame: FrameId(frame), label, seal }]);
        ticket
    }

    /// Stores page `number` under the label.
    pub fn store(&mut self, number: u64, label: PageLabel) -> Result<PageSeal, TierError> {
        self.fill(0, number);
        let ticket = self.begin_store(0, label);
        match self.answer(ticket).outcome? {
            Finished::Stored(seal) => Ok(seal),
            other => panic!("a store is answered by {other:?}"),
        }
    }

    /// Loads into frame 1, which holds something else before; on failure it must hold nothing.
    pub fn load(&mut self, label: PageLabel, seal: PageSeal) -> Result<Vec<u8>, TierError> {
        self.arena.write(FrameId(1)).unwrap().fill(0xEE);
        let ticket = self.begin_load(1, label, seal);
        match self.answer(ticket).outcome? {
            Finished::Loaded => Ok(self.arena.read(FrameId(1)).unwrap()[..label.bytes as usize].to_vec()),
            other => panic!("a load is answered by {other:?}"),
        }
    }

    pub fn erase(&mut self, slots: &[u32]) -> Result<Finished, TierError> {
        let ticket = self.ticket();
        self.send(vec![Job::Erase { ticket, slots: slots.iter().map(|s| SlotId(*s)).collect() }]);
        self.answer(ticket).outcome
    }

    pub fn frame(&self, frame: u32) -> Vec<u8> {
        self.arena.read(FrameId(frame)).unwrap().to_vec()
    }
}

pub fn system_clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}
