"""Which replica gets a request: our decision inside NVIDIA's simulator, beside Dynamo's default cost and round robin.

Nothing here takes time of the machine: the simulator keeps its own clock, so that one round says all and a row is the
same wherever it runs. Validity first: our round robin has to give what the simulator's own gives. Scenarios on the
recorded conversation need `--trace`, those on recorded arrivals `--azure`; the others are generated from seeds.
"""
from __future__ import annotations

import json
import math
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import router_traces as traces
from .common import CACHE, ROOT, row

PEER, VERSION = "Dynamo's default cost in aisimulate-core", "0.13.0"
CRATE = ROOT / "benches/peers/router-quality"
FIELDS = [("mean_ttft_ms", "mean TTFT", "ms", "lower"), ("prefix_cache_reused_ratio", "reuse", "part", "higher"),
          ("mean_e2e_latency_ms", "mean end to end", "ms", "lower"), ("mean_itl_ms", "mean ITL", "ms", "lower"),
          ("p99_itl_ms", "p99 ITL", "ms", "lower")]
# Workers, speed, pages of 16 tokens: the lines of the quality table.
TABLE = [(16, 1, 16384), (16, 2, 16384), (16, 2, 65536), (16, 4, 65536), (8, 1, 16384)]
# The same requests otherwise, so that nothing is fitted to five lines.
BESIDES = [(4, 0.5, 65536), (32, 4, 32768), (16, 3, 32768)]


def run(o) -> list[dict]:
    o.binary = build()
    scenarios = list(of(o))
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        found = list(pool.map(lambda s: measure(o.binary, *s), scenarios))
    rows = []
    for (name, *_), by_policy in zip(scenarios, found):
        rows += compared(name, by_policy)
    return rows + means(found)


def build() -> Path:
    """In the cache: two hundred crates that only this bench needs."""
    target = CACHE / "router-quality"
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    env = os.environ | {"CARGO_TARGET_DIR": str(target), "QUIRE_COMMIT": commit or "unknown"}
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=CRATE, env=env, check=True)
    return target / "release/router-quality"


def of(o):
    """Name, trace, workers, speed, pages."""
    folder = CACHE / "router-traces"
    if o.trace:
        for setting in TABLE + BESIDES:
            yield (label("conversation", *setting), o.trace, *setting)
        for seed in (1, 2):
            shaken = traces.write(folder / f"conversation-{seed}.jsonl", traces.jittered(o.trace, seed))
            yield (label(f"conversation shaken {seed}", 16, 2, 65536), shaken, 16, 2, 65536)
    if o.azure:
        code = traces.write(folder / "azure.jsonl", traces.azure(o.azure, 1))
        yield (label("azure code", 8, 2, 16384), code, 8, 2, 16384)
        yield (label("azure code", 4, 1, 16384), code, 4, 1, 16384)
    for seed in (1, 2):
        chat = traces.write(folder / f"sessions-{seed}.jsonl", traces.sessions(seed))
        yield (label(f"sessions {seed}", 8, 1, 32768), chat, 8, 1, 32768)
        yield (label(f"sessions {seed}", 16, 4, 16384), chat, 16, 4, 16384)
    hot = traces.write(folder / "hot.jsonl", traces.hot(1))
    yield (label("one prompt for all", 8, 1, 16384), hot, 8, 1, 16384)


def label(trace: str, workers: int, speed: float, pages: int) -> str:
    return f"{trace}, {workers} × {pages * 16 / 1e6:.2g} M tokens, {speed}×"


def measure(binary: Path, name: str, trace: Path, workers: int, speed: float, pages: int) -> dict[str, dict]:
    command = [binary, "--trace", trace, "--workers", workers, "--speed", speed, "--pages", pages,
               "peer-round-robin", "round-robin", "dynamo-default", "kv-aware"]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    found = {r["policy"]: r for r in map(json.loads, done.stdout.splitlines())}
    print(f"{name}: done", flush=True)
    return found


def compared(name: str, found: dict[str, dict]) -> list[dict]:
    ours, peer, theirs, robin = (found[p] for p in ("kv-aware", "dynamo-default", "peer-round-robin", "round-robin"))
    for field, *_ in FIELDS:
        if abs(robin[field] - theirs[field]) > 1e-3 * theirs[field]:
            raise SystemExit(f"error: {name}: our round robin has {field} {robin[field]}, the simulator's own {theirs[field]}: "
                             "the other rows would say nothing")
    note = f"round robin {theirs['mean_ttft_ms']:.4g} ms, reuse {theirs['prefix_cache_reused_ratio']:.3g}; ours equals it"
    return [row(f"{name}: {text}", unit, better, [ours[field]], [peer[field]], name=PEER, version=VERSION,
                note=note if field == "mean_ttft_ms" else "") for field, text, unit, better in FIELDS]


def means(found: list[dict[str, dict]]) -> list[dict]:
    """Geometric means of ours over the peer's."""
    def mean(field: str) -> float:
        logs = [math.log(f["kv-aware"][field] / f["dynamo-default"][field]) for f in found]
        return math.exp(sum(logs) / len(logs))
    note = f"geometric mean over {len(found)} scenarios of ours over the peer's"
    return [row(f"all scenarios: {text}, ours over the peer's", "ratio", better, [mean(field)], [1.0], name=PEER,
                version=VERSION, note=note) for field, text, _, better in FIELDS]
