"""The cache tiers: the disk tier against LMCache and fio, the host tier against memcpy, the tree against LRU and
kvbm-logical, and what a warm restart saves over the API.

Our disk tier seals every page with AES-256-GCM and checks it on the way back; neither peer does. Everybody
moves the same bytes through O_DIRECT in the same directory with as many operations in flight, and nobody
flushes the disk's own cache. LMCache and Quire hand over one batch of everything, as a restore does. What
other runs than the disk's measure is said in each row.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

from . import install
from .common import CACHE, ROOT, Server, row, short_hash
from .tiers_peers import LMCache, Pipe, fio, fio_run, fio_version, kvbm, lmcache, KVBM

SIZES = [64 << 10, 256 << 10, 1 << 20, 4 << 20]
PARTS = ["disk", "copies", "recovery", "tree", "restart", "host"]
# The CPU server's model of this run, and what a token of it takes: 24 layers, 2 heads of 64, keys and values, bf16.
MODEL, TOKEN_BYTES = "qwen2.5-0.5b", 24 * 2 * 2 * 64 * 2
PROMPT, WORDS = 2000, 30_000
# Pages of 16 tokens: one prompt fits and two do not.
FEW_PAGES = 130
# A page is on the disk a moment after its answer.
SETTLE = 2.0


def run(o) -> list[dict]:
    o.dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for part in o.parts:
        rows += globals()[part](o)
        print(f"{part}: done", flush=True)
    for one in rows:
        one["note"] = "; ".join(filter(None, [one["note"], o.note]))
    return rows


def bench(package: str, name: str) -> Path:
    """The bench's binary, built if it has to be."""
    command = ["cargo", "bench", "-p", package, "--bench", name, "--no-run", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Path(next(m["executable"] for m in made if m.get("executable") and m["target"]["name"] == name))


def lines(command: list) -> list[dict]:
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def disk(o) -> list[dict]:
    binary = bench("quire-transfer", "nvme")
    no_lmcache, no_fio = lmcache(), fio()
    rows = []
    peer = None if no_lmcache else LMCache(o.dir / "lmcache", o.depth)
    try:
        for size in SIZES:
            rows += one_size(o, binary, size, peer, no_lmcache, no_fio)
            print(f"disk {size >> 10} KiB: done", flush=True)
    finally:
        if peer:
            peer.__exit__()
    return rows


def one_size(o, binary: Path, size: int, peer: LMCache | None, no_lmcache: str | None,
             no_fio: str | None) -> list[dict]:
    """Rounds of ours, fio, LMCache, in this order."""
    # LMCache needs seconds around each round of many small objects: the smallest have fewer bytes.
    total = min(o.bytes // size, 2048) * size
    command = [binary, o.dir / "quire", "--json", "disk", "--only", size >> 10, "--bytes", total, "--depth", o.depth]
    got: dict[str, list[float]] = {}
    add = lambda values: [got.setdefault(key, []).append(value) for key, value in values.items()]
    file, patterns = o.dir / "fio", ["randwrite", "write", "randread", "read"]
    with Pipe(command) as ours:
        how = ours.read()
        if not no_fio:
            fio_run(file, "write", size, total, o.depth, how["registered"])  # makes the file's blocks
        for _ in range(o.rounds):
            said = ours.ask()
            assert said.pop("failures") == 0, said
            add(said)
            if not no_fio:
                add({f"fio {p}": fio_run(file, p, size, total, o.depth, how["registered"]) for p in patterns})
            if peer and not no_lmcache:
                try:
                    add({f"LMCache {key}": value for key, value in peer.round(size, total // size).items()})
                except RuntimeError as e:
                    no_lmcache = str(e)
    file.unlink(missing_ok=True)
    about = (f"depth {o.depth}, {total >> 20} MiB a leg, direct {how['direct']}, io_uring {how['uring']}, "
             f"registered buffers {how['registered']}, all sides' buffers in huge pages; ours sealed and checked")
    return disk_rows(size, got, about, peer, no_lmcache, no_fio)


def disk_rows(size: int, got: dict, about: str, peer: LMCache | None, no_lmcache: str | None,
              no_fio: str | None) -> list[dict]:
    rows, unit = [], ("GB/s", "higher")
    version = fio_version() if not no_fio else None
    legs = [("store", "raw_write", ["randwrite", "write"]), ("load", "raw_read", ["randread", "read"])]
    for ours, raw, patterns in legs:
        case = f"NVMe {ours} {size >> 10}K"
        rows.append(row(f"{case} / LMCache", *unit, got[ours], got.get(f"LMCache {ours}"), name=LMCache.name,
                        version=peer.version if peer else None,
                        note=no_lmcache or f"{about}; LMCache neither seals nor checks"))
        for pattern in patterns:
            rows.append(row(f"{case} / fio {pattern}", *unit, got[ours], got.get(f"fio {pattern}"),
                            name=f"fio {pattern}", version=version, note=no_fio or about))
        rows.append(row(f"{case} / raw", *unit, got[ours], got[raw], name="io_uring loop in the same process",
                        note=f"{about}; the raw side writes plain bytes in the same order"))
    return rows


def copies(o) -> list[dict]:
    said = lines([bench("quire-transfer", "nvme"), o.dir / "quire", "--json", "copies", "--rounds", o.rounds])
    rows = []
    for size in sorted({s["bytes"] for s in said}):
        ours, raw = ([s[side] for s in said if s["bytes"] == size] for side in ("frame", "memcpy"))
        rows.append(row(f"host tier copy {size >> 10}K", "GB/s", "higher", ours, raw, name="memcpy",
                        note="one thread, 256 MiB, in turns"))
    return rows


def recovery(o) -> list[dict]:
    said = lines([bench("quire-transfer", "nvme"), o.dir / "quire", "--json", "recovery", "--rounds", o.rounds])
    rows = []
    for shape in sorted({(s["page_bytes"], s["tokens"]) for s in said}, reverse=True):
        mine = [s for s in said if (s["page_bytes"], s["tokens"]) == shape]
        share = 100 * mine[0]["index_bytes"] / (10 << 30)
        rows.append(row(f"index of 10 GiB, {shape[0]} B, {shape[1]} tokens", "s", "lower",
                        [s["ms"] / 1e3 for s in mine],
                        note=f"a page has these bytes and tokens; bar: 1 s; {mine[0]['pages']} pages, "
                             f"the index is {share:.2f} % of them"))
    return rows


def tree(o) -> list[dict]:
    binary = bench("quire-kvcache", "hitrate")
    trace = [o.trace] if o.trace else []
    of = f"trace {o.trace.name}" if o.trace else "generated conversations"
    rows = [row(f"hit rate, {r['capacity']} blocks", "share", "higher", [r["ours"]], [r["lru"]], name="LRU on leaves, same tree",
                note=f"{of}; ours is {r['policy']}; who knows the future hits {r['clairvoyant']:.4f}")
            for r in lines([binary, "--json", "rates", *trace])]
    peer, missing = kvbm()
    speeds, theirs = [], []
    with Pipe([peer]) if peer else open(os.devnull) as pipe:
        for _ in range(o.rounds):
            speeds += lines([binary, "--json", "speed", *trace])
            if peer:
                theirs.append(pipe.ask())
    of_ours = lambda key: [s[key] for s in speeds]
    of_theirs = lambda key: [t[key] for t in theirs] or None
    page = 64 * TOKEN_BYTES
    share = [100 * s["metadata_per_page"] / page for s in speeds]
    about = missing or "both warm; kvbm-logical's hashes are made beforehand, ours compares the tokens"
    versions = {"version": KVBM if peer else None}
    return rows + [
        row("full-hit match p50", "us", "lower", of_ours("match_p50_us"),
            note=f"{of}, pages of 64; {speeds[0]['match_tokens']} tokens on average; published: SGLang 0.5.23 13 us"),
        row("insert p50", "Mtok/s", "higher", of_ours("insert_p50"),
            note=f"{of}, pages of 64; published: SGLang 0.5.23 191"),
        row("insert in total", "Mtok/s", "higher", of_ours("insert_total"), note=f"{of}, pages of 64"),
        row("128-page match, nobody holds it", "us", "lower", of_ours("match_128_us"), of_theirs("inactive_us"),
            name="kvbm-logical, inactive, LRU", note=about, **versions),
        row("128-page match / active", "us", "lower", of_ours("match_128_us"), of_theirs("active_us"),
            name="kvbm-logical, active", note=f"{about}; ours is held by nobody", **versions),
        row("metadata of a page", "%", "lower", share,
            note=f"{speeds[0]['metadata_per_page']:.0f} B of a page of 64 tokens, {page} B in the shape of {MODEL}, bf16"),
    ]


class Answers:
    """Times of prompts, and what was said to them."""

    def __init__(self):
        self.cold, self.warm, self.texts, self.said = [], [], {}, []

    def ask(self, server: Server, prompt: list[int], expected: range) -> float:
        """Milliseconds to the one token; the same prompt must have the same answer each time."""
        got = server.complete(prompt, 1, logprobs=1)
        cached = cached_tokens(got)
        assert cached in expected, f"{cached} tokens were cached, {expected} expected"
        choice = json.dumps([got["choices"][0]["text"], got["choices"][0]["logprobs"]])
        assert self.texts.setdefault(tuple(prompt), choice) == choice, "a hit changed the answer"
        self.said.append(choice)
        return 1e3 * got["seconds"]

    def row(self, case: str, note: str) -> dict:
        same = f"cold and warm answers equal, logprobs too, hash {short_hash(''.join(self.said))}"
        ratios = [cold / warm for cold, warm in zip(self.cold, self.warm)]
        return row(case, "ms", "lower", self.warm, self.cold, name="the same server, cold",
                   note=f"bar: ratio 10, each round's {min(ratios):.1f}–{max(ratios):.1f}; {note}; whole HTTP request, one token; {same}")


# All but the last page: the token that the answer follows is computed again.
HIT, MISS = range(PROMPT - 32, PROMPT - 15), range(0, 1)


def restart(o) -> list[dict]:
    """Each life of the server answers the last life's prompt from the disk and a new one cold."""
    folder, rng, answers = o.dir / "restart", random.Random("restart"), Answers()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    args = [str(install.model(MODEL)), "--quantize", "none", "--threads", "2", "--kv-pages", "512", "--max-model-len", "4096",
            "--kv-host-memory", "256MiB", "--kv-nvme-dir", str(folder / "nvme"), "--key-store", str(folder / "keys"),
            "--kv-prefetch", "wait"]
    last = None
    for _ in range(o.rounds + 1):
        prompt = words(rng, PROMPT)
        with Server(o.binary, *args) as server:
            server.complete(words(rng, 256), 8)  # touches the weights
            if last:
                answers.warm.append(answers.ask(server, last, HIT))
            if len(answers.cold) < o.rounds:
                answers.cold.append(answers.ask(server, prompt, MISS))
                time.sleep(SETTLE)
        last = prompt
    # And the same without the moment: what an orderly stop right after the answer keeps.
    prompt = words(rng, PROMPT)
    with Server(o.binary, *args) as server:
        server.complete(prompt, 1)
    with Server(o.binary, *args) as server:
        kept = cached_tokens(server.complete(prompt, 1))
    shutil.rmtree(folder, ignore_errors=True)
    note = f"{MODEL} bf16, sealed pages, key store; SIGTERM {SETTLE:.0f} s after the answer"
    return [answers.row(f"TTFT {PROMPT} from NVMe after a restart", note),
            row("kept by SIGTERM right after the answer", "%", "higher", [100 * kept / (PROMPT - 16)],
                note=f"{kept} of {PROMPT} tokens were cached in the next life; all full pages are 100")]


def cached_tokens(answer: dict) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def host(o) -> list[dict]:
    """Two prompts by turns through a pool with room for one: each sends the other to host memory."""
    rng, answers = random.Random("host"), Answers()
    args = [str(install.model(MODEL)), "--quantize", "none", "--threads", "2", "--kv-pages", str(FEW_PAGES),
            "--max-model-len", str(FEW_PAGES * 16 - 32), "--kv-host-memory", "256MiB", "--kv-prefetch", "wait"]
    with Server(o.binary, *args) as server:
        server.complete(words(rng, 256), 8)
        for _ in range(o.rounds):
            prompt = words(rng, PROMPT)
            answers.cold.append(answers.ask(server, prompt, MISS))
            server.complete(words(rng, PROMPT), 1)
            answers.warm.append(answers.ask(server, prompt, HIT))
    note = f"{MODEL} bf16, pool of {FEW_PAGES} pages of 16, evicted by another prompt"
    return [answers.row(f"TTFT {PROMPT} from host memory", note)]


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(WORDS) for _ in range(count)]
