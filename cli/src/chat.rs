//! `quire chat`: a conversation in the terminal, over the same API that everybody else uses.
//!
//! Answers go to standard output, everything else to standard error, so that it works in a pipe.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::{Clock, SystemClock};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::http::{Connection, Endpoint, read_all, refusal};
use crate::launch::{Launch, in_process};
use crate::sse::Scanner;

pub const EXAMPLES: &str = "\
Examples:
  quire chat
  quire chat -m \"What is a page?\"
  quire chat ./Qwen2.5-0.5B-Instruct --system \"Answer in one sentence.\"
  echo \"What is a lease?\" | quire chat --url http://10.0.0.7:8000

In the conversation: /reset forgets it, /quit ends it.";

/// As typed.
#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    /// Serve this model folder or .gguf file while the conversation lasts, instead of asking a server
    #[arg(value_name = "MODEL")]
    pub files: Option<PathBuf>,
    /// The server
    #[arg(long, env = "QUIRE_URL", hide_env_values = true, default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    /// Key of the server
    #[arg(long, value_name = "KEY", env = "QUIRE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Ask this, print the answer, and end
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Sampling temperature [default: the model's]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Most tokens of an answer [default: what fits]
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<u32>,
}

/// Finds whom to talk to, and talks.
pub fn start(args: &ChatArgs) -> Result<(), Failure> {
    let runtime = runtime::api::runtime()?;
    runtime.block_on(async {
        let endpoint = match &args.files {
            None => Endpoint::parse(&args.url, args.api_key.clone())?,
            Some(path) => {
                let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
                in_process(&Launch::of(path)?, &clock, &mut std::io::stderr()).await?
            }
        };
        run(args, endpoint).await
    })
}

/// Asks `endpoint` until the user has had enough.
async fn run(args: &ChatArgs, endpoint: Endpoint) -> Result<(), Failure> {
    let mut connection = Connection::open(&endpoint).await?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let models = connection.json(Method::GET, "/v1/models", &Value::Null).await?;
            models["data"][0]["id"].as_str().unwrap_or_default().to_owned()
        }
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut chat = Chat { args, endpoint, connection, model, clock, turns: Vec::new() };
    chat.reset();
    match &args.message {
        Some(message) => chat.say(message).await,
        None => chat.converse().await,
    }
}

/// What a line of input asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    Reset,
    Quit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        match line.trim() {
            "" => Line::Nothing,
            "/reset" => Line::Reset,
            "/quit" | "/exit" | "/bye" => Line::Quit,
            // A message may begin with a slash, such as a path: only a lone word is a command.
            other if other.starts_with('/') && !other[1..].contains(['/', ' ']) => Line::Unknown(other),
            other => Line::Say(other),
        }
    }
}

struct Chat<'a> {
    args: &'a ChatArgs,
    endpoint: Endpoint,
    connection: Connection,
    model: String,
    clock: Arc<dyn Clock>,
    turns: Vec<Value>,
}

impl Chat<'_> {
    fn reset(&mut self) {
        self.turns.clear();
        self.turns.extend(self.args.system.iter().map(|text| json!({"role": "system", "content": text})));
    }

    async fn converse(&mut self) -> Result<(), Failure> {
        let typed = std::io::stdin().is_terminal();
        if typed {
            note(&format!("{} at {}; /reset forgets, /quit ends", self.model, self.endpoint.url()));
        }
        loop {
            if typed {
                eprint!("> ");
            }
            let mut line = String::new();
            // Reading blocks this thread; nothing else runs on it between two answers.
            if std::io::stdin().lock().read_line(&mut line)? == 0 {
                return Ok(());
            }
            match Line::parse(&line) {
                Line::Nothing => {}
                Line::Quit => return Ok(()),
                Line::Reset => {
                    self.reset();
                    note("forgotten");
                }
                Line::Unknown(word) => note(&format!("{word} is not known; /reset and /quit are")),
                Line::Say(text) => match self.say(text).await {
                    // A person can go on after a refusal; a script must not.
                    Err(failure) if typed => eprintln!("{failure}"),
                    result => result?,
                },
            }
        }
    }

    async fn say(&mut self, text: &str) -> Result<(), Failure> {
        if !self.connection.is_usable().await {
            self.connection = Connection::open(&self.endpoint).await?;
        }
        self.turns.push(json!({"role": "user", "content": text}));
        let answer = self.ask().await;
        match &answer {
            Ok(answer) => self.turns.push(json!({"role": "assistant", "content": answer.text})),
            Err(_) => drop(self.turns.pop()),
        }
        note(&answer?.summary());
        Ok(())
    }

    async fn ask(&mut self) -> Result<Answer, Failure> {
        let start = self.clock.now();
        let body = Bytes::from(self.body().to_string());
        let response = self
            .connection
            .send(Method::POST, "/v1/chat/completions", body)
            .await
            .map_err(|e| Failure::failed(format!("the connection broke: {e}")))?;
        let status = response.status();
        if !status.is_success() {
            let body = read_all(response).await.unwrap_or_default();
            return Err(refusal(status, &body));
        }
        let mut body = response.into_body();
        let (mut scanner, mut answer) = (Scanner::default(), Answer::default());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Failure::failed(format!("the answer broke off: {e}")))?;
            let mut events = Vec::new();
            scanner.feed(frame.data_ref().unwrap_or(&Bytes::new()), |payload| events.push(payload.to_vec()));
            for event in events {
                answer.take(&event, self.clock.now().since(start))?;
            }
        }
        answer.took = self.clock.now().since(start);
        if !answer.text.ends_with('\n') {
            println!();
        }
        Ok(answer)
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "model": self.model, "messages": self.turns, "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(temperature) = self.args.temperature {
            body["temperature"] = temperature.into();
        }
        if let Some(tokens) = self.args.max_tokens {
            body["max_tokens"] = tokens.into();
        }
        body
    }
}

