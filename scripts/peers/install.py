"""Builds llama.cpp from its source package, and writes the models that both sides run."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .common import CACHE, ROOT

LLAMA = "0.3.36"
# numpy and tokenizers for scripts/make_model.py, gguf for scripts/make_gguf.py
TOOLS = ["numpy", "tokenizers", "gguf"]
PYTHON = CACHE / "llama/bin/python"


def llama() -> str | None:
    """Makes the environment if it is missing; the reason if it cannot be made."""
    try:
        if not PYTHON.exists():
            subprocess.run([sys.executable, "-m", "venv", PYTHON.parent.parent], check=True)
        if not has("llama_cpp"):
            # From source, so that it is compiled for the instructions of this machine.
            env = os.environ | {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
            pip("--no-binary", "llama-cpp-python", f"llama-cpp-python=={LLAMA}", env=env)
        if not all(has(tool) for tool in TOOLS):
            pip(*TOOLS)
    except subprocess.CalledProcessError as e:
        return f"not installed: {e}"
    return None


def has(module: str) -> bool:
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


def pip(*args: str, env: dict | None = None) -> None:
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *args], check=True, env=env)


def model(preset: str) -> Path:
    """The model folder of a public shape, with random weights."""
    folder = CACHE / "models" / preset
    if not (folder / "config.json").exists():
        subprocess.run([PYTHON, ROOT / "scripts/make_model.py", "--preset", preset, "--out", folder], check=True)
    return folder


def gguf(preset: str, kind: str) -> Path:
    """The same weights for llama.cpp: bf16 by this project's converter, quantized by llama.cpp's own quantizer
    with its usual recipe (which keeps the output matrix finer than the layers)."""
    bf16 = CACHE / "models" / f"{preset}-bf16.gguf"
    if not bf16.exists():
        subprocess.run([PYTHON, ROOT / "scripts/make_gguf.py", model(preset), bf16, "--type", "bf16"], check=True)
    path = CACHE / "models" / f"{preset}-{kind}.gguf"
    if not path.exists():
        command = [PYTHON, Path(__file__).with_name("llama.py"), "quantize", bf16, path, kind]
        made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert json.loads(made.splitlines()[-1])["code"] == 0, made
    return path
