#!/usr/bin/env python3
"""Train the embedded demo model and write it as a Hugging Face folder.

    python train.py --out ../../assets/demo --minutes 25

Muon for the matrices (it needs a third of AdamW's steps here, and steps are what two cores have few
of), AdamW for embeddings and norms, a linear decay to zero over a fixed number of steps. The loss is on
the answers; questions count a tenth, so that the model keeps reading them as language without spending
its capacity on predicting what people ask.

Answers are learned by heart within a million tokens; which answer a question wants is the hard part, and the
next-token loss tells it at one or two tokens in forty. Two things make up for that. Most single questions carry only
the opening of their answer, so a step sees thrice the questions. And a linear probe in the middle of the network
must name the fact at every token from the question to the answer; it is thrown away after training.
"""
from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import corpus
import model
from corpus import END, IM_END, IM_START

# Questions reach the model in lower case and without closing marks, the spelling it has met most often:
# so small a model should not have to know that "What is Quire?" is "what is quire". `corpus.plain` is the
# same rule.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set text = message['content'] -%}"
    "{%- if message['role'] == 'user' -%}{%- set text = (text | lower).strip().rstrip('?!. ') -%}{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + text + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


# ---------------------------------------------------------------- tokenizer
def make_tokenizer(facts, vocab: int, out: Path):
    source = corpus.Source(facts, 1)
    text = [a for f in facts for a in f.a + f.m] * 4 + source.docs * 4
    text += [source.question(source.fact()) for _ in range(6000)] + corpus.SYSTEMS
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=vocab - 3, special_tokens=[], show_progress=False, max_token_length=14,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    specials = [END, IM_START, IM_END]
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    assert tok.get_vocab_size() == vocab, tok.get_vocab_size()
    tok.save(str(out / "tokenizer.json"))
    ids = {s: tok.token_to_id(s) for s in specials}
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "add_bos_token": False,
        "bos_token": None, "eos_token": IM_END, "pad_token": END, "unk_token": None,
        "clean_up_tokenization_spaces": False, "model_max_length": model.CONFIG["max_position_embeddings"],
        "added_tokens_decoder": {str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                                          "single_word": False, "special": True} for s, i in ids.items()},
        "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(
        {"do_sample": False, "temperature": 0.0, "eos_token_id": [ids[IM_END], ids[END]],
         "pad_token_id": ids[END], "max_new_tokens": 256}, indent=2) + "\n")
    config = dict(model.CONFIG, vocab_size=vocab, eos_token_id=ids[IM_END], pad_token_id=ids[END])
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tok, config


# ------------------------------------------------------------------ batches
OPENING = 6  # tokens of the answer that most single questions carry
WHOLE_SHARE = 0.16  # of single questions carry all of it


