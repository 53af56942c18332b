//! Recorded traffic: what a router writes of each request, so that a replay asks "what if" of one's own load.
//!
//! One JSON object a line, in order of arrival:
//!
//! ```json
//! {"arrival_ms":12.5,"tenant":"a","class":"interactive","prompt_tokens":130,"block_tokens":64,
//!  "blocks":["9f3c0e5a11d2b407","51aa0c9e77b21f03"],"output_tokens":87,"deadline_ms":2000,"session":"c1"}
//! ```
//!
//! `blocks` are the names of the prompt's whole blocks: the low 64 bits of their chain hashes, in hex because
//! JSON numbers end at 2^53. A name stands for all the text up to it, so equal names are equal prefixes and
//! tell nothing else; no text is recorded. `blocks` may be absent: then nothing is shared. `class`, `deadline_ms`
//! and `session` are optional.

use std::time::Duration;

use base::Nanos;
use serde::{Deserialize, Serialize};

use super::{
    Call, Class, OUTPUT, PROMPT, Segment, Start, Trace, TraceError, at_line, blocks, lines, own_text,
};

/// Most tenants of one recording.
const TENANTS_MAX: usize = 65_536;

/// One line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedCall {
    pub arrival_ms: f64,
    pub tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<RecordedClass>,
    pub prompt_tokens: u64,
    #[serde(default = "default_block_tokens")]
    pub block_tokens: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<String>,
    pub output_tokens: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// As the line spells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedClass {
    Interactive,
    Batch,
}

fn default_block_tokens() -> u32 {
    64
}

pub fn parse(path: &str, text: &str) -> Result<Trace, TraceError> {
    let mut tenants: Vec<String> = Vec::new();
    let mut seats = std::collections::BTreeMap::new();
    let mut calls = Vec::new();
    for at in lines(path, text) {
        let (line, text) = at?;
        let parsed = serde_json::from_str::<RecordedCall>(text).map_err(|error| error.to_string());
        let recorded = at_line(path, line, parsed)?;
        let tenant = *seats.entry(recorded.tenant.clone()).or_insert_with(|| {
            tenants.push(recorded.tenant.clone());
            tenants.len() - 1
        });
        if tenants.len() > TENANTS_MAX {
            return at_line(path, line, Err(format!("more than {TENANTS_MAX} tenants")));
        }
        calls.push(Ok(at_line(path, line, call(&recorded, tenant as u16, line as u64))?));
    }
    Trace::of(path, tenants, calls.into_iter())
}

fn call(recorded: &RecordedCall, tenant: u16, number: u64) -> Result<Call, String> {
    let prompt = prompt(recorded, number)?;
    let last = prompt.last().map_or(number, |segment| segment.id);
    let session = recorded
        .session
        .as_ref()
        .map(|name| name.bytes().fold(7, |hash, byte| own_text(hash & 0x3f, hash ^ u64::from(byte))));
    Ok(Call {
        start: Start::At(Nanos((millis(recorded.arrival_ms)? * 1e6) as u64)),
        tenant,
        class: match recorded.class {
            Some(RecordedClass::Batch) => Class::Batch,
            _ => Class::Interactive,
        },
        prompt,
        output: Segment { id: own_text(OUTPUT, last), tokens: recorded.output_tokens.max(1) },
        deadline: recorded
            .deadline_ms
            .map(|ms| millis(ms).map(|ms| Duration::from_secs_f64(ms / 1e3)))
            .transpose()?,
        session,
    })
}

/// Named blocks, then what is left of the prompt as a text of its own.
fn prompt(recorded: &RecordedCall, number: u64) -> Result<Vec<Segment>, String> {
    let names = recorded.blocks.iter().map(|name| {
        u64::from_str_radix(name, 16).map_err(|_| format!("`{name}` is not a block's name in hex"))
    });
    let mut ids = names.collect::<Result<Vec<u64>, String>>()?;
    let named = ids.len() as u64 * u64::from(recorded.block_tokens);
    if named > recorded.prompt_tokens {
        return Err(format!(
            "{} blocks of {} exceed {} tokens",
            ids.len(),
            recorded.block_tokens,
            recorded.prompt_tokens
        ));
    }
    if ids.is_empty() {
        return blocks(
            [own_text(PROMPT, number)].into_iter(),
            recorded.prompt_tokens,
            recorded.prompt_tokens.min(1 << 31) as u32,
        );
    }
    let rest = recorded.prompt_tokens - named;
    ids.extend(
        (0..rest.div_ceil(u64::from(recorded.block_tokens)))
            .map(|part| own_text(PROMPT, number << 20 | part)),
    );
    blocks(ids.into_iter(), recorded.prompt_tokens, recorded.block_tokens)
}

fn millis(ms: f64) -> Result<f64, String> {
    if (0.0..1e13).contains(&ms) { Ok(ms) } else { Err(format!("a time of {ms} ms")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> RecordedCall {
        RecordedCall {
            arrival_ms: 12.5,
            tenant: "a".to_owned(),
            class: Some(RecordedClass::Batch),
            prompt_tokens: 130,
            block_tokens: 64,
            blocks: vec!["9f3c0e5a11d2b407".to_owned(), "51aa0c9e77b21f03".to_owned()],
            output_tokens: 87,
            deadline_ms: Some(2000.0),
            session: Some("c1".to_owned()),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let second = RecordedCall {
            tenant: "b".to_owned(),
            arrival_ms: 10.0,
            blocks: Vec::new(),
            class: None,
            ..recorded()
        };
        let lines: Vec<String> =
            [recorded(), second].iter().map(|call| serde_json::to_string(call).unwrap()).collect();
        let trace = Trace::parse("r.jsonl", &lines.join("\n")).unwrap();
        assert_eq!(trace.tenants, ["a", "b"]);
        let [first, second] = &trace.calls[..] else { panic!("two calls") };
        assert_eq!((first.tenant, first.start), (1, Start::At(Nanos(10_000_000)))); // in order of arrival
        assert_eq!(first.prompt.len(), 1);
        assert_eq!((second.class, second.prompt_tokens(), second.prompt[2].tokens), (Class::Batch, 130, 2));
        assert_eq!(second.deadline, Some(Duration::from_secs(2)));
    }

    #[test]
    fn unknown_fields_and_bad_names_are_refused() {
        let line = serde_json::to_string(&recorded()).unwrap();
        for bad in [
            line.replace("9f3c", "zzzz"),
            line.replace("\"tenant\"", "\"tennant\""),
            line.replace("130", "100"),
        ] {
            assert_eq!(Trace::parse("r.jsonl", &bad).unwrap_err().kind(), "line", "{bad}");
        }
    }
}
