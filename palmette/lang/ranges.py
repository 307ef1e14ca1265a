"""Integers between two bounds as a regex: for numbers that stand alone, where a regex can also say what ends them."""

from __future__ import annotations

MAX_DIGITS = 40


def integers(low: int | None, high: int | None) -> str | None:
    """The decimal texts of low..high (None = open), without superfluous zeros; None where there are none, or a bound
    has more than MAX_DIGITS digits."""
    if any(bound is not None and len(str(abs(bound))) > MAX_DIGITS for bound in (low, high)):
        return None
    parts = []
    if low is None or low < 0:
        parts += [f"-(?:{text})" for text in _magnitudes(max(1, -high) if high is not None else 1, low and -low)]
    if (low is None or low <= 0) and (high is None or high >= 0):
        parts.append("0")
    if high is None or high > 0:
        parts += _magnitudes(max(1, low or 1), high)
    return "|".join(parts) or None


def _magnitudes(low: int, high: int | None) -> list[str]:
    """low..high with 1 <= low, one pattern for each number of digits."""
    parts = []
    length = len(str(low))
    while high is None or 10 ** (length - 1) <= high:
        first = max(low, 10 ** (length - 1))
        last = 10**length - 1 if high is None else min(high, 10**length - 1)
        if first <= last:
            parts.append(_of_one_length(str(first), str(last)))
        if high is None:
            parts.append(f"[1-9][0-9]{{{length},}}")
            break
        length += 1
    return parts


def _of_one_length(low: str, high: str) -> str:
    """The digits between two texts of one length; as deep as they are long."""
    rest = len(low) - 1
    if low == high:
        return low
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return _class(low[0], high[0]) + _any(rest)
    if low[0] == high[0]:
        return low[0] + f"(?:{_of_one_length(low[1:], high[1:])})"
    parts = [low[0] + f"(?:{_of_one_length(low[1:], '9' * rest)})"]
    if int(low[0]) + 1 < int(high[0]):
        parts.append(_class(str(int(low[0]) + 1), str(int(high[0]) - 1)) + _any(rest))
    parts.append(high[0] + f"(?:{_of_one_length('0' * rest, high[1:])})")
    return "|".join(parts)


def _class(first: str, last: str) -> str:
    return first if first == last else f"[{first}-{last}]"


def _any(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""