/// An answer on its way in.
#[derive(Debug, Default)]
struct Answer {
    text: String,
    first: Option<Duration>,
    took: Duration,
    usage: Value,
    cut: bool,
}

impl Answer {
    /// Takes one event, and prints the text in it.
    fn take(&mut self, payload: &[u8], at: Duration) -> Result<(), Failure> {
        let event: Value = serde_json::from_slice(payload).unwrap_or_default();
        if let Some(message) = event["error"]["message"].as_str() {
            println!();
            return Err(Failure::failed(format!("the server gave up: {message}")));
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str().filter(|t| !t.is_empty()) {
            self.first.get_or_insert(at);
            self.text += text;
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        self.cut |= event["choices"][0]["finish_reason"] == "length";
        if event["usage"].is_object() {
            self.usage = event["usage"].clone();
        }
        Ok(())
    }

    fn summary(&self) -> String {
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let tokens = count(&self.usage["completion_tokens"]);
        let prompt = count(&self.usage["prompt_tokens"]);
        let cached = count(&self.usage["prompt_tokens_details"]["cached_tokens"]);
        let first = self.first.unwrap_or(self.took);
        let mut line = format!(
            "{tokens} tokens, {cached} of {prompt} prompt tokens cached, first token {:.0} ms",
            first.as_secs_f64() * 1e3
        );
        let rest = self.took.saturating_sub(first).as_secs_f64();
        if tokens > 1 && rest > 0.0 {
            line += &format!(", {:.1} tok/s", (tokens - 1) as f64 / rest);
        }
        if self.cut {
            line += ", cut at the token limit";
        }
        line
    }
}

/// A dim line beside the conversation.
fn note(text: &str) {
    match std::io::stderr().is_terminal() {
        true => eprintln!("\x1b[2m{text}\x1b[0m"),
        false => eprintln!("{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_lone_slash_word_is_a_command_and_a_path_is_not() {
        assert_eq!(Line::parse(" /reset\n"), Line::Reset);
        assert_eq!(Line::parse("/quit"), Line::Quit);
        assert_eq!(Line::parse("/rset"), Line::Unknown("/rset"));
        assert_eq!(Line::parse("/etc/hosts is what?"), Line::Say("/etc/hosts is what?"));
        assert_eq!(Line::parse("\n"), Line::Nothing);
    }

    #[test]
    fn the_line_after_an_answer_tells_what_it_cost() {
        let answer = Answer {
            first: Some(Duration::from_millis(40)),
            took: Duration::from_millis(1040),
            usage: json!({"completion_tokens": 51, "prompt_tokens": 70,
                          "prompt_tokens_details": {"cached_tokens": 64}}),
            ..Answer::default()
        };
        expect!["51 tokens, 64 of 70 prompt tokens cached, first token 40 ms, 50.0 tok/s"]
            .assert_eq(&answer.summary());
        expect!["0 tokens, 0 of 0 prompt tokens cached, first token 0 ms"]
            .assert_eq(&Answer::default().summary());
    }
}
