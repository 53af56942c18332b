//! `POST /v1/chat/completions`: reading the request and rendering its prompt.

use serde_json::{Map, Value, json};

use crate::api::app::{App, Replica};
use crate::api::error::ApiError;
use crate::api::fields::{Fields, Flag};
use crate::api::generate::{DefaultMax, EchoPrompt, Prepared, Prompt};
use crate::api::params::{Checks, Params};
use crate::api::wire::Endpoint;
use crate::text::{AddSpecials, ChatPrompt, Text, Turn};

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

const REFUSED: [(&str, &str); 6] = [
    ("functions", "tool calls are not available yet"),
    ("function_call", "tool calls are not available yet"),
    ("audio", "the model gives text only"),
    ("web_search_options", "there is no web search"),
    ("chat_template", "the model's own template is used; pass variables in `chat_template_kwargs`"),
    ("echo", "it is available on /v1/completions"),
];

/// Checks a body and tokenizes its prompt.
pub(crate) fn prepare(app: &App, replica: &Replica, body: &Value) -> Result<Prepared, ApiError> {
    let fields = Fields::root(body)?;
    let model = app.model(&fields)?;
    for (key, why) in REFUSED {
        fields.refuse(key, why)?;
    }
    modalities(&fields)?;
    let checks = Checks { text: &replica.text, limits: &app.config().limits, vocab: replica.vocab() };
    let mut params = Params::read(&fields, checks)?;
    params.sampling.logprobs = logprobs(&fields, app.config().limits.top_logprobs_max)?;
    if params.prompt_logprobs.is_some() && params.stream.is_some() {
        let message = "`prompt_logprobs` is only available when `stream` is false";
        return Err(ApiError::invalid("prompt_logprobs", message));
    }
    let text = prompt(&replica.text, &fields, app.clock().unix_ms())?;
    let add = fields.flag("add_special_tokens", Flag::Off)?;
    let specials = if add.is_on() { AddSpecials::Yes } else { AddSpecials::No };
    let tokens = replica.text.encode(&text, specials)?;
    Ok(Prepared {
        endpoint: Endpoint::Chat,
        model,
        prompts: vec![Prompt { tokens: tokens.into(), text: None }],
        params,
        echo: EchoPrompt::No,
        default_max: DefaultMax::Rest,
    })
}

/// Renders `messages`; /tokenize uses it as well.
pub(crate) fn prompt(text: &Text, fields: &Fields<'_>, unix_ms: u64) -> Result<String, ApiError> {
    let messages = messages(fields, text.knows_developer_role())?;
    let tools = tools(fields)?;
    let documents = fields.array("documents")?.cloned().map_or(Value::Null, Value::Array);
    let empty = Map::new();
    let kwargs = fields.object("chat_template_kwargs")?;
    let prompt = ChatPrompt {
        messages: &messages,
        tools: &tools,
        documents: &documents,
        kwargs: kwargs.as_ref().map_or(&empty, |kwargs| kwargs.map()),
        turn: turn(fields)?,
        unix_ms,
    };
    Ok(text.render(&prompt)?)
}

fn turn(fields: &Fields<'_>) -> Result<Turn, ApiError> {
    let resume = fields.flag("continue_final_message", Flag::Off)?.is_on();
    let answer = fields.flag("add_generation_prompt", if resume { Flag::Off } else { Flag::On })?.is_on();
    match (answer, resume) {
        (true, true) => Err(ApiError::invalid(
            "continue_final_message",
            "`continue_final_message` and `add_generation_prompt` exclude each other",
        )),
        (true, false) => Ok(Turn::Answer),
        (false, true) => Ok(Turn::Continue),
        (false, false) => Ok(Turn::None),
    }
}

fn modalities(fields: &Fields<'_>) -> Result<(), ApiError> {
    let list = fields.array("modalities")?.map_or(&[][..], Vec::as_slice);
    match list.iter().find(|modality| *modality != "text") {
        None => Ok(()),
        Some(other) => {
            let message = format!("`modalities` may hold only \"text\", got {other}");
            Err(ApiError::unsupported("modalities", message))
        }
    }
}

