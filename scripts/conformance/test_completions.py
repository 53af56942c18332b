"""/v1/completions, stop strings, usage and the cache through the client."""

import raw


def test_an_answer_has_every_field(complete, model):
    answer = complete()
    assert answer.object == "text_completion" and answer.model == model and answer.id.startswith("cmpl-")
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens <= 16, "the default is 16"


def test_prompts_as_text_tokens_and_lists(complete, url):
    text = "A page is"
    ids = raw.json_of(f"{url}/tokenize", {"prompt": text})[1]["tokens"]
    alone = complete(text, max_tokens=6, temperature=0).choices[0].text
    for prompt in (ids, [text], [ids]):
        assert complete(prompt, max_tokens=6, temperature=0).choices[0].text == alone
    several = complete([text, "A lease is"], max_tokens=6, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == alone
    mixed = complete([ids, ids], max_tokens=2, n=2)
    assert len(mixed.choices) == 4


def test_a_stream_says_what_the_whole_answer_says(complete):
    whole = complete(max_tokens=30, seed=5)
    parts = list(complete(max_tokens=30, seed=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_stop_cuts_before_the_string(complete):
    free = complete(max_tokens=40, temperature=0, extra_body={"ignore_eos": True}).choices[0].text
    stop = free[len(free) // 2 :][:3]
    want = free[: free.index(stop)]
    for given in (stop, [stop], ["\x00never", stop]):
        ask = dict(max_tokens=40, temperature=0, stop=given, extra_body={"ignore_eos": True})
        whole = complete(**ask)
        assert whole.choices[0].text == want and whole.choices[0].finish_reason == "stop"
        streamed = [chunk.choices[0].text for chunk in complete(**ask, stream=True)]
        assert "".join(streamed) == want
    shown = complete(
        max_tokens=40, temperature=0, stop=stop,
        extra_body={"include_stop_str_in_output": True, "ignore_eos": True},
    )
    assert shown.choices[0].text == want + stop


def test_stop_over_many_tokens_never_leaks(complete):
    free = complete(max_tokens=40, temperature=0, extra_body={"ignore_eos": True}).choices[0].text
    middle = len(free) // 3
    stop = free[middle : middle + 12]
    for chunk in complete(
        max_tokens=40, temperature=0, stop=[stop], stream=True, extra_body={"ignore_eos": True}
    ):
        assert stop not in chunk.choices[0].text
        last = chunk
    assert last.choices[0].finish_reason == "stop"


def test_echo_and_logprobs(complete):
    answer = complete("A page is", max_tokens=3, echo=True, logprobs=2, extra_body={"ignore_eos": True})
    [choice] = answer.choices
    assert choice.text.startswith("A page is")
    logprobs = choice.logprobs
    count = answer.usage.prompt_tokens + 3
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == count
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert all(1 <= len(top) <= 3 for top in logprobs.top_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_scoring_a_prompt_generates_nothing(complete):
    answer = complete("A page is", max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "A page is"
    assert answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens


def test_prompt_logprobs_as_vllm_gives_them(complete):
    answer = complete("A page is", max_tokens=1, extra_body={"prompt_logprobs": 1})
    listed = answer.choices[0].model_extra["prompt_logprobs"]
    assert listed[0] is None and len(listed) == answer.usage.prompt_tokens
    for entry in listed[1:]:
        assert {"logprob", "rank", "decoded_token"} <= set(next(iter(entry.values())))


def test_a_warm_prefix_is_counted(complete):
    prompt = "Pages of keys and values, gathered close to the work. " * 6
    complete(prompt, max_tokens=1)
    warm = complete(prompt, max_tokens=1)
    assert warm.usage.prompt_tokens_details.cached_tokens > 0
    assert warm.usage.prompt_tokens_details.cached_tokens < warm.usage.prompt_tokens


def test_a_hit_answers_as_a_miss_did(complete, url):
    prompt = "A lease is held while a request reads its pages. " * 6
    raw.call(f"{url}/reset_prefix_cache", b"", method="POST")
    ask = dict(max_tokens=12, temperature=0, logprobs=1)
    cold, warm = complete(prompt, **ask), complete(prompt, **ask)
    assert warm.usage.prompt_tokens_details.cached_tokens > cold.usage.prompt_tokens_details.cached_tokens
    assert warm.choices[0].text == cold.choices[0].text
    assert warm.choices[0].logprobs.token_logprobs == cold.choices[0].logprobs.token_logprobs


def test_seeds_repeat_and_their_absence_varies(complete):
    ask = dict(max_tokens=24, temperature=1.2)
    assert complete(**ask, seed=11).choices[0].text == complete(**ask, seed=11).choices[0].text
    assert len({complete(**ask).choices[0].text for _ in range(4)}) > 1
