//! MessagePack, read in place.
//!
//! Own and not a library's: events arrive by the million, every value is either looked at once or passed over, and
//! what is read is written by other programs. A reader borrows from the message, allocates nothing, believes no length
//! that the message does not have the bytes for, and nests no deeper than [`DEPTH_MAX`].

/// Deeper values are refused: no event is.
const DEPTH_MAX: usize = 16;

/// Why bytes are not what was expected there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("the message ends at byte {at} in the midst of a value")]
    Cut { at: usize },
    #[error("byte {at} is {found:#04x}, expected {expected}")]
    Expected { at: usize, found: u8, expected: &'static str },
    #[error("a list or map at byte {at} claims {count} values, more than the message has bytes")]
    TooMany { at: usize, count: usize },
    #[error("values nest deeper than {DEPTH_MAX} at byte {at}")]
    TooDeep { at: usize },
    #[error("the text at byte {at} is not UTF-8")]
    NotText { at: usize },
    #[error("the number at byte {at} is out of range")]
    Range { at: usize },
    #[error("{count} bytes follow the message")]
    Trailing { count: usize },
    #[error("the event lacks {field}")]
    Missing { field: &'static str },
    #[error("{field} has {got} entries where {expected} are expected")]
    Length { field: &'static str, expected: usize, got: usize },
}

impl WireError {
    /// The label in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            WireError::Cut { .. } => "cut",
            WireError::Expected { .. } => "expected",
            WireError::TooMany { .. } => "too_many",
            WireError::TooDeep { .. } => "too_deep",
            WireError::NotText { .. } => "not_text",
            WireError::Range { .. } => "range",
            WireError::Trailing { .. } => "trailing",
            WireError::Missing { .. } => "missing",
            WireError::Length { .. } => "length",
        }
    }
}

/// What kind of value comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Nil,
    Bool,
    Int,
    Float,
    Text,
    Bytes,
    List,
    Map,
    Other,
}

