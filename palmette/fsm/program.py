"""Languages over bytes as a flat table of interned items: the form the automata read.

An item is an int; its kind and argument stand in parallel lists, equal items are one item, and children have been made
before their parents, so every property is computed without recursion. Knows structure and nullability; how items are
unfolded into states is `nfa`'s.

    EPS                    the empty word
    BYTES (edges, final)   a node of a byte graph; `final` = a word may end here
    TEXT bytes             exactly these, one or more of them; its tails become items as they are reached
    CAT items, ALT items   concatenation, alternation
    REP (item, low, high)  counted repetition; high -1 = unbounded; the item is never nullable on its face
    CALL rule              a recursive rule: pushes a frame
    RET                    the bottom of a frame
    MACHINE (m, state, accepting)   a word that automaton m accepts from `state`
    START END LINE_START LINE_END   assertions, inside anchored automata only
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

from palmette.fsm.charset import CharSet
from palmette.fsm.utf8 import Edges, char_graph


class Kind(IntEnum):
    EPS = 0
    BYTES = 1
    CAT = 2
    ALT = 3
    REP = 4
    CALL = 5
    RET = 6
    MACHINE = 7
    START = 8
    END = 9
    LINE_START = 10
    LINE_END = 11
    TEXT = 12


EPS, NEVER, RET = 0, 1, 2  # the items made by every Program
NO_LIMIT = -1
FOREVER = 1 << 30  # as a lower bound: a saturated count, which never lets go
_LONGEST_SPLICE = 6  # parts of a concatenation that is written out inside another
_LONGEST_TEXT = 64  # bytes of one TEXT: reading one makes an item of each of its tails


class Program:
    """The item table. Grows while automata unfold; items never change."""

    def __init__(self, alphabet: frozenset[int] | None = None) -> None:
        """`alphabet`: the bytes that can be written at all; words with others do not exist. None = all bytes."""
        self._alphabet = alphabet
        self._missing, self._missing_below = _missing_from(alphabet)
        self.largest_count = 0  # of the repetitions; an open end does not count
        self.kinds: list[Kind] = []
        self.args: list[Any] = []
        self.nullable: list[bool] = []  # surely contains the empty word; a CALL or an anchor never surely does
        self.rules: list[int] = []  # body item per recursive rule; NEVER until it is known
        self._ids: dict[tuple[Kind, Any], int] = {}
        self._nonempty: dict[int, int] = {}
        assert self._intern(Kind.EPS, (), True) == EPS
        assert self._intern(Kind.ALT, (), False) == NEVER
        assert self._intern(Kind.RET, (), True) == RET

    def bytes_node(self, edges: Edges, final: bool) -> int:
        if self._missing:
            edges = self._writable(edges)
        if any(node == NEVER for _, _, node in edges):
            edges = tuple(e for e in edges if e[2] != NEVER)
        if not edges:
            return EPS if final else NEVER
        return self._intern(Kind.BYTES, (edges, final), final)

    def characters(self, chars: CharSet, *, json: bool) -> int:
        """One character of `chars`, which is not empty."""
        nodes, root = _character_nodes(chars, json, self._alphabet)
        made = {EPS: EPS, NEVER: NEVER}
        for node, edges in nodes:
            known = tuple((low, high, made[to]) for low, high, to in edges)
            made[node] = self._intern(Kind.BYTES, (known, False), False)
        return made[root]

    def text(self, data: bytes) -> int:
        """Exactly `data`."""
        if self._missing and not self._missing.isdisjoint(data):
            return NEVER
        if len(data) <= _LONGEST_TEXT:
            return self._intern(Kind.TEXT, data, False) if data else EPS
        first = len(data) % _LONGEST_TEXT
        cuts = [0, *range(first or _LONGEST_TEXT, len(data) + 1, _LONGEST_TEXT)]
        return self.cat(tuple(self.text(data[a:b]) for a, b in pairwise(cuts)))

    def with_word(self, words: int, data: bytes, then: int) -> int:
        """`words`, or `data` and then `then`: one more word of the trie that earlier calls have made.

        Only the way down to the new word is made anew, so that the tries of n, n-1, n-2 .. words share their nodes.
        """
        if then == NEVER or not self._missing.isdisjoint(data):
            return words
        above: list[tuple[bytes, tuple[tuple[int, int, int], ...]]] = []  # per branching: bytes before, other edges
        at = words
        while True:
            parts = self.args[at] if self.kinds[at] == Kind.CAT else (at,)
            if self.kinds[parts[0]] == Kind.TEXT:
                text, behind = self.args[parts[0]], self.cat(parts[1:])
            else:
                text, behind = b"", at
            shared = 0
            while shared < min(len(text), len(data)) and text[shared] == data[shared]:
                shared += 1
            if shared < min(len(text), len(data)):
                old = self.cat((self.text(text[shared + 1 :]), behind))
                edges = [(text[shared], text[shared], old)]
            elif shared == len(text) and shared < len(data) and self._is_branching(behind):
                edges = list(self.args[behind][0])
            else:  # not a trie, or a word that begins another
                here = self.alt((at, self.then(data, then)))
                break
            byte = data[shared]
            next_at = next((to for low, _, to in edges if low == byte), NEVER)
            above.append((data[: shared + 1], tuple(e for e in edges if e[0] != byte)))
            data = data[shared + 1 :]
            if next_at == NEVER:
                here = self.then(data, then)
                break
            at = next_at
        for before, others in reversed(above):
            node = self.bytes_node(tuple(sorted((*others, (before[-1], before[-1], here)))), False)
            here = self.then(before[:-1], node)
        return here

    def then(self, data: bytes, item: int) -> int:
        """`data` and then `item`."""
        return self.text(data) if item == EPS else self.cat((self.text(data), item))

    def _is_branching(self, item: int) -> bool:
        """Whether it is a node of a trie of words that do not begin one another."""
        if self.kinds[item] != Kind.BYTES:
            return False
        edges, final = self.args[item]
        return not final and all(low == high for low, high, _ in edges)

    def _writable(self, edges: Edges) -> Edges:
        below = self._missing_below
        if all(below[high + 1] == below[low] for low, high, _ in edges):
            return edges
        for byte in self._missing:
            edges = tuple(
                (a, b, node)
                for low, high, node in edges
                for a, b in ((low, min(high, byte - 1)), (max(low, byte + 1), high))
                if a <= b
            )
        return edges

    def cat(self, items: tuple[int, ...]) -> int:
        """Concatenation. Texts that meet become one, as far as they stay short: one token may span both."""
        if NEVER in items:
            return NEVER
        parts: list[int] = []
        for item in items:
            if item == EPS:
                continue
            if parts and self._first_text(item) and self.kinds[parts[-1]] == Kind.CAT:
                before = self.args[parts[-1]]
                if len(before) <= _LONGEST_SPLICE:
                    parts[-1:] = before
            if parts and self.kinds[parts[-1]] == Kind.TEXT:
                text = self._first_text(item)
                joined = self.args[parts[-1]] + text
                if text and len(joined) <= _LONGEST_TEXT:
                    parts[-1] = self.text(joined)
                    if self.kinds[item] == Kind.CAT:
                        parts.append(self.cat(self.args[item][1:]))
                    continue
            parts.append(item)
        if len(parts) < 2:
            return parts[0] if parts else EPS
        if self.kinds[parts[0]] == Kind.CAT and self._first_text(parts[0]):
            first, *others = self.args[parts[0]]  # so that a text in front is seen to be there
            parts[:1] = first, self.cat(tuple(others))
        return self._intern(Kind.CAT, tuple(parts), all(self.nullable[i] for i in parts))

    def _first_text(self, item: int) -> bytes:
        first = self.args[item][0] if self.kinds[item] == Kind.CAT else item
        return self.args[first] if self.kinds[first] == Kind.TEXT else b""

    def alt(self, items: tuple[int, ...]) -> int:
        items = tuple(dict.fromkeys(i for i in items if i != NEVER))
        if len(items) == 1:
            return items[0]
        return self._intern(Kind.ALT, items, any(self.nullable[i] for i in items))

    def rep(self, item: int, low: int, high: int) -> int:
        """`high` NO_LIMIT = unbounded. A nullable item gives way to its non-empty words, which may then be skipped."""
        if self.nullable[item]:
            item, low = self.nonempty(item), 0
        if item == NEVER:
            return NEVER if low else EPS
        if high == 0:
            return EPS
        if low == high == 1:
            return item
        if low != FOREVER:
            self.largest_count = max(self.largest_count, low, high)
        return self._intern(Kind.REP, (item, low, high), low == 0)

    def machine(self, machine: Any, state: int, accepting: bool) -> int:
        """A word accepted from `state`; the empty one only if `accepting`."""
        return self._intern(Kind.MACHINE, (machine, state, accepting), accepting and machine.accepts(state))

    def anchor(self, kind: Kind) -> int:
        return self._intern(kind, (), False)

    def new_rule(self) -> int:
        self.rules.append(NEVER)
        return len(self.rules) - 1

    def call(self, rule: int) -> int:
        return self._intern(Kind.CALL, rule, False)

    def nonempty(self, item: int) -> int:
        """The words of `item` without the empty one."""
        stack = [item]
        done = self._nonempty
        while stack:
            i = stack[-1]
            if i in done:
                stack.pop()
                continue
            needs = [c for c in self._nullable_children(i) if c not in done]
            if needs:
                stack += needs
            else:
                done[i] = self._without_empty(i)
                stack.pop()
        return done[item]

    def _nullable_children(self, item: int) -> tuple[int, ...]:
        if not self.nullable[item]:
            return ()
        kind, arg = self.kinds[item], self.args[item]
        if kind in (Kind.CAT, Kind.ALT):
            return tuple(arg)
        return ()

    def _without_empty(self, item: int) -> int:
        if not self.nullable[item]:
            return item
        kind, arg = self.kinds[item], self.args[item]
        if kind == Kind.BYTES:
            return self.bytes_node(arg[0], False)
        if kind == Kind.ALT:
            return self.alt(tuple(self._nonempty[i] for i in arg))
        if kind == Kind.CAT:  # the first part that is not empty, then anything
            return self.alt(tuple(self.cat((self._nonempty[i], *arg[n + 1 :])) for n, i in enumerate(arg)))
        if kind == Kind.REP:
            inner, _, high = arg
            return self.cat((inner, self.rep(inner, 0, high if high == NO_LIMIT else high - 1)))
        if kind == Kind.MACHINE:
            return self.machine(arg[0], arg[1], False)
        return NEVER

    def _intern(self, kind: Kind, arg: Any, nullable: bool) -> int:
        key = (kind, arg)
        item = self._ids.get(key)
        if item is None:
            item = self._ids[key] = len(self.kinds)
            self.kinds.append(kind)
            self.args.append(arg)
            self.nullable.append(nullable)
        return item


@lru_cache(maxsize=8)
def _missing_from(alphabet: frozenset[int] | None) -> tuple[frozenset[int], list[int]]:
    """Bytes outside `alphabet`, and how many of them are below each byte. Callers do not change the list."""
    missing = frozenset[int]() if alphabet is None else frozenset(range(256)) - alphabet
    return missing, [0, *accumulate(byte in missing for byte in range(256))]


@lru_cache(maxsize=256)
def _character_nodes(
    chars: CharSet, json: bool, alphabet: frozenset[int] | None
) -> tuple[tuple[tuple[int, Edges], ...], int]:
    """The BYTES nodes of one character of `chars`, each behind those it leads to, and the first of them: the same few
    sets stand in most constraints."""
    scratch = Program(alphabet)
    root = char_graph(chars, EPS, scratch.bytes_node, json=json)
    return tuple((node, scratch.args[node][0]) for node in range(RET + 1, len(scratch.kinds))), root