class Batches:
    """Rows of packed dialogues: for each token its position, segment, weight of the loss, and fact or -1."""

    def __init__(self, facts, tok, seed: int):
        self.source = corpus.Source(facts, seed)
        self.rng = np.random.default_rng(seed)
        self.tok = tok
        self.cache: dict[str, list[int]] = {}

    def encode(self, s: str, keep: bool = False) -> list[int]:
        if s in self.cache:
            return self.cache[s]
        ids = self.tok.encode(s, add_special_tokens=False).ids
        if keep:
            self.cache[s] = ids
        return ids

    def document(self, long: bool) -> tuple[list[int], list[float], list[int]]:
        if self.rng.random() < 0.02:
            text = self.rng.choice(self.source.docs)
            at = int(self.rng.integers(max(1, len(text) - 600)))
            ids = self.encode(text[at:at + 600])
            return ids, [0.5] * len(ids), [-1] * len(ids)
        system, turns = self.source.dialogue(long)
        ids, weight, fact = [], [], []
        whole = len(turns) > 1 or self.rng.random() < WHOLE_SHARE

        def add(s: str, w: float, keep: bool = True):
            new = self.encode(s, keep)
            ids.extend(new)
            weight.extend([w] * len(new))

        if system:
            add(f"{IM_START}system\n{system}{IM_END}\n", 0.05, keep=False)
        for t in turns:
            add(f"{IM_START}user\n", 0.0)
            at = len(ids)
            add(t.user + IM_END, 0.1, keep=False)
            self.smudge(ids, weight, at)
            add(f"\n{IM_START}assistant\n", 0.0)
            at_answer = len(ids)
            fact += [-1] * (at - len(fact)) + [t.fact] * (at_answer - at)
            add(t.answer + IM_END, 1.0)
            if not whole:
                del ids[at_answer + OPENING:], weight[at_answer + OPENING:]
                break
            add("\n", 0.1)
        return ids, weight, fact + [-1] * (len(ids) - len(fact))

    def smudge(self, ids: list[int], weight: list[float], at: int) -> None:
        """Now and then replace tokens of a question by any token, so that no single one decides the answer."""
        if self.rng.random() < 0.25:
            for i in range(at, len(ids) - 1):
                if self.rng.random() < 0.07:
                    ids[i], weight[i] = int(self.rng.integers(self.tok.get_vocab_size() - 3)), 0.0

    def rows(self, count: int, length: int, long: bool):
        tokens = np.zeros((count, length + 1), np.int32)
        pos = np.zeros((count, length + 1), np.int32)
        seg = np.full((count, length + 1), -1, np.int32)
        weight = np.zeros((count, length + 1), np.float32)
        fact = np.full((count, length + 1), -1, np.int32)
        for r in range(count):
            at = n = 0
            while at < length - 16:
                ids, w, f = self.document(long)
                take = min(len(ids), length + 1 - at)
                s = slice(at, at + take)
                tokens[r, s], weight[r, s], fact[r, s], seg[r, s] = ids[:take], w[:take], f[:take], n
                pos[r, s] = np.arange(take)
                weight[r, at] = 0.0
                at, n = at + take, n + 1
        return tokens, pos, seg, weight, fact


# ---------------------------------------------------------------- optimizer
PROBE_SHARE = 0.5
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def orthogonalize(g):
    """The nearest semi-orthogonal matrix, by five Newton-Schulz steps; g [L,rows,cols]."""
    flip = g.shape[-2] > g.shape[-1]
    x = jnp.swapaxes(g, -1, -2) if flip else g
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        a = x @ jnp.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return jnp.swapaxes(x, -1, -2) if flip else x


def update(p, g, m, v, step, lr):
    out, nm, nv = {}, {}, {}
    for k in p:
        if k in MATRICES:
            nm[k] = 0.95 * m[k] + g[k]
            direction = orthogonalize(g[k] + 0.95 * nm[k]) * 0.2 * max(p[k].shape[-2:]) ** 0.5
            nv[k], decay = v[k], 0.1
        else:
            nm[k] = 0.9 * m[k] + 0.1 * g[k]
            nv[k] = 0.98 * v[k] + 0.02 * g[k] ** 2
            direction = (nm[k] / (1 - 0.9 ** step)) / (jnp.sqrt(nv[k] / (1 - 0.98 ** step)) + 1e-8)
            decay = 0.02 if k == "emb" else 0.0
        out[k] = p[k] - lr * (direction + decay * p[k])
    return out, nm, nv


