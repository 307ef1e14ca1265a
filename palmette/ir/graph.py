"""A whole program as data: the nodes of each stream in order, and the edges between streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from palmette.ir.nodes import Fork, Join, Node, StreamPath, Variable
from palmette.ir.source import SourcePos

EdgeKind: TypeAlias = Literal["fork", "join", "read"]


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` depends on what `source` has written by then. Indices are positions in the streams' node lists."""

    kind: EdgeKind
    source: tuple[StreamPath, int]
    target: tuple[StreamPath, int]


@dataclass(frozen=True, slots=True)
class Stop:
    """Where and why a trace could not go on."""

    reason: str
    source: SourcePos | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.reason}" + (f" [{self.source}]" if self.source else "")


@dataclass(frozen=True, slots=True)
class Graph:
    """What tracing a program gives, or `loads` brings back.

    Attributes:
        name: of the program.
        parameters: the arguments that stayed symbolic.
        streams: nodes by stream path; () is the program itself.
        calls: programs that the body called, in order.
        stopped: why the graph ends early, None if it is whole.
    """

    name: str
    parameters: tuple[str, ...]
    streams: dict[StreamPath, tuple[Node, ...]]
    calls: tuple[Graph, ...] = ()
    stopped: Stop | None = None

    def nodes(self) -> Iterator[tuple[StreamPath, int, Node]]:
        """Every node with its place, stream by stream."""
        for path in sorted(self.streams):
            for index, node in enumerate(self.streams[path]):
                yield path, index, node

    def edges(self) -> list[Edge]:
        """Fork to branch, branch to join, and reads of another stream's hole."""
        edges: list[Edge] = []
        for path, index, node in self.nodes():
            if isinstance(node, Fork):
                branches = [(*path, node.index, i) for i in range(node.size)]
                edges += [Edge("fork", (path, index), (b, 0)) for b in branches if b in self.streams]
            elif isinstance(node, Join):
                ends = [(p, len(n)) for p, n in self.streams.items() if p[:-1] == (*path, node.index)]
                edges += [Edge("join", end, (path, index)) for end in sorted(ends)]
            elif isinstance(node, Variable) and node.call is None and node.stream in self.streams.keys() - {path}:
                edges.append(Edge("read", (node.stream, self._definition(node)), (path, index)))
        return edges

    def _definition(self, read: Variable) -> int:
        """The last node of the stream that defines the name."""
        nodes = self.streams[read.stream]
        found = [i for i, n in enumerate(nodes) if read.name in defined_names(n)]
        return found[-1] if found else len(nodes)


def defined_names(node: Node) -> tuple[str, ...]:
    """The variables that a node gives a value."""
    if isinstance(node, Join):
        return node.names
    names: list[str] = []
    name = getattr(node, "name", None) if type(node).__name__ in ("Gen", "Select", "SetVariable", "ScopeEnd") else None
    if name:
        names.append(name)
        if getattr(node, "reasoning", None):
            names.append(f"{name}_reasoning_content")
    return tuple(names)
