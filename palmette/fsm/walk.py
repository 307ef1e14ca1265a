"""The walk of a token trie under an automaton: which tokens keep it alive, and where they leave it.

One level of the trie at a time: dense, over all nodes of the level, while many are alive; sparse, over the children of
those alive, when few are. A start with few ways on is walked node by node in Python, which is faster still.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from palmette.fsm.table import UNKNOWN, Table
from palmette.fsm.trie import IndexArray, Trie

States = npt.NDArray[np.int32]

_SPARSE_BELOW = 0.15  # share of a level's nodes that are alive
_NARROW_BYTES = 3  # bytes with a way on, for the walk in Python
_NARROW_NODES = 48  # nodes after which that walk gives up


def walk(table: Table, trie: Trie, start: int) -> tuple[IndexArray, States]:
    """Trie nodes other than the root that `start` reaches alive, ascending, and the state at each."""
    nodes: list[IndexArray] = []
    states: list[States] = []
    at = np.zeros(1, np.intp)  # positions of alive nodes in the current level
    alive = np.array([start], np.int32)  # their states
    for level, below in pairwise(trie.levels):
        count = len(below.parents)
        if len(at) > _SPARSE_BELOW * len(level.parents) and count > 256:
            spread = np.zeros(len(level.parents), np.int32)
            spread[at] = alive
            reached = _next(table, spread.take(below.parents), below.bytes)
            at = np.flatnonzero(reached)
            alive = reached.take(at)
        else:
            first = level.child_start.take(at)
            counts = level.child_start.take(at + 1) - first
            ends = np.cumsum(counts)
            total = int(ends[-1]) if len(ends) else 0
            if not total:
                break
            candidates = np.repeat(first - ends + counts, counts)
            candidates += np.arange(total)
            reached = _next(table, np.repeat(alive, counts), below.bytes.take(candidates))
            keep = np.flatnonzero(reached)
            at = candidates.take(keep)
            alive = reached.take(keep)
        if not len(at):
            break
        nodes.append(at + below.offset)
        states.append(alive)
    if not nodes:
        return np.zeros(0, np.intp), np.zeros(0, np.int32)
    return np.concatenate(nodes), np.concatenate(states)


def narrow_walk(table: Table, children: dict[int, int], start: int) -> list[tuple[int, int]] | None:
    """The same as (node, state) pairs in any order, in Python over `children` of the whole trie; None when too wide."""
    machine = table.machine
    out: list[tuple[int, int]] = []
    stack = [(0, start)]
    while stack:
        node, state = stack.pop()
        segments = machine.segments(state)
        if len(segments) > _NARROW_BYTES or len(out) > _NARROW_NODES:
            return None
        for low, high, to in segments:
            if high - low >= _NARROW_BYTES:
                return None
            for byte in range(low, high + 1):
                child = children.get(node * 256 + byte)
                if child is not None:
                    out.append((child, to))
                    stack.append((child, to))
    return out


def _next(table: Table, states: States, letters: IndexArray) -> States:
    """rows[states, letters], with missing rows made on the way."""
    index = states * np.intp(256)
    index += letters
    reached: States = table.rows.ravel().take(index, mode="clip")
    while len(reached) and (int(reached.min()) == UNKNOWN or int(states.max()) >= len(table.rows)):
        missing = states[(reached == UNKNOWN) | (states >= len(table.rows))]
        table.require(np.unique(missing))
        reached = table.rows.ravel().take(index, mode="clip")
    return reached
