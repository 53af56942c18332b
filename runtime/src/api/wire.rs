//! The JSON shapes of answers, in OpenAI's own field order.

use bytes::{BufMut, BytesMut};
use kernels::Sampled;
use serde_json::{Map, Value, json};

use crate::api::answer::Usage;
use crate::api::choice::Entry;
use crate::text::Text;

/// Which of the two generation endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completion,
}

impl Endpoint {
    /// The field that holds the prompt.
    pub fn prompt_param(self) -> &'static str {
        match self {
            Endpoint::Chat => "messages",
            Endpoint::Completion => "prompt",
        }
    }

    pub fn id_prefix(self) -> &'static str {
        match self {
            Endpoint::Chat => "chatcmpl-",
            Endpoint::Completion => "cmpl-",
        }
    }

    pub fn object(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completion => "text_completion",
        }
    }

    pub fn chunk_object(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        }
    }
}

/// What every body of one answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub endpoint: Endpoint,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// Names the weights and their arithmetic.
    pub fingerprint: String,
}

pub(crate) fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    })
}

/// `logprobs` of a chat choice or chunk.
pub(crate) fn chat_logprobs(text: &Text, entries: &[Entry]) -> Value {
    let token = |id: u32, logprob: Option<f32>| json!({"token": spelled(text, id), "logprob": finite(logprob), "bytes": text.token_bytes(id)});
    let entry = |entry: &Entry| {
        let mut value = token(entry.token, entry.logprob);
        let top = entry.top.iter().map(|(id, logprob)| token(*id, Some(*logprob)));
        value["top_logprobs"] = top.collect();
        value
    };
    json!({"content": entries.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
}

/// `logprobs` of a completion choice or chunk.
pub(crate) fn completion_logprobs(text: &Text, entries: &[Entry]) -> Value {
    let top = |entry: &Entry| {
        let Some(own) = entry.logprob else { return Value::Null };
        let alternatives = entry.top.iter().copied().chain([(entry.token, own)]);
        let mut map = Map::new();
        for (id, logprob) in alternatives {
            map.entry(spelled(text, id)).or_insert_with(|| finite(Some(logprob)));
        }
        Value::Object(map)
    };
    json!({
        "tokens": entries.iter().map(|e| spelled(text, e.token)).collect::<Vec<_>>(),
        "token_logprobs": entries.iter().map(|e| finite(e.logprob)).collect::<Vec<_>>(),
        "top_logprobs": entries.iter().map(top).collect::<Vec<_>>(),
        "text_offset": entries.iter().map(|e| e.offset).collect::<Vec<_>>(),
    })
}

/// vLLM's `prompt_logprobs`: null for the first token, then id → logprob, rank and text.
pub(crate) fn prompt_logprobs(text: &Text, scores: &[Sampled]) -> Value {
    let one = |id: u32, logprob: f32, rank: u32| json!({"logprob": finite(Some(logprob)), "rank": rank, "decoded_token": spelled(text, id)});
    let each = |score: &Sampled| {
        let mut map = Map::new();
        let own = score.logprob.unwrap_or(f32::NEG_INFINITY);
        map.insert(score.token.to_string(), one(score.token, own, score.rank));
        for (rank, (id, logprob)) in (1..).zip(&score.top) {
            map.entry(id.to_string()).or_insert_with(|| one(*id, *logprob, rank));
        }
        Value::Object(map)
    };
    std::iter::once(Value::Null).chain(scores.iter().map(each)).collect()
}

fn spelled(text: &Text, id: u32) -> String {
    String::from_utf8_lossy(text.token_bytes(id)).into_owned()
}

/// JSON has no −∞; −9999 is what clients of other servers know.
fn finite(logprob: Option<f32>) -> Value {
    logprob.map_or(Value::Null, |value| json!(value.max(-9999.0)))
}

/// Appends `text` as the inside of a JSON string.
pub(crate) fn escape(text: &str, out: &mut BytesMut) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.put_slice(&bytes[plain..at]);
        plain = at + 1;
        match byte {
            b'"' => out.put_slice(b"\\\""),
            b'\\' => out.put_slice(b"\\\\"),
            b'\n' => out.put_slice(b"\\n"),
            b'\r' => out.put_slice(b"\\r"),
            b'\t' => out.put_slice(b"\\t"),
            other => {
                out.put_slice(b"\\u00");
                out.put_slice(&[HEX[usize::from(other >> 4)], HEX[usize::from(other & 15)]]);
            }
        }
    }
    out.put_slice(&bytes[plain..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn escaped_text_reads_back_as_itself(text in any::<String>(), control in "[\\x00-\\x1f\"\\\\é]{0,8}") {
            let text = text + &control;
            let mut out = BytesMut::from(&b"\""[..]);
            escape(&text, &mut out);
            out.put_u8(b'"');
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
