"""Number languages against arithmetic on decimals."""

from __future__ import annotations

import itertools
import random
import re
from decimal import Decimal

from palmette.errors import UnsupportedConstraint
from palmette.fsm.numbers import number_language, plain_decimal
from tests.fsm.languages import accepts, automaton

TEXTS = [
    "".join(t)
    for n in range(1, 5)
    for t in itertools.product("-.0159", repeat=n)
]  # fmt: skip
MORE = ["100", "-100", "99.99", "100.001", "0.25", "1e2", "12345", "-0.5001", "10.0", "1000000", "00.1", "3.14159"]


def valid(text: str, integer: bool) -> bool:
    pattern = r"0|-?[1-9]\d*" if integer else r"-?(0|[1-9]\d*)(\.\d+)?"
    return re.fullmatch(pattern, text) is not None


def test_bounds_hold_for_exactly_the_numbers_between_them() -> None:
    rng = random.Random(3)
    bounds = [Decimal(b) for b in ["0", "-0.5", "0.5", "1", "-1", "5.15", "10", "99", "-10.01", "100", "-5", "0.05"]]
    for _ in range(60):
        low, high = rng.choice([None, *bounds]), rng.choice([None, *bounds])
        low_open, high_open, integer = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.4
        if low is None and high is None:
            continue

        texts = [t for t in TEXTS + MORE if valid(t, integer) and _inside(t, low, low_open, high, high_open)]
        if low is not None and low >= 0:
            texts = [t for t in texts if not t.startswith("-")]  # -0 is written 0 there
        try:
            machine = automaton(
                number_language(integer=integer, low=low, low_open=low_open, high=high, high_open=high_open)
            )
        except UnsupportedConstraint:
            assert texts == [], (low, high, low_open, high_open)  # the language is empty
            continue
        accepted = [t for t in TEXTS + MORE if accepts(machine, t)]
        assert accepted == texts, (low, low_open, high, high_open, integer)


def _inside(text: str, low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool) -> bool:
    x = Decimal(text)
    above = low is None or (x > low if low_open else x >= low)
    return above and (high is None or (x < high if high_open else x <= high))


def test_multiples_are_exactly_the_multiples() -> None:
    for multiple in ["1", "2", "3", "7", "10", "0.5", "0.01", "1.5", "25", "0.3"]:
        for integer in (True, False):
            machine = automaton(number_language(integer=integer, multiples=(Decimal(multiple),)))
            for text in TEXTS + MORE:
                expected = valid(text, integer) and Decimal(text) % Decimal(multiple) == 0
                assert accepts(machine, text) == expected, (text, multiple, integer)


def test_a_decimal_is_written_without_exponent_and_superfluous_zeros() -> None:
    for value, text in [("1E+3", "1000"), ("1.50", "1.5"), ("-0.0", "0"), ("1e-7", "0.0000001"), ("100", "100")]:
        assert plain_decimal(Decimal(value)) == text
