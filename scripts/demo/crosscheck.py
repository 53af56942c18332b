#!/usr/bin/env python3
"""Does an independent implementation read the exported folder as the trainer meant it?

mlx-lm loads `config.json`, the weights, the tokenizer and the chat template by its own code. In f32 its greedy
text must equal ours; in bf16, with rounded activations as a server computes, it may differ where two tokens
are nearly tied, and the count says how often.

    python crosscheck.py ../../assets/demo
"""
from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm import load

import corpus
from evaluate import NEW_MAX, Greedy, prompt


def greedy(model, tokenizer, ids: list[int]) -> str:
    from mlx_lm.models.cache import make_prompt_cache

    cache, tokens, out = make_prompt_cache(model), ids, []
    for _ in range(NEW_MAX):
        token = int(mx.argmax(model(mx.array([tokens]), cache=cache)[0, -1]))
        if token in tokenizer.eos_token_ids:
            break
        out.append(token)
        tokens = [token]
    return tokenizer.decode(out)


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder", type=Path)
    a.add_argument("--questions", type=int, default=40)
    o = a.parse_args()
    facts = corpus.load()
    rng = random.Random(5)
    held = rng.sample([q for f in facts for q in f.far], o.questions)
    ours = [text for text, _ in Greedy(o.folder).answer([prompt([], q) for q in held])]
    failed = False
    for dtype in (mx.float32, mx.bfloat16):
        model, tokenizer = load(str(o.folder))
        model.set_dtype(dtype)
        same = 0
        for q, want in zip(held, ours):
            ids = tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, tokenize=True)
            got = greedy(model, tokenizer, list(ids))
            same += got == want
            if got != want and dtype == mx.float32:
                failed = True
                print(f"{q!r}\n  ours {want!r}\n  mlx  {got!r}")
        print(f"{dtype}: {same} of {len(held)} greedy answers equal")
    sys.exit(failed)


if __name__ == "__main__":
    main()
