//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use serde_json::{Value, json};

use crate::api::app::{App, Replica};
use crate::api::chat;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, Flag};
use crate::api::params::token_id;
use crate::text::{AddSpecials, Specials};

/// Text or messages to token ids.
pub(crate) fn tokenize(app: &App, replica: &Replica, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::root(body)?;
    app.model(&fields)?;
    let (text, default) = match (fields.string("prompt")?, fields.get("messages")) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("prompt", "give either `prompt` or `messages`, not both"));
        }
        (Some(prompt), None) => (prompt.to_owned(), Flag::On),
        (None, Some(_)) => (chat::prompt(&replica.text, &fields, app.clock().unix_ms())?, Flag::Off),
        (None, None) => return Err(ApiError::invalid("prompt", "`prompt` or `messages` is required")),
    };
    let add = fields.flag("add_special_tokens", default)?;
    let specials = if add.is_on() { AddSpecials::Yes } else { AddSpecials::No };
    let tokens = replica.text.encode(&text, specials)?;
    let strings = fields.flag("return_token_strs", Flag::Off)?.is_on().then(|| {
        let spell = |id: &u32| String::from_utf8_lossy(replica.text.token_bytes(*id)).into_owned();
        tokens.iter().map(spell).collect::<Vec<_>>()
    });
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": replica.context(),
        "tokens": tokens,
        "token_strs": strings,
    }))
}

/// Token ids to text.
pub(crate) fn detokenize(app: &App, replica: &Replica, body: &Value) -> Result<Value, ApiError> {
    let fields = Fields::root(body)?;
    app.model(&fields)?;
    let list = fields.array("tokens")?;
    let list = list.ok_or_else(|| ApiError::invalid("tokens", "`tokens` is required"))?;
    let read = |(at, value): (usize, &Value)| token_id(value, &format!("tokens[{at}]"), replica.vocab());
    let tokens = list.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({"prompt": replica.text.decode(&tokens, Specials::Show)}))
}
