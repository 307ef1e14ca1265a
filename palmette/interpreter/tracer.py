"""Running a program's body against a recorder instead of a model.

Arguments and holes become symbols: strings that carry a mark. A mark survives concatenation and f-strings and turns
back into a node when the text is appended; anything that would need the value behind it ends the trace there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from palmette.errors import BranchEnded, InvalidOption, TraceStopped, UnknownHole
from palmette.interpreter.hole import Hole
from palmette.ir import (
    Argument,
    Checkpoint,
    Fork,
    Graph,
    HostStep,
    Join,
    JoinMode,
    JoinPolicy,
    Node,
    RoleBegin,
    RoleEnd,
    Rollback,
    SetVariable,
    SourcePos,
    Stop,
    StreamPath,
    Text,
    Variable,
    author_position,
    defined_names,
    to_text,
    verify,
)

# Private-use characters that no author's text contains: <open> kind : path : name <close>
_OPEN, _CLOSE = "\ue0b0", "\ue0b1"
_MARK = re.compile(f"{_OPEN}([av]):([0-9.]*):([^{_CLOSE}]*){_CLOSE}")


class Symbol(str):
    """A value that only a run knows. It can be concatenated and formatted; deciding by it ends the trace."""

    __slots__ = ("what",)
    what: str

    @classmethod
    def argument(cls, name: str) -> Symbol:
        return cls._make(f"{_OPEN}a::{name}{_CLOSE}", f"argument {name!r}")

    @classmethod
    def variable(cls, name: str, path: StreamPath) -> Symbol:
        return cls._make(f"{_OPEN}v:{'.'.join(map(str, path))}:{name}{_CLOSE}", f"hole {name!r}")

    @classmethod
    def _make(cls, text: str, what: str) -> Symbol:
        symbol = cls(text)
        symbol.what = what
        return symbol

    def __add__(self, other: str) -> Symbol:
        if not isinstance(other, str):
            return NotImplemented
        return self._make(str.__str__(self) + str.__str__(other), self.what)

    def __radd__(self, other: str) -> Symbol:
        return self._make(str.__str__(other) + str.__str__(self), self.what)

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, spec: str) -> str:
        if spec:
            self._decide(f"format spec {spec!r}")
        return str.__str__(self)

    __hash__ = str.__hash__

    def _decide(self, how: str) -> NoReturn:
        raise TraceStopped(f"{how} depends on {self.what}", source=author_position())


def _deciding(how: str) -> Callable[..., NoReturn]:
    def decide(self: Symbol, *args: object, **kwargs: object) -> NoReturn:
        self._decide(how)

    return decide


_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_USES = "__bool__ __len__ __iter__ __contains__ __getitem__ __int__ __float__ __index__ __mod__ __mul__".split()
for _method in (*_COMPARISONS, *_USES, *(name for name in dir(str) if not name.startswith("_"))):
    setattr(Symbol, _method, _deciding("a comparison" if _method in _COMPARISONS else _method.strip("_")))


class TraceStream:
    """Records what one stream would execute. The sink of a traced body."""

    def __init__(self, trace: _Recorder, path: StreamPath = (), values: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.recorder = trace
        self._values: dict[str, Any] = dict(values or {})  # what reading a name gives
        self._inherited = dict(self._values)
        self._scopes: list[str] = []
        self._counts = {"fork": 0, "checkpoint": 0}
        self._saved: dict[int, dict[str, Any]] = {}
        self._ended = False
        self._nodes: list[Node] = trace.streams.setdefault(path, [])

    def append(self, node: Node) -> Hole | None:
        if self._ended:
            raise BranchEnded("nothing can be appended to a branch that was joined", source=node.source)
        if isinstance(node, Text):
            self._nodes.extend(_unmarked(node))
            return None
        self._nodes.append(node)
        for name in defined_names(node):
            symbol = Symbol.variable(name, self.path)
            self._values[name] = node.value if isinstance(node, SetVariable) else symbol
        return None

    def read(self, name: str) -> Any:
        if name not in self._values:
            raise UnknownHole(f"no expression appended so far defines {name!r}", source=author_position())
        return self._values[name]

    def read_last(self) -> Any:
        name = next((n for node in reversed(self._nodes) for n in defined_names(node)), None)
        if name is None:
            raise TraceStopped("the value of a hole without a name is known only in a run", source=author_position())
        return self._values[name]

    def names(self) -> list[str]:
        return list(self._values)

    def open_scope(self, name: str) -> None:
        self._scopes.append(name)

    def close_scope(self) -> None:
        self._scopes.pop()

    def fork(self, size: int, source: SourcePos | None) -> list[TraceStream]:
        if isinstance(size, Symbol):
            size._decide("the size of a fork")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidOption("fork", size, "a number of branches >= 1").at(source=source)
        index = self._next("fork")
        self.append(Fork(index, size, source))
        return [TraceStream(self.recorder, (*self.path, index, i), self._values) for i in range(size)]

    def join(
        self, branches: Sequence[TraceStream], mode: JoinMode, policy: JoinPolicy, source: SourcePos | None
    ) -> None:
        names: list[str] = []
        for branch in branches:
            branch._ended = True
            if mode != "concate_and_append":
                names += [n for n, v in branch._values.items() if branch._inherited.get(n) is not v]
        self.append(Join(branches[0].path[-2], mode, policy, tuple(dict.fromkeys(names)), source))

    def checkpoint(self, source: SourcePos | None) -> int:
        index = self._next("checkpoint")
        self.append(Checkpoint(index, source))
        self._saved[index] = dict(self._values)
        return index

    def rollback(self, index: int, source: SourcePos | None) -> None:
        self.append(Rollback(index, source))
        self._values = dict(self._saved[index])

    def host_step(self, name: str, source: SourcePos | None) -> None:
        self.append(HostStep(name, source))
        raise TraceStopped(f"{name} is a Python callable that decides in a run", source=source)

    def _next(self, what: str) -> int:
        self._counts[what] += 1
        return self._counts[what] - 1


class _Recorder:
    """The streams of one traced program, and the programs it called."""

    def __init__(self) -> None:
        self.streams: dict[StreamPath, list[Node]] = {}
        self.calls: list[Graph] = []


class Trace:
    """What `Program.trace` returns: the graph, and ways to look at it."""

    def __init__(self, graph: Graph, ret_value: Any) -> None:
        self.graph = graph
        self.ret_value = ret_value

    def __str__(self) -> str:
        return to_text(self.graph)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes of the program's own stream."""
        return self.graph.streams[()]

    @property
    def stopped(self) -> Stop | None:
        """Why the trace ends early; None if it is whole."""
        return self.graph.stopped

    def verify(self) -> None:
        """Raises VerificationError if the program breaks a rule of the IR."""
        verify(self.graph)

    def constant_prefix(self) -> list[Node]:
        """The nodes before the first thing that differs between instances."""
        prefix: list[Node] = []
        for node in self.nodes:
            if not isinstance(node, Text | RoleBegin | RoleEnd):
                break
            prefix.append(node)
        return prefix


