"""A Llama in JAX, in the plainest way: what is trained here must be what any Llama loader computes.

Parameters are stacked over layers, weights stored as in the checkpoint ([out, in]), rope rotates halves
as Hugging Face does. Evaluation computes in float32; training rounds the inputs of its forward products to
bfloat16 (sums stay float32), which is twice as fast where the CPU has bf16 dot products and lets the model
meet the rounding that it will be served with. The export rounds the weights to bfloat16.
"""
from __future__ import annotations

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=256, intermediate_size=512,
    num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=4, head_dim=32, hidden_act="silu",
    max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None,
    tie_word_embeddings=True, attention_bias=False, attention_dropout=0.0, mlp_bias=False, use_cache=True,
    initializer_range=0.02, bos_token_id=None, torch_dtype="bfloat16",
)
MIDDLE = 2  # where training asks which fact a question wants
NAMES = {  # stacked name -> checkpoint name within a layer
    "n1": "input_layernorm.weight", "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight", "o": "self_attn.o_proj.weight", "n2": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight",
}


def shapes(c: dict) -> dict[str, tuple]:
    h, f, n = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    return {"emb": (c["vocab_size"], h), "norm": (h,), "n1": (n, h), "n2": (n, h), "q": (n, q, h), "k": (n, kv, h),
            "v": (n, kv, h), "o": (n, h, q), "gate": (n, f, h), "up": (n, f, h), "down": (n, h, f)}


def init(c: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(c).items():
        if name in ("norm", "n1", "n2"):
            out[name] = np.ones(shape, np.float32)
        else:
            std = 0.05 if name == "emb" else shape[-1] ** -0.5
            if name in ("o", "down"):
                std *= (2 * c["num_hidden_layers"]) ** -0.5
            out[name] = (rng.standard_normal(shape) * std).astype(np.float32)
    return {k: jnp.asarray(v) for k, v in out.items()}


def rms(x, w, eps):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * w


def rope(x, pos, theta):
    """x [B,T,heads,D], pos [B,T]."""
    half = x.shape[-1] // 2
    angle = pos[..., None].astype(jnp.float32) * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def plain(x, w):
    """x [..., in] times a checkpoint matrix [out, in]."""
    return x @ w.T


def _dot(a, b, ca, cb):
    half = (a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    return jax.lax.dot_general(*half, (((ca,), (cb,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def rounded(x, w):
    """`plain` with bfloat16 inputs; the gradient of the weights stays float32."""
    return _dot(x, w, x.ndim - 1, 1)


rounded.defvjp(lambda x, w: (rounded(x, w), (x, w)),
               lambda kept, g: (_dot(g, kept[1], g.ndim - 1, 0),
                                g.reshape(-1, g.shape[-1]).T @ kept[0].reshape(-1, kept[0].shape[-1])))


def forward(p: dict, c: dict, tokens, pos, mask, cache=None, slot=None, mm=plain):
    """Logits [B,T,V], keys and values, and the residual stream after layer MIDDLE. mask [B,T,S]; with `cache`, new
    K/V go in at `slot`."""
    eps, d = c["rms_norm_eps"], c["head_dim"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    b, t = tokens.shape
    x = p["emb"][tokens]
    bias = jnp.where(mask, 0.0, -1e30)[:, None]
    kept, middle = [], None
    for l in range(c["num_hidden_layers"]):
        h = rms(x, p["n1"][l], eps)
        q = rope(mm(h, p["q"][l]).reshape(b, t, heads, d), pos, c["rope_theta"])
        k = rope(mm(h, p["k"][l]).reshape(b, t, kv, d), pos, c["rope_theta"])
        v = mm(h, p["v"][l]).reshape(b, t, kv, d)
        if cache is not None:
            k = jax.lax.dynamic_update_slice(cache[l][0], k, (0, slot, 0, 0))
            v = jax.lax.dynamic_update_slice(cache[l][1], v, (0, slot, 0, 0))
        kept.append((k, v))
        # [B,heads,T,D] with kv heads repeated: XLA's grouped form is several times slower on CPU
        q, k, v = (y.transpose(0, 2, 1, 3) for y in (q, jnp.repeat(k, heads // kv, 2), jnp.repeat(v, heads // kv, 2)))
        weight = jax.nn.softmax(jnp.einsum("bhtd,bhsd->bhts", q, k) * d ** -0.5 + bias, -1)
        mix = jnp.einsum("bhts,bhsd->bhtd", weight, v).transpose(0, 2, 1, 3).reshape(b, t, heads * d)
        x = x + mm(mix, p["o"][l])
        h = rms(x, p["n2"][l], eps)
        x = x + mm(jax.nn.silu(mm(h, p["gate"][l])) * mm(h, p["up"][l]), p["down"][l])
        middle = x if l == MIDDLE else middle
    return mm(rms(x, p["norm"], eps), p["emb"]), kept, middle


# --------------------------------------------------------------- checkpoint
def bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even, as uint16."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def save(p: dict, c: dict, path: Path) -> None:
    tensors = {"model.embed_tokens.weight": p["emb"], "model.norm.weight": p["norm"]}
    for l in range(c["num_hidden_layers"]):
        tensors |= {f"model.layers.{l}.{hf}": p[ours][l] for ours, hf in NAMES.items()}
    head, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, x in sorted(tensors.items()):
        blob = bf16(np.asarray(x)).tobytes()
        head[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + len(blob)]}
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def restore(folder: Path) -> tuple[dict, dict]:
    """Parameters and config of an exported folder."""
    c = json.loads((folder / "config.json").read_text())
    raw = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8:8 + size])

    def get(name):
        a, b = head[name]["data_offsets"]
        u = np.frombuffer(raw[8 + size + a:8 + size + b], np.uint16).astype(np.uint32) << 16
        return u.view(np.float32).reshape(head[name]["shape"])

    p = {"emb": get("model.embed_tokens.weight"), "norm": get("model.norm.weight")}
    for ours, hf in NAMES.items():
        p[ours] = np.stack([get(f"model.layers.{l}.{hf}") for l in range(c["num_hidden_layers"])])
    return {k: jnp.asarray(v) for k, v in p.items()}, c
