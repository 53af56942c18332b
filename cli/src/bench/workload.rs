//! What is sent: prompts as token ids, each a function of (seed, index) alone, so that request 17 is the
//! same request whatever the concurrency.

use std::fmt::Write;

use base::SplitMix;
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::{BenchArgs, Dataset};
use crate::failure::Failure;
use crate::http::{Connection, Endpoint};

/// Text whose tokens are drawn from when the size of the vocabulary is not known.
const PASSAGE: &str = "A quire is a gathering of pages. The server keeps the pages of keys and values that \
    it has computed, in a tree of prefixes, and what a prompt shares with an earlier one is not computed \
    again. Requests wait in a bounded queue; each step takes the tokens that fit, the oldest first, and a \
    long prompt is cut into pieces so that short answers go on. 0123456789 (a+b)*c = d; x < y, \"z\"?";
const PREFIX_DEFAULT: u32 = 2000;
/// Spread of log-normal lengths, near that of published chat logs.
const SIGMA: f64 = 0.9;
/// Stream numbers that keep a request's draws apart from a prefix's.
const PREFIX_STREAM: u64 = 1 << 40;

/// Everything that a request's body is made from.
pub struct Workload {
    pub model: String,
    seed: u64,
    dataset: Dataset,
    alphabet: Vec<u32>,
    input_len: u32,
    output_len: u32,
    pub prefix_len: u32,
    pub streams: bool,
    prefixes: Vec<Vec<u32>>,
    /// The members after the prompt, the same in every body.
    options: String,
}

impl Workload {
    /// Asks the server for what the arguments leave open.
    pub async fn prepare(args: &BenchArgs, endpoint: &Endpoint) -> Result<Self, Failure> {
        let mut connection = Connection::open(endpoint).await?;
        let model = match &args.model {
            Some(model) => model.clone(),
            None => first_model(&mut connection).await?,
        };
        let alphabet = match args.vocab_size {
            Some(size) => (0..size).collect(),
            None => known_tokens(&mut connection, &model).await?,
        };
        Ok(Self::new(args, model, alphabet))
    }

    pub fn new(args: &BenchArgs, model: String, alphabet: Vec<u32>) -> Self {
        let prefix_len = match (args.prefix_len, args.dataset) {
            (Some(len), _) => len,
            (None, Dataset::Prefix) => PREFIX_DEFAULT,
            (None, _) => 0,
        };
        let mut options = json!({
            "model": model, "temperature": args.temperature, "seed": args.seed, "stream": args.stream,
        });
        if args.stream {
            options["stream_options"] = json!({"include_usage": true});
        }
        if args.ignore_eos {
            options["ignore_eos"] = true.into();
        }
        let options = options.to_string()[1..].to_owned();
        let mut workload = Self {
            model,
            seed: args.seed,
            dataset: args.dataset,
            alphabet,
            input_len: args.input_len,
            output_len: args.output_len,
            prefix_len,
            streams: args.stream,
            prefixes: Vec::new(),
            options,
        };
        let groups = if prefix_len == 0 { 0 } else { u64::from(args.prefix_groups) };
        workload.prefixes = (0..groups).map(|g| workload.draw(PREFIX_STREAM + g, prefix_len)).collect();
        workload
    }

    /// The body of request `index`.
    pub fn body(&self, index: u64) -> Bytes {
        let (input, output) = self.lengths(index);
        let mut body = String::with_capacity(64 + 7 * (input + self.prefix_len) as usize);
        body.push_str("{\"prompt\":[");
        let groups = self.prefixes.len() as u64;
        if groups > 0 {
            push_ids(&mut body, &self.prefixes[(index % groups) as usize]);
        }
        push_ids(&mut body, &self.draw(index, input));
        body.pop();
        write!(body, "],\"max_tokens\":{output},{}", self.options).expect("writing to a string");
        Bytes::from(body)
    }

    fn lengths(&self, index: u64) -> (u32, u32) {
        if self.dataset != Dataset::SharegptLike {
            return (self.input_len, self.output_len);
        }
        let mut rng = self.rng(index ^ (1 << 50));
        let mut around = |median: u32| {
            let drawn = f64::from(median) * (SIGMA * rng.normal()).exp();
            drawn.clamp(4.0, 8.0 * f64::from(median)) as u32
        };
        (around(self.input_len), around(self.output_len))
    }

