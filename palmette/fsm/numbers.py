"""JSON numbers as languages: integers and decimals, within bounds, and multiples of a number.

Bounded numbers and multiples are written without exponent, so that digits can be compared as they come. Values are
exact decimals; a bound such as 0.1 means the decimal 0.1.
"""

from __future__ import annotations

from collections.abc import Hashable
from decimal import Decimal
from functools import lru_cache

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import And, Explicit, Node, Not
from palmette.fsm.parse import parse_regex
from palmette.fsm.stepper import Stepper

MAX_MODULUS = 20_000  # remainders that a multipleOf automaton may have to tell apart
_ALPHABET = "-.0123456789"


def number_language(
    *,
    integer: bool,
    low: Decimal | None = None,
    low_open: bool = False,
    high: Decimal | None = None,
    high_open: bool = False,
    multiples: tuple[Decimal, ...] = (),
    not_multiples: tuple[Decimal, ...] = (),
    excluded: tuple[Decimal, ...] = (),
) -> Node:
    """Texts of the numbers with low <= x <= high (strictly where open), multiples of all of `multiples`, of none of
    `not_multiples`, and none of `excluded`.

    Raises:
        UnsupportedConstraint: a multiple needs more remainders than MAX_MODULUS. Its path is empty.
    """
    bounded = low is not None or high is not None or bool(multiples or not_multiples or excluded)
    if integer:
        base = _pattern("0|-?[1-9][0-9]*")
    elif bounded:
        sign = "" if low is not None and low >= 0 else "-?"  # -0 is 0, and not written so where a bound forbids signs
        base = _pattern(sign + r"(0|[1-9][0-9]*)(\.[0-9]+)?")
    else:
        return _pattern(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+\-]?[0-9]+)?")
    parts: list[Node] = [base]
    if low is not None:
        parts.append(Explicit(_bound(low, is_low=True, is_open=low_open)))
    if high is not None:
        parts.append(Explicit(_bound(high, is_low=False, is_open=high_open)))
    for multiple in multiples:
        if not (integer and multiple == 1):
            parts.append(Explicit(_multiple(multiple)))
    parts += [Not(Explicit(_multiple(m))) for m in not_multiples]
    for value in excluded:
        above = Explicit(_bound(value, is_low=True, is_open=False))
        below = Explicit(_bound(value, is_low=False, is_open=False))
        parts.append(Not(And((above, below))))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


@lru_cache(maxsize=16)
def _pattern(text: str) -> Node:
    return parse_regex(text)


def plain_decimal(value: Decimal) -> str:
    """A decimal without exponent and without superfluous zeros."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _bound(bound: Decimal, *, is_low: bool, is_open: bool) -> Stepper:
    """Numbers above (`is_low`) or below `bound`.

    A state is (negative, place, order): place counts integer digits, or is -1-n behind n digits of the fraction; order
    compares the magnitude read so far with that of the bound, digit by digit: -1, 0, 1.
    """
    whole, _, fraction = plain_decimal(abs(bound)).partition(".")
    bound_negative = bound < 0
    start: Hashable = ("start",)

    def step(state: Hashable, char: str) -> Hashable | None:
        assert isinstance(state, tuple)
        if state == start:
            if char == "-":
                return (True, 0, 0)
            state = (False, 0, 0)
        negative, place, order = state
        if char == "-":
            return None
        if char == ".":
            if place < 0:
                return None
            return (negative, -1, _order_of_whole(place, order))
        if place >= 0:
            digit = whole[place] if place < len(whole) else None
            if digit is None:  # longer than the bound, so larger in magnitude, however it goes on
                return (negative, len(whole) + 1, 1)
            return (negative, place + 1, order or _compare(char, digit))
        n = -1 - place
        return (negative, max(place - 1, -1 - len(fraction)), order or _compare(char, fraction[n : n + 1] or "0"))

    def _order_of_whole(place: int, order: int) -> int:
        return order if place == len(whole) else -1 if place < len(whole) else 1

    def accepts(state: Hashable) -> bool:
        assert isinstance(state, tuple)
        if state == start:
            return False
        negative, place, order = state
        if place == 0:
            return False
        n = -1 - place
        magnitude = _order_of_whole(place, order) if place > 0 else order
        if magnitude == 0 and fraction[(0 if place > 0 else n) :].strip("0"):
            magnitude = -1  # the bound goes on
        if negative == bound_negative:
            sign = -magnitude if negative else magnitude
        else:
            sign = -1 if negative else 1
            # -0 and 0 are the same number
            if magnitude == 0 and not bound:
                sign = 0
        return (sign == 0 and not is_open) or sign == (1 if is_low else -1)

    return Stepper(start, step, accepts, _ALPHABET)


def _compare(char: str, digit: str) -> int:
    return (char > digit) - (char < digit)


def _multiple(multiple: Decimal) -> Stepper:
    """Multiples of a positive decimal k/10^d: the digits, read up to d places behind the point, are a multiple of k."""
    places = max(0, -int(multiple.normalize().as_tuple().exponent))
    modulus = int(multiple.scaleb(places))
    if modulus > MAX_MODULUS:
        raise UnsupportedConstraint("", "multipleOf", f"it needs {modulus} remainders, and the limit is {MAX_MODULUS}")
    scale = 10**places

    def step(state: Hashable, char: str) -> Hashable | None:
        """(remainder of the digits read, digits behind the point or -1 before it)."""
        assert isinstance(state, tuple)
        remainder, behind = state
        if char == "-":
            return state
        if char == ".":
            return (remainder, 0) if behind < 0 else None
        if behind >= places:
            return state if char == "0" else None
        return (remainder * 10 + int(char)) % modulus, behind + 1 if behind >= 0 else -1

    def accepts(state: Hashable) -> bool:
        assert isinstance(state, tuple)
        remainder, behind = state
        return bool(remainder * (scale // 10 ** max(behind, 0)) % modulus == 0)

    return Stepper((0, -1), step, accepts, _ALPHABET)
