//! Every bad request is one clear refusal that names the field, and the server keeps serving.

use expect_test::expect;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::server::{Client, Server};

/// `label: status type param code | message`, one line a request, on one connection.
async fn table(client: &mut Client, path: &str, rows: &[(&str, String)]) -> String {
    let mut out = String::new();
    for (label, body) in rows {
        let reply = client.send(Method::POST, path, &[], body.clone()).await;
        let error = reply.json()["error"].take();
        let text = |key: &str| error[key].as_str().unwrap_or("-").to_owned();
        let [kind, param, code, message] = ["type", "param", "code", "message"].map(text);
        assert_eq!(kind, "invalid_request_error");
        out += &format!("{label}: {} {param} {code} | {message}\n", reply.status.as_u16());
    }
    out
}

/// The body of a good request with `key` set to each value.
fn with(base: &Value, key: &str, values: &[Value]) -> Vec<(String, String)> {
    let set = |value: &Value| {
        let mut body = base.clone();
        body[key] = value.clone();
        let shown: String = value.to_string().chars().take(80).collect();
        (format!("{key}={shown}"), body.to_string())
    };
    values.iter().map(set).collect()
}

fn rows(pairs: &[(String, String)]) -> Vec<(&str, String)> {
    pairs.iter().map(|(label, body)| (label.as_str(), body.clone())).collect()
}

