//! The demo model says a few words: loading, kernels, scheduler, text and HTTP in one line.

use std::sync::Arc;

use base::{Clock, SystemClock};
use hyper::Method;
use serde_json::json;

use super::Check;
use crate::demo;
use crate::failure::Failure;
use crate::http::Connection;
use crate::launch::{Launch, in_process};

const NAME: &str = "model";
const TOKENS: u64 = 8;
const TODO: &str = "run `quire up --log-level debug` to see why";

pub fn check() -> Check {
    if demo::files().is_none() {
        return Check::warn(NAME, "this build has no demo model", "build from a complete source tree");
    }
    match attempt() {
        Ok(found) => Check::ok(NAME, found),
        Err(failure) => Check::fail(NAME, failure.message, failure.hint.unwrap_or_else(|| TODO.into())),
    }
}

fn attempt() -> Result<String, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let start = clock.now();
    let runtime = runtime::api::runtime()?;
    runtime.block_on(async {
        let endpoint = in_process(&Launch::demo()?, &clock, &mut std::io::sink()).await?;
        let ready = clock.now().since(start);
        let mut connection = Connection::open(&endpoint).await?;
        let request = json!({
            "model": demo::NAME, "prompt": "A page is", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true,
        });
        let asked = clock.now();
        let answer = connection.json(Method::POST, "/v1/completions", &request).await?;
        let took = clock.now().since(asked).as_secs_f64();
        match answer["usage"]["completion_tokens"].as_u64() {
            Some(TOKENS) => Ok(format!(
                "the demo model was ready in {} ms and wrote {TOKENS} tokens in {:.0} ms",
                ready.as_millis(),
                took * 1e3
            )),
            other => Err(Failure::failed(format!("the demo model wrote {other:?} tokens instead of {TOKENS}"))),
        }
    })
}