_recording: ContextVar[_Recorder | None] = ContextVar("palmette_trace", default=None)


def is_tracing() -> bool:
    """Whether a body on this context is being traced."""
    return _recording.get() is not None


def traced(name: str, body: Callable[[TraceStream, Mapping[str, Any]], Any], symbols: Sequence[str]) -> Trace:
    """Run `body` with a recorder and a symbol for each name in `symbols`, to its end or the first thing unknown."""
    recorder, stopped, value = _Recorder(), None, None
    outer = _recording.get()
    with _scope(recorder):
        stream = TraceStream(recorder)
        try:
            value = body(stream, {symbol: Symbol.argument(symbol) for symbol in symbols})
        except TraceStopped as stop:
            stopped = Stop(stop.args[0], stop.source if isinstance(stop.source, SourcePos) else None)
    streams = {path: tuple(nodes) for path, nodes in recorder.streams.items()}
    graph = Graph(name, tuple(symbols), streams, tuple(recorder.calls), stopped)
    if outer is not None:
        outer.calls.append(graph)
    return Trace(graph, stream if value is None else value)


@contextmanager
def _scope(recorder: _Recorder) -> Iterator[None]:
    token = _recording.set(recorder)
    try:
        yield
    finally:
        _recording.reset(token)


def _unmarked(text: Text) -> Iterator[Node]:
    """The nodes of a text that carries marks."""
    position = 0
    for mark in _MARK.finditer(text.text):
        if mark.start() > position:
            yield Text(text.text[position : mark.start()], text.source)
        kind, path, name = mark.groups()
        if kind == "a":
            yield Argument(name, text.source)
        else:
            yield Variable(name, tuple(int(p) for p in path.split(".")) if path else (), text.source)
        position = mark.end()
    if position < len(text.text):
        yield Text(text.text[position:], text.source)
