"""The API and the scheduler alone: the simulated executor answers at once, so all time is ours.

The load generator runs on the same cores and takes its share of them; the figures are what is left. There is
no peer to install for this shape of run: published lines of others stand in the notes.
"""
from __future__ import annotations

import json
import subprocess

from .common import Server, idle_percent, memory_mib, row

REQUESTS, STREAMS, INPUT, OUTPUT = 12_000, 256, 128, 64
PUBLISHED = "published: PegaInfer with a simulated engine 1,591–1,709 requests/s, 102–109k tok/s on 48 cores, RSS 771 MB"


def run(o) -> list[dict]:
    runs, idle = [], []
    with Server(o.binary, "--executor", "sim") as server:
        load(o, server, STREAMS * 4, STREAMS)  # warm-up: connections, arenas, code pages
        for _ in range(o.rounds):
            runs.append(load(o, server, REQUESTS, STREAMS))
            idle.append(idle_percent(server.pid))
        memory = [memory_mib(server.pid)]
    assert len({r["result_hash"] for r in runs}) == 1, "the same seed gave different answers"
    shape = f"{INPUT} in / {OUTPUT} out, {STREAMS} streams"
    hashed = f"result hash {runs[0]['result_hash']}; {PUBLISHED}"
    pieces = f"{runs[0]['output_tokens'] / runs[0]['chunks']:.2f} tokens a chunk: what a busy connection missed comes at once"
    of = lambda key: [r[key] for r in runs]
    return [
        row(f"requests, {shape}", "1/s", "higher", of("request_throughput"), note=hashed),
        row(f"output tokens, {shape}", "tok/s", "higher", of("output_throughput"), note=pieces),
        row(f"TTFT p99, {shape}", "ms", "lower", [r["ttft_ms"]["p99"] for r in runs]),
        row(f"TTFT p50, {shape}", "ms", "lower", [r["ttft_ms"]["p50"] for r in runs]),
        row("highest RSS", "MiB", "lower", memory),
        row("idle", "% of core", "lower", idle),
    ]


def load(o, server: Server, requests: int, streams: int) -> dict:
    """One run of the load generator. Prompts differ in every round only by what the cache keeps of them."""
    command = [o.binary, "bench", "serve", "--url", server.url, "--requests", requests, "--concurrency", streams,
               "--input-len", INPUT, "--output-len", OUTPUT, "--ignore-eos", "--vocab-size", 20_000, "--json", "-"]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["completed"] == requests, report["errors"]
    return report
