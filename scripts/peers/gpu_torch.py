#!/usr/bin/env python3
"""What torch, and FlashInfer where it is installed, take for the cases of the GPU table: gpu_torch.py OUT.json

Run by scripts/gpu-check on the GPU machine, with that machine's Python. Same shapes and types as
kernels/sim/benches/gpu/speed.rs; buffers rotate past the L2; medians of five. Each case that a peer cannot run
is left out and said on the terminal.
"""
from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

HEADS, KV_HEADS, DIM, PAGE, LAYERS = 32, 8, 128, 64, 4
DECODES = [(32, 4096), (64, 4096), (1, 32768)]
PREFILLS = [2048, 8192, 32768]
CASCADES = [(256, 32768, 256), (64, 8192, 512)]
ROWS: list[dict] = []


def main() -> None:
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    attempt(products)
    attempt(prefill)
    attempt(decode)
    attempt(flashinfer_decode)
    attempt(flashinfer_cascade)
    Path(sys.argv[1]).write_text(json.dumps(ROWS, indent=1))


def attempt(work) -> None:
    try:
        work()
    except Exception as e:  # a peer that cannot run a case is no reason to lose the others
        print(f"peer {work.__name__}: {type(e).__name__}: {str(e)[:300]}", flush=True)
    torch.cuda.empty_cache()


def micros(work, rounds: int) -> float:
    """Median microseconds of one call; `work(i)` gets the round for rotating buffers."""
    for i in range(3):
        work(i)
    taken = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for i in range(rounds):
            work(i)
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) * 1e3 / rounds)
    return statistics.median(taken)


def row(case: str, name: str, value: float, unit: str = "us") -> None:
    version = torch.__version__ if name.startswith("torch") else flashinfer_version()
    ROWS.append({"case": case, "name": name, "version": version, "value": round(value, 3), "unit": unit})
    print(f"peer {name}: {case} {value:.1f} {unit}", flush=True)


def flashinfer_version() -> str:
    import flashinfer
    return flashinfer.__version__


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def products() -> None:
    a, b = normal(8192, 8192), normal(8192, 8192)
    us = micros(lambda _: torch.mm(a, b.t()), 10)
    row("product 8192^3, library if present", "torch.mm", 2 * 8192**3 / us / 1e6, "TFLOP/s")
    big = torch.empty(2 << 30, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(big)
    us = micros(lambda _: other.copy_(big), 5)
    row("copy of pages, read + write", "torch copy", 2 * big.numel() / us / 1e3, "GB/s")


def prefill() -> None:
    for tokens in PREFILLS:
        q, k, v = (normal(1, h, tokens, DIM) for h in (HEADS, KV_HEADS, KV_HEADS))
        us = micros(lambda _: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), 8)
        row(f"causal prefill {tokens}", "torch sdpa", us)


def decode() -> None:
    for seqs, tokens in DECODES:
        k = [normal(seqs, KV_HEADS, tokens, DIM) for _ in range(LAYERS)]
        v = [normal(seqs, KV_HEADS, tokens, DIM) for _ in range(LAYERS)]
        q = normal(seqs, HEADS, 1, DIM)
        run = lambda i: F.scaled_dot_product_attention(q, k[i % LAYERS], v[i % LAYERS], enable_gqa=True)
        row(f"decode attention {seqs} x {tokens}", "torch sdpa, contiguous KV", micros(run, 4 * LAYERS))
        del k, v


def paged(seqs: int, tokens: int) -> tuple[list, list[torch.Tensor]]:
    pages = seqs * tokens // PAGE
    pools = [normal(pages, 2, KV_HEADS, PAGE, DIM) for _ in range(LAYERS)]
    indptr = torch.arange(seqs + 1, device="cuda", dtype=torch.int32) * (tokens // PAGE)
    indices = torch.randperm(pages, device="cuda").to(torch.int32)
    last = torch.full((seqs,), PAGE, device="cuda", dtype=torch.int32)
    return [indptr, indices, last], pools


def flashinfer_decode() -> None:
    import flashinfer
    for tensor_cores in (False, True):
        for seqs, tokens in DECODES:
            table, pools = paged(seqs, tokens)
            work = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
            w = flashinfer.BatchDecodeWithPagedKVCacheWrapper(work, "HND", use_tensor_cores=tensor_cores)
            w.plan(*table, HEADS, KV_HEADS, DIM, PAGE, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
            q = normal(seqs, HEADS, DIM)
            name = "flashinfer decode" + (", tensor cores" if tensor_cores else "")
            row(f"decode attention {seqs} x {tokens}", name, micros(lambda i: w.run(q, pools[i % LAYERS]), 4 * LAYERS))
            del pools


def flashinfer_cascade() -> None:
    import flashinfer
    for seqs, shared, own in CASCADES:
        head, tail = shared // PAGE, own // PAGE
        pools = [normal(head + seqs * tail, 2, KV_HEADS, PAGE, DIM) for _ in range(LAYERS)]
        work = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
        w = flashinfer.MultiLevelCascadeAttentionWrapper(2, work, "HND")
        ints = lambda *v: torch.tensor(v, device="cuda", dtype=torch.int32)
        each = torch.arange(seqs + 1, device="cuda", dtype=torch.int32)
        w.plan([ints(0, seqs), each], [ints(0, head), each * tail],
               [torch.arange(head, device="cuda", dtype=torch.int32),
                torch.arange(head, head + seqs * tail, device="cuda", dtype=torch.int32)],
               [ints(PAGE), torch.full((seqs,), PAGE, device="cuda", dtype=torch.int32)],
               HEADS, KV_HEADS, DIM, PAGE, q_data_type=torch.bfloat16)
        q = normal(seqs, HEADS, DIM)
        us = micros(lambda i: w.run(q, pools[i % LAYERS]), 2 * LAYERS)
        row(f"cascade {seqs} x ({shared} shared + {own})", "flashinfer cascade", us)
        del pools


if __name__ == "__main__":
    main()
