"""How many characters the texts of a node have, so that a length keyword that says nothing new costs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from palmette.fsm.algebra import (
    Alt,
    Anchor,
    Anchored,
    And,
    Chars,
    Literal,
    Node,
    Not,
    Repeat,
    Seq,
    Words,
)
from palmette.fsm.trampoline import Call, run

Range = tuple[int, int | None]  # fewest characters, most characters or None


def length_range(parts: Sequence[Node]) -> Range:
    """Bounds on the length of texts that are in every one of `parts`; not always tight, never wrong."""
    low, high = 0, None
    for part in parts:
        a, b = run(_range(part))
        low = max(low, a)
        high = b if high is None else high if b is None else min(high, b)
    return low, high


def _range(node: Node) -> Call[Range]:
    if isinstance(node, Chars):
        return 1, 1
    if isinstance(node, Literal):
        return len(node.text), len(node.text)
    if isinstance(node, Anchor):
        return 0, 0
    if isinstance(node, Words):
        lengths = [len(t) for t in node.texts]
        return min(lengths), max(lengths)
    if isinstance(node, Anchored):
        inner: Range = yield _range(node.part)
        return inner
    if isinstance(node, Repeat):
        a, b = yield _range(node.part)
        high = 0 if b == 0 else None if b is None or node.high is None else b * node.high
        return a * node.low, high
    if isinstance(node, Seq | Alt | And):
        ranges: list[Range] = []
        for part in node.parts:
            if not isinstance(part, Not):
                ranges.append((yield _range(part)))
        lows, highs = [r[0] for r in ranges], [r[1] for r in ranges]
        known = [h for h in highs if h is not None]
        if isinstance(node, Seq):
            return sum(lows), sum(known) if len(known) == len(highs) else None
        if isinstance(node, Alt):
            return min(lows), max(known) if len(known) == len(highs) else None
        return max(lows, default=0), min(known, default=None)
    return 0, None
