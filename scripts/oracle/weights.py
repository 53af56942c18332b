"""The weights and prompts of test models, by the formula of runtime/src/model/weights/dummy.rs."""
import math

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FNV_PRIME, FNV_BASIS, MASK = 0x100000001B3, 0xCBF29CE484222325, (1 << 64) - 1


def mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fnv1a(text: str) -> int:
    h = FNV_BASIS
    for b in text.encode():
        h = ((h ^ b) * FNV_PRIME) & MASK
    return h


def counters(key: int, n: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return mix(np.uint64(key) + np.arange(n, dtype=np.uint64) * GOLDEN)


def size(name: str, shape) -> tuple[np.float32, np.float32]:
    """(center, reach) of the uniform distribution."""
    if name.endswith("norm.weight"):
        return np.float32(1.0), np.float32(0.25)
    if name.endswith(".bias"):
        return np.float32(0.0), np.float32(0.25)
    if name.endswith("embed_tokens.weight"):
        return np.float32(0.0), np.float32(1.0)
    return np.float32(0.0), np.sqrt(np.float32(3.0) / np.float32(shape[-1]))


def tensor(seed: int, name: str, shape) -> np.ndarray:
    center, reach = size(name, shape)
    u = (counters(seed ^ fnv1a(name), math.prod(shape)) >> np.uint64(40)).astype(np.float32)
    return (center + (u / np.float32(1 << 23) - np.float32(1.0)) * reach).reshape(shape)


def bf16_round(x: np.ndarray) -> np.ndarray:
    """Nearest bf16, ties to even, as f32."""
    u = np.ascontiguousarray(x).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def prompt(seed: int, n: int, vocab: int) -> list[int]:
    return [int(z % np.uint64(vocab)) for z in counters(seed ^ fnv1a("prompt"), n)]
