"""/v1/chat/completions through the client."""

import math

import openai
import pytest


def test_models_are_listed_and_found(client, model):
    listed = client.models.list()
    assert listed.object == "list" and listed.data[0].object == "model"
    assert client.models.retrieve(model).id == model


def test_an_answer_has_every_field(chat, model):
    answer = chat(max_tokens=8)
    assert answer.object == "chat.completion" and answer.model == model
    assert answer.id.startswith("chatcmpl-") and answer.created > 0
    [choice] = answer.choices
    assert choice.index == 0 and choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_max_tokens_ends_with_length(chat):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(**{name: 2}, extra_body={"ignore_eos": True})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 2


def test_roles_and_parts_are_taken(client, model):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "text", "text": "a page?"}]},
        {"role": "assistant", "content": "A block of keys and values."},
        {"role": "user", "content": "And a lease?"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    assert answer.choices[0].message.content is not None


def test_a_stream_has_role_content_and_end(chat):
    chunks = list(chat(max_tokens=12, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] in ("stop", "length") and set(reasons[:-1]) <= {None}
    assert all(chunk.usage is None for chunk in chunks)


def test_include_usage_adds_one_last_chunk(chat):
    chunks = list(chat(max_tokens=5, stream=True, stream_options={"include_usage": True}))
    last = chunks.pop()
    assert last.choices == [] and last.usage.completion_tokens <= 5
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_a_stream_says_what_the_whole_answer_says(chat):
    for seed in (1, 2, 3):
        whole = chat(max_tokens=40, seed=seed, temperature=1)
        parts = [c.choices[0].delta.content or "" for c in chat(max_tokens=40, seed=seed, temperature=1, stream=True)]
        assert "".join(parts) == whole.choices[0].message.content


def test_the_stream_helper_accumulates(client, model):
    messages = [{"role": "user", "content": "What is a page?"}]
    with client.chat.completions.stream(model=model, messages=messages, max_tokens=10) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        try:
            final = stream.get_final_completion()
        except openai.LengthFinishReasonError as cut:
            final = cut.completion
    assert final.choices[0].message.content == "".join(deltas)


def test_n_choices_are_indexed_and_differ(chat):
    answer = chat(n=3, max_tokens=24, temperature=1.5, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    again = chat(n=3, max_tokens=24, temperature=1.5, seed=7)
    assert [c.message.content for c in again.choices] == [c.message.content for c in answer.choices]


def test_n_choices_stream_interleaved(chat):
    texts, ends = {}, {}
    for chunk in chat(n=2, max_tokens=10, seed=7, stream=True):
        [choice] = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    whole = chat(n=2, max_tokens=10, seed=7)
    assert [texts[i] for i in (0, 1)] == [c.message.content for c in whole.choices]
    assert [ends[i] for i in (0, 1)] == [c.finish_reason for c in whole.choices]


def test_temperature_zero_repeats(chat):
    texts = {chat(max_tokens=30, temperature=0).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1


def test_logprobs_cover_the_text(chat):
    answer = chat(max_tokens=6, logprobs=True, top_logprobs=4, extra_body={"ignore_eos": True})
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    spelled = b"".join(bytes(entry.bytes) for entry in entries)
    assert answer.choices[0].message.content.encode().strip() in spelled
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 4
        logprobs = [top.logprob for top in entry.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
        assert sum(math.exp(value) for value in logprobs) <= 1.001


def test_streamed_logprobs_are_the_same(chat):
    ask = dict(max_tokens=6, logprobs=True, top_logprobs=1, seed=3)
    whole = chat(**ask).choices[0].logprobs.content
    streamed = []
    for chunk in chat(**ask, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in whole])


def test_sampling_fields_are_taken(chat):
    answer = chat(
        max_tokens=4, temperature=0.7, top_p=0.9, presence_penalty=0.5, frequency_penalty=-0.5,
        logit_bias={"5": -100, "6": 1.5}, user="someone",
        extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "priority": -1, "cache_salt": "s",
                    "min_tokens": 1, "skip_special_tokens": True, "unknown_field": 1},
    )
    assert answer.usage.completion_tokens >= 1
