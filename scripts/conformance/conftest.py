"""The server under test and clients for it.

`QUIRE_URL` names a running server; otherwise `QUIRE_COMMAND` (one word a line) is started on a free port
and ended with SIGTERM, which must drain and exit with 0.
"""

import os
import queue
import signal
import subprocess
import sys
import threading

import openai
import pytest

sys.dont_write_bytecode = True

READY_S = 120
END_S = 30


class Server:
    def __init__(self, *extra):
        words = os.environ["QUIRE_COMMAND"].split("\n")
        self.process = subprocess.Popen(
            [*words, "--port", "0", *extra], stdout=subprocess.PIPE, text=True
        )
        lines = queue.Queue()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        seen = []
        while True:
            line = lines.get(timeout=READY_S)
            if line is None:
                raise RuntimeError(f"the server ended before it was ready: {''.join(seen)}")
            seen.append(line)
            if line.startswith("ready: "):
                words = line.split()
                self.url = words[1].rstrip("/")
                self.grpc = words[2].removeprefix("grpc://") if len(words) > 2 else None
                return

    def _read(self, lines):
        for line in self.process.stdout:
            lines.put(line)
        lines.put(None)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=END_S)


@pytest.fixture(scope="session")
def url():
    if "QUIRE_URL" in os.environ:
        yield os.environ["QUIRE_URL"].rstrip("/")
        return
    server = Server()
    yield server.url
    assert server.end() == 0


@pytest.fixture(scope="session")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def chat(client, model):
    """Asks one question; keyword arguments go to the client."""

    def ask(question="What is a page?", **kwargs):
        messages = [{"role": "user", "content": question}]
        return client.chat.completions.create(model=model, messages=messages, **kwargs)

    return ask


@pytest.fixture(scope="session")
def complete(client, model):
    def ask(prompt="A page is", **kwargs):
        return client.completions.create(model=model, prompt=prompt, **kwargs)

    return ask


@pytest.fixture
def start():
    """Starts a further server with extra flags; skipped when only a URL was given."""
    if "QUIRE_COMMAND" not in os.environ:
        pytest.skip("a URL was given, not a binary")
    started = []

    def run(*extra):
        started.append(Server(*extra))
        return started[-1]

    yield run
    for server in started:
        if server.process.poll() is None:
            server.end()
