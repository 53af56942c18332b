"""What every side-by-side run needs: the server under test, rows, the table, the file."""
from __future__ import annotations

import datetime
import fcntl
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = Path(os.environ.get("QUIRE_BENCH_CACHE") or Path.home() / ".cache/quire-bench")


class Server:
    """`quire serve ARGS` on a free port; stopped when the block ends."""

    def __init__(self, binary: Path, *args: str):
        env = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
        CACHE.mkdir(parents=True, exist_ok=True)
        self.log = CACHE / "server.log"
        self.process = subprocess.Popen([binary, "serve", *args, "--port", "0", "--log-level", "warn"],
                                        stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True, env=env)
        for line in self.process.stdout:
            if line.startswith("ready: "):
                self.url = line.split()[1]
                self.address = self.url.removeprefix("http://")
                return
        raise SystemExit(f"error: quire serve {' '.join(args)} ended with {self.process.wait()}; {self.log} says why")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    def complete(self, prompt: list[int], max_tokens: int, **options) -> dict:
        """One answer, whole; `seconds` is from the first byte sent to the last received."""
        body = json.dumps({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **options})
        start = time.perf_counter()
        answer = json.loads(self._send(body).read())
        answer["seconds"] = time.perf_counter() - start
        return answer

    def stream(self, prompt: list[int], max_tokens: int) -> tuple[list[float], str]:
        """When each chunk with text arrived, and the text."""
        body = json.dumps({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True})
        response, at, lines = self._send(body), [], []
        for line in response:
            if line.startswith(b'data: {'):
                at.append(time.perf_counter())
                lines.append(line)
        text = [json.loads(line[6:])["choices"][0]["text"] for line in lines]
        kept = [(t, s) for t, s in zip(at, text) if s]
        return [t for t, _ in kept], "".join(s for _, s in kept)

    def _send(self, body: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=600)
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(f"error: {self.url} answered {response.status}: {response.read().decode()}")
        return response


def alone():
    """The lock that keeps two runs from measuring each other; says so if others keep the machine busy."""
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = (CACHE / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit("error: another run is going on here\nhint: wait for it; two runs measure each other") from None
    if busy() > 0.2:
        print(f"warning: other processes use {busy():.1f} cores; the figures will say more about them", flush=True)
    return lock


def busy(seconds: float = 1.0) -> float:
    """Cores in use by anybody."""
    def ticks() -> int:
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
        return user + nice + system + sum(rest[:3])
    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_percent(pid: int, seconds: float = 5.0) -> float:
    """Processor time used while nothing is asked, in percent of one core."""
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return 100 * (cpu_seconds(pid) - before) / seconds


def memory_mib(pid: int, field: str = "VmHWM") -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row(case: str, unit: str, better: str, ours: list[float], peer: list[float] | None = None, *,
        name: str | None = None, version: str | None = None, note: str = "") -> dict:
    """Medians, and every round; `ratio` above 1 is in our favour."""
    mine = statistics.median(ours)
    theirs = statistics.median(peer) if peer else None
    ratio = None
    if theirs:
        ratio = mine / theirs if better == "higher" else theirs / mine
    return {"case": case, "unit": unit, "better": better, "ours": digits(mine), "ours_rounds": shown(ours),
            "peer": digits(theirs) if peer else None, "peer_rounds": shown(peer) if peer else None,
            "peer_name": name, "peer_version": version, "ratio": round(ratio, 3) if ratio else None, "note": note}


def digits(value: float) -> float:
    return float(f"{value:.4g}")


def shown(values: list[float]) -> list[float]:
    return [digits(v) for v in values]


def result(bench: str, rounds: int, rows: list[dict], binary: Path) -> dict:
    # The binary's commit, not the tree's: work may go on while a run of many minutes measures.
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    commit = version.partition("(")[2].partition(")")[0]
    return {"bench": bench, "commit": commit or "unknown", "version": version, "machine": machine(),
            "date": datetime.date.today().isoformat(), "rounds": rounds, "rows": rows}


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def table(rows: list[dict]) -> str:
    lines = [f"{'case':<44}{'unit':<10}{'ours':>10}{'range':>18}{'peer':>10}{'range':>18}{'ratio':>8}"]
    for r in rows:
        show = lambda v: "-" if v is None else f"{v:.4g}"
        spread = lambda v: "" if v is None else f"{min(v):.4g}–{max(v):.4g}"
        lines.append(f"{r['case']:<44}{r['unit']:<10}{show(r['ours']):>10}{spread(r['ours_rounds']):>18}"
                     f"{show(r['peer']):>10}{spread(r['peer_rounds']):>18}{show(r['ratio']):>8}")
    return "\n".join(lines)


def write(result: dict) -> Path:
    """A run of a part replaces its own rows of the same commit and machine, and drops all others."""
    path = ROOT / f"benches/results/{result['bench']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else {}
    if all(old.get(key) == result[key] for key in ("commit", "version", "machine", "rounds")):
        fresh = {r["case"] for r in result["rows"]}
        result["rows"] = [r for r in old["rows"] if r["case"] not in fresh] + result["rows"]
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return path
