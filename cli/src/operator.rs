//! How the commands for operators reach their server: the address, an operator's key, and a hint for
//! whoever came with another.

use hyper::Method;
use serde_json::Value;

use crate::failure::Failure;
use crate::http::{Connection, Endpoint};

/// As typed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct OperatorArgs {
    /// The server
    #[arg(long, env = "QUIRE_URL", hide_env_values = true, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Key that may operate the server: one of its --admin-key, or of its --api-key if it has none
    #[arg(long, value_name = "KEY", env = "QUIRE_ADMIN_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

impl OperatorArgs {
    /// Asks the server once and reads the whole answer.
    pub fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failure> {
        let endpoint = Endpoint::parse(&self.url, self.api_key.clone())?;
        let runtime = runtime::api::runtime()?;
        let answer =
            runtime.block_on(async { Connection::open(&endpoint).await?.json(method, path, body).await });
        answer.map_err(hinted)
    }
}

/// A key that only asks for answers is the usual mistake; name the flag that takes the other.
fn hinted(failure: Failure) -> Failure {
    let is_key = failure.message.ends_with("(401)") || failure.message.ends_with("(403)");
    match is_key {
        true => failure.hint("give an operator's key with --api-key or QUIRE_ADMIN_KEY"),
        false => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_key_is_told_which_key_to_give() {
        let refused = |code: u16| hinted(Failure::failed(format!("the server refused: no ({code})"))).hint;
        assert!(refused(401).is_some() && refused(403).is_some());
        assert_eq!(refused(400), None);
    }
}
