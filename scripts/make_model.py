#!/usr/bin/env python3
"""Write a random-weight model in the standard Hugging Face layout, in the exact shape of a public one.

    python scripts/make_model.py --preset qwen2.5-0.5b --out .cache/models/qwen05b
    python scripts/make_model.py --preset tiny --set num_hidden_layers=4 --set vocab_size=8192 --out m
    python scripts/make_model.py --config some/config.json --out m      # llama, mistral, qwen2, qwen3; dense
    python scripts/make_model.py --preset tiny --out m --gguf q8_0      # and m/model-q8_0.gguf for llama.cpp

Benches and tests need models of real shapes without downloading any: speed does not depend on what the
weights say, as long as greedy decoding behaves like text (wanders over the vocabulary, has clear winners),
because a degenerate model hides errors and ties make implementations that round differently disagree.
Hence the scales:

- projections N(0, 1/fan_in), the two that write to the residual stream scaled so that a layer adds about
  1.5 times the size of an embedding: more, and the token's identity drowns in the context's average;
- q and k times --qk-gain, so that attention is not uniform;
- the final norm has random signs, so that tied embeddings do not repeat the input token, and a size that
  gives logits the standard deviation --logit-std: the larger, the clearer each winner.

Each tensor has its own generator, seeded by (seed, name): the same arguments give the same bytes, and one
layer more leaves the others alone. The tokenizer is a byte-level BPE with Qwen's split, trained on this
project's documents and Python's own library, which are on every machine that can run this; ids that training
does not fill are words the encoder never produces, because a random model emits every id and each must
decode to text. Needs numpy and tokenizers; --gguf needs gguf too.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
                 "qwen3": "Qwen3ForCausalLM"}
COMMON = dict(hidden_act="silu", initializer_range=0.02, use_cache=True, attention_dropout=0.0)
PRESETS: dict[str, dict] = {
    "qwen2.5-0.5b": dict(
        model_type="qwen2", hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6,
        rope_theta=1e6, tie_word_embeddings=True, use_sliding_window=False),
    "tinyllama-1.1b": dict(
        model_type="llama", hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        intermediate_size=5632, vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5,
        rope_theta=1e4, tie_word_embeddings=False, attention_bias=False, mlp_bias=False),
    "llama-3.2-1b": dict(
        model_type="llama", hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64, intermediate_size=8192, vocab_size=128256, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_theta=5e5, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=8192)),
    "qwen3-0.6b": dict(
        model_type="qwen3", hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, intermediate_size=3072, vocab_size=151936, max_position_embeddings=40960, rms_norm_eps=1e-6,
        rope_theta=1e6, tie_word_embeddings=True, attention_bias=False, use_sliding_window=False),
    "tiny": dict(
        model_type="llama", hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=768, vocab_size=4096, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=1e4,
        tie_word_embeddings=True, attention_bias=False, mlp_bias=False),
}


# ---------------------------------------------------------------- tokenizer
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
END, IM_START, IM_END = SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def corpus(bytes_max: int):
    """The project's documents, then Python's library, in sorted order."""
    total = 0
    for path in [*sorted((ROOT / "docs").glob("*.md")), *sorted(Path(os.__file__).parent.rglob("*.py"))]:
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        raw = path.read_bytes()[:400_000]
        total += len(raw)
        yield raw.decode("utf-8", "ignore")
        if total >= bytes_max:
            return


def make_tokenizer(out: Path, vocab_size: int, trained_max: int, corpus_mb: float, length_max: int) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus(int(corpus_mb * 1e6)), trainers.BpeTrainer(
        vocab_size=min(trained_max, vocab_size) - len(SPECIALS), special_tokens=[], show_progress=False,
        max_token_length=16, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    spec = json.loads(tok.to_str())
    vocab = spec["model"]["vocab"]
    trained, filler = len(vocab), 0
    while len(vocab) < vocab_size - len(SPECIALS):
        vocab.setdefault(f"\u0120w{filler}", len(vocab))
        filler += 1
    tok = Tokenizer.from_str(json.dumps(spec))
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    assert tok.get_vocab_size() == vocab_size, tok.get_vocab_size()
    tok.save(str(out / "tokenizer.json"))
    added = {str(tok.token_to_id(s)): dict(content=s, lstrip=False, normalized=False, rstrip=False, single_word=False,
                                           special=True) for s in SPECIALS}
    write_json(out / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=False, add_bos_token=False, bos_token=None,
        eos_token=IM_END, pad_token=END, unk_token=None, clean_up_tokenization_spaces=False,
        model_max_length=length_max, added_tokens_decoder=added, chat_template=CHAT_TEMPLATE))
    print(f"tokenizer: {trained} trained, {vocab_size - trained - len(SPECIALS)} filler, {len(SPECIALS)} special")


# ------------------------------------------------------------------ weights
def tensors(c: dict, logit_std: float, qk_gain: float) -> list[tuple[str, tuple, str, float]]:
    """(name, shape, kind, scale) in file order; kind is normal, fill or sign."""
    h, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    d = c.get("head_dim") or h // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    emb = c.get("initializer_range", 0.02)
    head = emb if c["tie_word_embeddings"] else h ** -0.5
    qkv_bias = c["model_type"] == "qwen2" or c.get("attention_bias", False)
    out = [("model.embed_tokens.weight", (v, h), "normal", emb)]

    def linear(name: str, rows: int, cols: int, gain: float = 1.0, bias: bool = False) -> None:
        out.append((name + ".weight", (rows, cols), "normal", gain * cols ** -0.5))
        if bias:
            out.append((name + ".bias", (rows,), "normal", 0.1))

    for l in range(c["num_hidden_layers"]):
        p = f"model.layers.{l}."
        out.append((p + "input_layernorm.weight", (h,), "fill", 1.0))
        linear(p + "self_attn.q_proj", q, h, qk_gain, qkv_bias)
        linear(p + "self_attn.k_proj", kv, h, qk_gain, qkv_bias)
        linear(p + "self_attn.v_proj", kv, h, 1.0, qkv_bias)
        linear(p + "self_attn.o_proj", h, q, 1.5 * emb, c["model_type"] == "llama" and c.get("attention_bias", False))
        if c["model_type"] == "qwen3":
            out += [(p + f"self_attn.{n}_norm.weight", (d,), "fill", 1.0) for n in "qk"]
        out.append((p + "post_attention_layernorm.weight", (h,), "fill", 1.0))
        linear(p + "mlp.gate_proj", f, h)
        linear(p + "mlp.up_proj", f, h)
        linear(p + "mlp.down_proj", h, f, 2.5 * emb)  # silu(gate) * up has about 0.6 of unit size
    out.append(("model.norm.weight", (h,), "sign", logit_std / (head * math.sqrt(h))))
    if not c["tie_word_embeddings"]:
        out.append(("lm_head.weight", (v, h), "normal", head))
    return out


def draw(name: str, shape: tuple, kind: str, scale: float, seed: int) -> np.ndarray:
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")
    rng = np.random.Generator(np.random.SFC64(key))
    if kind == "fill":
        return np.full(shape, scale, np.float32)
    if kind == "sign":
        return (rng.integers(0, 2, shape) * 2 - 1).astype(np.float32) * np.float32(scale)
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def to_bytes(x: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":  # round to nearest even
        u = x.astype("<f4").view(np.uint32)
        return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return x.astype({"float32": "<f4", "float16": "<f2"}[dtype]).tobytes()


def shards_of(plan: list, width: int, bytes_max: int) -> list[list]:
    out, size = [[]], 0
    for t in plan:
        n = math.prod(t[1]) * width
        if out[-1] and size + n > bytes_max:
            out.append([])
            size = 0
        out[-1].append(t)
        size += n
    return out


def write_weights(out: Path, plan: list, dtype: str, seed: int, shard_bytes: int) -> int:
    width, code = {"float32": (4, "F32"), "float16": (2, "F16"), "bfloat16": (2, "BF16")}[dtype]
    shards = shards_of(plan, width, shard_bytes)
    total, where = 0, {}
    for k, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{k:05d}-of-{len(shards):05d}.safetensors"
        head, at = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape, _, _ in shard:
            n = math.prod(shape) * width
            head[tensor] = dict(dtype=code, shape=list(shape), data_offsets=[at, at + n])
            where[tensor] = name
            at += n
        text = json.dumps(head, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(out / name, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for t in shard:
                f.write(to_bytes(draw(*t, seed), dtype))
        total += at
    if len(shards) > 1:
        write_json(out / "model.safetensors.index.json", dict(metadata=dict(total_size=total), weight_map=where))
    return total


# --------------------------------------------------------------------- main
def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def config_of(o: argparse.Namespace) -> dict:
    c = dict(COMMON, **PRESETS[o.preset]) if o.preset else json.loads(o.config.read_text())
    for pair in o.set:
        k, _, v = pair.partition("=")
        try:
            c[k] = json.loads(v)
        except json.JSONDecodeError:
            c[k] = v
    if c["model_type"] not in ARCHITECTURES:
        sys.exit(f"model_type {c['model_type']!r}: this script writes {sorted(ARCHITECTURES)}")
    c.setdefault("tie_word_embeddings", False)
    return dict(c, architectures=[ARCHITECTURES[c["model_type"]]], torch_dtype=o.dtype)


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = a.add_mutually_exclusive_group(required=True)
    shape.add_argument("--preset", choices=sorted(PRESETS))
    shape.add_argument("--config", type=Path, help="a config.json to take the shape from")
    a.add_argument("--out", required=True, type=Path)
    a.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="override a field of the config")
    a.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--logit-std", type=float, default=4.0)
    a.add_argument("--qk-gain", type=float, default=1.5)
    a.add_argument("--shard-gb", type=float, default=5.0)
    a.add_argument("--bpe-vocab", type=int, default=32000, help="most ids to train; the rest is filler")
    a.add_argument("--corpus-mb", type=float, default=12.0)
    a.add_argument("--tokenizer", type=Path, help="copy this model's tokenizer instead of training one")
    a.add_argument("--gguf", action="append", default=[], choices=["bf16", "q8_0", "q4_0"], help="also write GGUF")
    o = a.parse_args()
    c = config_of(o)
    o.out.mkdir(parents=True, exist_ok=True)
    if o.tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(o.tokenizer / name, o.out / name)
    else:
        make_tokenizer(o.out, c["vocab_size"], o.bpe_vocab, o.corpus_mb, c["max_position_embeddings"])
    added = {t["content"]: t["id"] for t in json.loads((o.out / "tokenizer.json").read_text())["added_tokens"]}
    c |= dict(bos_token_id=None, eos_token_id=added[IM_END])
    write_json(o.out / "config.json", c)
    write_json(o.out / "generation_config.json",
               dict(do_sample=False, eos_token_id=added[IM_END], pad_token_id=added[END]))
    plan = tensors(c, o.logit_std, o.qk_gain)
    size = write_weights(o.out, plan, o.dtype, o.seed, int(o.shard_gb * 1e9))
    print(f"{o.out}: {sum(math.prod(t[1]) for t in plan) / 1e6:.1f} M parameters, {size / 1e6:.0f} MB {o.dtype}")
    for kind in o.gguf:
        import make_gguf
        make_gguf.convert(o.out, o.out / f"model-{kind}.gguf", kind)


if __name__ == "__main__":
    main()
