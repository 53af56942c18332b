//! `POST /v1/completions`: reading the request; its prompt may be text, token ids, or lists of either.

use base::TokenId;
use serde_json::Value;

use crate::api::app::{App, Replica};
use crate::api::error::ApiError;
use crate::api::fields::{Fields, Flag, wrong};
use crate::api::generate::{DefaultMax, EchoPrompt, Prepared, Prompt};
use crate::api::params::{Checks, Params, token_id};
use crate::api::wire::Endpoint;
use crate::text::{AddSpecials, Text};

/// OpenAI's default for this endpoint.
const MAX_TOKENS: u32 = 16;

/// Checks a body and tokenizes its prompts.
pub(crate) fn prepare(app: &App, replica: &Replica, body: &Value) -> Result<Prepared, ApiError> {
    let fields = Fields::root(body)?;
    let model = app.model(&fields)?;
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported(
            "suffix",
            "`suffix` is not supported: the model only continues text",
        ));
    }
    let limits = &app.config().limits;
    let checks = Checks { text: &replica.text, limits, vocab: replica.vocab() };
    let mut params = Params::read(&fields, checks)?;
    best_of(&fields, params.n)?;
    let logprobs = fields.integer("logprobs", 0..=limits.top_logprobs_max as i64)?;
    params.sampling.logprobs = logprobs.map(|k| k as u32);
    if params.prompt_logprobs.is_some() && params.stream.is_some() {
        let message = "`prompt_logprobs` is only available when `stream` is false";
        return Err(ApiError::invalid("prompt_logprobs", message));
    }
    let echo = fields.flag("echo", Flag::Off)?;
    let add = fields.flag("add_special_tokens", Flag::On)?;
    let specials = if add.is_on() { AddSpecials::Yes } else { AddSpecials::No };
    let prompts = prompts(&fields, &replica.text, specials, replica.vocab())?;
    if prompts.len() * params.n > limits.choices_max {
        let message = format!(
            "{} prompts with n = {} give more than {} choices",
            prompts.len(),
            params.n,
            limits.choices_max
        );
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(Prepared {
        endpoint: Endpoint::Completion,
        model,
        prompts,
        params,
        echo: if echo.is_on() { EchoPrompt::Yes } else { EchoPrompt::No },
        default_max: DefaultMax::Tokens(MAX_TOKENS),
    })
}

/// All choices are returned, so only `best_of` = `n` can be honoured.
fn best_of(fields: &Fields<'_>, n: usize) -> Result<(), ApiError> {
    match fields.integer("best_of", 0..=i64::from(u32::MAX))? {
        Some(best) if best as usize != n => {
            let message = format!("`best_of` must equal `n` ({n}), got {best}: choices are not ranked");
            Err(ApiError::unsupported("best_of", message))
        }
        _ => Ok(()),
    }
}

fn prompts(
    fields: &Fields<'_>,
    text: &Text,
    specials: AddSpecials,
    vocab: u32,
) -> Result<Vec<Prompt>, ApiError> {
    let value = fields.get("prompt").ok_or_else(|| ApiError::invalid("prompt", "`prompt` is required"))?;
    let encode = |written: &str| -> Result<Prompt, ApiError> {
        let tokens = text.encode(written, specials)?;
        Ok(Prompt { tokens: tokens.into(), text: Some(written.to_owned()) })
    };
    let list = match value {
        Value::String(written) => return Ok(vec![encode(written)?]),
        Value::Array(list) if list.is_empty() => {
            return Err(ApiError::invalid("prompt", "`prompt` must not be empty"));
        }
        Value::Array(list) => list,
        other => return Err(fields.wrong("prompt", "a string, token ids, or a list of either", other)),
    };
    if list[0].is_number() {
        return Ok(vec![ids(list, "prompt", vocab)?]);
    }
    let read = |(at, value): (usize, &Value)| {
        let name = format!("prompt[{at}]");
        match value {
            Value::String(written) => encode(written),
            Value::Array(list) => ids(list, &name, vocab),
            other => Err(wrong(&name, "a string or an array of token ids", other)),
        }
    };
    list.iter().enumerate().map(read).collect()
}

fn ids(list: &[Value], name: &str, vocab: u32) -> Result<Prompt, ApiError> {
    let read = |(at, value): (usize, &Value)| match value.as_u64() {
        Some(id) if id < u64::from(vocab) => Ok(id as TokenId),
        _ => token_id(value, &format!("{name}[{at}]"), vocab),
    };
    let tokens = list.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(Prompt { tokens: tokens.into(), text: None })
}
