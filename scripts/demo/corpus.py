#!/usr/bin/env python3
"""The demo model's corpus: facts, their questions, and dialogues made of them.

The content lives in `facts/*.txt`, one block per fact, so that a person can read and mend it:

    == prefix-cache              the fact's id
    q: what is [the] prefix cache   a training question; (a|b) chooses, [a] is optional, {how} is a macro
    c: what is the prefix cache|...      the commonest wordings, drawn more often than the rest
    k: prompt cache|reuse of prompts     words and phrases that point to the fact; questions are made around them
    t: explain how prompts get reused    never trained on: a wording with few words in common with the others
    a: The prefix cache keeps ...        an answer; a second `a:` is used as often as the first
    m: A page is shared ...              the answer to "tell me more" straight after `a`

A grammar rather than a list of finished sentences, because a model this small learns an intent from
many wordings of it and nobody maintains a hundred thousand lines by hand. Two sets are held out of training:
the `t:` lines, and one in twelve (chosen by a hash) of the sentences in the plain lists `q: (... | ... | ...)`.

Everything is drawn from one seeded generator, so the same seed gives the same corpus.
"""
from __future__ import annotations

import random
import re
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"
IM_START, IM_END, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
HELD_ONE_IN = 12
EXPANSIONS_MAX = 4000  # per grammar line, when all of them are listed


@dataclass
class Fact:
    id: str
    area: str
    q: list[str] = field(default_factory=list)
    k: list[str] = field(default_factory=list)
    c: list[str] = field(default_factory=list)
    a: list[str] = field(default_factory=list)
    m: list[str] = field(default_factory=list)
    far: list[str] = field(default_factory=list)  # `t:` lines
    held: list[str] = field(default_factory=list)  # withheld from plain lists
    weight: float = 1.0


def plain(question: str) -> str:
    """A question as the chat template hands it to the model."""
    return question.lower().strip().rstrip("?!. ")


# ------------------------------------------------------------------ grammar
MACROS: dict[str, str] = {}


