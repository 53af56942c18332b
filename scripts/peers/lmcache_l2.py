"""LMCache's own `lmcache bench l2`, kept in one process so that a round does not start with loading torch.

Runs inside LMCache's virtual environment. Each line on standard input is the list of arguments of one run;
each answer is a line of JSON with the exit status and what `--format json` printed.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from importlib.metadata import version

# What LMCache logs on standard output goes to standard error: that pipe is ours.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from lmcache.cli.main import main  # noqa: E402


def run(arguments: list[str]) -> dict:
    said, wrong, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["lmcache", *arguments]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
    return {"code": code, "said": said.getvalue(), "wrong": wrong.getvalue()[-2000:]}


def answer(value: dict) -> None:
    print(json.dumps(value), file=ANSWERS, flush=True)


if __name__ == "__main__":
    answer({"version": version("lmcache")})
    for line in sys.stdin:
        answer(run(json.loads(line)))