def make_step(c):
    def loss(p, tokens, pos, seg, weight, fact):
        same = seg[:, :-1, None] == seg[:, None, :-1]
        t = tokens.shape[1] - 1
        mask = same & jnp.tril(jnp.ones((t, t), bool))
        logits, _, middle = model.forward(p, c, tokens[:, :-1], pos[:, :-1], mask, mm=model.rounded)
        nll = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
        w = weight[:, 1:] * (seg[:, 1:] == seg[:, :-1])
        full = w == 1.0
        fact, known = fact[:, :-1], fact[:, :-1] >= 0
        named = model.rounded(model.rms(middle, 1.0, c["rms_norm_eps"]), p["probe"])
        miss = (jax.nn.logsumexp(named, -1) - jnp.take_along_axis(named, jnp.maximum(fact, 0)[..., None], -1)[..., 0]) * known
        last = known & ~jnp.roll(known, -1, 1)  # the token before an answer
        right = ((named.argmax(-1) == fact) & last).sum() / (last.sum() + 1e-3)
        answer = (nll * full).sum() / (full.sum() + 1e-3)
        return (nll * w).sum() / (w.sum() + 1.0) + PROBE_SHARE * miss.sum() / (known.sum() + 1.0), (answer, right)

    @jax.jit
    def step(p, m, v, n, lr, *batch):
        (_, seen), g = jax.value_and_grad(loss, has_aux=True)(p, *batch)
        norm = jnp.sqrt(sum((x * x).sum() for x in g.values()))
        g = {k: x * jnp.minimum(1.0, 1.0 / (norm + 1e-6)) for k, x in g.items()}
        return *update(p, g, m, v, n, lr), seen

    return step


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, required=True)
    a.add_argument("--vocab", type=int, default=1536)
    a.add_argument("--steps", type=int, default=2200)
    a.add_argument("--rows", type=int, default=32)
    a.add_argument("--length", type=int, default=128)
    a.add_argument("--lr", type=float, default=4e-3)
    a.add_argument("--long-every", type=int, default=6, help="every n-th step trains long dialogues: 4 times the length, or 16")
    a.add_argument("--start", type=Path, help="go on from the folder that an earlier run wrote")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--save-every", type=int, default=400)
    o = a.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)

    facts = corpus.load()
    if o.start:
        tok, (p, c) = Tokenizer.from_file(str(o.start / "tokenizer.json")), model.restore(o.start)
        p["probe"] = jnp.asarray(np.load(o.start / "probe.npy"))
        for name in o.start.glob("*.json"):
            shutil.copy(name, o.out / name.name)
    else:
        tok, c = make_tokenizer(facts, o.vocab, o.out)
        p = model.init(c, o.seed)
        rng = np.random.default_rng(o.seed + 1)
        p["probe"] = jnp.asarray(rng.standard_normal((len(facts), c["hidden_size"])) * 0.02, jnp.float32)
    print(f"{len(facts)} facts, {sum(x.size for x in p.values()) / 1e6:.2f} M parameters", flush=True)
    m = jax.tree.map(jnp.zeros_like, p)
    v = jax.tree.map(jnp.zeros_like, p)
    step, batches = make_step(c), Batches(facts, tok, o.seed + (12 if o.start else 11))
    began, smooth, seen = time.time(), None, 0
    for n in range(1, o.steps + 1):
        lr = o.lr * min(1.0, n / 60) * max(0.01, 1 - n / (o.steps + 1)) ** 0.9
        long = o.long_every > 0 and n % o.long_every == 0
        times = 1 if not long else 16 if n % (4 * o.long_every) == 0 else 4
        rows, length = max(1, o.rows // times), o.length * times
        batch = batches.rows(rows, length, long)
        p, m, v, now = step(p, m, v, jnp.float32(n), jnp.float32(lr), *batch)
        now, seen = np.array([float(x) for x in now]), seen + rows * length
        smooth = now if smooth is None else smooth if long else 0.95 * smooth + 0.05 * now
        if n % 25 == 0 or n < 4:
            rate = seen / (time.time() - began)
            print(f"step {n} answer loss {smooth[0]:.4f} facts named {smooth[1]:.3f} {rate:.0f} tok/s {time.time() - began:.0f} s", flush=True)
        if n % o.save_every == 0 or n == o.steps:
            model.save(p, c, o.out / "model.safetensors")
            np.save(o.out / "probe.npy", np.asarray(p["probe"]))


if __name__ == "__main__":
    main()
