//! The fields that chat and completions share: sampling, stopping, lengths, streaming.

use std::collections::BTreeMap;

use base::{Limits, Priority, TokenId};
use kernels::SamplingParams;
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::fields::{Fields, Flag};
use crate::text::{GenerationDefaults, Specials, StopText, Text};

/// What a request asks of generation, whichever endpoint it came through.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub sampling: SamplingParams,
    /// As asked; `None` = drawn for this request.
    pub seed: Option<u64>,
    pub n: usize,
    /// As asked; `None` = the endpoint's default.
    pub max_tokens: Option<u32>,
    /// Which of its two names the request used.
    pub max_tokens_param: &'static str,
    pub stop: Vec<String>,
    pub stop_text: StopText,
    pub specials: Specials,
    pub prompt_logprobs: Option<u32>,
    pub priority: Priority,
    pub cache_salt: Vec<u8>,
    pub stream: Option<Stream>,
}

/// A streamed answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub usage: StreamUsage,
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamUsage {
    None,
    /// One chunk at the end (`include_usage`).
    Last,
}

/// What a model's server knows and a request is checked against.
#[derive(Clone, Copy)]
pub(crate) struct Checks<'a> {
    pub text: &'a Text,
    pub limits: &'a Limits,
    pub vocab: u32,
}

/// Fields of OpenAI's and vLLM's APIs that change the answer and that this server does not have.
const REFUSED: [(&str, &str); 19] = [
    ("guided_json", "structured output is not available yet"),
    ("guided_regex", "structured output is not available yet"),
    ("guided_choice", "structured output is not available yet"),
    ("guided_grammar", "structured output is not available yet"),
    ("structured_outputs", "structured output is not available yet"),
    ("use_beam_search", "beam search is not available"),
    ("allowed_token_ids", "use `logit_bias`"),
    ("bad_words", "use `logit_bias`"),
    ("logits_processors", "use `logit_bias`"),
    ("truncate_prompt_tokens", "shorten the prompt before sending it"),
    ("return_token_ids", "use /tokenize"),
    ("return_tokens_as_token_ids", "use /tokenize"),
    ("mm_processor_kwargs", "the model takes text only"),
    ("kv_transfer_params", "this server does not hand its cache over"),
    ("vllm_xargs", "there are no extensions to pass it to"),
    ("lora_request", "adapters are not available"),
    ("prompt_embeds", "send text or token ids"),
    ("thinking_token_budget", "use `max_tokens`"),
    ("store", "nothing is stored"),
];

impl Params {
    pub fn read(fields: &Fields<'_>, checks: Checks<'_>) -> Result<Self, ApiError> {
        for (key, why) in REFUSED {
            fields.refuse(key, why)?;
        }
        response_format(fields)?;
        let limits = checks.limits;
        let n = fields.integer("n", 1..=limits.choices_max as i64)?.unwrap_or(1) as usize;
        let include = fields.flag("include_stop_str_in_output", Flag::Off)?;
        let skip = fields.flag("skip_special_tokens", Flag::On)?;
        let prompt_logprobs = fields.integer("prompt_logprobs", 0..=limits.top_logprobs_max as i64)?;
        let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?;
        // The newer name wins.
        let newer = fields.get("max_completion_tokens").is_some();
        let seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| seed as u64);
        Ok(Self {
            sampling: sampling(fields, checks, seed)?,
            seed,
            n,
            max_tokens: max_tokens(fields)?,
            max_tokens_param: if newer { "max_completion_tokens" } else { "max_tokens" },
            stop: stop_strings(fields, limits)?,
            stop_text: if include.is_on() { StopText::Include } else { StopText::Exclude },
            specials: if skip.is_on() { Specials::Skip } else { Specials::Show },
            prompt_logprobs: prompt_logprobs.map(|k| k as u32),
            priority: Priority(priority.unwrap_or(0) as i32),
            cache_salt: fields.string("cache_salt")?.unwrap_or("").as_bytes().to_vec(),
            stream: stream(fields)?,
        })
    }
}

fn sampling(fields: &Fields<'_>, checks: Checks<'_>, seed: Option<u64>) -> Result<SamplingParams, ApiError> {
    let defaults: &GenerationDefaults = checks.text.defaults();
    let neutral = SamplingParams::default();
    let top_p = fields.float("top_p", 0.0..=1.0)?.or(defaults.top_p).unwrap_or(neutral.top_p);
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| k.max(0) as u32);
    let repetition = fields.float("repetition_penalty", 0.0..=100.0)?;
    if repetition == Some(0.0) {
        return Err(ApiError::invalid("repetition_penalty", "`repetition_penalty` must be greater than 0"));
    }
    Ok(SamplingParams {
        temperature: fields.float("temperature", 0.0..=2.0)?.or(defaults.temperature).unwrap_or(1.0),
        top_k: top_k.or(defaults.top_k).unwrap_or(neutral.top_k),
        // OpenAI takes 0 and means "the likeliest token only".
        top_p: top_p.max(f32::MIN_POSITIVE),
        min_p: fields.float("min_p", 0.0..=1.0)?.or(defaults.min_p).unwrap_or(neutral.min_p),
        repetition_penalty: repetition.or(defaults.repetition_penalty).unwrap_or(1.0),
        frequency_penalty: fields.float("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: fields.float("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields, checks)?,
        seed: seed.unwrap_or(0),
        min_tokens: fields.count("min_tokens", 0)?.unwrap_or(0),
        stop_ids: stop_ids(fields, checks)?,
        logprobs: None,
    })
}

