//! Sends the workload over as many connections as requests are in flight.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Clock, Nanos, SplitMix};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use tokio::task::JoinSet;

use super::BenchArgs;
use super::tally::{Answer, Outcome, Tally};
use super::workload::Workload;
use crate::failure::{Exit, Failure};
use crate::http::{Connection, Endpoint, read_all};
use crate::sse::{Member, Scanner};

const PATH: &str = "/v1/completions";

/// Runs warm-up and measurement; the tasks live on the current `LocalSet`.
pub async fn drive(
    args: &BenchArgs,
    endpoint: &Endpoint,
    workload: &Rc<Workload>,
    clock: &Arc<dyn Clock>,
) -> Result<Outcome, Failure> {
    let driver = Rc::new(Driver {
        endpoint: endpoint.clone(),
        clock: Arc::clone(clock),
        workload: Rc::clone(workload),
        idle: RefCell::default(),
        tally: RefCell::new(Tally::new(0)),
    });
    // Indices after the measured ones: a warm-up must not put the measured prompts into the cache.
    let (first, count) = (u64::from(args.requests), u64::from(args.warmup));
    closed_loop(&driver, first..first + count, args.concurrency).await;
    driver.tally.replace(Tally::new(args.requests as usize));
    let requests = 0..u64::from(args.requests);
    let start = clock.now();
    match args.rate {
        None => closed_loop(&driver, requests, args.concurrency).await,
        Some(rate) => open_loop(&driver, args, rate).await,
    }
    let took = clock.now().since(start);
    Ok(driver.tally.replace(Tally::new(0)).finish(took))
}

/// `concurrency` workers, each sending its next request when its last is answered.
async fn closed_loop(driver: &Rc<Driver>, requests: std::ops::Range<u64>, concurrency: u32) {
    let next = Rc::new(Cell::new(requests.start));
    let mut workers = JoinSet::new();
    for _ in 0..u64::from(concurrency).min(requests.end - requests.start) {
        let (driver, next, end) = (Rc::clone(driver), Rc::clone(&next), requests.end);
        workers.spawn_local(async move {
            while next.get() < end {
                let index = next.replace(next.get() + 1);
                driver.request(index).await;
            }
        });
    }
    workers.join_all().await;
}

/// Requests at exponentially distributed intervals. Beyond `--concurrency` in flight they wait in the
/// generator, and the report says how many did.
async fn open_loop(driver: &Rc<Driver>, args: &BenchArgs, rate: f64) {
    let mut rng = SplitMix::new(args.seed ^ 0xa55a);
    let start = driver.clock.now();
    let mut due = 0.0;
    let mut flying = JoinSet::new();
    for index in 0..u64::from(args.requests) {
        due -= (1.0 - rng.unit()).ln() / rate;
        let wait = Duration::from_secs_f64(due).saturating_sub(driver.clock.now().since(start));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        while flying.try_join_next().is_some() {}
        if flying.len() >= args.concurrency as usize {
            driver.tally.borrow_mut().held_back += 1;
            flying.join_next().await;
        }
        let driver = Rc::clone(driver);
        flying.spawn_local(async move { driver.request(index).await });
    }
    flying.join_all().await;
}

struct Driver {
    endpoint: Endpoint,
    clock: Arc<dyn Clock>,
    workload: Rc<Workload>,
    /// Open and unused; never more than were in flight at once.
    idle: RefCell<Vec<Connection>>,
    tally: RefCell<Tally>,
}

impl Driver {
    async fn request(&self, index: u64) {
        let body = self.workload.body(index);
        let start = self.clock.now();
        let answer = self.exchange(body, start).await;
        let end = self.clock.now();
        self.tally.borrow_mut().record(index as usize, answer, end.since(start));
    }

    async fn exchange(&self, body: Bytes, start: Nanos) -> Result<Answer, String> {
        let mut connection = self.connection().await?;
        let answer = connection.send(Method::POST, PATH, body).await.map_err(|e| kind(&e))?;
        if !answer.status().is_success() {
            let status = answer.status().as_u16();
            let body = read_all(answer).await.unwrap_or_default();
            self.idle.borrow_mut().push(connection);
            return Err(refused(status, &body));
        }
        let read = match self.workload.streams {
            true => self.read_stream(answer, start).await?,
            false => read_whole(answer).await?,
        };
        self.idle.borrow_mut().push(connection);
        Ok(read)
    }

