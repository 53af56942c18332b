//! Any bytes at all: refused or read, in bounded memory.

use proptest::prelude::*;
use quire_router::source::wire::{Event, Scratch, decode};

/// Values of a message are never more than its bytes, whatever its lengths claim.
fn read(bytes: &[u8]) -> Result<usize, &'static str> {
    let mut seen = 0;
    let mut scratch = Scratch::default();
    let read = decode(bytes, &mut scratch, |event| {
        seen += 1;
        if let Event::Stored(stored) = event {
            assert!(stored.hashes.len() <= bytes.len() && stored.tokens.len() <= bytes.len());
            stored.extras(|_, key| assert!(key.bytes.len() <= bytes.len())).unwrap();
        }
    });
    assert!(seen <= bytes.len());
    // A reservation may be rounded up, and once for what a length claims.
    assert!(scratch.bytes() <= 16 * bytes.len().max(16), "{} for {}", scratch.bytes(), bytes.len());
    read.map(|batch| batch.events).map_err(|error| error.kind())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
    }

    /// Bytes that are nearly right get further.
    #[test]
    fn a_message_with_a_few_wrong_bytes_is_read_or_refused(
        which in any::<proptest::sample::Index>(),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let lines: Vec<&str> = include_str!("golden/captures.txt").lines().collect();
        let hex = which.get(&lines).split_once(' ').unwrap().1;
        let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
        let mut bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read(&bytes);
    }
}

#[test]
fn a_length_that_the_message_does_not_have_makes_no_room() {
    let claims = [0x92, 0x01, 0xdd, 0xff, 0xff, 0xff, 0xff, 0x93];
    assert_eq!(read(&claims), Err("too_many"));
    let hashes = [&[0x92, 0x01, 0x91, 0x92, 0xac][..], b"BlockRemoved", &[0xdd, 0x7f, 0, 0, 0, 1]].concat();
    assert_eq!(read(&hashes), Err("too_many"));
}
