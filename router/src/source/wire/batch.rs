//! A batch of KV events, in every form that engines have written it.
//!
//! ```text
//! batch    [time, events, rank?]                       or {"ts", "events", "data_parallel_rank" | "dp_rank"}
//! stored   ["BlockStored", hashes, parent, tokens, block size, lora id, medium,
//!           lora name | {"cache_salt"}, extra keys, group, kind, window, locality, owner]
//! removed  ["BlockRemoved", hashes, medium, group, kind, window, locality, owner]
//! cleared  ["AllBlocksCleared", owner]
//! ```
//!
//! or each event as a map of the same fields by name, with its tag under `type`. A list may end early. Hashes are
//! integers of either sign or byte strings, of which the last eight count: the same 64 bits that vLLM gives when it is
//! told to write integers. Older writers left unused fields of the tail out instead of writing nil, so fields of the
//! tail that are not of their place's type are taken by their type: the first number is the group, a text the kind.
//! A field that we do not know, by name or behind the last place, is passed over; a tag that we do not know is not:
//! what it changes we would not have.
//!
//! Hashes and tokens are read into buffers that are used again, everything else is borrowed from the message.

use super::msgpack::{Next, Reader, WireError};

/// Batches with more events are refused.
const EVENTS_MAX: usize = 1 << 20;
/// Room that is made on the word of a length alone.
const RESERVE_MAX: usize = 1 << 16;

/// Buffers that [`decode`] fills, event by event.
#[derive(Debug, Default)]
pub struct Scratch {
    hashes: Vec<u64>,
    tokens: Vec<u32>,
}

impl Scratch {
    /// Memory that the buffers keep.
    pub fn bytes(&self) -> usize {
        self.hashes.capacity() * 8 + self.tokens.capacity() * 4
    }
}

/// What a batch says of itself.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Batch {
    /// Seconds since 1970.
    pub time: f64,
    pub rank: Option<i32>,
    pub events: usize,
}

/// One change, borrowed from the message and the buffers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Event<'a> {
    Stored(Stored<'a>),
    Removed {
        hashes: &'a [u64],
        medium: Option<&'a str>,
        group: Group<'a>,
    },
    /// Everything is gone, in all tiers.
    Cleared {
        owner: Option<&'a str>,
    },
    /// Said to be of no interest by its writer.
    Ignored,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stored<'a> {
    pub hashes: &'a [u64],
    pub parent: Option<u64>,
    /// Of all blocks in a row. Where the writer gave pairs of neighbours, as speculative heads are cached, these are
    /// the tokens that the pairs run over: one more than pairs.
    pub tokens: &'a [u32],
    pub is_paired: bool,
    pub block_tokens: u32,
    /// The name of the memory; none for the device.
    pub medium: Option<&'a str>,
    pub lora: Option<&'a str>,
    pub salt: Option<&'a str>,
    /// Per block, what its hash covers beside tokens, undecoded; see [`Stored::extras`].
    extra: Option<Reader<'a>>,
    pub group: Group<'a>,
}

/// Which of a model's caches an event is about, and where that lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Group<'a> {
    pub index: Option<u32>,
    pub kind: Option<&'a str>,
    pub window: Option<u32>,
    pub locality: Option<&'a str>,
    pub owner: Option<&'a str>,
}

impl<'a> Stored<'a> {
    /// Calls `each` with a block's place and every further key of it, as its bytes stand in the message.
    pub fn extras(&self, mut each: impl FnMut(usize, Extra<'a>)) -> Result<(), WireError> {
        let Some(mut reader) = self.extra else { return Ok(()) };
        for block in 0..reader.list()? {
            if reader.nil()? {
                continue;
            }
            for _ in 0..reader.list()? {
                let from = reader;
                let is_text = reader.next()? == Next::Text;
                let text = if is_text { Some(reader.text()?) } else { None };
                if !is_text {
                    reader.skip()?;
                }
                each(block, Extra { text, bytes: reader.since(from) });
            }
        }
        Ok(())
    }
}

/// One further key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extra<'a> {
    pub text: Option<&'a str>,
    pub bytes: &'a [u8],
}

/// Readers are equal if what they will read is.
impl PartialEq for Reader<'_> {
    fn eq(&self, other: &Self) -> bool {
        let rest = |reader: &Self| {
            let mut end = *reader;
            end.skip().map(|()| end.since(*reader).to_vec())
        };
        rest(self) == rest(other)
    }
}

