//! What is read in captures that the engines' own encoder wrote (`golden/make.py`).

use std::fmt::Write;

use expect_test::expect_file;
use quire_router::source::wire::{Event, Scratch, decode};

fn captures() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    include_str!("golden/captures.txt").lines().map(|line| {
        let (name, hex) = line.split_once(' ').unwrap();
        let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
        (name, digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
    })
}

#[test]
fn every_dialect_is_read_as_it_was_meant() {
    let (mut out, mut scratch) = (String::new(), Scratch::default());
    for (name, bytes) in captures() {
        let mut events = String::new();
        let batch = decode(&bytes, &mut scratch, |event| {
            writeln!(events, "  {event:?}").unwrap();
            if let Event::Stored(stored) = event {
                let each = |block, key: quire_router::source::wire::Extra<'_>| {
                    writeln!(events, "    block {block}: {:?} {:02x?}", key.text, key.bytes).unwrap();
                };
                stored.extras(each).unwrap();
            }
        });
        let batch = batch.unwrap_or_else(|error| panic!("{name}: {error}"));
        writeln!(out, "{name} at {} of {:?}\n{events}", batch.time, batch.rank).unwrap();
    }
    expect_file!["golden/read.txt"].assert_eq(&out);
}

/// A capture that is cut anywhere is an error, and never a shorter batch.
#[test]
fn no_beginning_of_a_message_is_a_message() {
    let mut scratch = Scratch::default();
    for (name, bytes) in captures() {
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], &mut scratch, |_| ()).is_err(), "{name} cut at {end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode(&longer, &mut scratch, |_| ()).unwrap_err().kind(), "trailing");
    }
}
