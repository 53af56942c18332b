"""Traces for judging a router, as Mooncake published theirs: JSON lines of `timestamp` in ms, lengths, `hash_ids` of
512-token blocks. Generated ones come from a seed; recorded ones are turned into the form, or shaken.
"""
from __future__ import annotations

import csv
import datetime
import json
import math
import random
from pathlib import Path

BLOCK = 512


def write(path: Path, requests: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    requests = sorted(requests, key=lambda r: r["timestamp"])
    first = requests[0]["timestamp"]
    lines = [json.dumps(r | {"timestamp": r["timestamp"] - first}) for r in requests]
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def jittered(source: Path, seed: int) -> list[dict]:
    """The same requests, each up to three seconds later: recorded times come in steps of that."""
    rng = random.Random(seed)
    return [r | {"timestamp": r["timestamp"] + rng.randrange(3000)} for r in read(source)]


def azure(source: Path, seed: int, requests_max: int = 6000) -> list[dict]:
    """Recorded arrivals and lengths. The record has no content: what a request shares with others is drawn, from 200
    repositories whose beginning all of their requests have, popular ones more often."""
    rng, fresh, out = random.Random(seed), 1_000_000, []
    with source.open() as f:
        for row in list(csv.DictReader(f))[:requests_max]:
            at = datetime.datetime.fromisoformat(row["TIMESTAMP"][:26])
            tokens, output = int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"]))
            blocks = math.ceil(tokens / BLOCK)
            repository = min(199, int(rng.paretovariate(0.7)) - 1)
            shared = min(blocks - 1, 1 + repository % 5)
            ids = [repository * 100 + i for i in range(shared)] + list(range(fresh, fresh + blocks - shared))
            fresh += blocks
            out.append({"timestamp": int(at.timestamp() * 1000), "input_length": tokens, "output_length": output, "hash_ids": ids})
    return out


def sessions(seed: int, sessions: int = 900, per_second: float = 0.9, systems: int = 12, think_s: float = 25.0,
             user_tokens: int = 700, turns: float = 5.0) -> list[dict]:
    """Conversations: a system prompt of a few thousand tokens that many share, then turns that each repeat all of
    before."""
    rng, fresh, out, start = random.Random(seed), 1_000_000, [], 0.0
    for _ in range(sessions):
        start += rng.expovariate(per_second)
        system = min(systems - 1, int(rng.paretovariate(0.8)) - 1)
        ids, at = [system * 100 + i for i in range(4 + system % 5)], start
        for _ in range(1 + int(rng.expovariate(1 / turns))):
            answer = 1 + int(rng.expovariate(1 / 300))
            grown = max(1, round(rng.expovariate(1 / user_tokens) / BLOCK))
            ids = ids + list(range(fresh, fresh + grown))
            fresh += grown
            out.append({"timestamp": int(at * 1000), "input_length": len(ids) * BLOCK - rng.randrange(BLOCK - 1),
                        "output_length": answer, "hash_ids": ids[:]})
            at += answer * 0.015 + rng.expovariate(1 / think_s)
    return out


def hot(seed: int, requests: int = 5000, per_second: float = 40.0) -> list[dict]:
    """One system prompt of 4,096 tokens for all, and little else."""
    rng, at, out = random.Random(seed), 0.0, []
    for i in range(requests):
        at += rng.expovariate(per_second)
        out.append({"timestamp": int(at * 1000), "input_length": 9 * BLOCK - rng.randrange(300),
                    "output_length": 1 + int(rng.expovariate(1 / 120)), "hash_ids": [*range(8), 1_000 + i]})
    return out
