"""Lazy deterministic automata: subsets of NFA states, and intersections and complements of automata.

A state is an int; 0 is the dead state. A row is a tuple of disjoint ascending byte ranges with their next states, made
on first use. Knows nothing of tokens. Of the automata here only those that a `Product` checks need a search for dead
ends: subset states have none by construction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

from palmette.fsm.budget import Budget
from palmette.fsm.nfa import AFTER_NEWLINE, AFTER_OTHER, AT_START, Edge, Nfa

Segments: TypeAlias = tuple[tuple[int, int, int], ...]  # (first byte, last byte, next state), disjoint, ascending

DEAD = 0
_NEWLINE = 10


class Machine(Protocol):
    """A deterministic automaton over bytes whose states and rows appear as they are asked for."""

    start: int

    def segments(self, state: int) -> Segments: ...

    def accepts(self, state: int) -> bool: ...


class Subset:
    """Determinises `nfa` from one state. With `anchored`, states also remember what stands to their left."""

    def __init__(self, nfa: Nfa, start: int, budget: Budget, *, anchored: bool = False) -> None:
        self.nfa = nfa
        self.budget = budget
        self.anchored = anchored
        self.members: list[tuple[int, ...]] = [()]  # NFA states
        self.contexts: list[int] = [AFTER_OTHER]
        self._rows: list[Segments | None] = [()]
        self._accepts: list[bool | None] = [False]
        self._ids: dict[tuple[frozenset[int], int], int] = {(frozenset(), AFTER_OTHER): DEAD}
        self.start = self.state_of((start,), AT_START if anchored else AFTER_OTHER)

    def __len__(self) -> int:
        return len(self.members)

    def state_of(self, members: Iterable[int], context: int = AFTER_OTHER) -> int:
        """The state that stands for this set of NFA states."""
        key = (members if isinstance(members, frozenset) else frozenset(members), context)
        found = self._ids.get(key)
        if found is None:
            self.budget.new_state(len(key[0]))
            found = self._ids[key] = len(self.members)
            self.members.append(tuple(sorted(key[0])))
            self.contexts.append(context)
            self._rows.append(None)
            self._accepts.append(None)
        return found

    def accepts(self, state: int) -> bool:
        known = self._accepts[state]
        if known is None:
            context = self.contexts[state]
            known = self._accepts[state] = any(self.nfa.expand(m, context)[1] for m in self.members[state])
        return known

    def segments(self, state: int) -> Segments:
        row = self._rows[state]
        if row is None:
            row = self._rows[state] = self._row(state)
        return row

    def _row(self, state: int) -> Segments:
        members, context = self.members[state], self.contexts[state]
        if len(members) == 1:
            edges = self.nfa.expand(members[0], context)[0]
        else:
            edges = tuple(e for m in members for e in self.nfa.expand(m, context)[0])
        if self.anchored:
            row: list[tuple[int, int, int]] = []
            for low, high, targets in _sweep(edges):
                for a, b, left in (
                    (low, min(high, _NEWLINE - 1), AFTER_OTHER),
                    (max(low, _NEWLINE), min(high, _NEWLINE), AFTER_NEWLINE),
                    (max(low, _NEWLINE + 1), high, AFTER_OTHER),
                ):
                    if a <= b:
                        row.append((a, b, self.state_of(targets, left)))
            return _joined(row)
        return _joined([(low, high, self.state_of(targets)) for low, high, targets in _sweep(edges)])


class Product:
    """Words accepted by all of `included` and none of `excluded`. Its segments never lead into a dead end."""

    def __init__(
        self,
        included: Sequence[Machine],
        excluded: Sequence[Machine],
        budget: Budget,
        *,
        ends_within: int | None = None,
    ) -> None:
        """`ends_within`: bytes in which a word can be completed from every live state, where that is known."""
        assert included, "a complement alone would hold bytes that are not text"
        self.ends_within = ends_within
        self.machines = (*included, *excluded)
        self.num_included = len(included)
        self.budget = budget
        self._tuples: list[tuple[int, ...]] = [()]
        self._ids: dict[tuple[int, ...], int] = {}
        self._all: list[Segments | None] = [()]
        self._live_rows: dict[int, Segments] = {}
        self._live: dict[int, bool] = {DEAD: False}
        self.start = self._state_of(tuple(m.start for m in self.machines))

    def is_live(self, state: int) -> bool:
        """Whether a word is accepted from here. Searches breadth first; everything learnt on the way is kept."""
        known = self._live.get(state)
        if known is not None:
            return known
        parents = {state: DEAD}
        queue = deque([state])
        while queue:
            s = queue.popleft()
            self.budget.tick()
            if self._live.get(s) or self.accepts(s):
                while s:
                    self._live[s] = True
                    s = parents[s]
                return True
            for _, _, to in self._raw(s):
                if to not in parents and self._live.get(to) is not False:
                    parents[to] = s
                    queue.append(to)
        self._live.update(dict.fromkeys(parents, False))
        return False

    def accepts(self, state: int) -> bool:
        if state == DEAD:
            return False
        n, parts = self.num_included, self._tuples[state]
        return all(m.accepts(s) == (i < n) for i, (m, s) in enumerate(zip(self.machines, parts, strict=True)))

    def segments(self, state: int) -> Segments:
        row = self._live_rows.get(state)
        if row is None:
            row = self._live_rows[state] = _joined([s for s in self._raw(state) if self.is_live(s[2])])
        return row

    def _raw(self, state: int) -> Segments:
        row = self._all[state]
        if row is None:
            parts = self._tuples[state]
            pieces: list[tuple[int, int, tuple[int, ...]]] = [
                (low, high, (to,)) for low, high, to in self.machines[0].segments(parts[0])
            ]
            for i in range(1, len(parts)):
                pieces = _refined(pieces, self.machines[i].segments(parts[i]), keep_gaps=i >= self.num_included)
            row = self._all[state] = tuple((low, high, self._state_of(p)) for low, high, p in pieces)
        return row

    def _state_of(self, parts: tuple[int, ...]) -> int:
        if not all(parts[: self.num_included]):
            return DEAD
        found = self._ids.get(parts)
        if found is None:
            self.budget.new_state(2)
            found = self._ids[parts] = len(self._tuples)
            self._tuples.append(parts)
            self._all.append(None)
        return found


def matches(machine: Machine, data: bytes) -> bool:
    """Whether the whole of `data` is a word of the machine. The plain walk every faster one is tested against."""
    state = machine.start
    for byte in data:
        state = step(machine, state, byte)
        if state == DEAD:
            return False
    return machine.accepts(state)


def step(machine: Machine, state: int, byte: int) -> int:
    for low, high, to in machine.segments(state):
        if low <= byte <= high:
            return to
    return DEAD


def _sweep(edges: Sequence[Edge]) -> list[tuple[int, int, frozenset[int]]]:
    """Overlapping ranges as disjoint ones, each with the set of states it leads to."""
    if len(edges) == 1:
        return [(edges[0][0], edges[0][1], frozenset((edges[0][2],)))]
    first_low, first_high, _ = edges[0] if edges else (0, 0, 0)
    if all(low == first_low and high == first_high for low, high, _ in edges):  # many words that begin alike
        return [(first_low, first_high, frozenset(to for _, _, to in edges))] if edges else []
    ordered = sorted(edges)
    out: list[tuple[int, int, frozenset[int]]] = []
    if all(ordered[i][1] < ordered[i + 1][0] for i in range(len(ordered) - 1)):
        return [(low, high, frozenset((to,))) for low, high, to in ordered]
    starts: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for low, high, to in ordered:
        starts.setdefault(low, []).append(to)
        ends.setdefault(high + 1, []).append(to)
    active: dict[int, int] = {}  # state -> how many open ranges lead to it
    points = sorted(starts.keys() | ends.keys())
    for here, following in pairwise(points):
        for to in ends.get(here, ()):
            active[to] -= 1
            if not active[to]:
                del active[to]
        for to in starts.get(here, ()):
            active[to] = active.get(to, 0) + 1
        if active:
            out.append((here, following - 1, frozenset(active)))
    return out


def _refined(
    pieces: list[tuple[int, int, tuple[int, ...]]], segments: Segments, *, keep_gaps: bool
) -> list[tuple[int, int, tuple[int, ...]]]:
    """`pieces` cut at the borders of `segments` and extended by their states; gaps get DEAD if kept."""
    out: list[tuple[int, int, tuple[int, ...]]] = []
    for low, high, parts in pieces:
        at = low
        for a, b, to in segments:
            if b < at or a > high:
                continue
            if a > at and keep_gaps:
                out.append((at, a - 1, (*parts, DEAD)))
            at = max(at, a)
            out.append((at, min(b, high), (*parts, to)))
            at = min(b, high) + 1
        if at <= high and keep_gaps:
            out.append((at, high, (*parts, DEAD)))
    return out


def _joined(row: list[tuple[int, int, int]]) -> Segments:
    """Neighbouring ranges with one next state become one range; ranges into the dead state go."""
    out: list[tuple[int, int, int]] = []
    for low, high, to in row:
        if to == DEAD:
            continue
        if out and out[-1][2] == to and out[-1][1] + 1 == low:
            out[-1] = (out[-1][0], high, to)
        else:
            out.append((low, high, to))
    return tuple(out)
