//! Batches as engines write them, in both live dialects.

/// How a process writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    Lists,
    Maps,
}

#[derive(Clone, Debug)]
pub enum Change {
    Stored {
        hashes: Vec<u64>,
        parent: Option<u64>,
        tokens: Vec<u32>,
        block_tokens: u32,
        medium: &'static str,
    },
    Removed {
        hashes: Vec<u64>,
        medium: &'static str,
    },
    Cleared,
}

pub fn batch(dialect: Dialect, time: f64, changes: &[Change]) -> Vec<u8> {
    let mut out = vec![];
    match dialect {
        Dialect::Lists => out.push(0x93),
        Dialect::Maps => {
            out.push(0x83);
            text(&mut out, "ts");
        }
    }
    out.push(0xcb);
    out.extend(time.to_be_bytes());
    name(&mut out, dialect, "events");
    list(&mut out, changes.len());
    for change in changes {
        match change {
            Change::Stored { hashes, parent, tokens, block_tokens, medium } => {
                open(&mut out, dialect, "BlockStored", 6);
                name(&mut out, dialect, "block_hashes");
                words(&mut out, hashes);
                name(&mut out, dialect, "parent_block_hash");
                match parent {
                    Some(parent) => word(&mut out, *parent),
                    None => out.push(0xc0),
                }
                name(&mut out, dialect, "token_ids");
                words(&mut out, &tokens.iter().map(|token| u64::from(*token)).collect::<Vec<_>>());
                name(&mut out, dialect, "block_size");
                word(&mut out, u64::from(*block_tokens));
                name(&mut out, dialect, "lora_id");
                out.push(0xc0);
                name(&mut out, dialect, "medium");
                text(&mut out, medium);
            }
            Change::Removed { hashes, medium } => {
                open(&mut out, dialect, "BlockRemoved", 2);
                name(&mut out, dialect, "block_hashes");
                words(&mut out, hashes);
                name(&mut out, dialect, "medium");
                text(&mut out, medium);
            }
            Change::Cleared => open(&mut out, dialect, "AllBlocksCleared", 0),
        }
    }
    name(&mut out, dialect, "data_parallel_rank");
    out.push(0);
    out
}

fn open(out: &mut Vec<u8>, dialect: Dialect, tag: &str, fields: u8) {
    match dialect {
        Dialect::Lists => out.push(0x90 | (fields + 1)),
        Dialect::Maps => {
            out.push(0x80 | (fields + 1));
            text(out, "type");
        }
    }
    text(out, tag);
}

fn name(out: &mut Vec<u8>, dialect: Dialect, name: &str) {
    if dialect == Dialect::Maps {
        text(out, name);
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(0xa0 | text.len() as u8);
    out.extend(text.as_bytes());
}

fn list(out: &mut Vec<u8>, len: usize) {
    out.push(0xdd);
    out.extend((len as u32).to_be_bytes());
}

fn words(out: &mut Vec<u8>, words: &[u64]) {
    list(out, words.len());
    words.iter().for_each(|value| word(out, *value));
}

fn word(out: &mut Vec<u8>, word: u64) {
    out.push(0xcf);
    out.extend(word.to_be_bytes());
}
