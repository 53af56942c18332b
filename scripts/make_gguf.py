#!/usr/bin/env python3
"""Convert a model folder (llama, mistral, qwen2, qwen3; dense) to one GGUF file, for llama.cpp in the side-by-side runs.

    python scripts/make_gguf.py .cache/models/qwen05b model-q8_0.gguf --type q8_0

Quantized by the `gguf` package's own functions, so that the peer reads exactly the format it made; every
matrix takes the type asked for, with `--head` for the output matrix (and tied embeddings), norms and biases
stay f32. llama.cpp has its own quantizer with mixed recipes; this one is pure on purpose, because a
comparison wants the same bytes per weight on both sides.

llama.cpp rotates neighbouring pairs (2i, 2i+1) for the architecture "llama" where Hugging Face rotates
halves (i, i + d/2), so the rows of q and k are permuted for it; the qwen architectures rotate halves there
too and stay as they are. Weights stream tensor by tensor: memory is one tensor in f32.
"""
from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

TYPES = {"bf16": (Type.BF16, gguf.LlamaFileType.MOSTLY_BF16), "q8_0": (Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
         "q4_0": (Type.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0)}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}


class Weights:
    """The safetensors files of a folder, mapped."""

    def __init__(self, folder: Path):
        self.at: dict[str, tuple] = {}
        for path in sorted(folder.glob("*.safetensors")):
            raw = np.memmap(path, np.uint8, "r")
            size = struct.unpack("<Q", raw[:8].tobytes())[0]
            for name, t in json.loads(raw[8:8 + size].tobytes()).items():
                if name != "__metadata__":
                    begin, end = t["data_offsets"]
                    self.at[name] = (raw[8 + size + begin:8 + size + end], t["dtype"], tuple(t["shape"]))

    def f32(self, name: str) -> np.ndarray:
        raw, dtype, shape = self.at[name]
        if dtype == "BF16":
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return raw.view({"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32).reshape(shape)


def gguf_name(name: str) -> str:
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, leaf = rest.rpartition(".")
    return f"blk.{layer}.{LAYER[module]}.{leaf}"


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows from rotated halves to rotated neighbours, head by head."""
    d = w.shape[0] // heads
    return w.reshape(heads, 2, d // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def llama3_factors(c: dict, head_dim: int) -> np.ndarray:
    """What llama.cpp divides each frequency by, for rope scaling of the kind llama3."""
    s = c["rope_scaling"]
    old = s["original_max_position_embeddings"]
    wave = 2 * np.pi * c["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (old / wave - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
    out = 1 / ((1 - smooth) / s["factor"] + smooth)
    out = np.where(wave < old / s["high_freq_factor"], 1.0, out)
    return np.where(wave > old / s["low_freq_factor"], s["factor"], out).astype(np.float32)


def add_shape(w: gguf.GGUFWriter, c: dict, head_dim: int) -> None:
    w.add_vocab_size(c["vocab_size"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_rope_dimension_count(head_dim)
    w.add_rope_freq_base(float(c.get("rope_theta", 10000.0)))
    w.add_layer_norm_rms_eps(float(c["rms_norm_eps"]))
    scaling = c.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(kind))
        w.add_rope_scaling_factor(float(scaling["factor"]))
        w.add_rope_scaling_orig_ctx_len(int(scaling.get("original_max_position_embeddings", c["max_position_embeddings"])))
    elif kind not in ("default", "llama3"):
        sys.exit(f"rope scaling {kind!r} has no counterpart here")


def add_tokenizer(w: gguf.GGUFWriter, folder: Path, c: dict) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    names, kinds = [""] * c["vocab_size"], [gguf.TokenType.UNUSED] * c["vocab_size"]
    for token, i in spec["model"]["vocab"].items():
        names[i], kinds[i] = token, gguf.TokenType.NORMAL
    for t in spec["added_tokens"]:
        names[t["id"]], kinds[t["id"]] = t["content"], gguf.TokenType.CONTROL
    names = [n or f"[UNUSED{i}]" for i, n in enumerate(names)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    split = spec["pre_tokenizer"]["type"] == "Sequence"  # the two splits that this project's models have
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2" if split else "gpt-2")
    w.add_token_list(names)
    w.add_token_types(kinds)
    w.add_token_merges(merges)
    eos = c["eos_token_id"]
    w.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    w.add_add_bos_token(False)
    if settings.get("chat_template"):
        w.add_chat_template(settings["chat_template"])


def convert(folder: Path, out: Path, kind: str, head: str | None = None) -> None:
    c = json.loads((folder / "config.json").read_text())
    if c["model_type"] not in ARCHITECTURES:
        sys.exit(f"model_type {c['model_type']!r}: this script converts {sorted(ARCHITECTURES)}")
    arch = ARCHITECTURES[c["model_type"]]
    head_dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
    weights, (matrix, file_type) = Weights(folder), TYPES[kind]
    last = "model.embed_tokens.weight" if c.get("tie_word_embeddings") else "lm_head.weight"

    w = gguf.GGUFWriter(out, arch)
    w.add_name(folder.name)
    w.add_file_type(file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(w, c, head_dim)
    add_tokenizer(w, folder, c)

    names = [n for n in weights.at if not (n == "lm_head.weight" and c.get("tie_word_embeddings"))]
    kinds = {n: Type.F32 if len(weights.at[n][2]) == 1 else TYPES[head][0] if head and n == last else matrix for n in names}
    factors = None
    if (c.get("rope_scaling") or {}).get("rope_type") == "llama3":
        factors = llama3_factors(c, head_dim)
        w.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes, Type.F32)
    for n in names:
        shape = weights.at[n][2]
        block, width = gguf.GGML_QUANT_SIZES[kinds[n]]
        assert shape[-1] % block == 0, f"{n}: {shape[-1]} columns do not fill blocks of {block}"
        count = int(np.prod(shape))
        w.add_tensor_info(gguf_name(n), shape, np.dtype(np.float32), count // block * width, kinds[n])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    if factors is not None:
        w.write_tensor_data(factors)
    for n in names:
        x = weights.f32(n)
        projection = n.split(".")[-2]
        if arch == "llama" and projection in heads:
            x = permute(x, heads[projection])
        w.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(x), kinds[n]))
    w.close()
    print(f"{out}: {out.stat().st_size / 1e6:.0f} MB {kind}")


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder", type=Path)
    a.add_argument("out", type=Path)
    a.add_argument("--type", default="bf16", choices=sorted(TYPES))
    a.add_argument("--head", choices=sorted(TYPES), help="type of the output matrix (and of tied embeddings)")
    o = a.parse_args()
    convert(o.folder, o.out, o.type, o.head)


if __name__ == "__main__":
    main()
