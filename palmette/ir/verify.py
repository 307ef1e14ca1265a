"""The rules a graph must keep, checked stream by stream; every breach is named with its source position."""

from __future__ import annotations

from collections.abc import Collection

from palmette.errors import VerificationError
from palmette.ir.graph import Graph, defined_names
from palmette.ir.nodes import (
    Argument,
    Checkpoint,
    Constraint,
    Fork,
    Gen,
    HostStep,
    Join,
    RoleBegin,
    RoleEnd,
    Rollback,
    ScopeBegin,
    ScopeEnd,
    Select,
    StreamPath,
    Tool,
    Variable,
)


def verify(graph: Graph, *, tools: Collection[str] | None = None, partial: bool | None = None) -> None:
    """Check a graph.

    Args:
        tools: names that tool nodes may refer to; None = not checked.
        partial: roles and scopes may be open at the end; by default if the graph stopped early.

    Raises:
        VerificationError: with one line for each breach.
    """
    problems = list(_problems(graph, tools, graph.stopped is not None if partial is None else partial))
    if problems:
        raise VerificationError(problems)
    for call in graph.calls:
        verify(call, tools=tools, partial=partial)


def _problems(graph: Graph, tools: Collection[str] | None, partial: bool) -> list[str]:
    checker = _Checker(graph, tools, partial)
    pending: list[tuple[StreamPath, frozenset[str], str | None]] = [((), frozenset(), None)]
    seen: set[StreamPath] = set()
    while pending:
        path, names, role = pending.pop()
        seen.add(path)
        pending += checker.stream(path, names, role)
    for path in graph.streams.keys() - seen:
        checker.problems.append(f"stream {path} belongs to no fork")
    return checker.problems


class _Checker:
    def __init__(self, graph: Graph, tools: Collection[str] | None, partial: bool) -> None:
        self.graph, self.tools, self.partial = graph, tools, partial
        self.problems: list[str] = []

    def stream(
        self, path: StreamPath, inherited: frozenset[str], role: str | None
    ) -> list[tuple[StreamPath, frozenset[str], str | None]]:
        """Check one stream; returns its branches with what they inherit."""
        names, first_role = set(inherited), role
        scopes: list[str] = []
        forks: dict[int, Fork] = {}
        joined: set[int] = set()
        checkpoints: set[int] = set()
        branches: list[tuple[StreamPath, frozenset[str], str | None]] = []
        for node in self.graph.streams.get(path, ()):
            where = f" [{node.source}]" if node.source else ""
            match node:
                case RoleBegin(role=new):
                    if role is not None:
                        self.problems.append(f"role {new!r} begins inside role {role!r}{where}")
                    role = new
                case RoleEnd(role=old):
                    if role != old:
                        self.problems.append(f"role {old!r} ends, but {role!r} is open{where}")
                    role = None
                case ScopeBegin(name=name):
                    scopes.append(name)
                case ScopeEnd(name=name):
                    if not scopes or scopes.pop() != name:
                        self.problems.append(f"scope {name!r} ends without having begun last{where}")
                case Argument(name=name):
                    if name not in self.graph.parameters:
                        self.problems.append(f"argument {name!r} is no parameter of {self.graph.name}{where}")
                case Variable(name=name, stream=stream):
                    if name not in (names if stream == path else self._names_of(stream)):
                        self.problems.append(f"{name!r} is read before anything defines it{where}")
                case Fork(index=index, size=size):
                    if index in forks or size < 1:
                        self.problems.append(f"fork {index} of size {size} is repeated or empty{where}")
                    forks[index] = node
                    branches += [((*path, index, i), frozenset(names), role) for i in range(size)]
                case Join(index=index):
                    if index not in forks or index in joined:
                        self.problems.append(f"join {index} matches no open fork{where}")
                    joined.add(index)
                case Checkpoint(index=index):
                    checkpoints.add(index)
                case Rollback(index=index):
                    if index not in checkpoints:
                        self.problems.append(f"rollback to checkpoint {index}, which was not made before{where}")
                case Tool(name=name):
                    if self.tools is not None and name not in self.tools:
                        self.problems.append(f"tool {name!r} resolves to nothing{where}")
                case Gen(constraint=Constraint(value=None)):
                    self.problems.append(f"the type of a hole resolves to nothing{where}")
                case Select(choices=()):
                    self.problems.append(f"select without choices{where}")
                case HostStep():
                    pass
            names.update(defined_names(node))
        if not self.partial:
            if role != first_role:
                self.problems.append(f"stream {path} ends inside role {role!r}, began in {first_role!r}")
            self.problems += [f"scope {name!r} of stream {path} never ends" for name in scopes]
        return branches

    def _names_of(self, path: StreamPath) -> set[str]:
        """All names a stream ever defines, its ancestors' included."""
        names: set[str] = set()
        for cut in range(0, len(path) + 1, 2):
            for node in self.graph.streams.get(path[:cut], ()):
                names.update(defined_names(node))
        return names
