"""Refusals as the client's own exceptions, and what surrounds them."""

import openai
import pytest
import raw


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", 3), ("temperature", -1), ("top_p", 2), ("n", 0), ("presence_penalty", 9),
        ("logit_bias", {"99999999": 1}), ("stop", ["a"] * 99), ("max_tokens", -1), ("seed", 1.5),
        ("top_logprobs", 99), ("response_format", {"type": "json_object"}), ("audio", {"voice": "x"}),
        ("modalities", ["audio"]), ("functions", [{"name": "f"}]),
    ],
)
def test_a_bad_field_is_named(chat, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(extra_body={field: value})
    assert caught.value.param == field and caught.value.type == "invalid_request_error"
    assert field in caught.value.message


def test_tools_are_refused_clearly(chat):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    for choice, param in ((openai.NOT_GIVEN, "tools"), ("required", "tool_choice")):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(tools=[tool], tool_choice=choice)
        assert caught.value.param == param


def test_bad_messages_are_named(client, model):
    for messages, param in (
        ([], "messages"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0].type"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=model, messages=messages)
        assert caught.value.param == param


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody/nothing", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")


def test_a_prompt_beyond_the_context(client, model, chat):
    limit = client.models.retrieve(model).model_extra["max_model_len"]
    for ask in (dict(max_tokens=limit), dict(question="word " * (limit + 1), max_tokens=1)):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(**ask)
        assert caught.value.code == "context_length_exceeded"


def test_malformed_json_says_where(url):
    status, body = raw.json_of(f"{url}/v1/chat/completions", b'{"model": ')
    assert status == 400 and "line 1 column" in body["error"]["message"]


def test_paths_and_methods(url):
    assert raw.json_of(f"{url}/v1/nothing")[0] == 404
    assert raw.json_of(f"{url}/v1/completions")[0] == 405


def test_request_ids_come_back(url, chat):
    assert chat(max_tokens=1)._request_id
    _, headers, _ = raw.call(f"{url}/health", headers={"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"


def test_health_version_and_description(url):
    for path in ("/health", "/livez", "/readyz"):
        assert raw.json_of(url + path) == (200, {"status": "ok"})
    assert raw.json_of(f"{url}/version")[1]["version"]
    document = raw.json_of(f"{url}/openapi.json")[1]
    assert "/v1/chat/completions" in document["paths"]


def test_tokenize_and_back(url, model):
    for text in ("A page, naïvely: 世界 🙂", ""):
        tokens = raw.json_of(f"{url}/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})[1]
        assert tokens["count"] == len(tokens["tokens"])
        back = raw.json_of(f"{url}/detokenize", {"model": model, "tokens": tokens["tokens"]})[1]
        assert back["prompt"] == text


def test_keys_are_asked_for(start):
    server = start("--api-key", "right")
    ask = dict(max_retries=0, base_url=f"{server.url}/v1")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="wrong", **ask).models.list()
    assert openai.OpenAI(api_key="right", **ask).models.list().data
    assert raw.call(f"{server.url}/health")[0] == 200
    assert server.end() == 0
