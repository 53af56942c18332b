//! The server's life: the port, ready, an answer, a drain; and every way not to get there.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::binary::{Server, quire, request, run, stderr, stdout};

fn sim() -> Server {
    Server::start(&["serve", "--executor", "sim"])
}

fn question() -> Value {
    json!({"model": "quire-demo", "messages": [{"role": "user", "content": "What is a page, and how does the prefix cache use pages?"}],
           "max_tokens": 12, "temperature": 0})
}

#[test]
fn up_answers_reports_its_cache_and_ends_with_0() {
    let server = Server::start(&["up"]);
    assert!(server.said[0].starts_with(concat!("quire ", env!("CARGO_PKG_VERSION"))), "{:?}", server.said);
    for part in ["memory:", "weights", "KV pages", "headroom", "quire chat", "curl"] {
        assert!(server.said.iter().any(|line| line.contains(part)), "{part}: {:?}", server.said);
    }
    assert_eq!(server.get("/health").0, 200);
    let (status, first) = server.post("/v1/chat/completions", &question());
    assert_eq!(status, 200, "{first}");
    let (_, again) = server.post("/v1/chat/completions", &question());
    assert_eq!(first["choices"][0]["message"], again["choices"][0]["message"], "hit and miss agree");
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{again}");
    server.signal("TERM");
    let (code, rest) = server.wait();
    assert_eq!(code, 0, "{rest}");
    assert!(rest.contains("SIGTERM: no new requests") && rest.contains("none cut"), "{rest}");
}

#[test]
fn a_running_answer_is_finished_before_the_server_ends() {
    let server = sim();
    let body =
        json!({"model": "sim", "prompt": [1, 2, 3], "max_tokens": 5000, "ignore_eos": true, "stream": true});
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(request("/v1/completions", &body).as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line.starts_with("data: ")), "the answer has begun");
    server.signal("INT");
    assert!(lines.any(|line| line == "data: [DONE]"), "the whole answer came");
    let (code, rest) = server.wait();
    assert_eq!((code, rest.contains("SIGINT")), (0, true), "{rest}");
}

#[test]
fn while_it_loads_the_port_answers_503_and_a_signal_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    // Reading a pipe that nobody writes to is loading that does not end.
    let pipe = dir.path().join("tokenizer.json");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let server = Server::start_loading(&["serve", dir.path().to_str().unwrap()]);
    assert_eq!(server.get("/health").0, 503);
    assert_eq!(server.get("/livez").0, 200);
    assert_eq!(server.post("/v1/chat/completions", &question()).0, 503);
    server.signal("TERM");
    let (code, rest) = server.wait();
    assert_eq!((code, rest.as_str()), (0, "SIGTERM while loading: stopped\n"));
}

/// Opens an answer so large that it cannot end while nobody reads it.
fn unread_answer(server: &Server) -> TcpStream {
    let body = json!({"model": "sim", "prompt": [1], "max_tokens": 32_000, "ignore_eos": true, "stream": true,
                      "logprobs": 20});
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(request("/v1/completions", &body).as_bytes()).unwrap();
    let mut first = [0];
    std::io::Read::read_exact(&mut stream, &mut first).unwrap();
    stream
}

#[test]
fn an_answer_past_the_deadline_is_cut_and_the_code_says_so() {
    let server = Server::start(&["serve", "--executor", "sim", "--shutdown-timeout", "0"]);
    let _open = unread_answer(&server);
    server.signal("TERM");
    assert_eq!(server.wait().0, 6);
}

#[test]
fn a_second_signal_stops_now() {
    let mut server = Server::start(&["serve", "--executor", "sim", "--shutdown-timeout", "600"]);
    let _open = unread_answer(&server);
    server.signal("TERM");
    assert!(server.line().starts_with("SIGTERM: no new requests"));
    server.signal("TERM");
    assert_eq!(server.wait().0, 6);
}

/// Shows exit code and standard error, with what differs between machines replaced.
pub fn refused(output: &Output, replace: &[(&str, &str)], expect: Expect) {
    let mut shown = format!("code {}\n{}", output.status.code().unwrap(), stderr(output));
    for (from, to) in replace {
        shown = shown.replace(from, to);
    }
    expect.assert_eq(&shown);
}