/// `logprobs: true` with `top_logprobs: k`.
fn logprobs(fields: &Fields<'_>, max: usize) -> Result<Option<u32>, ApiError> {
    let on = fields.flag("logprobs", Flag::Off)?.is_on();
    let top = fields.integer("top_logprobs", 0..=max as i64)?;
    if top.is_some_and(|k| k > 0) && !on {
        let message = "`top_logprobs` needs `logprobs` to be true";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(on.then_some(top.unwrap_or(0) as u32))
}

/// Tools may be shown to the model, but calls are not parsed from its answer yet: a request that
/// expects calls is refused rather than answered with something else.
fn tools(fields: &Fields<'_>) -> Result<Value, ApiError> {
    let Some(tools) = fields.array("tools")?.filter(|tools| !tools.is_empty()) else {
        let choice = fields.get("tool_choice").filter(|choice| *choice != "none" && *choice != "auto");
        return match choice {
            None => Ok(Value::Null),
            Some(_) => Err(ApiError::invalid("tool_choice", "`tool_choice` needs `tools`")),
        };
    };
    for (at, tool) in tools.iter().enumerate() {
        Fields::item(tool, format!("tools[{at}]"))?;
    }
    match fields.get("tool_choice") {
        Some(choice) if choice == "none" => Ok(Value::Array(tools.clone())),
        choice => {
            let param = if choice.is_some() { "tool_choice" } else { "tools" };
            let message = "tool calls are not available yet; with `tool_choice` \"none\" the model sees the \
                           tools and answers in text";
            Err(ApiError::unsupported(param, message))
        }
    }
}

/// The messages as templates expect them: contents as plain strings.
fn messages(fields: &Fields<'_>, developer: bool) -> Result<Value, ApiError> {
    let list =
        fields.array("messages")?.ok_or_else(|| ApiError::invalid("messages", "`messages` is required"))?;
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` must have at least one message"));
    }
    let read = |(at, value)| message(&Fields::item(value, format!("messages[{at}]"))?, developer);
    list.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn message(fields: &Fields<'_>, developer: bool) -> Result<Value, ApiError> {
    let name = fields.name("role");
    let role = fields.string("role")?;
    let role = role.ok_or_else(|| ApiError::invalid(name.clone(), format!("`{name}` is required")))?;
    if !ROLES.contains(&role) {
        let message = format!("`{name}` must be one of {}, got {role:?}", ROLES.join(", "));
        return Err(ApiError::invalid(name, message));
    }
    let mut message = fields.map().clone();
    // Templates older than the role know it as "system".
    let role = if role == "developer" && !developer { "system" } else { role };
    message.insert("role".into(), json!(role));
    match content(fields, role)? {
        Some(text) => message.insert("content".into(), Value::String(text)),
        None => message.insert("content".into(), json!("")),
    };
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        calls.iter_mut().for_each(parse_arguments);
    }
    Ok(Value::Object(message))
}

/// A string, or text parts joined by newlines. Only an assistant's message may lack it.
fn content(fields: &Fields<'_>, role: &str) -> Result<Option<String>, ApiError> {
    let name = fields.name("content");
    match fields.get("content") {
        None if role == "assistant" => Ok(None),
        None => Err(ApiError::invalid(name.clone(), format!("`{name}` is required"))),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let read = |(at, part)| text_part(part, format!("{name}[{at}]"));
            let texts = parts.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
            Ok(Some(texts.join("\n")))
        }
        Some(other) => Err(fields.wrong("content", "a string or an array of parts", other)),
    }
}

fn text_part(part: &Value, path: String) -> Result<&str, ApiError> {
    let fields = Fields::item(part, path)?;
    let key = match fields.string("type")? {
        Some("text") => "text",
        Some("refusal") => "refusal",
        other => {
            let name = fields.name("type");
            let other = other.unwrap_or("nothing");
            let message = format!("`{name}` must be \"text\", got {other:?}: the model takes text only");
            return Err(ApiError::unsupported(name, message));
        }
    };
    let name = fields.name(key);
    fields.string(key)?.ok_or_else(|| ApiError::invalid(name.clone(), format!("`{name}` is required")))
}

/// OpenAI writes a call's arguments as a JSON string, templates want the object.
fn parse_arguments(call: &mut Value) {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
    {
        *arguments = parsed;
    }
}
