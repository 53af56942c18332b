//! An answer in one body.

use std::future::poll_fn;

use serde_json::{Value, json};

use crate::api::answer::{Answer, Sink};
use crate::api::choice::{Choice, Delta, End, Entry};
use crate::api::error::ApiError;
use crate::api::params::Params;
use crate::api::wire::{self, Endpoint, Meta};
use crate::text::Text;

/// Gathers what each choice brings.
pub(crate) struct Whole {
    parts: Vec<Part>,
}

#[derive(Default)]
struct Part {
    text: String,
    entries: Vec<Entry>,
    end: Option<End>,
}

impl Whole {
    pub fn new(choices: usize) -> Self {
        Self { parts: (0..choices).map(|_| Part::default()).collect() }
    }

    /// Runs `answer` to its end and writes the body.
    pub async fn body(
        mut self,
        mut answer: Answer,
        meta: &Meta,
        text: &Text,
        params: &Params,
    ) -> Result<Value, ApiError> {
        poll_fn(|cx| answer.advance(cx, &mut self)).await;
        let mut choices = Vec::with_capacity(self.parts.len());
        for (choice, part) in answer.choices.iter().zip(self.parts) {
            choices.push(part.choice(choice, meta.endpoint, text, params)?);
        }
        let mut body = json!({
            "id": meta.id,
            "object": meta.endpoint.object(),
            "created": meta.created,
            "model": meta.model,
            "choices": choices,
            "usage": wire::usage(answer.usage()),
            "system_fingerprint": meta.fingerprint,
        });
        if meta.endpoint == Endpoint::Chat && params.prompt_logprobs.is_some() {
            let scores = answer.choices.first().map_or(&[][..], |choice| &choice.prompt);
            body["prompt_logprobs"] = wire::prompt_logprobs(text, scores);
        }
        Ok(body)
    }
}

impl Part {
    fn choice(
        self,
        choice: &Choice,
        endpoint: Endpoint,
        text: &Text,
        params: &Params,
    ) -> Result<Value, ApiError> {
        let end = self.end.unwrap_or(End::Length);
        if let End::Failed(error) = end {
            return Err(error);
        }
        let wanted = params.sampling.logprobs.is_some();
        let (reason, index) = (end.reason(), choice.index);
        if endpoint == Endpoint::Chat {
            let logprobs = wanted.then(|| wire::chat_logprobs(text, &self.entries));
            let message = json!({"role": "assistant", "content": self.text, "refusal": null});
            return Ok(json!({
                "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason,
            }));
        }
        let logprobs = wanted.then(|| wire::completion_logprobs(text, &self.entries));
        let mut value =
            json!({"text": self.text, "index": index, "logprobs": logprobs, "finish_reason": reason});
        if params.prompt_logprobs.is_some() {
            value["prompt_logprobs"] = wire::prompt_logprobs(text, &choice.prompt);
        }
        Ok(value)
    }
}

impl Sink for Whole {
    fn put(&mut self, choice: &Choice, delta: &mut Delta) {
        let part = &mut self.parts[choice.index];
        part.text.push_str(&delta.text);
        part.entries.append(&mut delta.entries);
        part.end = delta.end.take();
    }

    fn full(&self) -> bool {
        false
    }

    fn waiting(&self) -> bool {
        false
    }
}
