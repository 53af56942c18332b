//! A record as vLLM's engines write it: `[time, events, rank]`, each event a map with its type.
//!
//! The schema has no word for a purge of one namespace; its blocks are told as removed, one by one. What was
//! stored before a purge has lost its tokens and is left out: it will be told as removed, and to remove what
//! was not known is no harm.

use super::msgpack::Writer;
use super::record::{Change, Record, Run};

pub(super) fn encode(record: &Record, rank: u64) -> Vec<u8> {
    let mut out = Writer::default();
    let told = || record.changes.iter().filter(|change| is_told(change));
    out.array(3);
    out.float(record.unix_ms as f64 / 1e3);
    out.array(told().count());
    for change in told() {
        match change {
            Change::Stored(run) => stored_map(&mut out, run),
            Change::Removed { tier, hashes, .. } | Change::Swept { tier, hashes } => {
                out.map(3);
                out.text("type");
                out.text("BlockRemoved");
                out.text("block_hashes");
                out.array(hashes.len());
                hashes.iter().for_each(|&hash| out.uint(hash));
                out.text("medium");
                out.text(tier.medium());
            }
            Change::Cleared | Change::Purged { .. } => {
                out.map(1);
                out.text("type");
                out.text("AllBlocksCleared");
            }
        }
    }
    out.uint(rank);
    out.0
}

fn is_told(change: &Change) -> bool {
    match change {
        Change::Stored(run) => !run.tokens.is_empty(),
        Change::Removed { .. } | Change::Swept { .. } | Change::Cleared => true,
        Change::Purged { .. } => false,
    }
}

fn stored_map(out: &mut Writer, run: &Run) {
    out.map(7);
    out.text("type");
    out.text("BlockStored");
    out.text("block_hashes");
    out.array(run.hashes.len());
    run.hashes.iter().for_each(|&hash| out.uint(hash));
    out.text("parent_block_hash");
    match run.parent {
        Some(parent) => out.uint(parent),
        None => out.nil(),
    }
    out.text("token_ids");
    out.array(run.tokens.len());
    run.tokens.iter().for_each(|&token| out.uint(u64::from(token)));
    out.text("block_size");
    out.uint(u64::from(run.page_tokens));
    out.text("lora_id");
    match run.owner.adapter.0 {
        0 => out.nil(),
        adapter => out.uint(u64::from(adapter)),
    }
    out.text("medium");
    out.text(run.tiers.iter().next().map_or("", |tier| tier.medium()));
}

#[cfg(test)]
mod tests {
    use base::{AdapterId, Generation, NamespaceId, Tier};

    use super::super::record::{Owner, TierSet};
    use super::*;

    fn run() -> Run {
        let owner = Owner { namespace: NamespaceId(0), generation: Generation(0), adapter: AdapterId(0) };
        let tiers = TierSet::of(Tier::Host);
        Run { owner, tiers, parent: None, hashes: vec![9], tokens: vec![7, 8], page_tokens: 2 }
    }

    fn text(changes: Vec<Change>) -> String {
        let bytes = encode(&Record { sequence: 0, unix_ms: 0, changes }, 3);
        assert_eq!((bytes[0], bytes.last()), (0x93, Some(&3)));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn a_batch_is_what_subscribers_of_the_field_expect() {
        let text = text(vec![Change::Stored(run())]);
        for word in ["BlockStored", "block_hashes", "parent_block_hash", "token_ids", "CPU_PINNED"] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn what_has_lost_its_tokens_is_left_out() {
        let purged = Change::Purged { namespace: NamespaceId(0), up_to: Generation(0), blocks: 1 };
        let text = text(vec![Change::Stored(Run { tokens: Vec::new(), ..run() }), purged]);
        assert!(!text.contains("Block"), "{text}");
    }
}