    async fn connection(&self) -> Result<Connection, String> {
        loop {
            let Some(mut idle) = self.idle.borrow_mut().pop() else { break };
            if idle.is_usable().await {
                return Ok(idle);
            }
        }
        let opened = Connection::open(&self.endpoint).await;
        opened.map_err(|e| if e.exit == Exit::Unreachable { "connect".into() } else { e.message })
    }

    async fn read_stream(&self, answer: Response<Incoming>, start: Nanos) -> Result<Answer, String> {
        let mut body = answer.into_body();
        let mut stream = Stream::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| kind(&e))?;
            let Some(data) = frame.data_ref() else { continue };
            let chunks = stream.feed(data)?;
            if chunks > 0 {
                let now = self.clock.now();
                self.tally.borrow_mut().chunks(start, stream.last, now, chunks);
                stream.answer.first.get_or_insert(now.since(start));
                stream.last = Some(now);
            }
        }
        match stream.done {
            true => Ok(stream.answer),
            false => Err("stream cut".into()),
        }
    }
}

/// One streamed answer on its way in.
struct Stream {
    scanner: Scanner,
    text: Member,
    answer: Answer,
    last: Option<Nanos>,
    done: bool,
    failed: Option<String>,
}

impl Stream {
    fn new() -> Self {
        Self {
            scanner: Scanner::default(),
            text: Member::new(b"\"text\":\""),
            answer: Answer::default(),
            last: None,
            done: false,
            failed: None,
        }
    }

    /// Takes some bytes; the number of chunks with text in them.
    fn feed(&mut self, data: &[u8]) -> Result<u64, String> {
        let mut chunks = 0;
        let Self { scanner, text, answer, done, failed, .. } = self;
        let fits = scanner.feed(data, |payload| match text.find(payload) {
            Some([]) => {}
            Some(found) => {
                chunks += 1;
                answer.hash_text(found);
            }
            None if payload == b"[DONE]" => *done = true,
            None if payload.starts_with(b"{\"error\"") => *failed = Some("error event".into()),
            None => answer.read_usage(payload),
        });
        match (fits, self.failed.take()) {
            (_, Some(kind)) => Err(kind),
            (false, None) => Err("event too long".into()),
            (true, None) => Ok(chunks),
        }
    }
}

async fn read_whole(answer: Response<Incoming>) -> Result<Answer, String> {
    let bytes = read_all(answer).await.map_err(|_| "answer cut".to_owned())?;
    let mut answer = Answer::default();
    let text = Member::new(b"\"text\":\"").find(&bytes).ok_or("answer without text")?;
    answer.hash_text(text);
    answer.read_usage(&bytes);
    Ok(answer)
}

fn kind(error: &hyper::Error) -> String {
    match error {
        e if e.is_incomplete_message() || e.is_closed() => "connection closed".into(),
        e if e.is_timeout() => "timeout".into(),
        e => format!("http: {e}"),
    }
}

fn refused(status: u16, body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match json["error"]["code"].as_str().or(json["error"]["type"].as_str()) {
        Some(code) => format!("{status} {code}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKS: &str = concat!(
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"He\"}],\"usage\":null}\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"llo\"}],\"usage\":null}\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,",
        "\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n",
        "data: [DONE]\n\n"
    );

    #[test]
    fn a_stream_gives_chunks_usage_and_a_hash_that_ignores_cuts() {
        let mut stream = Stream::new();
        assert_eq!(stream.feed(CHUNKS.as_bytes()), Ok(2));
        assert!(stream.done);
        let a = &stream.answer;
        assert_eq!((a.prompt_tokens, a.cached_tokens, a.output_tokens), (9, 8, 2));
        let mut whole = Answer::default();
        whole.hash_text(b"Hello");
        assert_eq!(a.hash, whole.hash);
    }

    #[test]
    fn an_error_inside_a_stream_is_an_error() {
        let event = b"data: {\"error\":{\"message\":\"the engine failed\"}}\n\n";
        assert_eq!(Stream::new().feed(event), Err("error event".into()));
    }

    #[test]
    fn refusals_are_counted_by_status_and_code() {
        assert_eq!(refused(429, br#"{"error":{"code":"overloaded"}}"#), "429 overloaded");
        assert_eq!(refused(502, b"<html>"), "502");
    }
}
