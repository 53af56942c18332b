#!/usr/bin/env python3
"""Logits of tiny random models as mlx-lm computes them, for runtime/tests/oracle_mlx.rs.

    python3 -m venv .venv && .venv/bin/pip install "mlx[cpu]==0.32.4" "mlx-lm==0.32.2"
    .venv/bin/python scripts/oracle/make_fixtures.py

Reads runtime/tests/fixtures/cases.json (configs, seeds, lengths) and writes
runtime/tests/fixtures/mlx.safetensors with three arrays per case, [positions, vocab]:

    <case>/f32    f32 weights, f32 arithmetic
    <case>/exact  weights rounded to bf16, f32 arithmetic
    <case>/bf16   weights rounded to bf16, bf16 arithmetic: the oracle's own bf16 floor

Weights and prompts come from a formula that the Rust side computes as well (see weights.py), so
the fixture holds logits only. Where mlx-lm lacks a feature of a family it is given here in the
plainest way and named in NOTES below; everything else is mlx-lm as released.
"""
import importlib
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import base
from safetensors.numpy import save_file

from weights import bf16_round, prompt, tensor

NOTES = """
sliding window of Mistral and Phi-3: mlx-lm's own windowed mask, switched on for every layer
window in Qwen2's upper layers: mlx-lm's llama with layer_types, and output biases of zero
LongRoPE below the original length: mlx-lm always takes the long factors, so it is given the short
"""

ROOT = Path(__file__).resolve().parents[2] / "runtime/tests/fixtures"
POSITIONS = 6


def positions(n: int) -> list[int]:
    """The rows kept: both ends and two in between."""
    return [0, 1, n // 3, 2 * n // 3, n - 2, n - 1]


def module_for(case: dict) -> str:
    c = case["config"]
    if c["model_type"] == "mistral" or c.get("use_sliding_window"):
        return "llama"
    return c["model_type"]


def arguments(case: dict) -> dict:
    """The config in mlx-lm's terms."""
    c = dict(case["config"])
    if "rope_parameters" in c:
        c["rope_scaling"] = c["rope_parameters"]
        c["rope_theta"] = c["rope_parameters"]["rope_theta"]
    if c["model_type"] == "phi3" and c.get("rope_scaling"):
        scaling = dict(c["rope_scaling"])
        if case.get("positions_max", 1 << 30) <= c["original_max_position_embeddings"]:
            scaling["long_factor"] = scaling["short_factor"]
        c["rope_scaling"] = scaling
    if c.get("use_sliding_window"):
        first = c["max_window_layers"]
        c["layer_types"] = ["full_attention" if i < first else "sliding_attention"
                            for i in range(c["num_hidden_layers"])]
        c["attention_bias"] = True
    return c


def window_everywhere(case: dict) -> int | None:
    c = case["config"]
    return c.get("sliding_window") if c["model_type"] in ("mistral", "phi3") else None


def build(case: dict, weights: dict[str, np.ndarray], dtype):
    module = importlib.import_module(f"mlx_lm.models.{module_for(case)}")
    window = window_everywhere(case)
    module.create_attention_mask = (
        base.create_attention_mask if window is None
        else lambda h, cache=None, **_: base.create_attention_mask(h, cache, window_size=window))
    model = module.Model(module.ModelArgs.from_dict(arguments(case)))
    model.update(tree_unflatten([(k, mx.array(v).astype(dtype)) for k, v in weights.items()]))
    return model


def weights_for(case: dict) -> dict[str, np.ndarray]:
    module = importlib.import_module(f"mlx_lm.models.{module_for(case)}")
    model = module.Model(module.ModelArgs.from_dict(arguments(case)))
    shapes = {k: v.shape for k, v in tree_flatten(model.parameters())}
    upper = case["config"].get("use_sliding_window")
    return {k: np.zeros(s, np.float32) if upper and k.endswith("o_proj.bias")
            else tensor(case["seed"], k, s) for k, s in shapes.items()}


def logits(case: dict, weights: dict[str, np.ndarray], dtype) -> np.ndarray:
    n = case["tokens"]
    tokens = mx.array([prompt(case["seed"], n, case["config"]["vocab_size"])])
    out = build(case, weights, dtype)(tokens)[0]
    return np.array(out.astype(mx.float32))[positions(n)]


def main() -> None:
    mx.set_default_device(mx.cpu)
    arrays = {}
    for case in json.loads((ROOT / "cases.json").read_text()):
        weights = weights_for(case)
        rounded = {k: bf16_round(v) for k, v in weights.items()}
        name = case["name"]
        arrays[f"{name}/f32"] = logits(case, weights, mx.float32)
        arrays[f"{name}/exact"] = logits(case, rounded, mx.float32)
        low = logits(case, rounded, mx.bfloat16)
        arrays[f"{name}/bf16"] = (low.view(np.uint32) >> 16).astype(np.uint16)
        floor = np.abs(low - arrays[f"{name}/exact"]).mean()
        print(f"{name:24} scale {np.abs(arrays[f'{name}/f32']).max():6.2f}  bf16 floor {floor:.4f}")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, str(ROOT / "mlx.safetensors"))


if __name__ == "__main__":
    main()
