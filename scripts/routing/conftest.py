"""Real processes: replicas, routers, Envoy. Each on a free port, each ended with its test."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

sys.dont_write_bytecode = True

QUIRE = os.environ["QUIRE"]
READY_S = 120
END_S = 40


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Process:
    """A server of ours, ready when it says so."""

    def __init__(self, *words, wait=True):
        self.words = [QUIRE, *words]
        self.process = subprocess.Popen(self.words, stdout=subprocess.PIPE, text=True)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, args=(self.process.stdout, self.lines), daemon=True).start()
        self.seen = []
        self.url = self.grpc = None
        if wait:
            self.wait_ready()

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.put(line)
        lines.put(None)

    def wait_ready(self):
        while self.url is None:
            line = self.lines.get(timeout=READY_S)
            if line is None:
                raise RuntimeError(f"ended before it was ready: {''.join(self.seen)}")
            self.seen.append(line)
            if line.startswith("ready: "):
                words = line.split()
                self.url = words[1].rstrip("/")
                self.grpc = words[2].removeprefix("grpc://") if len(words) > 2 else None

    @property
    def address(self):
        return self.url.removeprefix("http://")

    def signal(self, which):
        self.process.send_signal(which)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=END_S)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=END_S)


def ask(url, path="/v1/completions", body=None, timeout=60, headers=None):
    """(status, body, headers); never raises for a status."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(
        url + path, data=data, headers={"content-type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def until(what, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("not in time")


@pytest.fixture
def start():
    """Starts servers, and ends them all."""
    running = []

    def begin(*words, **options):
        process = Process(*words, **options)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()


def sim(start, port=0, **options):
    return start("serve", "--executor", "sim", "--port", str(port), "--log-level", "warn", **options)


def ready(router):
    pools = json.loads(ask(router.url, "/debug/replicas")[1])["pools"]
    return sum(r["readiness"] == "ready" for pool in pools for r in pool["replicas"])
