//! Streamed answers: their chunks, and that they say what the whole answer says.

use expect_test::expect;
use hyper::Method;
use serde_json::{Value, json};

use super::server::{Reply, Server};

/// Text, logprob tokens and finish reason of each choice of a stream.
fn joined(reply: &Reply) -> Vec<(String, Vec<String>, String)> {
    let mut out: Vec<(String, Vec<String>, String)> = Vec::new();
    for chunk in reply.chunks() {
        for choice in chunk["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            out.resize(out.len().max(index + 1), Default::default());
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("");
            out[index].0 += text;
            out[index].1.extend(tokens(&choice["logprobs"]));
            if let Some(reason) = choice["finish_reason"].as_str() {
                out[index].2 = reason.into();
            }
        }
    }
    out
}

fn tokens(logprobs: &Value) -> Vec<String> {
    let chat = logprobs["content"].as_array();
    let list = chat.map(|c| c.iter().map(|t| t["token"].clone()).collect::<Vec<_>>());
    let list = list.or_else(|| logprobs["tokens"].as_array().cloned()).unwrap_or_default();
    list.iter().map(|t| t.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn chat_chunks_are_openai_chunks() {
    let server = Server::start().await;
    let body = json!({
        "model": "sim", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "seed": 1,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let mut client = server.connect().await;
    let path = "/v1/chat/completions";
    let reply = client.send(Method::POST, path, &[("x-request-id", "r1")], body.to_string()).await;
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    expect![[r#"
        {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"index":0,"delta":{"content":"s"},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"index":0,"delta":{"content":"j"},"logprobs":null,"finish_reason":null}],"usage":null}
        {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}
        {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[],"usage":{"prompt_tokens":21,"completion_tokens":2,"total_tokens":23,"prompt_tokens_details":{"cached_tokens":0}}}
        [DONE]"#]].assert_eq(&reply.events().join("\n"));
}

#[tokio::test]
async fn completion_chunks_are_openai_chunks() {
    let server = Server::start().await;
    let body = json!({"model": "sim", "prompt": "hi", "max_tokens": 2, "seed": 1, "stream": true, "logprobs": 0, "echo": true});
    let mut client = server.connect().await;
    let reply =
        client.send(Method::POST, "/v1/completions", &[("x-request-id", "r1")], body.to_string()).await;
    expect![[r#"
        {"id":"cmpl-r1","object":"text_completion","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"text":"hi","index":0,"logprobs":{"tokens":["h","i"],"token_logprobs":[null,-0.5],"top_logprobs":[null,{"i":-0.5}],"text_offset":[0,1]},"finish_reason":null}]}
        {"id":"cmpl-r1","object":"text_completion","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"text":"v","index":0,"logprobs":{"tokens":["v"],"token_logprobs":[-0.5],"top_logprobs":[{"v":-0.5}],"text_offset":[2]},"finish_reason":null}]}
        {"id":"cmpl-r1","object":"text_completion","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"text":"m","index":0,"logprobs":{"tokens":["m"],"token_logprobs":[-0.5],"top_logprobs":[{"m":-0.5}],"text_offset":[3]},"finish_reason":null}]}
        {"id":"cmpl-r1","object":"text_completion","created":0,"model":"sim","system_fingerprint":"fp_5151515151515151","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}]}
        [DONE]"#]].assert_eq(&reply.events().join("\n"));
}

/// Every combination of what changes how text leaves: streamed and whole must agree.
#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = Server::start().await;
    for seed in 0..12u64 {
        let mut body = json!({"model": "sim", "max_tokens": 60, "seed": seed, "n": 1 + seed % 3});
        if seed % 2 == 0 {
            body["stop"] = json!(["ab", "q", "xyz"]);
            body["include_stop_str_in_output"] = json!(seed % 4 == 0);
        }
        if seed % 3 == 0 {
            body["min_tokens"] = json!(20);
        }
        let chat = seed % 2 == 1;
        let path = if chat { "/v1/chat/completions" } else { "/v1/completions" };
        if chat {
            body["messages"] = json!([{"role": "user", "content": "hi"}]);
            body["logprobs"] = json!(true);
        } else {
            body["prompt"] = json!("hi");
            body["logprobs"] = json!(1);
            body["echo"] = json!(seed % 4 == 2);
        }
        let whole = server.post(path, body.clone()).await.json();
        body["stream"] = json!(true);
        let stream = joined(&server.post(path, body.clone()).await);
        let choices = whole["choices"].as_array().unwrap();
        assert_eq!(choices.len(), stream.len());
        for (choice, streamed) in choices.iter().zip(stream) {
            let text = choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap();
            assert_eq!(streamed.0, text, "{body}");
            assert_eq!(streamed.1, tokens(&choice["logprobs"]), "{body}");
            assert_eq!(streamed.2, choice["finish_reason"].as_str().unwrap(), "{body}");
        }
    }
}

#[tokio::test]
async fn a_stop_string_ends_the_text_and_shows_in_nothing() {
    let server = Server::with(|setup| setup.sim.draws = u32::from(b'a')..u32::from(b'f')).await;
    let body =
        json!({"model": "sim", "prompt": "hi", "max_tokens": 400, "seed": 1, "stop": "ea", "logprobs": 0});
    let whole = server.post("/v1/completions", body.clone()).await.json();
    let choice = &whole["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert_eq!(choice["finish_reason"], "stop");
    assert!(!text.contains("ea"));
    assert_eq!(tokens(&choice["logprobs"]).concat(), text);
    let mut free = body.clone();
    free["stop"] = Value::Null;
    let free = server.post("/v1/completions", free).await.json();
    let free = free["choices"][0]["text"].as_str().unwrap();
    assert_eq!(free.find("ea"), Some(text.len()), "it stops at the first one");
    let mut included = body;
    included["include_stop_str_in_output"] = json!(true);
    let included = server.post("/v1/completions", included).await.json();
    assert_eq!(included["choices"][0]["text"], format!("{text}ea"));
}

#[tokio::test]
async fn a_stop_token_ends_the_answer_and_does_not_show() {
    let server = Server::start().await;
    let body = json!({"model": "sim", "prompt": "hi", "max_tokens": 400, "seed": 1, "stop_token_ids": [122]});
    let reply = server.post("/v1/completions", body.clone()).await.json();
    let text = reply["choices"][0]["text"].as_str().unwrap().to_owned();
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert!(!text.contains('z'));
    assert_eq!(reply["usage"]["completion_tokens"], text.len() + 1);
    let mut shown = body;
    shown["include_stop_str_in_output"] = json!(true);
    let reply = server.post("/v1/completions", shown).await.json();
    assert_eq!(reply["choices"][0]["text"], format!("{text}z"));
}

#[tokio::test]
async fn special_tokens_hide_unless_asked_for() {
    let server = Server::with(|setup| setup.sim.draws = 257..258).await;
    let mut body = json!({"model": "sim", "prompt": "hi", "max_tokens": 2});
    assert_eq!(server.post("/v1/completions", body.clone()).await.json()["choices"][0]["text"], "");
    body["skip_special_tokens"] = json!(false);
    let shown = server.post("/v1/completions", body).await.json();
    assert_eq!(shown["choices"][0]["text"], "<|im_start|><|im_start|>");
}

#[tokio::test]
async fn ends_of_sequence_stop_unless_ignored() {
    let server = Server::with(|setup| setup.sim.draws = 256..257).await;
    let mut body = json!({"model": "sim", "prompt": "hi", "max_tokens": 3});
    let ended = server.post("/v1/completions", body.clone()).await.json();
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    assert_eq!(ended["usage"]["completion_tokens"], 1);
    body["ignore_eos"] = json!(true);
    let ignored = server.post("/v1/completions", body).await.json();
    assert_eq!(ignored["choices"][0]["finish_reason"], "length");
    assert_eq!(ignored["usage"]["completion_tokens"], 3);
}
