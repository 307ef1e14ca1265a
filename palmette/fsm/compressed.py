"""The compressed automaton as a graph to look at: states explored from the start, chains of forced bytes as one edge.

A chain is a run of singular transitions, states that one byte leaves and no text may end in (Zheng et al., "SGLang",
arXiv 2312.07104, section 4). The engine's own chains (`Automaton.forced`) are found on demand and end nowhere but at a
choice; here they are also cut where another edge comes in, so that every state is drawn once. Knows bytes and states,
nothing of tokens or pictures.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from palmette.fsm.automaton import Automaton

Ranges = tuple[tuple[int, int], ...]  # first and last byte, ascending


@dataclass(frozen=True, slots=True)
class Node:
    """A state that a picture shows."""

    state: int
    accepting: bool
    explored: bool  # False: the limit came first, nothing is known of what leaves it


@dataclass(frozen=True, slots=True)
class Edge:
    """From a state to the next that is shown: over one byte out of `ranges`, or over the bytes of `chain`."""

    source: int
    target: int
    ranges: Ranges
    chain: bytes = b""  # two bytes or more


@dataclass(frozen=True, slots=True)
class Graph:
    start: int
    nodes: tuple[Node, ...]  # breadth first
    edges: tuple[Edge, ...]
    states: tuple[int, ...]  # explored, those inside chains included
    num_transitions: int  # pairs of an explored state and one that follows it
    complete: bool  # no state was left out

    @property
    def chains(self) -> list[Edge]:
        return [edge for edge in self.edges if edge.chain]


def explore(automaton: Automaton, limit: int) -> Graph:
    """The first `limit` states of `automaton`, breadth first.

    Raises:
        UnsupportedConstraint: a state needs more than the limits of a step.
    """
    machine = automaton.machine
    rows: dict[int, dict[int, Ranges]] = {}
    queue = deque([automaton.start])
    seen = {automaton.start}
    while queue and len(rows) < limit:
        state = queue.popleft()
        automaton.budget.begin_step()
        row: dict[int, list[tuple[int, int]]] = {}
        for low, high, to in machine.segments(state):
            row.setdefault(to, []).append((low, high))
        rows[state] = {to: tuple(ranges) for to, ranges in row.items()}
        for to in row:
            if to not in seen:
                seen.add(to)
                queue.append(to)
    return _compressed(automaton, rows)


def _compressed(automaton: Automaton, rows: dict[int, dict[int, Ranges]]) -> Graph:
    arrivals: dict[int, int] = {}
    for row in rows.values():
        for to in row:
            arrivals[to] = arrivals.get(to, 0) + 1

    def singular(state: int) -> tuple[int, int] | None:
        """The one byte that leaves `state` and where it leads."""
        row = rows.get(state)
        if row is None or len(row) != 1 or automaton.accepts(state):
            return None
        [(to, ranges)] = row.items()
        return (ranges[0][0], to) if len(ranges) == 1 and ranges[0][0] == ranges[0][1] else None

    def is_shown(state: int) -> bool:
        return state == automaton.start or arrivals.get(state) != 1 or singular(state) is None

    edges: list[Edge] = []
    shown: dict[int, None] = {automaton.start: None}
    queue = deque([automaton.start])
    while queue:
        source = queue.popleft()
        for to, ranges in rows.get(source, {}).items():
            target, chain = to, bytearray()
            if singular(source):
                chain.append(ranges[0][0])
                while not is_shown(target) and (step := singular(target)):
                    chain.append(step[0])
                    target = step[1]
            edges.append(Edge(source, target, ranges, bytes(chain) if len(chain) > 1 else b""))
            if target not in shown:
                shown[target] = None
                queue.append(target)
    nodes = tuple(Node(s, automaton.accepts(s), s in rows) for s in shown)
    transitions = sum(map(len, rows.values()))
    return Graph(automaton.start, nodes, tuple(edges), tuple(rows), transitions, all(n.explored for n in nodes))
