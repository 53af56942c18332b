//! Server-sent events by scanning bytes.
//!
//! A load generator that parses each chunk as JSON spends more than the server that wrote it; here a
//! chunk costs two searches. Lines may be cut anywhere between two reads; only the cut line is copied.

/// Longest line that is held while its end has not arrived.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Cuts a byte stream into `data:` payloads.
#[derive(Debug, Default)]
pub struct Scanner {
    carry: Vec<u8>,
}

impl Scanner {
    /// Calls `each` with every payload that `frame` completes. False if a line grew beyond its bound.
    pub fn feed(&mut self, frame: &[u8], mut each: impl FnMut(&[u8])) -> bool {
        let mut rest = frame;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.carry.is_empty() {
                payload(line).into_iter().for_each(&mut each);
            } else {
                self.carry.extend_from_slice(line);
                payload(&self.carry).into_iter().for_each(&mut each);
                self.carry.clear();
            }
            rest = after;
        }
        self.carry.extend_from_slice(rest);
        self.carry.len() <= LINE_BYTES_MAX
    }
}

fn payload(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let data = line.strip_prefix(b"data:")?;
    Some(data.strip_prefix(b" ").unwrap_or(data))
}

/// Finds one JSON string member by its quoted name, remembering where it was last: chunks of one stream
/// have it at the same place.
#[derive(Debug)]
pub struct Member {
    name: &'static [u8],
    last: usize,
}

impl Member {
    /// `name` as it stands in the text, with its colon and the opening quote: `"text":"`.
    pub const fn new(name: &'static [u8]) -> Self {
        Self { name, last: 0 }
    }

    /// The member's value, still escaped. A name inside another string would carry escaped quotes, so it
    /// cannot be mistaken for a member.
    pub fn find<'a>(&mut self, json: &'a [u8]) -> Option<&'a [u8]> {
        let at = match json.get(self.last..).is_some_and(|j| j.starts_with(self.name)) {
            true => self.last,
            false => json.windows(self.name.len()).position(|w| w == self.name)?,
        };
        self.last = at;
        let value = &json[at + self.name.len()..];
        let mut escaped = false;
        let end = value.iter().position(|&b| {
            let ends = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            ends
        })?;
        Some(&value[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b": hi\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:{\"b\":2}\r\n\r\ndata: [DONE]\n\n";

    fn payloads(cuts: &[usize]) -> Vec<String> {
        let mut scanner = Scanner::default();
        let mut found = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&STREAM.len()]) {
            assert!(
                scanner.feed(&STREAM[from..cut], |p| found.push(String::from_utf8_lossy(p).into_owned()))
            );
            from = cut;
        }
        found
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_payloads() {
        let whole = payloads(&[]);
        assert_eq!(whole, ["{\"a\":1}", "{\"b\":2}", "[DONE]"]);
        for first in 0..STREAM.len() {
            for second in first..STREAM.len() {
                assert_eq!(payloads(&[first, second]), whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_member_ends_at_its_own_quote() {
        let mut text = Member::new(b"\"text\":\"");
        assert_eq!(text.find(br#"{"x":1,"text":"a\"b\\","y":"text"}"#), Some(&br#"a\"b\\"#[..]));
        assert_eq!(text.find(br#"{"x":1,"text":"","y":2}"#), Some(&b""[..]));
        assert_eq!(text.find(br#"{"text":"moved"}"#), Some(&b"moved"[..]));
        assert_eq!(text.find(br#"{"x":"\"text\":\"no\""}"#), None);
        assert_eq!(text.find(b""), None);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut scanner = Scanner::default();
        let chunk = vec![b'x'; LINE_BYTES_MAX];
        assert!(scanner.feed(&chunk, |_| ()));
        assert!(!scanner.feed(b"x", |_| ()));
    }
}
