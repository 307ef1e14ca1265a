"""The walk of a token trie under an automaton: which tokens keep it alive, and where they leave it.

One level of the trie at a time: dense, over all nodes of the level, while many are alive; sparse, over the children of
those alive, when few are; node by node in Python for the last few. A start with few ways on is walked in Python alone.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from palmette.fsm.table import UNKNOWN, Table
from palmette.fsm.trie import IndexArray, Trie

States = npt.NDArray[np.int32]

_SPARSE_BELOW = 0.15  # share of a level's nodes that are alive
_FEW = 8  # nodes of a level for which Python is faster than numpy's calls
_NARROW_NODES = 64  # nodes after which the walk in Python alone gives up
_NARROW_BYTES = 192  # children looked for, likewise


def walk(table: Table, trie: Trie, start: int) -> tuple[IndexArray, States]:
    """Trie nodes other than the root that `start` reaches alive, ascending, and the state at each."""
    nodes: list[IndexArray] = []
    states: list[States] = []
    at = np.zeros(1, np.intp)  # positions of alive nodes in the current level
    alive = np.array([start], np.int32)  # their states
    depth = 0
    while len(at) and depth + 1 < len(trie.levels):
        if depth and len(at) <= _FEW:
            few = _in_python(table, trie, depth, at.tolist(), alive.tolist())
            depth += len(few)
            for (at, alive), level in zip(few, trie.levels[depth - len(few) + 1 :], strict=False):
                nodes.append(at + level.offset)
                states.append(alive)
            continue
        level, below = trie.levels[depth], trie.levels[depth + 1]
        if len(at) > _SPARSE_BELOW * len(level.parents) and len(below.parents) > 256:
            spread = np.zeros(len(level.parents), np.int32)
            spread[at] = alive
            reached = _next(table, spread.take(below.parents), below.bytes)
            at = reached.nonzero()[0]
            alive = reached.take(at)
        else:
            first = level.child_start.take(at)
            counts = level.child_start.take(at + 1) - first
            ends = counts.cumsum()
            total = int(ends[-1])
            if not total:
                break
            candidates = (first - ends + counts).repeat(counts)
            candidates += np.arange(total)
            reached = _next(table, alive.repeat(counts), below.bytes.take(candidates))
            keep = reached.nonzero()[0]
            at = candidates.take(keep)
            alive = reached.take(keep)
        depth += 1
        nodes.append(at + below.offset)
        states.append(alive)
    if not nodes:
        return np.zeros(0, np.intp), np.zeros(0, np.int32)
    return np.concatenate(nodes), np.concatenate(states)


def narrow_walk(table: Table, children: dict[int, int], start: int) -> list[int] | None:
    """The same nodes in any order, in Python over `children` of the whole trie; None when there are too many."""
    machine = table.machine
    out: list[int] = []
    stack = [(0, start)]
    tried = 0
    while stack:
        node, state = stack.pop()
        for low, high, to in machine.segments(state):
            tried += high - low + 1
            if tried > _NARROW_BYTES:
                return None
            key = node * 256
            for byte in range(low, high + 1):
                child = children.get(key + byte)
                if child is not None:
                    out.append(child)
                    stack.append((child, to))
        if len(out) > _NARROW_NODES:
            return None
    return out


def _in_python(
    table: Table, trie: Trie, depth: int, at: list[int], alive: list[int]
) -> list[tuple[IndexArray, States]]:
    """Positions and states level by level below a few nodes of level `depth`, for as long as they stay few."""
    out: list[tuple[IndexArray, States]] = []
    for level, below in pairwise(trie.levels[depth:]):
        next_at: list[int] = []
        next_alive: list[int] = []
        for position, state in zip(at, alive, strict=True):
            for child in range(level.child_start.item(position), level.child_start.item(position + 1)):
                to = table.next(state, below.bytes.item(child))
                if to:
                    next_at.append(child)
                    next_alive.append(to)
        at, alive = next_at, next_alive
        out.append((np.array(at, np.intp), np.array(alive, np.int32)))
        if not at or len(at) > _FEW:
            break
    return out


def _next(table: Table, states: States, letters: IndexArray) -> States:
    """rows[states, letters], with missing rows made on the way."""
    index = states * np.intp(256)
    index += letters
    reached: States = table.rows.ravel().take(index, mode="clip")
    while len(reached) and (int(reached.min()) == UNKNOWN or int(states.max()) >= len(table.rows)):
        missing = states[(reached == UNKNOWN) | (states >= len(table.rows))]
        table.require(missing)
        reached = table.rows.ravel().take(index, mode="clip")
    return reached
