"""The router's prefix index against Dynamo's and smg's, on one trace's events and prompts.

Each round runs ours and then every peer, each in a process of its own that makes the same events from the same trace.
The peers are built in a crate outside the workspace; where that fails, the rows say why.
"""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from .common import CACHE, ROOT, row
from .tiers import bench
from .tiers_peers import failed

CRATE = ROOT / "benches/peers/router-index"
PEERS = {"crtc": ("Dynamo CRTC", "1.6.1"), "positional": ("Dynamo Positional", "1.6.1"), "chain": ("smg ChainIndex", "2.0.0")}


def peers() -> tuple[Path | None, str | None]:
    """The peers' binary, or why there is none."""
    target = CACHE / "router-index-target"
    env = os.environ | {"CARGO_TARGET_DIR": str(target)}
    try:
        subprocess.run(["nice", "cargo", "build", "--release", "--quiet"], cwd=CRATE, env=env, check=True,
                       capture_output=True, text=True)
    except subprocess.CalledProcessError as e:
        return None, failed(e)
    return target / "release/router-index-peers", None


def legs(command: list) -> dict[str, dict]:
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
    return {said["leg"]: said for said in map(json.loads, done.stdout.splitlines())}


def run(o) -> list[dict]:
    trace = ["--trace", o.trace] if o.trace else []
    ours_binary, (peer_binary, missing) = bench("quire-router", "index"), peers()
    ours, theirs = [], []
    for number in range(o.rounds):
        ours.append(legs([ours_binary, *trace]))
        if peer_binary:
            theirs.append(legs([peer_binary, *trace, *PEERS]))
        print(f"round {number + 1}: done", flush=True)
    hashes = {said["hash"] for one in ours for said in one.values()}
    assert len(hashes) == 1, f"scores differ: {hashes}"
    of = f"trace {o.trace.name}" if o.trace else "generated conversations"
    about = f"{of}, 16 replicas, {ours[0]['own']['resident']} memberships, blocks of 16 tokens, scores' hash {hashes.pop()}"
    return rows(ours, theirs, f"{about}; {missing}" if missing else about)


def rows(ours: list[dict], theirs: list[dict], note: str) -> list[dict]:
    mine = lambda leg, key: [one[leg][key] for one in ours]
    events = ("M blocks/s", "higher")
    made = [
        row("mixed: events while looked up", *events, mine("mixed", "written_m_blocks_per_s"), note=f"bar: 20; {note}"),
        row("mixed: lookup p50", "us", "lower", mine("mixed", "p50_us"), note=f"bar: 0.25; {note}"),
        row("mixed: lookup p99", "us", "lower", mine("mixed", "p99_us"), note=f"bar: 1.5; {note}"),
    ]
    for peer, (name, version) in PEERS.items():
        # None where the peers could not be built: the rows are ours alone.
        their = lambda key: [one[peer][key] for one in theirs] or None
        add = lambda case, unit, better, leg, key, theirs_key=None: made.append(
            row(f"{case} / {name}", unit, better, mine(leg, key), their(theirs_key or key), name=name, version=version,
                note=note))
        add("events of our replicas", *events, "own", "m_blocks_per_s")
        add("events of a foreign engine", *events, "foreign", "m_blocks_per_s")
        add("lookup", *events, "lookup", "m_blocks_per_s", "lookup_m_blocks_per_s")
        add("lookup p99", "us", "lower", "lookup", "p99_us")
        add("own, of a membership", "B", "lower", "own", "bytes_per_membership")
        add("foreign, of a membership", "B", "lower", "foreign", "bytes_per_membership")
    return made