#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Says nothing: what it reads may be as long as a message.
impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes that are left: no list of the rest has more values.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn end(&self) -> Result<(), WireError> {
        match self.left() {
            0 => Ok(()),
            count => Err(WireError::Trailing { count }),
        }
    }

    /// The bytes since `from`.
    pub fn since(&self, from: Reader<'a>) -> &'a [u8] {
        &self.bytes[from.at..self.at]
    }

    pub fn next(&self) -> Result<Next, WireError> {
        Ok(match self.peek()? {
            0xc0 => Next::Nil,
            0xc2 | 0xc3 => Next::Bool,
            0x00..=0x7f | 0xcc..=0xd3 | 0xe0..=0xff => Next::Int,
            0xca | 0xcb => Next::Float,
            0xa0..=0xbf | 0xd9..=0xdb => Next::Text,
            0xc4..=0xc6 => Next::Bytes,
            0x90..=0x9f | 0xdc | 0xdd => Next::List,
            0x80..=0x8f | 0xde | 0xdf => Next::Map,
            _ => Next::Other,
        })
    }

    pub fn nil(&mut self) -> Result<bool, WireError> {
        let is_nil = self.peek()? == 0xc0;
        self.at += usize::from(is_nil);
        Ok(is_nil)
    }

    /// `None` for nil.
    pub fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        if self.nil()? { Ok(None) } else { read(self).map(Some) }
    }

    /// Any integer, negative ones in two's complement: engines write the same 64 bits either way.
    pub fn word(&mut self) -> Result<u64, WireError> {
        let at = self.at;
        Ok(match self.byte()? {
            tag @ 0x00..=0x7f => u64::from(tag),
            tag @ 0xe0..=0xff => i64::from(tag as i8) as u64,
            0xcc => u64::from(self.byte()?),
            0xcd => u64::from(u16::from_be_bytes(self.array()?)),
            0xce => u64::from(u32::from_be_bytes(self.array()?)),
            0xcf => u64::from_be_bytes(self.array()?),
            0xd0 => i64::from(self.byte()? as i8) as u64,
            0xd1 => i64::from(i16::from_be_bytes(self.array()?)) as u64,
            0xd2 => i64::from(i32::from_be_bytes(self.array()?)) as u64,
            0xd3 => i64::from_be_bytes(self.array()?) as u64,
            found => return Err(WireError::Expected { at, found, expected: "an integer" }),
        })
    }

    pub fn small(&mut self) -> Result<u32, WireError> {
        let at = self.at;
        u32::try_from(self.word()?).map_err(|_| WireError::Range { at })
    }

    pub fn float(&mut self) -> Result<f64, WireError> {
        let at = self.at;
        match self.peek()? {
            0xca => {
                self.at += 1;
                Ok(f64::from(f32::from_be_bytes(self.array()?)))
            }
            0xcb => {
                self.at += 1;
                Ok(f64::from_be_bytes(self.array()?))
            }
            found if self.next()? != Next::Int => {
                Err(WireError::Expected { at, found, expected: "a number" })
            }
            _ => Ok(self.word()? as i64 as f64),
        }
    }

    pub fn text(&mut self) -> Result<&'a str, WireError> {
        let at = self.at;
        let len = match self.byte()? {
            tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
            0xd9 => usize::from(self.byte()?),
            0xda => usize::from(u16::from_be_bytes(self.array()?)),
            0xdb => u32::from_be_bytes(self.array()?) as usize,
            found => return Err(WireError::Expected { at, found, expected: "text" }),
        };
        std::str::from_utf8(self.take(len)?).map_err(|_| WireError::NotText { at })
    }

    pub fn blob(&mut self) -> Result<&'a [u8], WireError> {
        let at = self.at;
        let len = match self.byte()? {
            0xc4 => usize::from(self.byte()?),
            0xc5 => usize::from(u16::from_be_bytes(self.array()?)),
            0xc6 => u32::from_be_bytes(self.array()?) as usize,
            found => return Err(WireError::Expected { at, found, expected: "bytes" }),
        };
        self.take(len)
    }

    /// The number of a list's values.
    pub fn list(&mut self) -> Result<usize, WireError> {
        let at = self.at;
        let count = match self.byte()? {
            tag @ 0x90..=0x9f => usize::from(tag & 0xf),
            0xdc => usize::from(u16::from_be_bytes(self.array()?)),
            0xdd => u32::from_be_bytes(self.array()?) as usize,
            found => return Err(WireError::Expected { at, found, expected: "a list" }),
        };
        // A value has at least one byte.
        if count > self.left() { Err(WireError::TooMany { at, count }) } else { Ok(count) }
    }

    /// The number of a map's pairs.
    pub fn map(&mut self) -> Result<usize, WireError> {
        let at = self.at;
        let count = match self.byte()? {
            tag @ 0x80..=0x8f => usize::from(tag & 0xf),
            0xde => usize::from(u16::from_be_bytes(self.array()?)),
            0xdf => u32::from_be_bytes(self.array()?) as usize,
            found => return Err(WireError::Expected { at, found, expected: "a map" }),
        };
        if count > self.left() / 2 { Err(WireError::TooMany { at, count }) } else { Ok(count) }
    }

    /// Passes over one value, whatever it is.
    pub fn skip(&mut self) -> Result<(), WireError> {
        self.skip_in(0)
    }

    fn skip_in(&mut self, depth: usize) -> Result<(), WireError> {
        let at = self.at;
        if depth > DEPTH_MAX {
            return Err(WireError::TooDeep { at });
        }
        match self.next()? {
            Next::Nil | Next::Bool => self.at += 1,
            Next::Int => _ = self.word()?,
            Next::Float => _ = self.float()?,
            Next::Text => self.skip_text()?,
            Next::Bytes => _ = self.blob()?,
            Next::List => {
                for _ in 0..self.list()? {
                    self.skip_in(depth + 1)?;
                }
            }
            Next::Map => {
                for _ in 0..2 * self.map()? {
                    self.skip_in(depth + 1)?;
                }
            }
            Next::Other => self.skip_extension()?,
        }
        Ok(())
    }

    /// Nobody reads it, so nobody minds what is in it.
    fn skip_text(&mut self) -> Result<(), WireError> {
        match self.text() {
            Err(WireError::NotText { .. }) => Ok(()),
            read => read.map(drop),
        }
    }

    fn skip_extension(&mut self) -> Result<(), WireError> {
        let at = self.at;
        let len = match self.byte()? {
            tag @ 0xd4..=0xd8 => 1 << (tag - 0xd4),
            0xc7 => usize::from(self.byte()?),
            0xc8 => usize::from(u16::from_be_bytes(self.array()?)),
            0xc9 => u32::from_be_bytes(self.array()?) as usize,
            found => return Err(WireError::Expected { at, found, expected: "a value" }),
        };
        self.byte()?;
        self.take(len).map(drop)
    }

    fn peek(&self) -> Result<u8, WireError> {
        self.bytes.get(self.at).copied().ok_or(WireError::Cut { at: self.at })
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let rest = &self.bytes[self.at..];
        let bytes = rest.first_chunk().ok_or(WireError::Cut { at: self.bytes.len() })?;
        self.at += N;
        Ok(*bytes)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let rest = &self.bytes[self.at..];
        let bytes = rest.get(..len).ok_or(WireError::Cut { at: self.bytes.len() })?;
        self.at += len;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_width_and_sign_are_the_same_64_bits() {
        let cases: [(&[u8], u64); 9] = [
            (&[0x7f], 127),
            (&[0xff], u64::MAX),
            (&[0xcc, 200], 200),
            (&[0xcd, 1, 0], 256),
            (&[0xce, 0, 1, 0, 0], 65_536),
            (&[0xcf, 0x80, 0, 0, 0, 0, 0, 0, 1], 1 << 63 | 1),
            (&[0xd0, 0x80], -128i64 as u64),
            (&[0xd2, 0xff, 0xff, 0xff, 0xfe], -2i64 as u64),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 1], 1 << 63 | 1),
        ];
        for (bytes, word) in cases {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.word(), Ok(word), "{bytes:x?}");
            assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn a_length_without_its_bytes_is_refused_before_anything_is_made_of_it() {
        let claims = |bytes: &[u8]| Reader::new(bytes).list();
        assert_eq!(
            claims(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1]),
            Err(WireError::TooMany { at: 0, count: 0xffff_ffff })
        );
        assert_eq!(Reader::new(&[0xdb, 0xff, 0xff, 0xff, 0xff]).text(), Err(WireError::Cut { at: 5 }));
        let deep = [0x91; 100];
        assert_eq!(Reader::new(&deep).skip(), Err(WireError::TooDeep { at: 17 }));
    }
}