fn max_tokens(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let old = fields.count("max_tokens", 0)?;
    let max = fields.count("max_completion_tokens", 0)?.or(old);
    let min = fields.count("min_tokens", 0)?.unwrap_or(0);
    if max.is_some_and(|max| min > max) {
        return Err(ApiError::invalid("min_tokens", format!("`min_tokens` ({min}) is above `max_tokens`")));
    }
    Ok(max)
}

fn stop_strings(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let Some(value) = fields.get("stop") else { return Ok(Vec::new()) };
    let list = match value {
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(list) => list.as_slice(),
        other => return Err(fields.wrong("stop", "a string or an array of strings", other)),
    };
    if list.len() > limits.stop_strings_max {
        let message =
            format!("`stop` has {} strings, at most {} are taken", list.len(), limits.stop_strings_max);
        return Err(ApiError::invalid("stop", message));
    }
    let read = |(at, value): (usize, &Value)| {
        let name = if value.is_string() && list.len() == 1 { "stop".into() } else { format!("stop[{at}]") };
        let Some(text) = value.as_str() else {
            return Err(crate::api::fields::wrong(&name, "a string", value));
        };
        if text.is_empty() || text.len() > limits.stop_bytes_max {
            let message =
                format!("`{name}` must have 1 to {} bytes, it has {}", limits.stop_bytes_max, text.len());
            return Err(ApiError::invalid(name, message));
        }
        Ok(text.to_owned())
    };
    list.iter().enumerate().map(read).collect()
}

/// The model's ends of sequence unless ignored, and the request's own.
fn stop_ids(fields: &Fields<'_>, checks: Checks<'_>) -> Result<Vec<TokenId>, ApiError> {
    let ignore = fields.flag("ignore_eos", Flag::Off)?;
    let mut ids = if ignore.is_on() { Vec::new() } else { checks.text.eos().to_vec() };
    let list = fields.array("stop_token_ids")?.map_or(&[][..], Vec::as_slice);
    if list.len() > checks.limits.logit_bias_max {
        let message = format!(
            "`stop_token_ids` has {} ids, at most {} are taken",
            list.len(),
            checks.limits.logit_bias_max
        );
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    for (at, value) in list.iter().enumerate() {
        ids.push(token_id(value, &format!("stop_token_ids[{at}]"), checks.vocab)?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// A token id that exists.
pub(crate) fn token_id(value: &Value, name: &str, vocab: u32) -> Result<TokenId, ApiError> {
    match value.as_u64() {
        Some(id) if id < u64::from(vocab) => Ok(id as TokenId),
        _ if value.is_number() => {
            let message =
                format!("`{name}` must be a token id from 0 to {}, got {value}", vocab.saturating_sub(1));
            Err(ApiError::invalid(name, message))
        }
        _ => Err(crate::api::fields::wrong(name, "a token id", value)),
    }
}

fn logit_bias(fields: &Fields<'_>, checks: Checks<'_>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(bias) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let max = checks.limits.logit_bias_max;
    if bias.map().len() > max {
        let message = format!("`logit_bias` has {} entries, at most {max} are taken", bias.map().len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    let mut entries = BTreeMap::new();
    for key in bias.map().keys() {
        let id = key.parse::<u32>().ok().filter(|id| *id < checks.vocab).ok_or_else(|| {
            let message =
                format!("`logit_bias` has the key {key:?}, keys are token ids below {}", checks.vocab);
            ApiError::invalid("logit_bias", message)
        })?;
        let value = bias.float(key, -100.0..=100.0)?.unwrap_or(0.0);
        entries.insert(id, value);
    }
    Ok(entries.into_iter().collect())
}

fn response_format(fields: &Fields<'_>) -> Result<(), ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(()) };
    match format.string("type")? {
        Some("text") | None => Ok(()),
        Some(other) => {
            let message =
                format!("`response_format` of type {other:?} is not supported yet, only \"text\" is");
            Err(ApiError::unsupported("response_format", message))
        }
    }
}

fn stream(fields: &Fields<'_>) -> Result<Option<Stream>, ApiError> {
    let on = fields.flag("stream", Flag::Off)?.is_on();
    let options = fields.object("stream_options")?;
    if options.is_some() && !on {
        let message = "`stream_options` is only allowed when `stream` is true";
        return Err(ApiError::invalid("stream_options", message));
    }
    let usage = match options {
        Some(options) if options.flag("include_usage", Flag::Off)?.is_on() => StreamUsage::Last,
        _ => StreamUsage::None,
    };
    Ok(on.then_some(Stream { usage }))
}
