#!/usr/bin/env python3
"""How often does the exported demo model answer with the right fact? Greedy decoding of held-out questions.

    python evaluate.py ../../assets/demo            # print
    python evaluate.py ../../assets/demo --write    # and write EVAL.md
    python evaluate.py ../../assets/demo --ask "What is a page?"

The sets. `wordings`: sentences withheld from the hand-written lists by a hash, so they are as everyday as those
that were trained. `far`: sentences written to have few words in common with the trained ones. `variations`: drawn
from the training grammar with typos, casing and openers, by a seed that training never used, which tells
how much of the trained content stuck. `follow-ups`: a withheld wording as the second turn of a dialogue. `late`:
such a variation after some 1,500 tokens of dialogue, near the end of the context.
An answer is right if its words are those of one of the fact's answers (F1 >= 0.9) and the model ended it.
"""
from __future__ import annotations

import argparse
import collections
import random
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

import corpus
import model
from corpus import IM_END, IM_START, plain

NEW_MAX = 128


def prompt(turns: list[tuple[str, str]], question: str) -> str:
    """What the chat template makes of a conversation."""
    text = "".join(f"{IM_START}user\n{plain(q)}{IM_END}\n{IM_START}assistant\n{a}{IM_END}\n" for q, a in turns)
    return text + f"{IM_START}user\n{plain(question)}{IM_END}\n{IM_START}assistant\n"


class Greedy:
    """Greedy decoding of many prompts at once; prompts stand right-aligned, so all rows share a slot."""

    def __init__(self, folder: Path):
        self.p, self.c = model.restore(folder)
        self.tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end = self.tok.token_to_id(IM_END)

        @partial(jax.jit, static_argnums=(2,))
        def run(tokens, pad, new):
            b, t = tokens.shape
            slots = jnp.arange(t + new)
            shape = (b, t + new, self.c["num_key_value_heads"], self.c["head_dim"])
            cache = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(self.c["num_hidden_layers"])]
            pos = jnp.maximum(jnp.arange(t)[None] - pad[:, None], 0)
            mask = (slots[None, None] <= jnp.arange(t)[None, :, None]) & (slots[None, None] >= pad[:, None, None])
            logits, cache, _ = model.forward(self.p, self.c, tokens, pos, mask, cache, 0)
            first = logits[:, -1].argmax(-1).astype(jnp.int32)

            def step(carry, i):
                token, cache = carry
                at = t + i
                mask = ((slots <= at)[None] & (slots[None] >= pad[:, None]))[:, None]
                logits, cache, _ = model.forward(self.p, self.c, token[:, None], (at - pad)[:, None], mask, cache, at)
                return (logits[:, -1].argmax(-1).astype(jnp.int32), cache), token

            _, out = jax.lax.scan(step, (first, cache), jnp.arange(new))
            return out.T

        self.run = run

    def answer(self, prompts: list[str]) -> list[tuple[str, bool]]:
        """Text and whether the model ended it by itself."""
        ids = [self.tok.encode(s, add_special_tokens=False).ids for s in prompts]
        batch = 64 if max(map(len, ids)) < 400 else 8
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out: list[tuple[str, bool]] = [("", False)] * len(ids)
        for at in range(0, len(order), batch):
            group = order[at:at + batch]
            width = -(-max(len(ids[i]) for i in group) // 32) * 32
            tokens = np.zeros((batch, width), np.int32)
            pad = np.full(batch, width - 1, np.int32)
            for r, i in enumerate(group):
                pad[r] = width - len(ids[i])
                tokens[r, pad[r]:] = ids[i]
            result = np.asarray(self.run(tokens, pad, NEW_MAX))
            for r, i in enumerate(group):
                row = result[r].tolist()
                ended = self.end in row
                row = row[:row.index(self.end)] if ended else row
                out[i] = (self.tok.decode(row), ended)
        return out


def words(s: str) -> collections.Counter:
    return collections.Counter(re.findall(r"[a-z0-9_/.]+", s.lower()))


def f1(a: str, b: str) -> float:
    x, y = words(a), words(b)
    return 2 * sum((x & y).values()) / max(1, sum(x.values()) + sum(y.values()))


def nearest(text: str, facts) -> str:
    return max(facts, key=lambda f: max(f1(text, a) for a in f.a)).id


def score(greedy: Greedy, facts, cases) -> tuple[int, int, list[str]]:
    """Right answers, ended answers, and a line per wrong one. cases: (fact, prompt, question)."""
    right, ended_all, wrong = 0, 0, []
    for (fact, _, question), (text, ended) in zip(cases, greedy.answer([c[1] for c in cases])):
        good = ended and max(f1(text, a) for a in fact.a) >= 0.9
        right, ended_all = right + good, ended_all + ended
        if not good:
            wrong.append(f"{fact.id} <- {question!r}: {nearest(text, facts)}: {text[:90]!r}")
    return right, ended_all, wrong


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("folder", type=Path)
    a.add_argument("--write", action="store_true", help="write EVAL.md into the folder")
    a.add_argument("--show", type=int, default=0, help="print this many wrong answers of each set")
    a.add_argument("--ask", nargs="*", help="only answer these questions")
    o = a.parse_args()
    facts, greedy = corpus.load(), Greedy(o.folder)
    if o.ask:
        for q, (text, ended) in zip(o.ask, greedy.answer([prompt([], q) for q in o.ask])):
            print(f"> {q}\n{text}{'' if ended else ' [not ended]'}\n")
        return

    rng, source = random.Random(99), corpus.Source(facts, 4242)
    def typed(q: str) -> str:
        return q[:1].upper() + q[1:] + ("" if q[-1] in "?.!" else rng.choice(["?", ""]))

    held = [(f, typed(q)) for f in facts for q in f.held]
    sets = {"wordings": [(f, prompt([], q), q) for f, q in held],
            "far": [(f, prompt([], q), q) for f in facts for q in map(typed, f.far)],
            "variations": [], "follow-ups": [], "late": []}
    for f in facts * 2:
        q = source.question(f)
        sets["variations"].append((f, prompt([], q), q))
    for f, q in held:
        before = source.fact()
        sets["follow-ups"].append((f, prompt([(source.question(before), before.a[0])], q), q))
    for f in rng.sample(facts, 40):
        before = [source.fact() for _ in range(21)]
        q = source.question(f)
        sets["late"].append((f, prompt([(source.question(b), b.a[0]) for b in before], q), q))
    lines = ["| set | questions | right fact | ended by itself |", "|---|---|---|---|"]
    details = []
    for name, cases in sets.items():
        right, ended, wrong = score(greedy, facts, cases)
        lines.append(f"| {name} | {len(cases)} | {right} "
                     f"({100 * right / len(cases):.1f} %) | {ended} ({100 * ended / len(cases):.1f} %) |")
        details.append((name, wrong))
    print("\n".join(lines))
    for name, wrong in details:
        if o.show:
            print(f"--- {name}: {len(wrong)} wrong")
            print("\n".join(wrong[:o.show]))
    if o.write:
        text = ["# Evaluation of the demo model", "",
                "Written by `scripts/demo/evaluate.py --write`; greedy decoding in f32 from the bf16 weights.",
                f"{len(facts)} facts. What the sets are stands at the top of that script.", "", *lines, "",
                "## Held-out wordings answered with another fact", "",
                *(f"- {w.split(': ')[0]}, answered as `{w.split(': ')[1]}`" for w in details[0][1]), ""]
        (o.folder / "EVAL.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
