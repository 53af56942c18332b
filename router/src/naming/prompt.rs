//! A request's prompt as a replica of ours would render it.
//!
//! Read leniently, field by field: what is odd is the replica's to refuse, and whatever is read otherwise here than
//! there costs a lookup that finds nothing, never a wrong answer. So this is not the replica's reader with its forty
//! complaints, only what the tokens depend on.

use base::TokenId;
use serde_json::{Map, Value};
use text::{AddSpecials, ChatPrompt, Prompter, Rendered, TextError, Turn};

/// Makes the tokens of one model's prompts.
pub trait Tokens: Send + Sync {
    /// Those of a request's body; `None` for one whose prompt is no text (several prompts, pictures, …).
    fn of(&self, body: &Value, unix_ms: u64) -> Option<Vec<TokenId>>;
}

impl Tokens for Prompter {
    fn of(&self, body: &Value, unix_ms: u64) -> Option<Vec<TokenId>> {
        match (body.get("messages"), body.get("prompt")) {
            (Some(messages), _) => self.tokens(&chat(self, body, messages, unix_ms)?.ok()?).ok(),
            (None, Some(Value::String(text))) => self.tokens(&completion(body, text)).ok(),
            (None, Some(Value::Array(ids))) => {
                ids.iter().map(|id| id.as_u64().and_then(|id| TokenId::try_from(id).ok())).collect()
            }
            _ => None,
        }
    }
}

fn completion(body: &Value, text: &str) -> Rendered {
    match body.get("add_special_tokens") {
        Some(Value::Bool(false)) => Rendered { text: text.to_owned(), specials: AddSpecials::No },
        _ => Rendered::plain(text),
    }
}

fn chat(
    prompter: &Prompter,
    body: &Value,
    messages: &Value,
    unix_ms: u64,
) -> Option<Result<Rendered, TextError>> {
    let knows_developer = prompter.text().knows_developer_role();
    let messages: Option<Vec<Value>> =
        messages.as_array()?.iter().map(|message| plain(message, knows_developer)).collect();
    let none = Map::new();
    let flag = |name: &str| body.get(name).and_then(Value::as_bool);
    let turn = match (flag("continue_final_message"), flag("add_generation_prompt")) {
        (Some(true), _) => Turn::Continue,
        (_, Some(false)) => Turn::None,
        _ => Turn::Answer,
    };
    let tools = body.get("tools").filter(|tools| tools.as_array().is_some_and(|list| !list.is_empty()));
    let prompt = ChatPrompt {
        messages: &Value::Array(messages?),
        tools: tools.unwrap_or(&Value::Null),
        documents: body.get("documents").unwrap_or(&Value::Null),
        kwargs: body.get("chat_template_kwargs").and_then(Value::as_object).unwrap_or(&none),
        turn,
        unix_ms,
    };
    Some(prompter.prompt_of(&prompt))
}

/// A message as templates take it: its content one text.
fn plain(message: &Value, knows_developer: bool) -> Option<Value> {
    let mut plain = message.as_object()?.clone();
    if plain.get("role")? == "developer" && !knows_developer {
        plain.insert("role".into(), "system".into());
    }
    let content = match plain.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(_)) => return Some(Value::Object(plain)),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| part.get("text")?.as_str().map(str::to_owned);
            parts.iter().map(text).collect::<Option<Vec<_>>>()?.join("\n")
        }
        Some(_) => return None,
    };
    plain.insert("content".into(), content.into());
    Some(Value::Object(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_are_joined_and_pictures_are_not_named() {
        let of = |message: Value| plain(&message, false);
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_eq!(
            of(json!({"role": "user", "content": parts})),
            Some(json!({"role": "user", "content": "a\nb"}))
        );
        assert_eq!(of(json!({"role": "developer", "content": "x"})).unwrap()["role"], "system");
        assert_eq!(of(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})), None);
        assert_eq!(of(json!({"content": "x"})), None);
    }
}