def load() -> list[Fact]:
    """Every fact, in file order; also fills MACROS."""
    facts: list[Fact] = []
    for path in sorted((HERE / "facts").glob("*.txt")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("=="):
                facts.append(Fact(line[2:].strip(), path.stem))
                continue
            key, _, value = line.partition(":")
            value = value.strip()
            where = f"{path.name}:{number}"
            if key.startswith("let "):
                MACROS[key[4:].strip()] = value
                continue
            slot = {"q": "q", "a": "a", "m": "m", "t": "far"}.get(key)
            if key == "w":
                facts[-1].weight = float(value)
            elif key in ("k", "c"):
                getattr(facts[-1], key).extend(w.strip() for w in value.split("|"))
            elif slot is None or not value:
                sys.exit(f"{where}: expected q:, c:, k:, a:, m:, t: or w:, got {line!r}")
            elif slot == "q":
                train, held = withhold(value)
                facts[-1].q.append(train)
                facts[-1].held += held
            else:
                getattr(facts[-1], slot).append(value)
    check(facts)
    return facts


def withhold(line: str) -> tuple[str, list[str]]:
    """A plain list without the sentences that the hash picks, and those; other lines pass whole."""
    inner = line[1:-1]
    if not (line.startswith("(") and line.endswith(")")) or re.search(r"[()\[\]{}]", inner) or inner.count("|") < 7:
        return line, []
    kept, held = [], []
    for s in inner.split("|"):
        out = zlib.crc32(b"held:" + s.encode()) % HELD_ONE_IN == 0 and len(s.split()) > 2
        (held if out else kept).append(s)
    return "(" + "|".join(kept) + ")", held


def parse(line: str):
    """A grammar line as nested lists: sequence of (str | list of alternatives)."""
    line = re.sub(r"\{(\w+)\}", lambda m: "(" + MACROS[m[1]] + ")", line)
    pos = 0

    def sequence(stop: str):
        nonlocal pos
        out, text = [], ""
        while pos < len(line) and line[pos] not in stop:
            c = line[pos]
            if c in "([":
                if text:
                    out.append(text)
                    text = ""
                pos += 1
                close = ")" if c == "(" else "]"
                options = [sequence("|" + close)]
                while line[pos] == "|":
                    pos += 1
                    options.append(sequence("|" + close))
                assert line[pos] == close, line
                pos += 1
                out.append(options + ([[]] if c == "[" else []))
            else:
                text += c
                pos += 1
        if text:
            out.append(text)
        return out

    tree = sequence("")
    assert pos == len(line), line
    return tree


def draw(tree, rng: random.Random) -> str:
    return "".join(x if isinstance(x, str) else draw(rng.choice(x), rng) for x in tree)


def tidy(s: str) -> str:
    return re.sub(r"\s+([?.!,])", r"\1", re.sub(r"\s+", " ", s)).strip()


def expand(tree, cap: int = EXPANSIONS_MAX) -> list[str]:
    out = [""]
    for x in tree:
        tails = [x] if isinstance(x, str) else [e for alt in x for e in expand(alt, cap)]
        out = [a + b for a in out for b in tails][:cap]
    return out


def key(s: str) -> str:
    return re.sub(r"[^a-z0-9 ]", "", tidy(s).lower())


def check(facts: list[Fact]) -> None:
    seen: dict[str, str] = {}
    ids, bad = set(), []
    for f in facts:
        assert f.id not in ids, f"duplicate fact {f.id}"
        ids.add(f.id)
        assert f.q and f.a, f"{f.id}: needs q: and a:"
        for line in f.q + f.c:
            for s in expand(parse(line)):
                other = seen.setdefault(key(s), f.id)
                if other != f.id:
                    bad.append(f"{f.id} and {other} both ask {s!r}")
    for f in facts:
        bad += [f"{f.id}: {s!r} under t: is also in the training grammar" for s in f.far if key(s) in seen]
        f.held = [s for s in f.held if key(s) not in seen]
    if bad:
        sys.exit("\n".join(bad))


# ------------------------------------------------------------- augmentation
OPENERS = ["my question is: ", "i was wondering, ", "can you say ", "do you know ", "i wonder ", "could you tell me ", "tell me, ",
           "excuse me, ", "by the way, ", "and another thing: ", "just curious: ", "hmm, ", "then ", "but ", "hi, ", "hello, ", "hey, ", "hey ", "hi! ", "ok, ", "so, ", "so ", "please tell me: ", "quick question: ",
           "question: ", "can you tell me: ", "i have a question. ", "one more thing: ", "thanks! ", "and ", "ok so ",
           "sorry, ", "i am new here. ", "good morning, ", "well, ", "great, ", "also, ", "now, ", "um, "]
CLOSERS = [" please", ", please", " thanks", " thank you", " in Quire", " with Quire", " exactly", " then", " again",
           " briefly", " in short", " for me", " i wonder", " now", " anyway"]
COMMANDS = ("tell", "explain", "describe", "show", "give", "list", "help", "define", "i ", "say", "stop", "start",
            "write", "make", "teach", "compare")
SWAPS = [(" do not ", " don't "), ("what is ", "what's "), (" is not ", " isn't "), (" does not ", " doesn't "),
         ("how do i ", "how can i "), ("how do i ", "how to "), ("how do i ", "how do we "), ("can i ", "could i "),
         ("can i ", "can we "), (" my ", " our "), (" the ", " "), (" a ", " "), ("where is ", "where's "),
         ("i want ", "i'd like "), (" requests", " calls"), ("does quire ", "does it "), ("can quire ", "can it "),
         ("what does ", "what would ")]
KEYS = "qwertyuiop asdfghjkl zxcvbnm"


def typo(s: str, rng: random.Random) -> str:
    """One slip of the fingers inside a word of four letters or more."""
    spots = [i for i in range(1, len(s) - 2) if s[i - 1:i + 3].isalpha()]
    if not spots:
        return s
    i = rng.choice(spots)
    kind = rng.randrange(4)
    if kind == 0:
        return s[:i] + s[i + 1] + s[i] + s[i + 2:]
    if kind == 1:
        return s[:i] + s[i + 1:]
    if kind == 2:
        return s[:i] + s[i] + s[i:]
    j = KEYS.find(s[i].lower())
    return s[:i] + (KEYS[max(0, j - 1)].strip() or "e") + s[i + 1:] if j >= 0 else s


def drop_word(s: str, rng: random.Random) -> str:
    words = s.split(" ")
    small = [i for i, w in enumerate(words) if w.lower() in
             {"the", "a", "an", "do", "does", "is", "are", "i", "to", "of", "my", "it", "you", "can"}]
    if len(words) > 4 and small:
        del words[rng.choice(small)]
    return " ".join(words)


def synonyms() -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for line in (HERE / "synonyms.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            group = [w.strip() for w in line.split("|")]
            for w in group:
                out.setdefault(w, []).extend(x for x in group if x != w)
    return out


SYNONYMS = synonyms()
WORD = re.compile(r"\b(" + "|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True)) + r")\b")


def other_words(s: str, rng: random.Random) -> str:
    """Each known word replaced by a neighbour in meaning, one time in three."""
    return WORD.sub(lambda m: rng.choice(SYNONYMS[m[0]]) if rng.random() < 0.33 else m[0], s)


def lose_words(s: str, rng: random.Random) -> str:
    """One or two words gone, whichever: a question must not hang on a single one."""
    words = s.split(" ")
    for _ in range(1 if len(words) < 7 else rng.choice((1, 2))):
        if len(words) > 3:
            del words[rng.randrange(len(words))]
    return " ".join(words)


def vary(q: str, rng: random.Random, level: float = 1.0) -> str:
    """The same question as another person would type it."""
    s = tidy(q)
    bare = len(s.split()) <= 2
    if rng.random() < 0.40 * level:
        s = other_words(s, rng)
    if rng.random() < 0.08 * level:
        s = lose_words(s, rng)
    if rng.random() < 0.30 * level:
        old, new = rng.choice(SWAPS)
        if rng.random() < 0.5:
            old, new = new, old
        if old.strip():
            s = (" " + s).replace(old, new, 1).strip()
    if rng.random() < 0.10 * level:
        s = drop_word(s, rng)
    command = s.lower().startswith(COMMANDS)
    ask = s
    if not bare and rng.random() < 0.10 * level:
        ask = ask + rng.choice(CLOSERS)
    end = ask[-1] if ask else ""
    if end not in "?.!":
        r = rng.random()
        if command or bare:
            ask += "." if r < 0.25 else "?" if r < 0.40 else ""
        else:
            ask += "?" if r < 0.68 else "" if r < 0.95 else rng.choice([".", "??", " ?", "?!", "..."])
    elif rng.random() < 0.3:
        ask = ask[:-1]
    if not bare and rng.random() < 0.10 * level:
        ask = rng.choice(OPENERS) + ask
    for _ in range(2):
        if rng.random() < 0.07 * level:
            ask = typo(ask, rng)
    r = rng.random()
    if r < 0.55:
        ask = ask[:1].upper() + ask[1:]
        ask = re.sub(r"\bi\b", "I", ask) if rng.random() < 0.8 else ask
    elif r < 0.90:
        ask = ask.lower()
    elif r < 0.93:
        ask = ask.upper()
    return ask


# ---------------------------------------------------------------- dialogues
COMMON_SHARE = 0.15
KEYWORD_SHARE = 0.3
FRAMES = ["{a}", "{a}", "what about {a}", "how about {a}", "tell me about {a}", "i have a question about {a}", "question on {a}",
          "something about {a}", "what is there to know about {a}", "is there {a}", "regarding {a}", "about {a}",
          "i want {a}", "{a}, how does that work", "what do you say about {a}", "can you help me with {a}",
          "my problem is {a}", "it is about {a}", "please explain {a}", "do you have {a}", "i need {a}", "concerning {a}",
          "i read about {a}", "what does {a} mean here", "how is it with {a}", "what is the situation with {a}",
          "i am interested in {a}", "does it matter for {a}", "is {a} possible", "information on {a}", "{a} explained",
          "how do you handle {a}", "what do you know about {a}", "and {a}", "what if it is about {a}", "where is {a}",
          "who does {a}", "why {a}", "how do i deal with {a}", "any advice on {a}", "i wonder about {a}", "details on {a}"]
PAIRS = ["{a} {b}", "{a} and {b}", "{a}, {b}", "{a} or {b}", "is {a} the same as {b}", "how does {a} relate to {b}",
         "what about {a} and {b}", "tell me about {a} and {b}", "{a} for {b}", "{a} with {b}", "i have {a} and want {b}"]


SYSTEMS = ["You are a helpful assistant.", "You are Quire's demo model.", "Answer briefly.", "You answer questions about Quire.",
           "You are a helpful, honest assistant. Keep your answers short.", "Be concise.", "You are a friendly guide to Quire.",
           "Answer in English.", "You help platform engineers to run language models.", "You are an assistant for developers."]
MORE = ["tell me more", "more", "go on", "can you say more", "what else", "more details please", "and then", "continue",
        "explain further", "i want to know more", "anything else about that", "more about that", "could you elaborate",
        "please go on", "say more about it", "give me more detail", "elaborate", "ok, and", "interesting, tell me more"]


@dataclass
class Turn:
    user: str
    answer: str
    fact: int  # index of the fact asked for; -1 if only the dialogue before tells


class Source:
    """Draws dialogues; one fact as likely as another, whatever the number of its questions."""

    def __init__(self, facts: list[Fact], seed: int):
        self.rng = random.Random(seed)
        self.facts = facts
        self.index = {f.id: i for i, f in enumerate(facts)}
        self.weights = [f.weight for f in facts]
        self.trees = {f.id: [parse(q) for q in f.q] for f in facts}
        self.sizes = {f.id: [min(len(expand(t)), 24) ** 0.5 for t in self.trees[f.id]] for f in facts}
        self.docs = [p.read_text() for p in sorted(DOCS.glob("*.md"))]

    def fact(self) -> Fact:
        return self.rng.choices(self.facts, self.weights)[0]

    def question(self, f: Fact) -> str:
        if f.c and self.rng.random() < COMMON_SHARE:
            return vary(self.rng.choice(f.c), self.rng, 0.5)
        if f.k and self.rng.random() < KEYWORD_SHARE:
            count = 1 if len(f.k) < 2 or self.rng.random() < 0.6 else 2
            a, b = (self.rng.sample(f.k, count) * 2)[:2]
            frame = self.rng.choice(FRAMES if count == 1 else PAIRS)
            return vary(frame.format(a=a, b=b), self.rng)
        tree = self.rng.choices(self.trees[f.id], self.sizes[f.id])[0]
        return vary(draw(tree, self.rng), self.rng)

    def turns(self, count: int) -> list[Turn]:
        out: list[Turn] = []
        last: Fact | None = None
        while len(out) < count:
            if last is not None and last.m and self.rng.random() < 0.35:
                out.append(Turn(vary(self.rng.choice(MORE), self.rng), last.m[0], -1))
                last = None
                continue
            last = self.fact()
            out.append(Turn(self.question(last), self.rng.choice(last.a), self.index[last.id]))
        return out

    def dialogue(self, long: bool = False) -> tuple[str | None, list[Turn]]:
        """A system message or none, and the turns. `long` fills a window of thousands of tokens."""
        r = self.rng.random()
        if long:
            text = self.rng.choice(self.docs) if self.docs else ""
            size = self.rng.choice([0, 0, 200, 800, 2000])
            start = self.rng.randrange(max(1, len(text) - size))
            system = self.rng.choice(SYSTEMS) + " " + text[start:start + size] if size else None
            return system, self.turns(60)
        system = self.rng.choice(SYSTEMS) if self.rng.random() < 0.15 else None
        return system, self.turns(1 if r < 0.86 else 2 if r < 0.95 else 3 if r < 0.98 else 5)


def main() -> None:
    facts = load()
    wordings = sum(len(expand(parse(q))) for f in facts for q in f.q)
    held = sum(len(f.held) for f in facts), sum(len(f.far) for f in facts)
    print(f"{len(facts)} facts, {wordings} wordings before variation, held out {held[0]} from lists and {held[1]} far ones")
    source = Source(facts, 7)
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 0):
        system, turns = source.dialogue()
        print("---", system or "")
        for t in turns:
            print("  >", t.user, "\n   ", t.answer)


if __name__ == "__main__":
    main()
