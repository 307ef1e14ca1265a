"""Slices of a vocabulary: tokens made of one class of characters, whose masks are known in advance.

Where an automaton lets any n characters of a class pass, every token of up to n of them is allowed, and only the other
tokens need a walk. Knows which tokens belong to a slice and how many characters a state lets pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palmette.fsm.charset import ANY, CharSet, charset, intersect, negate, union
from palmette.fsm.dfa import Machine
from palmette.fsm.trie import Trie
from palmette.fsm.utf8 import Edges, char_graph

Mask = npt.NDArray[np.uint32]

_ASCII = charset([(0, 0x7F)])
_JSON_TEXT = negate(charset([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)]))
_WORD = charset([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
# (class, turns after which the search for a repeating state gives up). A class beyond ASCII has many states per
# character, so it is only worth while where the automaton comes back to the same state at once.
_CLASSES: tuple[tuple[CharSet, int], ...] = (
    (_JSON_TEXT, 3),
    (intersect(_JSON_TEXT, _ASCII), 1 << 30),
    (union(_WORD, charset([(0x20, 0x20)])), 1 << 30),
    (_WORD, 1 << 30),
    (charset([(0x41, 0x5A), (0x61, 0x7A)]), 1 << 30),
    (charset([(0x61, 0x7A)]), 1 << 30),
)
_WORTH_TOKENS = 1000  # a smaller slice saves less than its test costs
_END = 0  # node of a character graph where the character is complete


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """The tokens made of characters of one class, and the trie of all other tokens."""

    graph: tuple[Edges, ...]  # byte graph of one character; node 0 is its end, the last node its start
    max_turns: int
    max_chars: int
    up_to: tuple[Mask, ...]  # [n] = tokens of at most n characters
    others: Trie


def build_slices(tokens: Sequence[tuple[bytes, int]], trie: Trie, mask_words: int) -> tuple[Slice, ...]:
    """The slices of a vocabulary, given as (bytes, id) and as the trie of these, that are large enough to be worth a
    test."""
    if len(tokens) < _WORTH_TOKENS:
        return ()
    out: list[Slice] = []
    texts = [t for t, _ in tokens]
    ids = np.fromiter((i for _, i in tokens), np.intp, len(texts))
    num_bytes = np.fromiter(map(len, texts), np.intp, len(texts))
    data = np.frombuffer(b"".join(texts), np.uint8)
    begins = np.cumsum(num_bytes) - num_bytes
    is_text = ~np.logical_or.reduceat(data >= 0x80, begins)
    for i in np.flatnonzero(~is_text).tolist():
        is_text[i] = _is_text(texts[i])
    num_chars = np.add.reduceat((data & 0xC0) != 0x80, begins, dtype=np.intp)
    for chars, max_turns in _CLASSES:
        outside = np.ones(256, bool)  # bytes that are in no character of the class
        outside[[c for low, high in intersect(chars, _ASCII) for c in range(low, high + 1)]] = False
        if chars[-1][1] == ANY[-1][1]:
            outside[0x80:] = False  # every character beyond ASCII, whose bytes all are
        inside = is_text & ~np.logical_or.reduceat(outside[data], begins)
        if np.count_nonzero(inside) < _WORTH_TOKENS:
            continue
        lengths, of_length = num_chars[inside], ids[inside]
        is_other = np.ones(mask_words * 32, bool)
        is_other[of_length] = False
        others = trie.restricted(is_other)
        nodes: list[Edges] = [()]
        seen: dict[Edges, int] = {}

        def make(edges: Edges, final: bool, nodes: list[Edges] = nodes, seen: dict[Edges, int] = seen) -> int:
            if edges not in seen:
                seen[edges] = len(nodes)
                nodes.append(edges)
            return seen[edges]

        assert char_graph(chars, _END, make, json=False) == len(nodes) - 1
        bits = np.zeros(mask_words * 32, bool)
        masks = []
        longest = int(lengths.max())
        for n in range(longest + 1):
            bits[of_length[lengths == n]] = True
            masks.append(pack(bits))
        out.append(Slice(tuple(nodes), max_turns, longest, tuple(masks), others))
    return tuple(out)


def pack(bits: npt.NDArray[np.bool_]) -> Mask:
    """Booleans, a multiple of 32 of them, as uint32 words with the lowest bit first."""
    return np.packbits(bits, bitorder="little").view("<u4")


class Absorber:
    """How many characters of `slice` any state of `machine` lets pass, whichever they are."""

    def __init__(self, part: Slice, machine: Machine) -> None:
        self.part = part
        self.machine = machine
        self._known: dict[int, int | None] = {}

    def room(self, state: int) -> int | None:
        """n: every text of up to n characters passes and no longer one does (max_chars = none is too long).

        None where it depends on the characters.
        """
        path: list[int] = []
        on_path: set[int] = set()
        result: int | None
        while True:
            if state in self._known:
                result = self._known[state]
                break
            if state in on_path:
                result = self.part.max_chars
                break
            if len(path) > self.part.max_turns:
                self._known[path[0]] = None
                return None
            path.append(state)
            on_path.add(state)
            passes, successors = self._one_char(state)
            if not passes:
                result = None if successors else 0
                self._known[path.pop()] = result
                break
            if len(successors) != 1:
                result = self._wide(path.pop(), successors)
                break
            state = successors.pop()
        for above in reversed(path):
            result = None if result is None else min(result + 1, self.part.max_chars)
            self._known[above] = result
        return result

    def _wide(self, state: int, successors: set[int]) -> int | None:
        """Room of a state from which characters lead to different states: all of them must have the same."""
        visited = {state}
        current = successors
        count = 1
        result: int | None = self.part.max_chars
        while not current <= visited and count < self.part.max_chars:
            if count > min(self.part.max_turns, 64):
                result = None
                break
            visited |= current
            steps = [self._one_char(s) for s in current]
            if not all(passes for passes, _ in steps):
                result = None if any(targets for _, targets in steps) else count
                break
            current = set().union(*(targets for _, targets in steps))
            count += 1
        self._known[state] = result
        return result

    def _one_char(self, state: int) -> tuple[bool, set[int]]:
        """(every character passes, the states some character leads to)."""
        graph, machine = self.part.graph, self.machine
        passes = True
        targets: set[int] = set()
        stack = [(len(graph) - 1, state)]
        seen = set(stack)
        while stack:
            node, at = stack.pop()
            segments = machine.segments(at)
            i = 0
            for low, high, child in graph[node]:
                while i < len(segments) and segments[i][1] < low:
                    i += 1
                covered = low
                j = i
                while j < len(segments) and segments[j][0] <= high:
                    a, b, to = segments[j]
                    if a > covered:
                        passes = False
                    covered = b + 1
                    if child == _END:
                        targets.add(to)
                    elif (child, to) not in seen:
                        seen.add((child, to))
                        stack.append((child, to))
                    j += 1
                if covered <= high:
                    passes = False
            if not passes and targets:
                break
        return passes, targets


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
