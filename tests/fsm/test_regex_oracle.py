# ruff: noqa: RUF001
"""The regex dialect against CPython's `re`, on real patterns and on random ones."""

from __future__ import annotations

import collections
import itertools
import random
import re
import warnings
from pathlib import Path

from palmette.errors import UnsupportedConstraint
from tests.fsm.conftest import read_jsonl
from tests.fsm.languages import accepts, regex_automaton

DECLARED = {"\\b", "\\B", "back-reference", "lookbehind", "\\1"}


def test_every_labelled_string_gets_the_verdict_of_fullmatch(data_dir: Path) -> None:
    wrong: list[tuple[str, str]] = []
    refused: collections.Counter[str] = collections.Counter()
    total = 0
    for row in read_jsonl(data_dir / "regex.jsonl"):
        total += 1
        try:
            machine = regex_automaton(row["pattern"])
        except UnsupportedConstraint as error:
            refused[error.keyword] += 1
            if error.keyword == "empty language":
                wrong += [(row["pattern"], s) for s in row["positive"]]
            continue
        wrong += [(row["pattern"], s) for s in row["positive"] if not accepts(machine, s)]
        wrong += [(row["pattern"], s) for s in row["negative"] if accepts(machine, s)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FutureWarning about "[[" in some patterns
            ascii_pattern = re.compile(row["pattern"], re.ASCII) if "(?u" not in row["pattern"] else None
        if ascii_pattern is not None and "i" not in "".join(re.findall(r"\(\?([a-z]+)", row["pattern"])):
            for s in row["dialect_sensitive"]:
                if (ascii_pattern.fullmatch(s) is not None) != accepts(machine, s):
                    wrong.append((row["pattern"], s))
    assert wrong == []
    assert set(refused) <= DECLARED | {"empty language"}
    empty = refused.pop("empty language", 0)  # these have no positive string; refusing them is the right verdict
    assert empty <= 5
    assert sum(refused.values()) <= 0.08 * total, refused


def random_pattern(rng: random.Random, depth: int) -> str:
    kinds = (
        ["char", "class", "dot", "anchor"] if depth == 0 else ["seq", "alt", "rep", "group", "look", "class", "char"]
    )
    kind = rng.choice(kinds)
    if kind == "char":
        return rng.choice("abé\n")
    if kind == "class":
        return rng.choice(["[ab]", "[^a]", "\\w", "[é-ü]", "\\S", "[^\\n]"])
    if kind == "dot":
        return "."
    if kind == "anchor":
        return rng.choice(["^", "$", "(?m:^)", "(?m:$)", ""])
    inner = random_pattern(rng, depth - 1)
    if kind == "seq":
        return inner + random_pattern(rng, depth - 1)
    if kind == "alt":
        return f"{inner}|{random_pattern(rng, depth - 1)}"
    if kind == "group":
        return f"({inner})"
    if kind == "look":
        return f"(?{rng.choice('=!')}{inner}){random_pattern(rng, depth - 1)}"
    return f"(?:{inner})" + rng.choice(["*", "+", "?", "{2}", "{1,3}", "{0,2}?", "*?", "{2,}"])


def python_end(pattern: str) -> str:
    """Python's `$` also matches before a final newline; the dialect's is ECMA's, which Python spells \\Z."""
    return re.sub(r"(?<!m:)\$", r"\\Z", pattern)


def test_random_patterns_accept_exactly_the_texts_that_re_matches() -> None:
    rng = random.Random(7)
    words = ["".join(w) for n in range(5) for w in itertools.product("ab\né", repeat=n)]
    compared = 0
    refused: collections.Counter[str] = collections.Counter()
    wrong: list[tuple[str, str]] = []
    for _ in range(700):
        pattern = random_pattern(rng, 4)
        oracle = re.compile(python_end(pattern), re.ASCII)
        try:
            machine = regex_automaton(pattern)
        except UnsupportedConstraint as error:
            refused[error.keyword] += 1
            if error.keyword == "empty language":
                wrong += [(pattern, w) for w in words if oracle.fullmatch(w)]
            continue
        compared += 1
        for word in words:
            assert (oracle.fullmatch(word) is not None) == accepts(machine, word), (pattern, word)
    assert wrong == []
    assert set(refused) <= {"lookahead", "negative lookahead", "empty language"}
    assert compared > 400, (compared, refused)


def test_unanchored_search_accepts_exactly_the_texts_in_which_re_finds_the_pattern() -> None:
    rng = random.Random(8)
    words = ["".join(w) for n in range(5) for w in itertools.product("ab\n", repeat=n)]
    compared = 0
    for _ in range(500):
        pattern = random_pattern(rng, 3)
        oracle = re.compile(python_end(pattern), re.ASCII)
        try:
            machine = regex_automaton(pattern, search=True)
        except UnsupportedConstraint:
            continue
        compared += 1
        for word in words:
            assert (oracle.search(word) is not None) == accepts(machine, word), (pattern, word)
    assert compared > 300


def test_ignoring_case_equates_the_same_characters_as_re_does() -> None:
    rng = random.Random(9)
    cased = [chr(c) for c in range(0x10000) if chr(c).lower() != chr(c).upper() and not 0xD800 <= c < 0xE000]
    for char in [*"aikszAIKSZ1-", "ß", "ſ", "K", "µ", "ς", "İ", "ı", "ǅ", *rng.sample(cased, 60)]:
        machine = regex_automaton(f"(?i){re.escape(char)}")
        oracle = re.compile(f"(?i){re.escape(char)}")
        for other in [
            *"aikszAIKSZ1-",
            "ß",
            "ſ",
            "K",
            "µ",
            "μ",
            "Μ",
            "ς",
            "σ",
            "Σ",
            "İ",
            "ı",
            "ǅ",
            *rng.sample(cased, 60),
            char.lower()[0],
            char.upper()[0],
            char.swapcase()[0],
        ]:
            assert (oracle.fullmatch(other) is not None) == accepts(machine, other), (char, other)
