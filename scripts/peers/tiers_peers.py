"""The peers of the cache tiers: how each is installed, and how one leg of it is driven.

An install returns the reason where it fails, and the rows carry it. All of them stay in the cache folder but
fio, which is a system package.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .common import CACHE

LMCACHE, KVBM = "0.5.6", "1.6.1"
LMCACHE_PYTHON = CACHE / "lmcache/bin/python"
HERE = Path(__file__).parent
# Buffers in huge pages, as ours are: with small ones the disk's driver splits each request, at half the speed.
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Pipe:
    """A child process that answers each line with a line of JSON."""

    def __init__(self, command: list, **options):
        # What a library logs belongs to no table.
        self.log = (CACHE / "tiers-peer.log").open("a")
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.log, text=True, **options)

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args[0]} ended with {self.process.wait()}; {self.log.name} says why")
        return json.loads(line)

    def ask(self, line: str = "") -> dict:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def failed(e: subprocess.CalledProcessError) -> str:
    said = ((e.stderr or "") + (e.stdout or "")).strip().splitlines()
    return f"not installed: {' '.join(map(str, e.cmd[:4]))}: {said[-1] if said else e.returncode}"


def lmcache() -> str | None:
    """From PyPI. Its torch wheel brings the CUDA libraries; nothing of them is used here."""
    try:
        if not LMCACHE_PYTHON.exists():
            subprocess.run([sys.executable, "-m", "venv", LMCACHE_PYTHON.parent.parent], check=True)
        check = "import lmcache.lmcache_fs, torch; from lmcache.cli.main import main"
        if subprocess.run([LMCACHE_PYTHON, "-c", check], capture_output=True).returncode != 0:
            subprocess.run([LMCACHE_PYTHON, "-m", "pip", "install", "--quiet", f"lmcache=={LMCACHE}"],
                           check=True, capture_output=True, text=True)
            subprocess.run([LMCACHE_PYTHON, "-c", check], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as e:
        return failed(e)
    return None


class LMCache(Pipe):
    """`lmcache bench l2` over its native file backend with O_DIRECT and a thread for each operation in flight."""

    name = "LMCache bench l2 fs_native O_DIRECT"

    def __init__(self, folder: Path, depth: int):
        # Neither usage reports nor a GPU. torch only fills buffers before the clock starts; its threads would spin.
        env = os.environ | HUGE | {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": "",
                                   "OMP_NUM_THREADS": "1"}
        super().__init__([LMCACHE_PYTHON, HERE / "lmcache_l2.py"], env=env)
        self.folder, self.depth = folder, depth
        self.version = self.read()["version"]

    def round(self, size: int, count: int) -> dict[str, float]:
        """GB/s of a store and a load of `count` objects, each after a warm-up of its own."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        keys = min(count, 32)
        adapter = {"type": "fs_native", "base_path": str(self.folder), "num_workers": self.depth, "use_odirect": True}
        said = self.ask(json.dumps(["bench", "l2", "--l2-adapter", json.dumps(adapter), "--data-size-kb", str(size >> 10),
                                    "--num-keys", str(keys), "--in-flight", str(count // keys), "--rounds", "1",
                                    "--warmup-rounds", "1", "--l1-align-bytes", "4096", "--no-skip-verify",
                                    "--format", "json"]))
        shutil.rmtree(self.folder, ignore_errors=True)
        if said["code"] != 0:
            raise RuntimeError(f"lmcache bench l2 ended with {said['code']}: {said['wrong']}")
        text = said["said"]
        # Progress goes to the same stream; the metrics are its last object.
        metrics = json.loads(text[text.index("\n{") + 1 if "\n{" in text else text.index("{"):text.rindex("}") + 1])
        found = {}
        for op in sections(metrics):
            if op["operation"] in ("Store", "Load"):
                assert op["total_success"] == op["keys_per_round"], op
                found[op["operation"].lower()] = op["keys_per_round"] * size / op["duration_avg_ms"] / 1e6
        return found


def sections(tree) -> list[dict]:
    """Every dictionary with an `operation`, wherever the report keeps it."""
    if isinstance(tree, dict):
        here = [tree] if "operation" in tree else []
        return here + [found for value in tree.values() for found in sections(value)]
    return [found for value in tree for found in sections(value)] if isinstance(tree, list) else []


def fio() -> str | None:
    if shutil.which("fio"):
        return None
    try:
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", "fio"], check=True, capture_output=True, text=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as e:
        return failed(e) if isinstance(e, subprocess.CalledProcessError) else f"not installed: {e}"
    return None if shutil.which("fio") else "not installed: apt-get left no fio"


def fio_version() -> str:
    return subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout.strip()


def fio_run(file: Path, pattern: str, size: int, total: int, depth: int, registered: bool) -> float:
    """GB/s of four passes over the file, so that starting up counts for little. `registered` pins the buffers in the
    ring as ours are."""
    command = ["fio", "--name=leg", f"--filename={file}", f"--rw={pattern}", f"--bs={size}", f"--size={total}", "--loops=4",
               f"--iodepth={depth}", "--direct=1", "--ioengine=io_uring", f"--fixedbufs={int(registered)}",
               "--randrepeat=0", "--scramble_buffers=0", "--gtod_reduce=1", "--output-format=json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | HUGE)
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    side = job["write" if "write" in pattern else "read"]
    assert side["io_bytes"] == 4 * total and job["error"] == 0, side
    return side["io_bytes"] / (side["runtime"] * 1e6)


def kvbm() -> tuple[Path | None, str | None]:
    """A binary that matches blocks of kvbm-logical, or why there is none."""
    folder = CACHE / "kvbm"
    (folder / "src").mkdir(parents=True, exist_ok=True)
    (folder / "Cargo.toml").write_text(
        '[package]\nname = "kvbm-bench"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n'
        f'[dependencies]\nkvbm-logical = "={KVBM}"\n[profile.release]\nlto = "thin"\ncodegen-units = 1\n')
    source = (HERE / "kvbm.rs").read_text()
    main = folder / "src/main.rs"
    if not main.exists() or main.read_text() != source:
        main.write_text(source)
    env = {k: v for k, v in os.environ.items() if k != "CARGO_TARGET_DIR"}
    try:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=folder, env=env, check=True, capture_output=True,
                       text=True, timeout=600)
    except subprocess.CalledProcessError as e:
        return None, failed(e)
    except subprocess.TimeoutExpired:
        return None, "not installed: the build took more than ten minutes"
    return folder / "target/release/kvbm-bench", None
