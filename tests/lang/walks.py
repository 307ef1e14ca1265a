"""Random texts of a specification: what a model without any sense would write under its masks."""

from __future__ import annotations

import random
from functools import lru_cache

from palmette.fsm.compile import Constraint, compile
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Spec

END = 256


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    return Vocabulary([*(bytes([i]) for i in range(256)), b""], eos_ids=(END,))


def compiled(spec: Spec) -> Constraint:
    return compile(spec, vocabulary())


def walk(constraint: Constraint, rng: random.Random, budget: int) -> str | None:
    """A text of at most `budget` bytes, mostly printable; None where none is that short."""
    matcher = constraint.matcher()
    if matcher.cost_to_accept() > budget:
        return None
    written = bytearray()
    while True:
        allowed = matcher.allowed(budget=budget - len(written)).tolist()
        printable = [t for t in allowed if 32 <= t < 127]
        token = rng.choice(printable if printable and rng.random() < 0.9 else allowed)
        if END in allowed and rng.random() < 0.3:
            token = END
        matcher.advance(token)
        if token == END:
            return written.decode("utf-8")
        written.append(token)


def accepts(constraint: Constraint, text: str) -> bool:
    matcher = constraint.matcher()
    return matcher.advance_bytes(text.encode("utf-8")) and matcher.is_accepting