async fn keeps_serving(client: &mut Client, path: &str, good: &Value) {
    let reply = client.send(Method::POST, path, &[], good.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn bodies_that_are_not_requests() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let raw = [
        ("empty", ""),
        ("half", "{\"model\": \"sim\","),
        ("trailing comma", "{\n \"model\": \"sim\",\n}"),
        ("bad escape", "{\"prompt\": \"\\q\"}"),
        ("lone surrogate", "{\"prompt\": \"\\ud800\"}"),
        ("array", "[1]"),
        ("string", "\"hi\""),
        ("not a number", "{\"temperature\": NaN}"),
    ];
    let deep = "[".repeat(5000);
    let mut rows: Vec<_> = raw.iter().map(|(label, body)| (*label, (*body).to_owned())).collect();
    rows.push(("deep", deep));
    let shown = table(&mut client, "/v1/completions", &rows).await;
    let reply = client.send(Method::POST, "/v1/completions", &[], &b"{\"prompt\": \"\xff\"}"[..]).await;
    assert_eq!(reply.json()["error"]["code"], "invalid_json");
    expect![[r#"
        empty: 400 - invalid_json | the request body is not valid JSON: EOF while parsing a value at line 1 column 0
        half: 400 - invalid_json | the request body is not valid JSON: EOF while parsing a value at line 1 column 16
        trailing comma: 400 - invalid_json | the request body is not valid JSON: trailing comma at line 3 column 1
        bad escape: 400 - invalid_json | the request body is not valid JSON: invalid escape at line 1 column 14
        lone surrogate: 400 - invalid_json | the request body is not valid JSON: unexpected end of hex escape at line 1 column 19
        array: 400 - - | the request body must be a JSON object, not an array
        string: 400 - - | the request body must be a JSON object, not a string
        not a number: 400 - invalid_json | the request body is not valid JSON: expected value at line 1 column 17
        deep: 400 - invalid_json | the request body is not valid JSON: recursion limit exceeded at line 1 column 128
    "#]].assert_eq(&shown);
    keeps_serving(&mut client, "/v1/completions", &json!({"prompt": "hi"})).await;
}

#[tokio::test]
async fn values_out_of_range_or_of_the_wrong_type() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let good = json!({"model": "sim", "prompt": "hi", "max_tokens": 4});
    let cases: Vec<(&str, Vec<Value>)> = vec![
        ("model", vec![json!("gpt-9"), json!(7)]),
        ("temperature", vec![json!("hot"), json!(-0.1), json!(2.1), json!([1])]),
        ("top_p", vec![json!(1.5), json!(-1)]),
        ("top_k", vec![json!(-2), json!(1.5)]),
        ("min_p", vec![json!(1.01)]),
        ("n", vec![json!(0), json!(129), json!("2")]),
        ("seed", vec![json!(1.5), json!("x")]),
        ("max_tokens", vec![json!(0), json!(-1), json!(2047), json!(99_999_999_999u64)]),
        ("min_tokens", vec![json!(5)]),
        ("stop", vec![json!(7), json!([""]), json!(["a", 1]), json!(vec!["a"; 17]), json!("x".repeat(2000))]),
        ("stop_token_ids", vec![json!([300]), json!(["a"]), json!([-1])]),
        ("presence_penalty", vec![json!(2.5)]),
        ("frequency_penalty", vec![json!(-2.5)]),
        ("repetition_penalty", vec![json!(0), json!(-1)]),
        (
            "logit_bias",
            vec![json!([1]), json!({"a": 1}), json!({"300": 1}), json!({"1": 101}), json!({"1": "x"})],
        ),
        ("logprobs", vec![json!(21), json!(true)]),
        ("prompt_logprobs", vec![json!(21)]),
        ("priority", vec![json!(1e12)]),
        ("stream", vec![json!("yes")]),
        ("stream_options", vec![json!({"include_usage": true})]),
        ("echo", vec![json!(1)]),
        ("best_of", vec![json!(3)]),
        ("suffix", vec![json!("end")]),
        ("cache_salt", vec![json!(1)]),
        ("response_format", vec![json!({"type": "json_object"}), json!("json")]),
        ("guided_json", vec![json!({"type": "object"})]),
        ("use_beam_search", vec![json!(true)]),
        (
            "prompt",
            vec![
                Value::Null,
                json!(""),
                json!([]),
                json!([[]]),
                json!(7),
                json!([1, 300]),
                json!([1, -1]),
                json!([1, "a"]),
                json!(["a", 7]),
                json!([["a"]]),
                json!(vec!["a"; 129]),
                json!("x".repeat(2048)),
            ],
        ),
    ];
    let pairs: Vec<_> = cases.iter().flat_map(|(key, values)| with(&good, key, values)).collect();
    let shown = table(&mut client, "/v1/completions", &rows(&pairs)).await;
    expect![[r#"
        model="gpt-9": 404 model model_not_found | the model "gpt-9" does not exist; GET /v1/models lists those that do
        model=7: 400 model - | `model` must be a string, got a number
        temperature="hot": 400 temperature - | `temperature` must be a number, got a string
        temperature=-0.1: 400 temperature - | `temperature` must be a number from 0 to 2, got -0.1
        temperature=2.1: 400 temperature - | `temperature` must be a number from 0 to 2, got 2.1
        temperature=[1]: 400 temperature - | `temperature` must be a number, got an array
        top_p=1.5: 400 top_p - | `top_p` must be a number from 0 to 1, got 1.5
        top_p=-1: 400 top_p - | `top_p` must be a number from 0 to 1, got -1
        top_k=-2: 400 top_k - | `top_k` must be an integer from -1 to 4294967295, got -2
        top_k=1.5: 400 top_k - | `top_k` must be an integer from -1 to 4294967295, got 1.5
        min_p=1.01: 400 min_p - | `min_p` must be a number from 0 to 1, got 1.01
        n=0: 400 n - | `n` must be an integer from 1 to 128, got 0
        n=129: 400 n - | `n` must be an integer from 1 to 128, got 129
        n="2": 400 n - | `n` must be an integer, got a string
        seed=1.5: 400 seed - | `seed` must be an integer from -9223372036854775808 to 9223372036854775807, got 1.5
        seed="x": 400 seed - | `seed` must be an integer, got a string
        max_tokens=0: 400 max_tokens - | `max_tokens` must be at least 1, got 0
        max_tokens=-1: 400 max_tokens - | `max_tokens` must be an integer from 0 to 4294967295, got -1
        max_tokens=2047: 400 prompt context_length_exceeded | this model's maximum context length is 2048 tokens, the request asks for 2 in the prompt and 2047 for the answer
        max_tokens=99999999999: 400 max_tokens - | `max_tokens` must be an integer from 0 to 4294967295, got 99999999999
        min_tokens=5: 400 min_tokens - | `min_tokens` (5) is above `max_tokens`
        stop=7: 400 stop - | `stop` must be a string or an array of strings, got a number
        stop=[""]: 400 stop - | `stop` must have 1 to 1024 bytes, it has 0
        stop=["a",1]: 400 stop[1] - | `stop[1]` must be a string, got a number
        stop=["a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a"]: 400 stop - | `stop` has 17 strings, at most 16 are taken
        stop="xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 stop - | `stop` must have 1 to 1024 bytes, it has 2000
        stop_token_ids=[300]: 400 stop_token_ids[0] - | `stop_token_ids[0]` must be a token id from 0 to 299, got 300
        stop_token_ids=["a"]: 400 stop_token_ids[0] - | `stop_token_ids[0]` must be a token id, got a string
        stop_token_ids=[-1]: 400 stop_token_ids[0] - | `stop_token_ids[0]` must be a token id from 0 to 299, got -1
        presence_penalty=2.5: 400 presence_penalty - | `presence_penalty` must be a number from -2 to 2, got 2.5
        frequency_penalty=-2.5: 400 frequency_penalty - | `frequency_penalty` must be a number from -2 to 2, got -2.5
        repetition_penalty=0: 400 repetition_penalty - | `repetition_penalty` must be greater than 0
        repetition_penalty=-1: 400 repetition_penalty - | `repetition_penalty` must be a number from 0 to 100, got -1
        logit_bias=[1]: 400 logit_bias - | `logit_bias` must be an object, got an array
        logit_bias={"a":1}: 400 logit_bias - | `logit_bias` has the key "a", keys are token ids below 300
        logit_bias={"300":1}: 400 logit_bias - | `logit_bias` has the key "300", keys are token ids below 300
        logit_bias={"1":101}: 400 logit_bias.1 - | `logit_bias.1` must be a number from -100 to 100, got 101
        logit_bias={"1":"x"}: 400 logit_bias.1 - | `logit_bias.1` must be a number, got a string
        logprobs=21: 400 logprobs - | `logprobs` must be an integer from 0 to 20, got 21
        logprobs=true: 400 logprobs - | `logprobs` must be an integer, got a boolean
        prompt_logprobs=21: 400 prompt_logprobs - | `prompt_logprobs` must be an integer from 0 to 20, got 21
        priority=1000000000000.0: 400 priority - | `priority` must be an integer from -2147483648 to 2147483647, got 1000000000000.0
        stream="yes": 400 stream - | `stream` must be true or false, got a string
        stream_options={"include_usage":true}: 400 stream_options - | `stream_options` is only allowed when `stream` is true
        echo=1: 400 echo - | `echo` must be true or false, got a number
        best_of=3: 400 best_of unsupported_parameter | `best_of` must equal `n` (1), got 3: choices are not ranked
        suffix="end": 400 suffix unsupported_parameter | `suffix` is not supported: the model only continues text
        cache_salt=1: 400 cache_salt - | `cache_salt` must be a string, got a number
        response_format={"type":"json_object"}: 400 response_format unsupported_parameter | `response_format` of type "json_object" is not supported yet, only "text" is
        response_format="json": 400 response_format - | `response_format` must be an object, got a string
        guided_json={"type":"object"}: 400 guided_json unsupported_parameter | `guided_json` is not supported: structured output is not available yet
        use_beam_search=true: 400 use_beam_search unsupported_parameter | `use_beam_search` is not supported: beam search is not available
        prompt=null: 400 prompt - | `prompt` is required
        prompt="": 400 prompt - | the prompt is empty
        prompt=[]: 400 prompt - | `prompt` must not be empty
        prompt=[[]]: 400 prompt - | the prompt is empty
        prompt=7: 400 prompt - | `prompt` must be a string, token ids, or a list of either, got a number
        prompt=[1,300]: 400 prompt[1] - | `prompt[1]` must be a token id from 0 to 299, got 300
        prompt=[1,-1]: 400 prompt[1] - | `prompt[1]` must be a token id from 0 to 299, got -1
        prompt=[1,"a"]: 400 prompt[1] - | `prompt[1]` must be a token id, got a string
        prompt=["a",7]: 400 prompt[1] - | `prompt[1]` must be a string or an array of token ids, got a number
        prompt=[["a"]]: 400 prompt[0][0] - | `prompt[0][0]` must be a token id, got a string
        prompt=["a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a": 400 prompt - | 129 prompts with n = 1 give more than 128 choices
        prompt="xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 prompt context_length_exceeded | this model's maximum context length is 2048 tokens, the request asks for 2048 in the prompt and 4 for the answer
    "#]].assert_eq(&shown);
    keeps_serving(&mut client, "/v1/completions", &good).await;
}

#[tokio::test]
async fn chats_that_cannot_be_answered() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let user = json!([{"role": "user", "content": "hi"}]);
    let good = json!({"model": "sim", "messages": user, "max_tokens": 4});
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let cases: Vec<(&str, Vec<Value>)> = vec![
        (
            "messages",
            vec![
                Value::Null,
                json!([]),
                json!("hi"),
                json!(["hi"]),
                json!([{}]),
                json!([{"role": "robot", "content": "x"}]),
                json!([{"role": "user"}]),
                json!([{"role": "user", "content": 7}]),
                image,
                json!([{"role": "user", "content": [{"type": "text"}]}]),
                json!([{"role": "user", "content": "x".repeat(2048)}]),
            ],
        ),
        ("tools", vec![tool.clone(), json!("f"), json!([1])]),
        ("tool_choice", vec![json!("required")]),
        ("functions", vec![tool]),
        ("audio", vec![json!({"voice": "a"})]),
        ("modalities", vec![json!(["audio"])]),
        ("top_logprobs", vec![json!(3)]),
        ("logprobs", vec![json!(2)]),
        ("response_format", vec![json!({"type": "json_schema", "json_schema": {}})]),
        ("chat_template", vec![json!("{{ messages }}")]),
        ("chat_template_kwargs", vec![json!(1)]),
        ("continue_final_message", vec![json!("x")]),
        ("max_completion_tokens", vec![json!(0), json!(2040)]),
    ];
    let pairs: Vec<_> = cases.iter().flat_map(|(key, values)| with(&good, key, values)).collect();
    let shown = table(&mut client, "/v1/chat/completions", &rows(&pairs)).await;
    expect![[r#"
        messages=null: 400 messages - | `messages` is required
        messages=[]: 400 messages - | `messages` must have at least one message
        messages="hi": 400 messages - | `messages` must be an array, got a string
        messages=["hi"]: 400 messages[0] - | `messages[0]` must be an object, got a string
        messages=[{}]: 400 messages[0].role - | `messages[0].role` is required
        messages=[{"role":"robot","content":"x"}]: 400 messages[0].role - | `messages[0].role` must be one of system, developer, user, assistant, tool, function, got "robot"
        messages=[{"role":"user"}]: 400 messages[0].content - | `messages[0].content` is required
        messages=[{"role":"user","content":7}]: 400 messages[0].content - | `messages[0].content` must be a string or an array of parts, got a number
        messages=[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]: 400 messages[0].content[0].type unsupported_parameter | `messages[0].content[0].type` must be "text", got "image_url": the model takes text only
        messages=[{"role":"user","content":[{"type":"text"}]}]: 400 messages[0].content[0].text - | `messages[0].content[0].text` is required
        messages=[{"role":"user","content":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: 400 messages context_length_exceeded | this model's maximum context length is 2048 tokens, the request asks for 2067 in the prompt and 4 for the answer
        tools=[{"type":"function","function":{"name":"f"}}]: 400 tools unsupported_parameter | tool calls are not available yet; with `tool_choice` "none" the model sees the tools and answers in text
        tools="f": 400 tools - | `tools` must be an array, got a string
        tools=[1]: 400 tools[0] - | `tools[0]` must be an object, got a number
        tool_choice="required": 400 tool_choice - | `tool_choice` needs `tools`
        functions=[{"type":"function","function":{"name":"f"}}]: 400 functions unsupported_parameter | `functions` is not supported: tool calls are not available yet
        audio={"voice":"a"}: 400 audio unsupported_parameter | `audio` is not supported: the model gives text only
        modalities=["audio"]: 400 modalities unsupported_parameter | `modalities` may hold only "text", got "audio"
        top_logprobs=3: 400 top_logprobs - | `top_logprobs` needs `logprobs` to be true
        logprobs=2: 400 logprobs - | `logprobs` must be true or false, got a number
        response_format={"type":"json_schema","json_schema":{}}: 400 response_format unsupported_parameter | `response_format` of type "json_schema" is not supported yet, only "text" is
        chat_template="{{ messages }}": 400 chat_template unsupported_parameter | `chat_template` is not supported: the model's own template is used; pass variables in `chat_template_kwargs`
        chat_template_kwargs=1: 400 chat_template_kwargs - | `chat_template_kwargs` must be an object, got a number
        continue_final_message="x": 400 continue_final_message - | `continue_final_message` must be true or false, got a string
        max_completion_tokens=0: 400 max_completion_tokens - | `max_completion_tokens` must be at least 1, got 0
        max_completion_tokens=2040: 400 messages context_length_exceeded | this model's maximum context length is 2048 tokens, the request asks for 21 in the prompt and 2040 for the answer
    "#]].assert_eq(&shown);
    keeps_serving(&mut client, "/v1/chat/completions", &good).await;
}

#[tokio::test]
async fn wrong_paths_methods_and_sizes() {
    let server = Server::with(|setup| setup.config.limits.body_bytes_max = 1000).await;
    let mut shown = String::new();
    let big = json!({"prompt": "x".repeat(2000)}).to_string();
    let asks = [
        (Method::GET, "/v1/nothing", String::new()),
        (Method::GET, "/v1/completions", String::new()),
        (Method::DELETE, "/v1/models", String::new()),
        (Method::POST, "/v1/completions", big),
    ];
    for (method, path, body) in asks {
        let reply = server.connect().await.send(method.clone(), path, &[], body).await;
        let allow = reply.headers.get("allow").map_or("-", |v| v.to_str().unwrap());
        shown += &format!("{method} {path}: {} allow={allow} {}\n", reply.status.as_u16(), reply.body);
    }
    expect![[r#"
        GET /v1/nothing: 404 allow=- {"error":{"message":"unknown URL: GET /v1/nothing","type":"invalid_request_error","param":null,"code":"unknown_url"}}
        GET /v1/completions: 405 allow=POST {"error":{"message":"/v1/completions does not take GET","type":"invalid_request_error","param":null,"code":"method_not_allowed"}}
        DELETE /v1/models: 405 allow=GET,HEAD {"error":{"message":"/v1/models does not take DELETE","type":"invalid_request_error","param":null,"code":"method_not_allowed"}}
        POST /v1/completions: 413 allow=- {"error":{"message":"the request body is larger than 1000 B","type":"invalid_request_error","param":null,"code":"request_too_large"}}
    "#]].assert_eq(&shown);
}

/// Sends bytes, hangs up its sending side, and reads the first line of what comes back.
async fn first_line(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // A reset is an answer, too.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).lines().next().unwrap_or("").to_owned()
}

#[tokio::test]
async fn what_is_not_http_ends_only_its_connection() {
    let server = Server::with(|setup| setup.config.limits.body_bytes_max = 1000).await;
    let chunked = |size: usize| {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n";
        format!("{head}{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size))
    };
    let huge = format!("GET /health HTTP/1.1\r\nhost: t\r\n{}\r\n", "x: y\r\n".repeat(200));
    let asks: [(&str, &[u8]); 6] = [
        ("nothing", b""),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("binary", b"\x00\xff\x00\xff\r\n\r\n"),
        ("too many headers", huge.as_bytes()),
        ("chunked over the limit", chunked(2000).leak().as_bytes()),
        ("body cut short", b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 99\r\n\r\n{"),
    ];
    let mut shown = String::new();
    for (label, bytes) in asks {
        shown += &format!("{label}: {}\n", first_line(&server, bytes).await);
    }
    expect![[r#"
        nothing: 
        tls: HTTP/1.1 400 Bad Request
        binary: HTTP/1.1 400 Bad Request
        too many headers: HTTP/1.1 431 Request Header Fields Too Large
        chunked over the limit: HTTP/1.1 413 Payload Too Large
        body cut short: HTTP/1.1 400 Bad Request
    "#]]
    .assert_eq(&shown);
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_long_prompt_is_read_beside_the_event_loop_and_refused() {
    let server = Server::start().await;
    let reply = server.post("/v1/completions", json!({"prompt": "x".repeat(200_000)})).await;
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    let reply = server.post("/tokenize", json!({"prompt": "x".repeat(200_000)})).await;
    assert_eq!(reply.json()["count"], 200_000);
}