#[test]
fn a_port_in_use_is_said_before_anything_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["serve", "/no/such/model", "--port", &port]);
    refused(
        &output,
        &[(&port, "PORT")],
        expect![[r#"
        code 4
        error: cannot listen on 127.0.0.1:PORT: address already in use
        hint: another process has this port; choose one with --port, or --port 0 for a free one
    "#]],
    );
}

/// Copies the demo model, breaks it, and tries to serve it.
fn serve_broken(break_it: impl Fn(&Path), expect: Expect) {
    let dir = tempfile::tempdir().unwrap();
    let demo = crate::binary::root().join("assets/demo");
    for entry in std::fs::read_dir(demo).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    break_it(dir.path());
    let output = run(&[
        "serve",
        dir.path().to_str().unwrap(),
        "--port",
        "0",
        "--kv-pages",
        "64",
        "--log-level",
        "off",
    ]);
    assert!(!stdout(&output).contains("ready: "));
    refused(&output, &[(dir.path().to_str().unwrap(), "DIR")], expect);
}

fn edit_config(dir: &Path, edit: impl Fn(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_missing_model_is_one_clear_error() {
    let output = run(&["serve", "/no/such/model", "--port", "0", "--log-level", "off"]);
    refused(
        &output,
        &[],
        expect![[r#"
        code 3
        error: no model at /no/such/model: no such file or directory
        hint: MODEL is a folder with config.json, tokenizer.json and *.safetensors, or a .gguf file
    "#]],
    );
}

#[test]
fn truncated_weights_are_one_clear_error() {
    serve_broken(
        |dir| {
            let file = std::fs::OpenOptions::new().write(true).open(dir.join("model.safetensors")).unwrap();
            file.set_len(100_000).unwrap();
        },
        expect![[r#"
            code 3
            error: DIR/model.safetensors is damaged: its safetensors header does not fit the file (incomplete metadata, file not fully covered)
            hint: fetch the model's files again
        "#]],
    );
}

#[test]
fn an_unsupported_architecture_is_one_clear_error() {
    serve_broken(
        |dir| {
            edit_config(dir, |config| {
                config["model_type"] = "mamba".into();
                config["architectures"] = json!(["MambaForCausalLM"]);
            })
        },
        expect![[r#"
            code 3
            error: architecture MambaForCausalLM is not supported; supported are LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, SmolLM3ForCausalLM
        "#]],
    );
}

#[test]
fn a_tokenizer_of_another_model_is_one_clear_error() {
    serve_broken(
        |dir| edit_config(dir, |config| config["vocab_size"] = 300.into()),
        expect![[r#"
        code 3
        error: the tokenizer does not fit the model: it knows token 1535, the model's vocab_size is 300
    "#]],
    );
}

#[test]
fn chat_answers_and_says_what_it_cost() {
    let server = Server::start(&["up"]);
    let output = run(&["chat", "--url", &server.url, "-m", "What is a page?", "--max-tokens", "8"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!stdout(&output).trim().is_empty());
    assert!(stderr(&output).contains("prompt tokens cached, first token"), "{}", stderr(&output));
}

#[test]
fn chat_takes_its_turns_from_a_pipe() {
    let server = sim();
    let mut chat = quire(&["chat", "--url", &server.url, "--max-tokens", "4"]);
    let mut chat = chat.stdin(std::process::Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"one\n/reset\ntwo\n/quit\nnever\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("prompt tokens cached").count(), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("forgotten"));
}

#[test]
fn chat_without_a_server_says_how_to_start_one() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = run(&["chat", "--url", &format!("http://{free}"), "-m", "hi"]);
    refused(
        &output,
        &[(&free, "ADDRESS")],
        expect![[r#"
        code 5
        error: no answer from http://ADDRESS: connection refused
        hint: start a server with `quire` in another terminal, or name one with --url
    "#]],
    );
}

#[test]
fn bench_reports_the_same_hash_for_the_same_seed() {
    let server = sim();
    let bench = |concurrency: &str, stream: &str| -> Value {
        let args = [
            "bench",
            "serve",
            "--url",
            &server.url,
            "--requests",
            "12",
            "--input-len",
            "40",
            "--ignore-eos",
            "--output-len",
            "6",
            "--concurrency",
            concurrency,
            stream,
            "--json",
            "-",
        ];
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (one, many, whole) = (bench("1", "--stream"), bench("8", "--stream"), bench("4", "--stream=false"));
    assert_eq!(one["completed"], 12, "{one}");
    assert_eq!(one["output_tokens"], 72, "{one}");
    assert_eq!(one["prompt_tokens"], 480, "{one}");
    assert_eq!(one["result_hash"], many["result_hash"]);
    assert_eq!(one["result_hash"], whole["result_hash"]);
    assert!(many["prefix_hit_rate"].as_f64().unwrap() > 0.5, "the prompts came before: {many}");
}

#[test]
fn bench_counts_refusals_by_kind() {
    let server = Server::start(&["serve", "--executor", "sim", "--max-model-len", "64"]);
    let output = run(&["bench", "serve", "--url", &server.url, "--requests", "3", "--input-len", "100"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("error: 400"), "{}", stdout(&output));
    assert!(stderr(&output).contains("no request succeeded"));
}
