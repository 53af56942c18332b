"""Replicas die, stop, are slow, are full and are restarted in turn, under load: every request is answered or told why."""

import collections
import json
import random
import signal
import threading
import time

from conftest import ask, free_port, ready, sim, until

# A prompt of some hundred tokens and an answer that takes a while.
TOKENS = 40
TYPED = {"replica_failed", "replica_timeout", "no_replica", "saturated", "overloaded", "draining", "expired_before_start"}


class Load:
    """Clients that ask until told to stop, each request whole or streamed."""

    def __init__(self, url, clients=12, seed=7):
        self.url, self.stop = url, threading.Event()
        self.outcomes = collections.Counter()
        self.wrong = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(seed + n,), daemon=True) for n in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, seed):
        draw = random.Random(seed)
        while not self.stop.is_set():
            prompt = [draw.randrange(1, 1000)] * draw.choice([16, 64, 256]) + [draw.randrange(1, 1000) for _ in range(16)]
            is_stream = draw.random() < 0.5
            body = {"model": "sim", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "stream": is_stream}
            if is_stream:
                body["stream_options"] = {"include_usage": True}
            try:
                status, text, _ = ask(self.url, body=body, timeout=60)
                outcome = self.judge(status, text.decode(), is_stream)
            except Exception as error:  # a connection that ends without a word is what must not happen
                outcome = f"wrong: {type(error).__name__}: {error}"
            with self.lock:
                self.outcomes[outcome] += 1
                if outcome.startswith("wrong"):
                    self.wrong.append(outcome)

    @staticmethod
    def judge(status, text, is_stream):
        if status == 200 and is_stream:
            events = [e for e in text.split("\n\n") if e]
            if events[-1] == "data: [DONE]":
                generated = json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"]
                return "answered" if generated == TOKENS else f"wrong: {generated} tokens in a stream"
            error = json.loads(events[-1].split("data: ", 1)[1]).get("error", {})
            return error["code"] if error.get("code") in TYPED else f"wrong: ends with {events[-1]}"
        if status == 200:
            generated = json.loads(text)["usage"]["completion_tokens"]
            return "answered" if generated == TOKENS else f"wrong: {generated} tokens"
        code = json.loads(text)["error"]["code"]
        return code if code in TYPED else f"wrong: {status} {text[:200]}"

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(timeout=90)
        assert not any(thread.is_alive() for thread in self.threads), "a request hangs"
        return self.outcomes


def fleet(start, count=4):
    ports = [free_port() for _ in range(count)]
    return [sim(start, port) for port in ports], ports


def test_killed_stopped_and_restarted_replicas_lose_no_request(start):
    replicas, ports = fleet(start)
    router = start("route", *[r.url for r in replicas], "--port", "0", "--health-interval", "100", "--log-level", "error")
    until(lambda: ready(router) == 4)
    load = Load(router.url)
    time.sleep(1)
    replicas[0].kill()
    time.sleep(1.5)
    replicas[0] = sim(start, ports[0])
    until(lambda: ready(router) == 4)
    replicas[1].signal(signal.SIGSTOP)
    until(lambda: ready(router) == 3)
    time.sleep(2)
    replicas[1].signal(signal.SIGCONT)
    until(lambda: ready(router) == 4)
    time.sleep(1)
    outcomes = load.end()
    assert not load.wrong, load.wrong[:5]
    answered = outcomes.pop("answered")
    told = sum(outcomes.values())
    print(f"{answered} answered, {dict(outcomes)}")
    # What was in the midst of a stream when its replica died is told so; all else went elsewhere.
    assert answered > 100 and told <= 24, outcomes


def test_a_rolling_restart_answers_all_but_a_typed_few(start):
    replicas, ports = fleet(start)
    router = start("route", *[r.url for r in replicas], "--port", "0", "--health-interval", "50", "--log-level", "error")
    until(lambda: ready(router) == 4)
    load = Load(router.url)
    for at, port in enumerate(ports):
        time.sleep(0.5)
        assert replicas[at].end() == 0, "drained"
        replicas[at] = sim(start, port)
        until(lambda: ready(router) == 4)
    outcomes = load.end()
    assert not load.wrong, load.wrong[:5]
    print(dict(outcomes))
    # Short of what is wanted, which is none: about one run in eight tells up to four of 4,000 `replica_failed`.
    answered = outcomes.pop("answered")
    assert answered > 500 and sum(outcomes.values()) <= answered / 200, outcomes


def test_full_queues_are_told_and_not_lost(start):
    replicas = [
        start("serve", "--executor", "sim", "--port", "0", "--max-requests", "2", "--log-level", "error")
        for _ in range(2)
    ]
    router = start("route", *[r.url for r in replicas], "--port", "0", "--log-level", "error")
    until(lambda: ready(router) == 2)
    load = Load(router.url, clients=24)
    time.sleep(4)
    outcomes = load.end()
    assert not load.wrong, load.wrong[:5]
    print(dict(outcomes))
    assert outcomes["answered"] > 20
    assert ready(router) == 2, "a full replica is not a broken one"
