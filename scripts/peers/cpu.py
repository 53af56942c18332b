"""Quire's CPU backend against llama.cpp: same weights, same token ids, two threads each, in turns.

Ours is measured from outside: prefill is the time of a whole HTTP request for one token, decode the time
between the first and the last chunk of a stream. llama.cpp is measured inside its process, around
`llama_decode`. What the API costs is therefore on our side only.
"""
from __future__ import annotations

import json
import random
import subprocess
import threading
from pathlib import Path

from . import install
from .common import Server, idle_percent, row, short_hash

MODELS = ["qwen2.5-0.5b", "tinyllama-1.1b"]
# our flag, llama.cpp's file type
FORMS = {"bf16": (["--quantize", "none"], "bf16"), "q8": (["--quantize", "q8"], "q8_0"),
         "q4": (["--quantize", "q4"], "q4_0")}
PREFILL, PROMPT, DECODE, STREAMS, PREFIX, SUFFIX = 512, 32, 64, 16, 2000, 16
# Ids below this are ordinary words in every model here.
IDS = 30_000


class Llama:
    """The peer's process."""

    name = "llama.cpp"

    def __init__(self, path: Path):
        self.process = subprocess.Popen([install.PYTHON, Path(__file__).with_name("llama.py"), "serve", path],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = f"llama-cpp-python {json.loads(self.process.stdout.readline())['version']}"

    def ask(self, **what) -> dict:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()


def run(o) -> list[dict]:
    missing = install.llama()
    if missing:
        return [row(f"{m} {f}", "tok/s", "higher", [0.0], name="llama.cpp", note=missing)
                for m in o.models for f in o.forms]
    rows = []
    for model in o.models:
        for form in o.forms:
            rows += side_by_side(o, model, form)
            print(f"{model} {form}: done", flush=True)
    return rows


def side_by_side(o, model: str, form: str) -> list[dict]:
    flags, kind = FORMS[form]
    folder, file = install.model(model), install.gguf(model, kind)
    rng = random.Random(f"{model} {form}")
    args = [str(folder), *flags, "--threads", "2", "--kv-pages", "2048", "--max-model-len", "4096"]
    with Server(o.binary, *args) as ours, Llama(file) as peer:
        decode = decode_prompt(ours, rng)
        many = [words(rng, PROMPT) for _ in range(STREAMS)]
        measured = {name: ([], []) for name in ("prefill", "decode", "streams")}
        for number in range(-1, o.rounds):  # round -1 warms both sides up
            one = one_round(ours, peer, words(rng, PREFILL), decode, many)
            if number >= 0:
                for name, (mine, theirs) in one["rates"].items():
                    measured[name][0].append(mine)
                    measured[name][1].append(theirs)
        cold, warm = prefix(ours, rng, o.rounds)
        idle = idle_percent(ours.pid, 2.0)
    return report(f"{model} {form}", measured, one, (cold, warm), idle, peer.version)


def one_round(ours: Server, peer: Llama, prompt: list[int], decode: list[int], many: list[list[int]]) -> dict:
    mine = ours.complete(prompt, 1)
    theirs = peer.ask(do="prefill", prompt=prompt)
    rates = {"prefill": (PREFILL / mine["seconds"], PREFILL / theirs["seconds"])}
    at, text = ours.stream(decode, DECODE + 1)
    said = peer.ask(do="generate", prompts=[decode], count=DECODE)
    rates["decode"] = (DECODE / (at[-1] - at[0]), DECODE / said["seconds"])
    aggregate = together(ours, many)
    crowd = peer.ask(do="generate", prompts=many, count=DECODE)
    rates["streams"] = (aggregate, STREAMS * DECODE / crowd["seconds"])
    return {"rates": rates, "ours": text, "peer": said["text"]}


def together(ours: Server, prompts: list[list[int]]) -> float:
    """Tokens a second of all streams while every one of them runs."""
    results: list[list[float]] = [[] for _ in prompts]

    def one(i: int) -> None:
        results[i] = ours.stream(prompts[i], DECODE + 1)[0]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    start, end = max(at[0] for at in results), min(at[-1] for at in results)
    return sum(sum(start < t <= end for t in at) for at in results) / (end - start)


def prefix(ours: Server, rng: random.Random, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the one token of an answer, the 2,000-token prefix new or cached."""
    cold, warm = [], []
    for _ in range(rounds):
        shared = words(rng, PREFIX)
        first, again = ours.complete(shared + words(rng, SUFFIX), 1), ours.complete(shared + words(rng, SUFFIX), 1)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= PREFIX - 64, again["usage"]
        cold.append(1e3 * first["seconds"])
        warm.append(1e3 * again["seconds"])
    return cold, warm


def decode_prompt(ours: Server, rng: random.Random) -> list[int]:
    """A prompt whose first answer token is text by itself, so that its chunk marks the first token."""
    while True:
        prompt = words(rng, PROMPT)
        at, _ = ours.stream(prompt, DECODE + 1)
        if ours.complete(prompt, 1)["choices"][0]["text"] and len(at) == DECODE + 1:
            return prompt


def report(case: str, measured: dict, last: dict, ttft: tuple, idle: float, version: str) -> list[dict]:
    peer = {"name": Llama.name, "version": version}
    same = next((i for i, (a, b) in enumerate(zip(last["ours"], last["peer"])) if a != b), len(last["ours"]))
    note = (f"ours {short_hash(last['ours'])}, peer {short_hash(last['peer'])}; "
            f"greedy texts agree for {same} of {len(last['ours'])} characters")
    one, many = measured["decode"][0], measured["streams"][0]
    cold, warm = ttft
    return [
        row(f"{case} prefill {PREFILL}", "tok/s", "higher", *measured["prefill"], **peer, note="whole HTTP request"),
        row(f"{case} decode", "tok/s", "higher", *measured["decode"], **peer, note=note),
        row(f"{case} decode, {STREAMS} streams", "tok/s", "higher", *measured["streams"], **peer),
        row(f"{case} {STREAMS} streams over one", "×", "higher", [m / o for m, o in zip(many, one)]),
        row(f"{case} TTFT, {PREFIX} tokens cold", "ms", "lower", cold),
        row(f"{case} TTFT, {PREFIX} tokens warm", "ms", "lower", warm),
        row(f"{case} cold over warm", "×", "higher", [c / w for c, w in zip(cold, warm)]),
        row(f"{case} idle", "% of core", "lower", [idle]),
    ]


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(IDS) for _ in range(count)]
