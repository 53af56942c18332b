"""Clients that know nothing of a router."""

import json

import openai
import pytest

from conftest import ask, ready, until


@pytest.fixture
def routed(start):
    replicas = [start("up", "--port", "0", "--log-level", "warn") for _ in range(2)]
    router = start("route", *[r.url for r in replicas], "--port", "0")
    until(lambda: ready(router) == 2)
    return router, replicas


def client(router):
    return openai.OpenAI(base_url=router.url + "/v1", api_key="none", max_retries=0)


def test_chat_streamed_and_whole_say_the_same(routed):
    router, _ = routed
    api = client(router)
    model = api.models.list().data[0].id
    asked = dict(model=model, messages=[{"role": "user", "content": "What is a page?"}], temperature=0, max_tokens=24)
    whole = api.chat.completions.create(**asked).choices[0].message.content
    streamed = api.chat.completions.create(stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole


def test_the_next_turn_finds_the_last_ones_pages(routed):
    router, _ = routed
    api = client(router)
    model = api.models.list().data[0].id
    messages = [{"role": "user", "content": "What is a page, and how does the prefix cache use pages? " * 4}]
    cached = []
    for _ in range(3):
        answer = api.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        messages.append({"role": "user", "content": "And then?"})
    assert cached[0] == 0 and cached[1] > 0 and cached[2] > cached[1], cached


def test_a_replicas_refusal_reaches_the_client_as_it_is(routed):
    router, _ = routed
    api = client(router)
    model = api.models.list().data[0].id
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        api.chat.completions.create(model="other", messages=[])


def test_the_decision_is_told(routed):
    router, _ = routed
    body = {"model": "quire-demo", "messages": [{"role": "user", "content": "x " * 2000}]}
    status, before, _ = ask(router.url, "/debug/route", body)
    assert status == 200
    decision = json.loads(before)["decision"]
    assert len(decision["scores"]) == 2 and all(s["total_ms"] > 0 for s in decision["scores"])