    fn draw(&self, stream: u64, count: u32) -> Vec<u32> {
        let mut rng = self.rng(stream);
        (0..count).map(|_| self.alphabet[rng.below(self.alphabet.len() as u64) as usize]).collect()
    }

    fn rng(&self, stream: u64) -> SplitMix {
        SplitMix::new(SplitMix::new(self.seed).next_u64() ^ SplitMix::new(stream).next_u64())
    }
}

fn push_ids(body: &mut String, ids: &[u32]) {
    for id in ids {
        write!(body, "{id},").expect("writing to a string");
    }
}

async fn first_model(connection: &mut Connection) -> Result<String, Failure> {
    let models = connection.json(Method::GET, "/v1/models", &Value::Null).await?;
    let first = models["data"][0]["id"].as_str();
    first
        .map(str::to_owned)
        .ok_or_else(|| Failure::failed("the server lists no model").hint("name one with --model"))
}

/// Ids that are surely in the vocabulary: those of a passage of text.
async fn known_tokens(connection: &mut Connection, model: &str) -> Result<Vec<u32>, Failure> {
    let request = json!({"model": model, "prompt": PASSAGE, "add_special_tokens": false});
    let hint = "say --vocab-size N instead";
    let answer = connection.json(Method::POST, "/tokenize", &request).await.map_err(|e| e.hint(hint))?;
    let ids = answer["tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut ids: Vec<u32> = ids.iter().filter_map(|id| id.as_u64().map(|id| id as u32)).collect();
    ids.sort_unstable();
    ids.dedup();
    match ids.len() {
        0 | 1 => Err(Failure::failed("/tokenize gave no tokens").hint(hint)),
        _ => Ok(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn workload(args: &[&str]) -> Workload {
        let args = Only::try_parse_from([&["t"], args].concat()).unwrap().args;
        Workload::new(&args, "m".into(), (0..100).collect())
    }

    fn prompt(workload: &Workload, index: u64) -> Vec<u64> {
        let body: Value = serde_json::from_slice(&workload.body(index)).unwrap();
        body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    }

    #[test]
    fn a_body_is_json_with_exact_lengths() {
        let body: Value = serde_json::from_slice(
            &workload(&["--input-len", "5", "--output-len", "7", "--ignore-eos"]).body(3),
        )
        .unwrap();
        assert_eq!(body["prompt"].as_array().unwrap().len(), 5);
        assert_eq!(body["max_tokens"], 7);
        assert_eq!(body["ignore_eos"], true);
        assert_eq!(body["stream_options"]["include_usage"], true);
        let plain: Value = serde_json::from_slice(&workload(&["--stream=false"]).body(0)).unwrap();
        assert_eq!((&plain["stream"], plain.get("stream_options")), (&json!(false), None));
    }

    #[test]
    fn a_request_is_a_function_of_seed_and_index() {
        let (a, b, other) = (workload(&[]), workload(&["--concurrency", "3"]), workload(&["--seed", "1"]));
        assert_eq!(a.body(9), b.body(9));
        assert_ne!(a.body(9), a.body(10));
        assert_ne!(prompt(&a, 9), prompt(&other, 9));
    }

    #[test]
    fn groups_share_their_prefix_and_nothing_else() {
        let w = workload(&["--prefix-len", "10", "--prefix-groups", "2", "--input-len", "8"]);
        let p: Vec<_> = (0..4).map(|i| prompt(&w, i)).collect();
        assert_eq!(p[0][..10], p[2][..10]);
        assert_eq!(p[1][..10], p[3][..10]);
        assert_ne!(p[0][..10], p[1][..10]);
        assert_ne!(p[0][10..], p[2][10..]);
    }

    #[test]
    fn chat_like_lengths_vary_around_the_median() {
        let w = workload(&["--dataset", "sharegpt-like", "--input-len", "100", "--output-len", "50"]);
        let mut lengths: Vec<u32> = (0..1001).map(|i| w.lengths(i).0).collect();
        lengths.sort_unstable();
        assert!((80..125).contains(&lengths[500]), "median {}", lengths[500]);
        assert!(lengths[1000] > 300 && lengths[0] < 40);
    }
}
