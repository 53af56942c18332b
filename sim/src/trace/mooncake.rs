//! Mooncake's JSONL: `timestamp` in ms, `input_length`, `output_length`, `hash_ids` of 512-token blocks.
//!
//! Equal ids are equal blocks after equal blocks. Answers are not in the ids, so a next turn finds its prompt
//! cached and not the answer before it; that is the trace's own loss, and the same for every policy.

use base::Nanos;
use serde::Deserialize;

use super::{Call, Class, OUTPUT, Segment, Start, blocks, own_text};

const BLOCK_TOKENS: u32 = 512;

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u64,
    output_length: u32,
    hash_ids: Vec<u64>,
}

pub fn line(text: &str) -> Result<Call, String> {
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !(line.timestamp >= 0.0 && line.timestamp < 1e13) {
        return Err(format!("a timestamp of {} ms", line.timestamp));
    }
    let last = line.hash_ids.last().copied().unwrap_or_default();
    Ok(Call {
        start: Start::At(Nanos((line.timestamp * 1e6) as u64)),
        tenant: 0,
        class: Class::Interactive,
        prompt: blocks(line.hash_ids.into_iter(), line.input_length, BLOCK_TOKENS)?,
        output: Segment { id: own_text(OUTPUT, last), tokens: line.output_length.max(1) },
        deadline: None,
        session: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    #[test]
    fn the_last_block_holds_what_is_left() {
        let call =
            line(r#"{"timestamp": 27.5, "input_length": 1100, "output_length": 3, "hash_ids": [0, 7, 9]}"#)
                .unwrap();
        assert_eq!(
            call.prompt.iter().map(|s| (s.id, s.tokens)).collect::<Vec<_>>(),
            [(0, 512), (7, 512), (9, 76)]
        );
        assert_eq!((call.start, call.output.tokens), (Start::At(Nanos(27_500_000)), 3));
        assert_eq!(call.tokens().len(), 1100);
    }

    #[test]
    fn a_line_whose_ids_do_not_fit_its_length_is_refused_with_its_number() {
        let good = r#"{"timestamp": 0, "input_length": 512, "output_length": 3, "hash_ids": [0]}"#;
        let bad = good.replace("512", "513");
        let refusal = Trace::parse("t.jsonl", &format!("{good}\n\n{bad}\n")).unwrap_err().to_string();
        assert_eq!(refusal, "trace t.jsonl, line 3: 1 blocks of 512 for 513 tokens, which take 2");
    }
}
