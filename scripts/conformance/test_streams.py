"""Many streams at once, leaving early, and draining."""

import asyncio
import time

import openai
import raw


def until(what, seconds=30):
    """Asks `what()` until it holds; the server's own threads need a moment."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def test_leaving_a_stream_frees_the_server(client, model, url):
    aborted = raw.metric(url, "quire_request_success_total")
    for _ in range(4):
        stream = client.completions.create(
            model=model, prompt="A page is", stream=True, max_tokens=400, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    until(lambda: raw.metric(url, "quire_num_requests_running") == 0)
    until(lambda: raw.metric(url, "quire_request_success_total") >= aborted + 4)


def test_sixteen_streams_at_once_equal_one_by_one(url, model):
    async def all_of_them():
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)

        async def one(seed):
            parts = []
            stream = await client.completions.create(
                model=model, prompt="A page is", seed=seed, max_tokens=24, stream=True
            )
            async for chunk in stream:
                parts.append(chunk.choices[0].text)
            return "".join(parts)

        together = await asyncio.gather(*(one(seed) for seed in range(16)))
        apart = [await one(seed) for seed in range(16)]
        await client.close()
        return together, apart

    together, apart = asyncio.run(all_of_them())
    assert together == apart


def test_a_signal_lets_streams_finish(start):
    server = start()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    stream = client.completions.create(
        model=model, prompt="A page is", stream=True, max_tokens=200, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    server.process.terminate()
    assert list(chunks)[-1].choices[0].finish_reason == "length"
    client.close()
    assert server.process.wait(timeout=30) == 0
