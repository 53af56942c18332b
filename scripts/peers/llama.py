"""llama.cpp, driven through its C interface; runs inside its own virtual environment as a child process.

The low-level calls are the fastest way in: no server, no JSON, no tokenizer between the clock and
`llama_decode`. Commands are JSON lines on standard input, answers JSON lines on standard output. Between
commands the process blocks on its pipe and its threads sleep.
"""
from __future__ import annotations

import ctypes
import json
import sys
import time

import llama_cpp as c
import numpy as np

THREADS = 2
STREAMS = 16


class Context:
    """A context with room for `streams` sequences of `length` tokens."""

    def __init__(self, model, streams: int, length: int):
        p = c.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = streams * length, 2048, 512
        p.n_threads = p.n_threads_batch = THREADS
        p.n_seq_max, p.kv_unified, p.no_perf = streams, True, True
        self.ptr = c.llama_init_from_model(model, p)
        assert self.ptr, "llama.cpp made no context"
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        self.batch = c.llama_batch_init(2048, 0, 1)

    def clear(self) -> None:
        c.llama_memory_clear(c.llama_get_memory(self.ptr), True)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, whether logits are wanted)."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wanted
            b.seq_id[i][0] = sequence
        assert c.llama_decode(self.ptr, b) == 0, "llama_decode failed"

    def prompt(self, tokens: list[int], sequence: int = 0) -> int:
        """Computes a prompt; the token that follows."""
        self.decode([(t, i, sequence, i + 1 == len(tokens)) for i, t in enumerate(tokens)])
        return self.best(len(tokens) - 1)

    def best(self, row: int) -> int:
        logits = c.llama_get_logits_ith(self.ptr, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())


def prefill(context: Context, prompt: list[int]) -> dict:
    context.clear()
    start = time.perf_counter()
    token = context.prompt(prompt)
    return {"seconds": time.perf_counter() - start, "tokens": [token]}


def generate(context: Context, prompts: list[list[int]], count: int) -> dict:
    """`count` tokens for each prompt after its first, all sequences in one batch a step."""
    context.clear()
    last = [context.prompt(prompt, s) for s, prompt in enumerate(prompts)]
    outputs = [[token] for token in last]
    start = time.perf_counter()
    for step in range(count):
        context.decode([(token, len(prompts[s]) + step, s, True) for s, token in enumerate(last)])
        last = [context.best(s) for s in range(len(prompts))]
        for output, token in zip(outputs, last):
            output.append(token)
    return {"seconds": time.perf_counter() - start, "tokens": outputs[0]}


def text_of(model, tokens: list[int]) -> str:
    vocab, buffer, out = c.llama_model_get_vocab(model), ctypes.create_string_buffer(256), b""
    for token in tokens:
        length = c.llama_token_to_piece(vocab, token, buffer, 256, 0, False)
        out += buffer.raw[:length]
    return out.decode("utf-8", "replace")


def quantize(source: str, target: str, kind: str) -> dict:
    p = c.llama_model_quantize_default_params()
    p.ftype = {"q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0}[kind]
    p.nthread = THREADS
    return {"code": c.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(p))}


def serve(path: str) -> None:
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    assert model, f"llama.cpp cannot load {path}"
    one, many = Context(model, 1, 2304), Context(model, STREAMS, 256)
    answer({"version": c.__version__, "system": c.llama_print_system_info().decode()})
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["do"] == "prefill":
            said = prefill(one, ask["prompt"])
        else:
            said = generate(one if len(ask["prompts"]) == 1 else many, ask["prompts"], ask["count"])
        answer(said | {"text": text_of(model, said["tokens"])})


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    quiet = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(quiet, None)
    c.llama_backend_init()
    if sys.argv[1] == "quantize":
        answer(quantize(*sys.argv[2:5]))
    else:
        serve(sys.argv[2])
