#!/usr/bin/env python3
"""What torch, and FlashInfer where it is installed, take for the cases of the GPU table: gpu_torch.py OUT.json

Run by scripts/gpu-check on the GPU machine, with that machine's Python. Same shapes and types as
kernels/sim/benches/gpu/sizes.rs; buffers rotate past the L2, calls are recorded in a graph where a peer allows it,
medians of nine after 80 ms of warm-up. Each case that a peer cannot run is left out and said on the terminal; the
file is written again after every row, so that a peer that hangs costs only itself.
"""
from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

HEADS, KV_HEADS, DIM, PAGE, LAYERS = 32, 8, 128, 64, 4
DECODES = [(32, 4096), (64, 4096), (1, 32768)]
PREFILLS = [2048, 8192, 32768]
CASCADES = [(256, 32768, 256), (64, 8192, 512)]
PRODUCTS = [("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336),
            ("head", 128256, 4096)]
PRODUCT_ROWS, HEAD_ROWS_MAX = [1, 16, 64, 256, 2048, 8192], 256
WARM_MS, SAMPLE_MS, SAMPLES = 80.0, 2.0, 9
ROWS: list[dict] = []


def main() -> None:
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    attempt(ceilings)
    attempt(linears)
    attempt(prefill)
    attempt(decode)
    attempt(row_ops)
    attempt(flashinfer_decode)
    attempt(flashinfer_cascade)
    attempt(transformers_batching)


def attempt(work) -> None:
    try:
        work()
    except Exception as e:  # a peer that cannot run a case is no reason to lose the others
        print(f"peer {work.__name__}: {type(e).__name__}: {str(e)[:300]}", flush=True)
    torch.cuda.empty_cache()


def recorded(work, rounds: int):
    """`rounds` calls as one graph; calls that cannot be recorded are made one by one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(rounds):
            work(i)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for i in range(rounds):
                work(i)
        return graph.replay
    except Exception as e:
        print(f"not recorded: {str(e)[:120]}", flush=True)
        torch.cuda.synchronize()
        return lambda: [work(i) for i in range(rounds)]


def micros(work, rounds: int) -> float:
    """Median microseconds of one call; `work(i)` gets the round for rotating buffers."""
    batch = recorded(work, rounds)

    def sample(batches: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(batches):
            batch()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    warm = last = 0.0
    while warm < WARM_MS:
        last = max(sample(1), 1e-3)
        warm += last
    batches = max(1, round(SAMPLE_MS / last))
    return statistics.median(sample(batches) for _ in range(SAMPLES)) * 1e3 / (batches * rounds)


def copies(size: int) -> int:
    """Of an operand, so that together they are four times the L2."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return min(64, max(2, -(-4 * l2 // size)))


def row(case: str, name: str, value: float, unit: str = "us") -> None:
    version = __import__(name.split()[0].split(".")[0]).__version__
    ROWS.append({"case": case, "name": name, "version": version, "value": round(value, 3), "unit": unit})
    Path(sys.argv[1]).write_text(json.dumps(ROWS, indent=1))
    print(f"peer {name}: {case} {value:.1f} {unit}", flush=True)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def ceilings() -> None:
    a, b = normal(8192, 8192), normal(8192, 8192)
    us = micros(lambda _: torch.mm(a, b.t()), 4)
    row("product 8192^3", "torch.mm", 2 * 8192**3 / us / 1e6, "TFLOP/s")
    big = torch.empty(2 << 30, device="cuda", dtype=torch.uint8)
    other = torch.empty_like(big)
    us = micros(lambda _: other.copy_(big), 4)
    row("copy of pages, read + write", "torch copy", 2 * big.numel() / us / 1e3, "GB/s")


def linears() -> None:
    for name, n, k in PRODUCTS:
        weights = [normal(n, k) / k**0.5 for _ in range(copies(2 * n * k))]
        for rows in PRODUCT_ROWS:
            if name == "head" and rows > HEAD_ROWS_MAX:
                continue
            x = normal(rows, k)
            run = lambda i: F.linear(x, weights[i % len(weights)])
            row(f"{name} {rows} rows", "torch F.linear", micros(run, -(-len(weights) // 8) * 8))
        del weights
        torch.cuda.empty_cache()


def row_ops() -> None:
    rows, hidden, inner = 8192, 4096, 14336
    x, norm = [torch.randn(rows, hidden, device="cuda") for _ in range(2)], torch.ones(hidden, device="cuda")
    run = lambda i: F.rms_norm(x[i % 2], (hidden,), norm, 1e-5)
    row(f"rmsnorm {rows} x {hidden}", "torch rms_norm, f32 out", micros(run, 8))
    gate, up = normal(rows, inner), normal(rows, inner)
    row(f"silu\u00b7mul {rows} x {inner}", "torch eager", micros(lambda _: F.silu(gate) * up, 4))


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


def transformers_batching() -> None:
    """The end-to-end peer: a model of the same shape with random weights, 32 requests at once."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=128256, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, intermediate_size=14336, max_position_embeddings=8192)
    config._attn_implementation = "sdpa"
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("45 s")))
    signal.alarm(45)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = LlamaForCausalLM(config).eval()
        # Random weights give logits that any token may win: what it takes is what counts.
        asked = GenerationConfig(max_new_tokens=64, do_sample=False, eos_token_id=-1, pad_token_id=0)
        prompts = [[(7 * i + 13 * j) % 120000 + 3 for j in range(128)] for i in range(32)]
        for measured in (False, True):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            answers = model.generate_batch(inputs=prompts, generation_config=asked)
            taken = time.perf_counter() - begun
        tokens = sum(len(a.generated_tokens) for a in answers.values())
        row("8B shape, 32 at once", "transformers continuous batching, 128/64", tokens / taken, "tok/s")
    finally:
        signal.alarm(0)
        torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    main()
