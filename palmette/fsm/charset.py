"""Sets of Unicode scalar values as sorted, disjoint, inclusive ranges.

Knows arithmetic on ranges and nothing of names, cases or encodings. Surrogates are in no set: text never has them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

CharSet: TypeAlias = tuple[tuple[int, int], ...]  # sorted, disjoint, not adjacent; both ends included

NONE: CharSet = ()
ANY: CharSet = ((0, 0xD7FF), (0xE000, 0x10FFFF))
NEWLINE: CharSet = ((10, 10),)


def charset(ranges: Iterable[tuple[int, int]]) -> CharSet:
    """The set holding every scalar value of `ranges`, given in any order."""
    return intersect(_merged(ranges), ANY)


def single(code_point: int) -> CharSet:
    return charset([(code_point, code_point)])


def union(*sets: CharSet) -> CharSet:
    return _merged(r for s in sets for r in s)


def intersect(a: CharSet, b: CharSet) -> CharSet:
    out: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            out.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def negate(s: CharSet) -> CharSet:
    """Every scalar value that is not in `s`."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for low, high in s:
        gaps.append((start, low - 1))
        start = high + 1
    gaps.append((start, 0x10FFFF))
    return intersect(tuple(g for g in gaps if g[0] <= g[1]), ANY)


def subtract(a: CharSet, b: CharSet) -> CharSet:
    return intersect(a, negate(b))


def contains(s: CharSet, code_point: int) -> bool:
    return any(low <= code_point <= high for low, high in s)


def size(s: CharSet) -> int:
    return sum(high - low + 1 for low, high in s)


def _merged(ranges: Iterable[tuple[int, int]]) -> CharSet:
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            if high > out[-1][1]:
                out[-1] = (out[-1][0], high)
        else:
            out.append((low, high))
    return tuple(out)
