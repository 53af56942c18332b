//! The datagram.
//!
//! ```text
//!  "QG" 1 | router u64 | incarnation u64 | sequence u64
//!       n u8 | n × (router u64, incarnation u64)                         whom it has heard
//!       m u8 | m × (replica u64, pending, active, resident as varints)   totals; all zero takes one back
//!       HMAC-SHA-256 over all of it, first 16 bytes
//! ```
//!
//! Little-endian, at most 1200 bytes so that no path fragments it. Fixed by hand rather than by protobuf:
//! nothing is parsed before the HMAC holds, and each message has one encoding. 16 bytes of HMAC, as TLS
//! truncates: a forger is heard by one process and cannot try 2⁶⁴ times.
//!
//! Limits: values above [`VALUE_MAX`] are refused: no replica holds so much, and sums cannot overflow.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::load::{ReplicaKey, SeatLoad};

pub const DATAGRAM_BYTES_MAX: usize = 1200;
/// Most routers of a fleet, so many greetings fit.
pub(super) const ROUTERS_MAX: usize = 32;
/// Largest value of a total.
pub(super) const VALUE_MAX: u64 = 1 << 48;

const MAGIC: [u8; 3] = *b"QG\x01";
const TAG_BYTES: usize = 16;
const HEAD_BYTES: usize = MAGIC.len() + 3 * 8 + 2;
const GREETING_BYTES: usize = 16;
const ENTRY_BYTES_MAX: usize = 8 + 3 * 7;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A router, the same over its restarts.
    RouterId
);
number!(
    /// One life of a router; higher with each start (its unix milliseconds will do).
    Incarnation
);
number!(
    /// Counts the datagrams of an incarnation from 1.
    Sequence
);

/// The secret the fleet's routers share; the previous one is still believed while it is replaced.
#[derive(Clone)]
pub struct Keys {
    pub current: [u8; 32],
    pub previous: Option<[u8; 32]>,
}

/// Never shows a key: it must not reach a log.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub router: RouterId,
    pub incarnation: Incarnation,
    pub sequence: Sequence,
    pub heard: Vec<Greeting>,
    pub entries: Vec<Entry>,
}

/// "I have heard this router in this incarnation."
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Greeting {
    pub router: RouterId,
    pub incarnation: Incarnation,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub replica: ReplicaKey,
    pub load: SeatLoad,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("{bytes} bytes are no datagram of ours")]
    Length { bytes: usize },
    #[error("not the router's gossip, or another version of it")]
    Magic,
    #[error("not signed with the fleet's key")]
    Forged,
    #[error("the datagram ends early, goes on too long or writes a number in an odd way, at byte {at}")]
    Malformed { at: usize },
}

impl WireError {
    pub fn kind(&self) -> &'static str {
        match self {
            WireError::Length { .. } => "length",
            WireError::Magic => "magic",
            WireError::Forged => "forged",
            WireError::Malformed { .. } => "malformed",
        }
    }
}

impl Message {
    /// Entries that surely fit beside so many greetings.
    pub(super) fn entries_max(greetings: usize) -> usize {
        let room = DATAGRAM_BYTES_MAX - HEAD_BYTES - TAG_BYTES - greetings.min(ROUTERS_MAX) * GREETING_BYTES;
        room / ENTRY_BYTES_MAX
    }

    /// # Panics
    /// With more greetings or entries than fit; [`super::Gossip`] never makes such a message.
    pub fn encode(&self, keys: &Keys) -> Vec<u8> {
        let mut out = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        out.extend_from_slice(&MAGIC);
        put_u64s(&mut out, [self.router.0, self.incarnation.0, self.sequence.0]);
        out.push(u8::try_from(self.heard.len()).expect("greetings fit"));
        self.heard.iter().for_each(|g| put_u64s(&mut out, [g.router.0, g.incarnation.0]));
        out.push(u8::try_from(self.entries.len()).expect("entries fit"));
        for entry in &self.entries {
            put_u64s(&mut out, [entry.replica.0]);
            entry.load.values().into_iter().for_each(|value| put_varint(&mut out, value.min(VALUE_MAX - 1)));
        }
        let tag = mac(&keys.current, &out).finalize().into_bytes();
        out.extend_from_slice(&tag[..TAG_BYTES]);
        assert!(out.len() <= DATAGRAM_BYTES_MAX, "{} bytes", out.len());
        out
    }

    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<Message, WireError> {
        if !(HEAD_BYTES + TAG_BYTES..=DATAGRAM_BYTES_MAX).contains(&bytes.len()) {
            return Err(WireError::Length { bytes: bytes.len() });
        }
        let (body, tag) = bytes.split_at(bytes.len() - TAG_BYTES);
        let Some(rest) = body.strip_prefix(&MAGIC) else { return Err(WireError::Magic) };
        if !keys.believe(body, tag) {
            return Err(WireError::Forged);
        }
        let mut reader = Reader { rest, at: MAGIC.len() };
        reader.message().ok_or(WireError::Malformed { at: reader.at })
    }
}

impl Keys {
    fn believe(&self, body: &[u8], tag: &[u8]) -> bool {
        let keys = [Some(&self.current), self.previous.as_ref()];
        keys.into_iter().flatten().any(|key| mac(key, body).verify_truncated_left(tag).is_ok())
    }
}

fn mac(key: &[u8; 32], body: &[u8]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(body);
    mac
}

fn put_u64s<const N: usize>(out: &mut Vec<u8>, values: [u64; N]) {
    values.into_iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads what the HMAC vouched for, and still trusts no length in it.
struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn message(&mut self) -> Option<Message> {
        let router = RouterId(self.u64()?);
        let incarnation = Incarnation(self.u64()?);
        let sequence = Sequence(self.u64()?);
        let greetings = usize::from(self.u8()?);
        if greetings > ROUTERS_MAX {
            return None;
        }
        let heard = (0..greetings).map(|_| self.greeting()).collect::<Option<_>>()?;
        let entries = self.u8()?;
        let entries = (0..entries).map(|_| self.entry()).collect::<Option<_>>()?;
        self.rest.is_empty().then_some(Message { router, incarnation, sequence, heard, entries })
    }

    fn greeting(&mut self) -> Option<Greeting> {
        Some(Greeting { router: RouterId(self.u64()?), incarnation: Incarnation(self.u64()?) })
    }

    fn entry(&mut self) -> Option<Entry> {
        let replica = ReplicaKey(self.u64()?);
        let load = SeatLoad::of_values([self.varint()?, self.varint()?, self.varint()?]);
        Some(Entry { replica, load })
    }

    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        (self.rest, self.at) = (rest, self.at + 1);
        Some(*first)
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.rest.split_first_chunk::<8>()?;
        (self.rest, self.at) = (rest, self.at + 8);
        Some(u64::from_le_bytes(*first))
    }

    /// At most seven bytes, in the one shortest way.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..49).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return ((byte != 0 || shift == 0) && value < VALUE_MAX).then_some(value);
            }
        }
        None
    }
}

/// A well-signed datagram of any content.
#[cfg(test)]
pub(super) fn sign_for_tests(body: &[u8], keys: &Keys) -> Vec<u8> {
    let mut out = [&MAGIC, body].concat();
    let tag = mac(&keys.current, &out).finalize().into_bytes();
    out.extend_from_slice(&tag[..TAG_BYTES]);
    out
}
