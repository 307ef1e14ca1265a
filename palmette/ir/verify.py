"""The rules a graph must keep, checked stream by stream; every breach is named with its source position."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from palmette.errors import VerificationError
from palmette.ir.graph import Graph, defined_names
from palmette.ir.nodes import (
    Argument,
    CallPath,
    Checkpoint,
    Constraint,
    ExprList,
    Fork,
    Gen,
    Join,
    Node,
    RoleBegin,
    RoleEnd,
    Rollback,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVariable,
    StreamPath,
    Tool,
    Variable,
)
from palmette.ir.source import SourcePos


def verify(graph: Graph, *, tools: Collection[str] | None = None, partial: bool | None = None) -> None:
    """Check a graph and the programs it calls.

    Args:
        tools: names that tool nodes may refer to; None = not checked.
        partial: roles and scopes may be open at the end; by default if the graph stopped early.

    Raises:
        VerificationError: with one line for each breach.
    """
    programs = _programs(graph)
    problems: list[str] = []
    for call, program in programs.items():
        open_end = program.stopped is not None if partial is None else partial
        problems += _Checker(programs, call, tools, open_end).problems()
    if problems:
        raise VerificationError(problems)


def _programs(graph: Graph) -> dict[CallPath, Graph]:
    """Every program by its path in the tree of calls."""
    programs: dict[CallPath, Graph] = {}
    pending: list[tuple[CallPath, Graph]] = [((), graph)]
    while pending:
        path, program = pending.pop()
        programs[path] = program
        pending += [((*path, i), call) for i, call in enumerate(program.calls)]
    return programs


class _Open(NamedTuple):
    """A role or scope that has begun, and where."""

    name: str
    source: SourcePos | None


@dataclass
class _Place:
    """What holds at one place of a stream; a rollback goes back to that of its checkpoint."""

    names: frozenset[str] = frozenset()
    role: _Open | None = None
    scopes: tuple[_Open, ...] = ()

    def copy(self) -> _Place:
        return _Place(self.names, self.role, self.scopes)


class _Checker:
    """One program's graph."""

    def __init__(
        self, programs: dict[CallPath, Graph], call: CallPath, tools: Collection[str] | None, partial: bool
    ) -> None:
        self._programs, self._call, self._graph = programs, call, programs[call]
        self._tools, self._partial = tools, partial
        self._found: list[str] = []

    def problems(self) -> list[str]:
        pending: list[tuple[StreamPath, _Place]] = [((), _Place())]
        seen: set[StreamPath] = set()
        while pending:
            path, start = pending.pop()
            seen.add(path)
            pending += self._stream(path, start)
        for path in sorted(self._graph.streams.keys() - seen):
            nodes = self._graph.streams[path]
            self._problem(f"stream {path} belongs to no fork", nodes[0].source if nodes else None)
        return self._found

    def _problem(self, what: str, source: SourcePos | None) -> None:
        self._found.append(what + (f" [{source}]" if source else ""))

    def _stream(self, path: StreamPath, start: _Place) -> list[tuple[StreamPath, _Place]]:
        """Check one stream; returns its branches with what they inherit."""
        place = start.copy()
        place.scopes = ()
        forks: set[int] = set()
        joined: set[int] = set()
        checkpoints: dict[int, _Place] = {}
        branches: list[tuple[StreamPath, _Place]] = []
        for node in self._graph.streams.get(path, ()):
            source = node.source
            match node:
                case RoleBegin(role=role):
                    if place.role is not None:
                        self._problem(f"role {role!r} begins inside role {place.role.name!r}", source)
                    place.role = _Open(role, source)
                case RoleEnd(role=role):
                    if place.role is None or place.role.name != role:
                        opened = f"{place.role.name!r}" if place.role else "no role"
                        self._problem(f"role {role!r} ends, but {opened} is open", source)
                    place.role = None
                case ScopeBegin(name=name):
                    place.scopes = (*place.scopes, _Open(name, source))
                case ScopeEnd(name=name):
                    if not place.scopes or place.scopes[-1].name != name:
                        self._problem(f"scope {name!r} ends without having begun last", source)
                    place.scopes = place.scopes[:-1]
                case Fork(index=index, size=size):
                    if index in forks or size < 1:
                        self._problem(f"fork {index} of size {size} is repeated or empty", source)
                    forks.add(index)
                    branches += [((*path, index, i), place.copy()) for i in range(size)]
                case Join(index=index):
                    if index not in forks or index in joined:
                        self._problem(f"join {index} matches no open fork", source)
                    joined.add(index)
                case Checkpoint(index=index):
                    checkpoints[index] = place.copy()
                case Rollback(index=index):
                    if index in checkpoints:
                        place = checkpoints[index].copy()
                    else:
                        self._problem(f"rollback to checkpoint {index}, which was not made before", source)
                case Tool(name=name):
                    if self._tools is not None and name not in self._tools:
                        self._problem(f"tool {name!r} resolves to nothing", source)
                case Gen(constraint=Constraint(value=None)):
                    self._problem("the type of a hole resolves to nothing", source)
                case Select(choices=()):
                    self._problem("select without choices", source)
                case SetVariable(value=ExprList(items=items)):
                    for item in items:
                        self._read(item, path, place.names, source)
                case _:
                    self._read(node, path, place.names, source)
            place.names = place.names.union(defined_names(node))
        self._check_end(path, start, place)
        return branches

    def _check_end(self, path: StreamPath, start: _Place, place: _Place) -> None:
        if self._partial:
            return
        began, ended = start.role and start.role.name, place.role and place.role.name
        if began != ended:
            source = place.role.source if place.role else None
            self._problem(f"stream {path} ends inside role {ended!r}, began in {began!r}", source)
        for scope in place.scopes:
            self._problem(f"scope {scope.name!r} of stream {path} never ends", scope.source)

    def _read(self, node: Node, path: StreamPath, names: frozenset[str], source: SourcePos | None) -> None:
        """An argument or variable that is read must be there."""
        if not isinstance(node, Argument | Variable):
            return
        owner = self._graph if node.call is None else self._programs.get(node.call)
        if owner is None:
            self._problem(f"{node.name!r} belongs to no program that was called", source)
        elif isinstance(node, Argument):
            if node.name not in owner.parameters:
                self._problem(f"argument {node.name!r} is no parameter of {owner.name}", source)
        elif node.name not in (names if node.call is None and node.stream == path else _names_of(owner, node.stream)):
            self._problem(f"{node.name!r} is read before anything defines it", source)


def _names_of(graph: Graph, path: StreamPath) -> set[str]:
    """All names a stream ever defines, its ancestors' included."""
    names: set[str] = set()
    for cut in range(0, len(path) + 1, 2):
        for node in graph.streams.get(path[:cut], ()):
            names.update(defined_names(node))
    return names
