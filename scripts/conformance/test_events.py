"""KV events as a router of the field reads them: `pyzmq` and `msgpack`, vLLM's schema."""

import os
import socket

import msgpack
import openai
import pytest
import zmq

from conftest import Server

pytestmark = pytest.mark.skipif("QUIRE_URL" in os.environ, reason="needs a server with event endpoints")

PROMPT = "A lease is the right to read published pages. " * 12
WAIT_MS = 20_000


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def node():
    live, replay = free_port(), free_port()
    server = Server(
        "--kv-events-endpoint", f"tcp://127.0.0.1:{live}",
        "--kv-events-replay-endpoint", f"tcp://127.0.0.1:{replay}",
        "--kv-events-topic", "kv-events",
        "--kv-host-memory", "64MiB",
    )
    yield server, live, replay
    assert server.end() == 0


def ask(server, prompt):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    model = client.models.list().data[0].id
    return client.completions.create(model=model, prompt=prompt, max_tokens=2)


def receive(socket_):
    assert socket_.poll(WAIT_MS), "no event in time"
    return socket_.recv_multipart()


def test_stored_blocks_chain_and_name_their_medium_and_a_replay_repeats_them(node):
    server, live, replay = node
    context = zmq.Context.instance()
    subscriber = context.socket(zmq.SUB)
    subscriber.connect(f"tcp://127.0.0.1:{live}")
    subscriber.setsockopt(zmq.SUBSCRIBE, b"kv-")
    # Subscribing is not acknowledged: ask until something is heard.
    for attempt in range(200):
        ask(server, f"{attempt} {PROMPT}")
        if subscriber.poll(100):
            break
    seen, sequences = [], []
    media = set()
    while media != {"GPU", "CPU_PINNED"}:
        topic, sequence, payload = receive(subscriber)
        assert topic == b"kv-events"
        sequences.append(int.from_bytes(sequence, "big"))
        time, events, rank = msgpack.unpackb(payload)
        assert time > 1.5e9 and rank == 0
        seen.append(payload)
        for event in events:
            if event["type"] == "BlockStored":
                media.add(event["medium"])
                assert len(event["token_ids"]) == event["block_size"] * len(event["block_hashes"])
                assert event["parent_block_hash"] is None or isinstance(event["parent_block_hash"], int)
                assert event["lora_id"] is None
        if not subscriber.poll(500) and media != {"GPU", "CPU_PINNED"}:
            ask(server, f"more {len(seen)} {PROMPT}")
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    client = context.socket(zmq.DEALER)
    client.connect(f"tcp://127.0.0.1:{replay}")
    client.send_multipart([b"", sequences[0].to_bytes(8, "big")])
    for sequence, payload in zip(sequences, seen):
        empty, got, again = receive(client)
        assert (empty, int.from_bytes(got, "big"), again) == (b"", sequence, payload)
    while int.from_bytes(receive(client)[1], "big", signed=True) != -1:
        pass