/// Reads a batch and calls `each` with its events in order. What was handed over before an error stands.
pub fn decode(
    payload: &[u8],
    scratch: &mut Scratch,
    mut each: impl FnMut(Event<'_>),
) -> Result<Batch, WireError> {
    let mut reader = Reader::new(payload);
    let batch = match reader.next()? {
        Next::Map => named_batch(&mut reader, scratch, &mut each)?,
        _ => listed_batch(&mut reader, scratch, &mut each)?,
    };
    reader.end()?;
    Ok(batch)
}

fn listed_batch(
    reader: &mut Reader<'_>,
    scratch: &mut Scratch,
    each: &mut dyn FnMut(Event<'_>),
) -> Result<Batch, WireError> {
    let count = reader.list()?;
    if count < 2 {
        return Err(WireError::Length { field: "the batch", expected: 2, got: count });
    }
    let time = reader.float()?;
    let events = events(reader, scratch, each)?;
    let rank = if count > 2 { reader.optional(rank)? } else { None };
    for _ in 3..count {
        reader.skip()?;
    }
    Ok(Batch { time, rank, events })
}

fn named_batch(
    reader: &mut Reader<'_>,
    scratch: &mut Scratch,
    each: &mut dyn FnMut(Event<'_>),
) -> Result<Batch, WireError> {
    let (mut time, mut told, mut of_rank) = (None, None, None);
    for _ in 0..reader.map()? {
        match reader.text()? {
            "ts" => time = Some(reader.float()?),
            "events" => told = Some(events(reader, scratch, each)?),
            "data_parallel_rank" | "dp_rank" => of_rank = reader.optional(rank)?,
            _ => reader.skip()?,
        }
    }
    Ok(Batch {
        time: time.ok_or(WireError::Missing { field: "ts" })?,
        rank: of_rank,
        events: told.ok_or(WireError::Missing { field: "events" })?,
    })
}

fn rank(reader: &mut Reader<'_>) -> Result<i32, WireError> {
    let word = reader.word()? as i64;
    i32::try_from(word).map_err(|_| WireError::Range { at: 0 })
}

fn events(
    reader: &mut Reader<'_>,
    scratch: &mut Scratch,
    each: &mut dyn FnMut(Event<'_>),
) -> Result<usize, WireError> {
    let count = reader.list()?;
    if count > EVENTS_MAX {
        return Err(WireError::Length { field: "events", expected: EVENTS_MAX, got: count });
    }
    for _ in 0..count {
        let fields = match reader.next()? {
            Next::Map => Fields::named(reader, scratch)?,
            _ => Fields::listed(reader, scratch)?,
        };
        each(fields.event(scratch)?);
    }
    Ok(count)
}

/// What kind of event it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tag {
    Stored,
    Removed,
    Cleared,
    Ignored,
}

fn tag(reader: &mut Reader<'_>) -> Result<Tag, WireError> {
    match reader.text()? {
        "BlockStored" => Ok(Tag::Stored),
        "BlockRemoved" => Ok(Tag::Removed),
        "AllBlocksCleared" => Ok(Tag::Cleared),
        "Ignored" => Ok(Tag::Ignored),
        _ => Err(WireError::Missing { field: "a type that is known" }),
    }
}

/// An event's fields as they come, in whatever order.
#[derive(Default)]
struct Fields<'a> {
    tag: Option<Tag>,
    has_hashes: bool,
    has_tokens: bool,
    parent: Option<u64>,
    is_paired: bool,
    block_tokens: Option<u32>,
    medium: Option<&'a str>,
    lora: Option<&'a str>,
    salt: Option<&'a str>,
    extra: Option<Reader<'a>>,
    group: Group<'a>,
}

impl<'a> Fields<'a> {
    fn named(reader: &mut Reader<'a>, scratch: &mut Scratch) -> Result<Self, WireError> {
        let mut fields = Self::default();
        for _ in 0..reader.map()? {
            let name = reader.text()?;
            fields.field(name, reader, scratch)?;
        }
        Ok(fields)
    }

    fn field(&mut self, name: &str, reader: &mut Reader<'a>, scratch: &mut Scratch) -> Result<(), WireError> {
        match name {
            "type" => self.tag = Some(tag(reader)?),
            "block_hashes" => self.hashes(reader, scratch)?,
            "parent_block_hash" => self.parent = reader.optional(hash)?,
            "token_ids" => self.tokens(reader, scratch)?,
            "block_size" => self.block_tokens = Some(reader.small()?),
            "medium" => self.medium = reader.optional(Reader::text)?,
            "lora_name" => self.lora = reader.optional(Reader::text)?,
            "cache_salt" => self.salt = reader.optional(Reader::text)?,
            "extra_keys" => self.extra = extra(reader)?,
            "group_idx" => self.group.index = reader.optional(Reader::small)?,
            "kv_cache_spec_kind" => self.group.kind = reader.optional(Reader::text)?,
            "kv_cache_spec_sliding_window" => self.group.window = reader.optional(Reader::small)?,
            "locality" => self.group.locality = reader.optional(Reader::text)?,
            "ownership" => self.group.owner = reader.optional(Reader::text)?,
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn listed(reader: &mut Reader<'a>, scratch: &mut Scratch) -> Result<Self, WireError> {
        let count = reader.list()?;
        if count == 0 {
            return Err(WireError::Missing { field: "type" });
        }
        let of = tag(reader)?;
        let mut fields = Self { tag: Some(of), ..Self::default() };
        let mut places = Places { reader, left: count - 1 };
        match of {
            Tag::Stored => fields.listed_stored(&mut places, scratch)?,
            Tag::Removed => {
                places.read(|reader| fields.hashes(reader, scratch))?;
                fields.medium = places.optional(Reader::text)?;
                fields.tail(&mut places)?;
            }
            Tag::Cleared => fields.group.owner = places.optional(Reader::text)?,
            Tag::Ignored => {}
        }
        places.skip_rest()?;
        Ok(fields)
    }

    fn listed_stored(&mut self, places: &mut Places<'_, 'a>, scratch: &mut Scratch) -> Result<(), WireError> {
        places.read(|reader| self.hashes(reader, scratch))?;
        self.parent = places.optional(hash)?;
        places.read(|reader| self.tokens(reader, scratch))?;
        places.read(|reader| {
            self.block_tokens = Some(reader.small()?);
            Ok(())
        })?;
        // An adapter's number at the engine, which names nothing outside of it.
        places.optional(Reader::word)?;
        self.medium = places.optional(Reader::text)?;
        places.read(|reader| self.lora_or_salt(reader))?;
        places.read(|reader| {
            self.extra = extra(reader)?;
            Ok(())
        })?;
        self.tail(places)
    }

    /// vLLM writes the adapter's name here, SGLang a map with the salt.
    fn lora_or_salt(&mut self, reader: &mut Reader<'a>) -> Result<(), WireError> {
        if reader.next()? != Next::Map {
            self.lora = reader.optional(Reader::text)?;
            return Ok(());
        }
        for _ in 0..reader.map()? {
            match reader.text()? {
                "cache_salt" => self.salt = reader.optional(Reader::text)?,
                _ => reader.skip()?,
            }
        }
        Ok(())
    }

    /// Group, kind, window, locality, owner; or, of older writers, what of it there was.
    fn tail(&mut self, places: &mut Places<'_, 'a>) -> Result<(), WireError> {
        const PLACES: [Next; 5] = [Next::Int, Next::Text, Next::Int, Next::Text, Next::Text];
        let mut in_place = *places.reader;
        let told = places.left.min(PLACES.len());
        let mut is_in_place = told >= 4;
        for expected in &PLACES[..told] {
            let next = in_place.next()?;
            is_in_place &= next == Next::Nil || next == *expected;
            in_place.skip()?;
        }
        if is_in_place {
            self.group.index = places.optional(Reader::small)?;
            self.group.kind = places.optional(Reader::text)?;
            self.group.window = places.optional(Reader::small)?;
            self.group.locality = places.optional(Reader::text)?;
            self.group.owner = places.optional(Reader::text)?;
            return Ok(());
        }
        for _ in 0..told {
            places.read(|reader| self.tail_by_type(reader))?;
        }
        Ok(())
    }

    fn tail_by_type(&mut self, reader: &mut Reader<'a>) -> Result<(), WireError> {
        match reader.next()? {
            Next::Int => {
                let from = *reader;
                match (reader.small(), self.group.index) {
                    (Ok(value), None) => self.group.index = Some(value),
                    (Ok(value), Some(_)) => self.group.window = self.group.window.or(Some(value)),
                    // Too large or negative: nothing that we know.
                    (Err(_), _) => {
                        *reader = from;
                        reader.skip()?;
                    }
                }
            }
            Next::Text => self.group.kind = Some(reader.text()?),
            _ => reader.skip()?,
        }
        Ok(())
    }

    fn hashes(&mut self, reader: &mut Reader<'a>, scratch: &mut Scratch) -> Result<(), WireError> {
        let count = reader.list()?;
        scratch.hashes.clear();
        scratch.hashes.reserve(count.min(RESERVE_MAX));
        for _ in 0..count {
            scratch.hashes.push(hash(reader)?);
        }
        self.has_hashes = true;
        Ok(())
    }

    fn tokens(&mut self, reader: &mut Reader<'a>, scratch: &mut Scratch) -> Result<(), WireError> {
        let count = reader.list()?;
        scratch.tokens.clear();
        scratch.tokens.reserve(count.min(RESERVE_MAX));
        self.is_paired = count > 0 && reader.next()? == Next::List;
        let mut last = None;
        for _ in 0..count {
            if self.is_paired {
                let got = reader.list()?;
                if got != 2 {
                    return Err(WireError::Length { field: "a pair of tokens", expected: 2, got });
                }
            }
            scratch.tokens.push(reader.small()?);
            last = if self.is_paired { Some(reader.small()?) } else { None };
        }
        scratch.tokens.extend(last);
        self.has_tokens = true;
        Ok(())
    }

    fn event<'b>(self, scratch: &'b Scratch) -> Result<Event<'b>, WireError>
    where
        'a: 'b,
    {
        let missing = |field| WireError::Missing { field };
        let tag = self.tag.ok_or(missing("type"))?;
        let needs_hashes = matches!(tag, Tag::Stored | Tag::Removed);
        if needs_hashes && !self.has_hashes {
            return Err(missing("block_hashes"));
        }
        // Nothing is as good as a name of no length: an unset field either way.
        let medium = self.medium.filter(|medium| !medium.is_empty());
        Ok(match tag {
            Tag::Ignored => Event::Ignored,
            Tag::Cleared => Event::Cleared { owner: self.group.owner },
            Tag::Removed => Event::Removed { hashes: &scratch.hashes, medium, group: self.group },
            Tag::Stored if !self.has_tokens => return Err(missing("token_ids")),
            Tag::Stored => Event::Stored(Stored {
                hashes: &scratch.hashes,
                parent: self.parent,
                tokens: &scratch.tokens,
                is_paired: self.is_paired,
                block_tokens: self.block_tokens.ok_or(missing("block_size"))?,
                medium,
                lora: self.lora,
                salt: self.salt.filter(|salt| !salt.is_empty()),
                extra: self.extra,
                group: self.group,
            }),
        })
    }
}

/// The fields of a list that are left.
struct Places<'r, 'a> {
    reader: &'r mut Reader<'a>,
    left: usize,
}

impl<'a> Places<'_, 'a> {
    /// Does nothing where the list has ended.
    fn read(&mut self, read: impl FnOnce(&mut Reader<'a>) -> Result<(), WireError>) -> Result<(), WireError> {
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        read(self.reader)
    }

    fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.reader.optional(read)
    }

    fn skip_rest(&mut self) -> Result<(), WireError> {
        for _ in 0..std::mem::take(&mut self.left) {
            self.reader.skip()?;
        }
        Ok(())
    }
}

/// Of 64 bits; of a longer one the last.
fn hash(reader: &mut Reader<'_>) -> Result<u64, WireError> {
    if reader.next()? != Next::Bytes {
        return reader.word();
    }
    let bytes = reader.blob()?;
    match bytes.last_chunk() {
        Some(last) => Ok(u64::from_be_bytes(*last)),
        None => Err(WireError::Length { field: "a hash in bytes", expected: 8, got: bytes.len() }),
    }
}

/// Checked to be a list of lists, and kept as it stands.
fn extra<'a>(reader: &mut Reader<'a>) -> Result<Option<Reader<'a>>, WireError> {
    if reader.nil()? {
        return Ok(None);
    }
    let from = *reader;
    for _ in 0..reader.list()? {
        if !reader.nil()? {
            for _ in 0..reader.list()? {
                // Text is handed out later, so it must be text.
                match reader.next()? {
                    Next::Text => _ = reader.text()?,
                    _ => reader.skip()?,
                }
            }
        }
    }
    Ok(Some(from))
}
