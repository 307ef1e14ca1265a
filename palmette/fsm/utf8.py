"""From sets of characters and words to byte graphs: UTF-8, plain or as the inside of a JSON string.

A byte graph is built from the end through `make`, which returns the id of a node with the given outgoing ranges; the
caller interns nodes, so equal tails are shared. Knows nothing of automata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

from palmette.fsm.charset import CharSet, charset, contains, intersect, subtract

Edges: TypeAlias = tuple[tuple[int, int, int], ...]  # (first byte, last byte, node), sorted and disjoint
MakeNode: TypeAlias = Callable[[Edges, bool], int]  # edges, whether a word may end here -> node id
Path: TypeAlias = tuple[tuple[int, int], ...]  # byte ranges of one or more encoded characters

_SHORT_ESCAPES = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r", 34: b'\\"', 92: b"\\\\"}
_NEEDS_ESCAPE = re.compile(r'[\x00-\x1f"\\]')
JSON_ESCAPED = charset([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])


def json_escape(code_point: int) -> bytes:
    """The one way this package writes a character inside a JSON string."""
    if contains(JSON_ESCAPED, code_point):
        return _SHORT_ESCAPES.get(code_point) or b"\\u%04x" % code_point
    return chr(code_point).encode()


def json_text(text: str) -> str:
    """`text` as the inside of a JSON string."""
    if not _NEEDS_ESCAPE.search(text):
        return text
    return "".join(json_escape(ord(c)).decode() for c in text)


def char_graph(chars: CharSet, end: int, make: MakeNode, *, json: bool) -> int:
    """The node from which one character of `chars` (not empty) leads to `end`."""
    return _graph(_paths(chars, json), 0, end, make)


@lru_cache(maxsize=256)
def _paths(chars: CharSet, json: bool) -> list[Path]:
    """The encodings of `chars`, ascending. Callers do not change the list."""
    paths: list[Path] = []
    if json:
        for low, high in intersect(chars, JSON_ESCAPED):
            for c in range(low, high + 1):
                paths.append(tuple((b, b) for b in json_escape(c)))
        chars = subtract(chars, JSON_ESCAPED)
    for low, high in chars:
        _encode_range(low, high, paths)
    return sorted(paths)


def word_graph(words: Sequence[bytes], end: int, make: MakeNode, make_then: Callable[[bytes, int], int]) -> int:
    """The item that is each of `words` and then `end`: a trie with a node where words part or one of them ends.

    `make_then` makes the item that is some bytes and then another item.
    """
    words = sorted(set(words))
    shared = [0, *(_common_prefix(a, b) for a, b in pairwise(words)), 0]
    # One open node per letter of the current word; a node is closed once no later word can pass through it. An edge
    # is a letter, the bytes that must follow it, and the item behind those.
    open_edges: list[list[tuple[int, bytes, int]]] = [[]]
    finals = [False]
    for i, word in enumerate(words):
        own = max(shared[i], shared[i + 1])  # bytes that another word has too: so many nodes
        for _ in range(own - len(open_edges) + 1):
            open_edges.append([])
            finals.append(False)
        if own == len(word):
            finals[own] = True
        else:
            open_edges[own].append((word[own], word[own + 1 :], end))
        while len(open_edges) > shared[i + 1] + 1:
            edges, final = open_edges.pop(), finals.pop()
            letter = word[len(open_edges) - 1]
            if len(edges) == 1 and not final:
                open_edges[-1].append((letter, bytes([edges[0][0]]) + edges[0][1], edges[0][2]))
            else:
                open_edges[-1].append((letter, b"", make(_closed(edges, make_then), final)))
    if len(open_edges[0]) == 1 and not finals[0]:
        letter, following, item = open_edges[0][0]
        return make_then(bytes([letter]) + following, item)
    return make(_closed(open_edges[0], make_then), finals[0])


def _closed(edges: list[tuple[int, bytes, int]], make_then: Callable[[bytes, int], int]) -> Edges:
    return tuple((letter, letter, make_then(following, item)) for letter, following, item in edges)


def _common_prefix(a: bytes, b: bytes) -> int:
    shorter = min(len(a), len(b))
    differing = int.from_bytes(a[:shorter], "big") ^ int.from_bytes(b[:shorter], "big")
    return shorter - (differing.bit_length() + 7) // 8


def _encode_range(low: int, high: int, out: list[Path]) -> None:
    """UTF-8 paths of the scalar values low..high: each byte but the last few is fixed, the rest are full ranges."""
    for top in (0x7F, 0x7FF, 0xFFFF):
        if low <= top < high:
            _encode_range(low, top, out)
            low = top + 1
    stack = [(low, high)]
    while stack:
        a, b = stack.pop()
        first, last = chr(a).encode(), chr(b).encode()
        split = None
        for tail in range(1, len(first)):
            mask = (1 << (6 * tail)) - 1
            if a & ~mask != b & ~mask:
                if a & mask:
                    split = (a | mask) + 1
                elif b & mask != mask:
                    split = b & ~mask
            if split is not None:
                break
        if split is None:
            out.append(tuple(zip(first, last, strict=True)))
        else:
            stack += [(a, split - 1), (split, b)]


def _graph(paths: list[Path], depth: int, end: int, make: MakeNode) -> int:
    """Recursion is at most six bytes deep: the longest escape."""
    edges: list[tuple[int, int, int]] = []
    i = 0
    while i < len(paths):
        byte_range = paths[i][depth]
        j = i
        while j < len(paths) and paths[j][depth] == byte_range:
            j += 1
        node = end if len(paths[i]) == depth + 1 else _graph(paths[i:j], depth + 1, end, make)
        if edges and edges[-1][2] == node and edges[-1][1] + 1 == byte_range[0]:
            edges[-1] = (edges[-1][0], byte_range[1], node)
        else:
            edges.append((*byte_range, node))
        i = j
    return make(tuple(edges), False)
