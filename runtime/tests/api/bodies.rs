//! Whole answers, field by field.

use expect_test::{Expect, expect};
use hyper::Method;
use serde_json::{Value, json};

use super::server::Server;

async fn check(path: &str, body: Value, want: Expect) {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let reply = client.send(Method::POST, path, &[("x-request-id", "r1")], body.to_string()).await;
    assert_eq!(reply.headers["x-request-id"], "r1");
    let pretty = serde_json::to_string_pretty(&reply.json()).unwrap();
    want.assert_eq(&format!("{}\n{pretty}", reply.status.as_u16()));
}

fn hello() -> Value {
    json!([{"role": "user", "content": "hello"}])
}

#[tokio::test]
async fn chat_answers_in_openai_shape() {
    let body = json!({"model": "sim", "messages": hello(), "max_tokens": 5, "seed": 1});
    check(
        "/v1/chat/completions",
        body,
        expect![[r#"
        200
        {
          "id": "chatcmpl-r1",
          "object": "chat.completion",
          "created": 0,
          "model": "sim",
          "choices": [
            {
              "index": 0,
              "message": {
                "role": "assistant",
                "content": "boeuc",
                "refusal": null
              },
              "logprobs": null,
              "finish_reason": "length"
            }
          ],
          "usage": {
            "prompt_tokens": 24,
            "completion_tokens": 5,
            "total_tokens": 29,
            "prompt_tokens_details": {
              "cached_tokens": 0
            }
          },
          "system_fingerprint": "fp_5151515151515151"
        }"#]],
    )
    .await;
}

#[tokio::test]
async fn chat_logprobs_list_token_bytes_and_alternatives() {
    let body = json!({"model": "sim", "messages": hello(), "max_tokens": 1, "seed": 1, "logprobs": true, "top_logprobs": 1});
    check(
        "/v1/chat/completions",
        body,
        expect![[r#"
        200
        {
          "id": "chatcmpl-r1",
          "object": "chat.completion",
          "created": 0,
          "model": "sim",
          "choices": [
            {
              "index": 0,
              "message": {
                "role": "assistant",
                "content": "b",
                "refusal": null
              },
              "logprobs": {
                "content": [
                  {
                    "token": "b",
                    "logprob": -0.5,
                    "bytes": [
                      98
                    ],
                    "top_logprobs": [
                      {
                        "token": "b",
                        "logprob": -0.5,
                        "bytes": [
                          98
                        ]
                      }
                    ]
                  }
                ],
                "refusal": null
              },
              "finish_reason": "length"
            }
          ],
          "usage": {
            "prompt_tokens": 24,
            "completion_tokens": 1,
            "total_tokens": 25,
            "prompt_tokens_details": {
              "cached_tokens": 0
            }
          },
          "system_fingerprint": "fp_5151515151515151"
        }"#]],
    )
    .await;
}

#[tokio::test]
async fn completion_echoes_the_prompt_with_its_logprobs() {
    let body =
        json!({"model": "sim", "prompt": "hé", "max_tokens": 1, "seed": 1, "echo": true, "logprobs": 1});
    check(
        "/v1/completions",
        body,
        expect![[r#"
        200
        {
          "id": "cmpl-r1",
          "object": "text_completion",
          "created": 0,
          "model": "sim",
          "choices": [
            {
              "text": "héd",
              "index": 0,
              "logprobs": {
                "tokens": [
                  "h",
                  "�",
                  "�",
                  "d"
                ],
                "token_logprobs": [
                  null,
                  -0.5,
                  -0.5,
                  -0.5
                ],
                "top_logprobs": [
                  null,
                  {
                    "�": -0.5
                  },
                  {
                    "�": -0.5
                  },
                  {
                    "d": -0.5
                  }
                ],
                "text_offset": [
                  0,
                  1,
                  1,
                  2
                ]
              },
              "finish_reason": "length"
            }
          ],
          "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 1,
            "total_tokens": 4,
            "prompt_tokens_details": {
              "cached_tokens": 0
            }
          },
          "system_fingerprint": "fp_5151515151515151"
        }"#]],
    )
    .await;
}

#[tokio::test]
async fn echo_with_no_tokens_scores_the_prompt_alone() {
    let body = json!({"model": "sim", "prompt": [104, 105], "max_tokens": 0, "echo": true, "logprobs": 0, "prompt_logprobs": 1});
    check(
        "/v1/completions",
        body,
        expect![[r#"
        200
        {
          "id": "cmpl-r1",
          "object": "text_completion",
          "created": 0,
          "model": "sim",
          "choices": [
            {
              "text": "hi",
              "index": 0,
              "logprobs": {
                "tokens": [
                  "h",
                  "i"
                ],
                "token_logprobs": [
                  null,
                  -0.5
                ],
                "top_logprobs": [
                  null,
                  {
                    "i": -0.5
                  }
                ],
                "text_offset": [
                  0,
                  1
                ]
              },
              "finish_reason": "length",
              "prompt_logprobs": [
                null,
                {
                  "105": {
                    "logprob": -0.5,
                    "rank": 1,
                    "decoded_token": "i"
                  }
                }
              ]
            }
          ],
          "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 0,
            "total_tokens": 2,
            "prompt_tokens_details": {
              "cached_tokens": 0
            }
          },
          "system_fingerprint": "fp_5151515151515151"
        }"#]],
    )
    .await;
}

#[tokio::test]
async fn many_prompts_with_n_are_indexed_prompt_by_prompt() {
    let server = Server::start().await;
    let ask = |prompt: Value| json!({"model": "sim", "prompt": prompt, "max_tokens": 4, "seed": 3, "n": 2});
    let texts = |body: &Value| -> Vec<(u64, String)> {
        let choices = body["choices"].as_array().unwrap();
        choices.iter().map(|c| (c["index"].as_u64().unwrap(), c["text"].as_str().unwrap().into())).collect()
    };
    let both = server.post("/v1/completions", ask(json!(["one", [116, 119, 111]]))).await.json();
    let one = server.post("/v1/completions", ask(json!("one"))).await.json();
    let two = server.post("/v1/completions", ask(json!("two"))).await.json();
    let (both_texts, one, two) = (texts(&both), texts(&one), texts(&two));
    assert_eq!(both_texts.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    // Seeds count within a prompt: a prompt in a batch answers as it does alone.
    assert_eq!(
        both_texts[..2].iter().map(|t| &t.1).collect::<Vec<_>>(),
        one.iter().map(|t| &t.1).collect::<Vec<_>>()
    );
    assert_eq!(
        both_texts[2..].iter().map(|t| &t.1).collect::<Vec<_>>(),
        two.iter().map(|t| &t.1).collect::<Vec<_>>()
    );
    assert_ne!(both_texts[0].1, both_texts[1].1);
    assert_eq!(both["usage"]["prompt_tokens"], 6);
    assert_eq!(both["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn a_warm_prefix_shows_as_cached_tokens() {
    let server = Server::start().await;
    let body = json!({"model": "sim", "prompt": "x".repeat(100), "max_tokens": 1});
    let cold = server.post("/v1/completions", body.clone()).await.json();
    let warm = server.post("/v1/completions", body).await.json();
    assert_eq!(cold["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(warm["usage"]["prompt_tokens_details"]["cached_tokens"], 96);
    let dropped = server.post("/reset_prefix_cache", json!({})).await.json();
    assert!(dropped["dropped_pages"].as_u64().unwrap() >= 6, "{dropped}");
}

#[tokio::test]
async fn the_same_seed_repeats_and_no_seed_varies() {
    let server = Server::start().await;
    let text = |body: Value| {
        let server = &server;
        async move {
            let reply = server.post("/v1/completions", body).await.json();
            reply["choices"][0]["text"].as_str().unwrap().to_owned()
        }
    };
    let seeded = json!({"model": "sim", "prompt": "p", "max_tokens": 12, "seed": 5});
    let free = json!({"model": "sim", "prompt": "p", "max_tokens": 12});
    assert_eq!(text(seeded.clone()).await, text(seeded).await);
    assert_ne!(text(free.clone()).await, text(free).await);
}

#[tokio::test]
async fn tokenize_and_detokenize_are_inverse() {
    let server = Server::start().await;
    let reply =
        server.post("/tokenize", json!({"prompt": "hé<|im_end|>", "return_token_strs": true})).await.json();
    expect![[r#"{"count":4,"max_model_len":2048,"tokens":[104,195,169,258],"token_strs":["h","�","�","<|im_end|>"]}"#]].assert_eq(&reply.to_string());
    let back = server.post("/detokenize", json!({"tokens": reply["tokens"]})).await.json();
    assert_eq!(back["prompt"], "hé<|im_end|>");
    let chat = server.post("/tokenize", json!({"messages": hello()})).await.json();
    let text = server.post("/detokenize", json!({"tokens": chat["tokens"]})).await.json();
    assert_eq!(text["prompt"], "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
}

#[tokio::test]
async fn text_parts_and_the_developer_role_reach_older_templates() {
    let server = Server::start().await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let messages = json!([{"role": "developer", "content": "rules"}, {"role": "user", "content": parts}]);
    let tokens =
        server.post("/tokenize", json!({"messages": messages, "add_generation_prompt": false})).await.json();
    let text = server.post("/detokenize", json!({"tokens": tokens["tokens"]})).await.json();
    assert_eq!(text["prompt"], "<|im_start|>system\nrules<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n");
}

#[tokio::test]
async fn models_are_listed_by_every_name() {
    let server = Server::with(|setup| setup.config.models = vec!["org/model".into(), "alias".into()]).await;
    let list = server.get("/v1/models").await.json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["org/model", "alias"]);
    assert_eq!(server.get("/v1/models/org/model").await.json()["max_model_len"], 2048);
    assert_eq!(server.get("/v1/models/org%2Fmodel").await.json()["id"], "org/model");
    let missing = server.get("/v1/models/other").await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error"]["code"]), (404, &json!("model_not_found")));
    let reply = server.post("/v1/completions", json!({"model": "alias", "prompt": "p"})).await.json();
    assert_eq!(reply["model"], "alias");
}

#[tokio::test]
async fn the_description_and_the_server_have_the_same_paths() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let path = path.replace("{model}", "sim");
            let reply = server.connect().await.send(method.clone(), &path, &[], "").await;
            assert!(!matches!(reply.status.as_u16(), 404 | 405), "{method} {path}: {}", reply.body);
        }
    }
    let described: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(described, quire_runtime::api::PATHS);
}
