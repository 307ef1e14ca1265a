"""Differential tests against other engines, each where it is installed and inside the dialect where it is right."""

from __future__ import annotations

import importlib
import itertools
import random

import numpy as np
import pytest

from palmette.fsm.compile import compile
from palmette.specs import Regex
from tests.fsm.languages import accepts, regex_automaton
from tests.fsm.test_matcher_oracle import EOS, wide_vocabulary


def test_interegular_agrees_on_small_patterns() -> None:
    interegular = pytest.importorskip("interegular", reason="interegular is not installed")
    rng = random.Random(23)
    words = ["".join(w) for n in range(6) for w in itertools.product("ab", repeat=n)]
    atoms = ["a", "b", "[ab]", "(a|ab)", "a?", "(ba)*", "b{1,2}", "(a|b)+"]
    for _ in range(40):
        pattern = "".join(rng.choices(atoms, k=rng.randint(1, 4)))
        oracle, machine = interegular.parse_pattern(pattern).to_fsm(), regex_automaton(pattern)
        assert [w for w in words if oracle.accepts(w) != accepts(machine, w)] == [], pattern


# Patterns that both read the same: llguidance's \d and \w are Unicode's.
SHARED = [
    "[0-9]{4}-[0-9]{2}", "(abc|ab|a)*x?", "[a-h]+@[a-h]{2,9}", '"[^"\\\\\\n]{0,12}"', "[^a-c]*z", "[aé日]{1,5}",
    ".{0,9}", "([a-z]+ )*[A-Z]+\\.", "a{3,7}b|c", "([0-9]{1,3}\\.){3}[0-9]{1,3}",
]  # fmt: skip


def test_llguidance_computes_the_same_masks_on_the_shared_dialect() -> None:
    llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed")
    peer = importlib.import_module("llguidance.numpy")
    vocabulary = wide_vocabulary()

    class Tokenizer:
        eos_token_id, bos_token_id = EOS, None
        tokens = [b"<eos>", *vocabulary.tokens[1:]]
        special_token_ids = [EOS]

        def __call__(self, text: bytes) -> list[int]:
            return vocabulary.greedy(text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokenizer()))
    rng = random.Random(29)
    compared = 0
    for pattern in SHARED:
        constraint = compile(Regex(pattern), vocabulary)
        grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
        for _ in range(5):
            ours, theirs = constraint.matcher(), llguidance.LLMatcher(tokenizer, grammar)
            assert not theirs.is_error(), theirs.get_error()
            for _ in range(7):
                words = peer.allocate_token_bitmask(1, len(vocabulary))
                peer.fill_next_token_bitmask(theirs, words, 0)
                expected = np.flatnonzero(np.unpackbits(words[0].view(np.uint8), bitorder="little")).tolist()
                allowed = ours.allowed().tolist()
                assert allowed == expected, (pattern, b"".join(ours._read))
                compared += 1
                going_on = [t for t in allowed if t != EOS]
                if not going_on:
                    break
                token = rng.choice(going_on)
                ours.advance(token)
                assert theirs.consume_token(token)
    assert compared > 150
