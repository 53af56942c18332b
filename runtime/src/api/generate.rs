//! From a checked request to running sequences and their answer; the same for chat and completions.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use base::{Nanos, Priority, TokenId};
use kernels::SamplingParams;
use serde_json::Value;

use crate::api::answer::Answer;
use crate::api::app::{App, Replica, Ticket};

use crate::api::auth::{Caller, Role};
use crate::api::choice::{Choice, ChoiceStart, Echo};
use crate::api::config::Raising;
use crate::api::error::ApiError;
use crate::api::params::Params;
use crate::api::sse::{self, SseWriter};
use crate::api::whole::Whole;
use crate::api::wire::{Endpoint, Meta};
use crate::request::{Request, Tenant};
use crate::text::{Detokenizer, Specials, StopMatcher};

/// A request with its prompts tokenized.
pub(crate) struct Prepared {
    pub endpoint: Endpoint,
    pub model: String,
    pub prompts: Vec<Prompt>,
    pub params: Params,
    pub echo: EchoPrompt,
    /// What `max_tokens` is if the request does not say.
    pub default_max: DefaultMax,
}

/// One prompt.
pub(crate) struct Prompt {
    pub tokens: Arc<[TokenId]>,
    /// As the client wrote it, if it wrote text.
    pub text: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EchoPrompt {
    No,
    Yes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultMax {
    /// All that the context leaves.
    Rest,
    Tokens(u32),
}

/// Runs `prepared` and answers with its stream or body.
pub(crate) async fn answer(
    app: &App,
    caller: Caller,
    ticket: Arc<Ticket>,
    arrived: Nanos,
    prepared: Prepared,
) -> Result<Response<Body>, ApiError> {
    let replica = app.replica()?;
    let choices = submit(app, replica, caller, &prepared)?;
    let count = choices.len();
    let lengths: Vec<usize> = prepared.prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    let (clock, metrics) = (Arc::clone(app.clock()), Arc::clone(app.metrics()));
    let mut answer = Answer::new(choices, &lengths, arrived, clock, metrics);
    let meta = Meta {
        endpoint: prepared.endpoint,
        id: format!("{}{}", prepared.endpoint.id_prefix(), ticket.name),
        created: app.clock().unix_ms() / 1000,
        model: prepared.model,
        fingerprint: replica.fingerprint.clone(),
    };
    let text = Arc::clone(&replica.text);
    match prepared.params.stream {
        Some(stream) => {
            let logprobs = prepared.params.sampling.logprobs.is_some();
            let mut writer = SseWriter::new(meta, text, stream.usage, logprobs, count);
            answer.started(&mut writer).await?;
            Ok(sse::response(answer, writer, ticket))
        }
        None => {
            let body = Whole::new(count).body(answer, &meta, &text, &prepared.params).await?;
            Ok(json_response(&body))
        }
    }
}

pub(crate) fn json_response(body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Starts every choice of every prompt. On a refusal those already started are aborted by their drop.
fn submit(
    app: &App,
    replica: &Replica,
    caller: Caller,
    prepared: &Prepared,
) -> Result<Vec<Choice>, ApiError> {
    let seed = prepared.params.seed.unwrap_or_else(|| app.entropy().draw());
    let mut choices = Vec::with_capacity(prepared.prompts.len() * prepared.params.n);
    for prompt in &prepared.prompts {
        let length = length(replica, prepared, prompt)?;
        for k in 0..prepared.params.n {
            let seed = seed.wrapping_add(k as u64);
            let params = Arc::new(SamplingParams { seed, ..prepared.params.sampling.clone() });
            let tenant = tenant(caller, &prepared.params);
            let asked = Asked { tenant, priority: priority(app, caller, &prepared.params) };
            choices.push(start(replica, asked, prepared, prompt, params, length, choices.len())?);
        }
    }
    Ok(choices)
}

/// Whose pages the request may share: the caller's namespace, within it those of the same salt.
fn tenant(caller: Caller, asked: &Params) -> Tenant {
    Tenant {
        namespace: caller.namespace,
        retention: caller.retention,
        salt: Tenant::salt_of(&asked.cache_salt),
        ..Tenant::default()
    }
}

/// A priority above the default puts a request before those of others, and takes their pages: whoever may not
/// raise it is served at the default. It changes when an answer comes, not the answer.
fn priority(app: &App, caller: Caller, asked: &Params) -> Priority {
    match (app.config().raising, caller.role) {
        (Raising::Operators, Role::User) => asked.priority.max(Priority::default()),
        _ => asked.priority,
    }
}

/// Whose a sequence is, and how urgent.
struct Asked {
    tenant: Tenant,
    priority: Priority,
}

fn start(
    replica: &Replica,
    Asked { tenant, priority }: Asked,
    prepared: &Prepared,
    prompt: &Prompt,
    params: Arc<SamplingParams>,
    length: Length,
    index: usize,
) -> Result<Choice, ApiError> {
    let asked = &prepared.params;
    let echoes = prepared.echo == EchoPrompt::Yes;
    // Echoed logprobs are the prompt's own.
    let scored = asked.prompt_logprobs.or(params.logprobs.filter(|_| echoes));
    let request = Request {
        id: replica.engine.next_id(),
        tenant,
        prompt: Arc::clone(&prompt.tokens),
        params: Arc::clone(&params),
        max_tokens: length.max_tokens,
        prompt_logprobs: scored,
        priority,
        deadline: None,
    };
    let running = replica.engine.submit(request).map_err(|refusal| {
        let error = ApiError::from(refusal);
        let names_prompt = matches!(error.param.as_deref(), Some("prompt" | "messages"));
        if names_prompt { error.with_param(prepared.endpoint.prompt_param()) } else { error }
    })?;
    let echo = echoes.then(|| Echo {
        text: prompt.text.clone().unwrap_or_else(|| replica.text.decode(&prompt.tokens, Specials::Skip)),
        tokens: Arc::clone(&prompt.tokens),
        alone: length.prompt_only,
    });
    Ok(Choice::new(ChoiceStart {
        index,
        running,
        detokenizer: Detokenizer::new(Arc::clone(&replica.text), asked.specials),
        stop: StopMatcher::new(&asked.stop, asked.stop_text),
        stop_text: asked.stop_text,
        params,
        echo,
        prompt_logprobs: scored.is_some(),
    }))
}

#[derive(Clone, Copy)]
struct Length {
    max_tokens: u32,
    prompt_only: bool,
}

/// How long the answer may get.
fn length(replica: &Replica, prepared: &Prepared, prompt: &Prompt) -> Result<Length, ApiError> {
    let limit = replica.context();
    let param = prepared.endpoint.prompt_param();
    let tokens = prompt.tokens.len();
    let rest = limit.saturating_sub(u32::try_from(tokens).unwrap_or(u32::MAX));
    let asked = prepared.params.max_tokens;
    if rest == 0 || asked.is_some_and(|max| max > rest) {
        return Err(ApiError::too_long(tokens, asked, limit).with_param(param));
    }
    let max_tokens = match (asked, prepared.default_max) {
        (Some(0), _) if prepared.echo == EchoPrompt::Yes => {
            return Ok(Length { max_tokens: 1, prompt_only: true });
        }
        (Some(0), _) => {
            let name = prepared.params.max_tokens_param;
            return Err(ApiError::invalid(name, format!("`{name}` must be at least 1, got 0")));
        }
        (Some(max), _) => max,
        (None, DefaultMax::Tokens(max)) => max.min(rest),
        (None, DefaultMax::Rest) => replica.text.defaults().max_tokens.unwrap_or(rest).min(rest),
    };
    Ok(Length { max_tokens, prompt_only: false })
}
