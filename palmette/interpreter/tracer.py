"""Running a program's body against a recorder instead of a model.

Arguments and holes become symbols: strings that carry a mark. A mark survives concatenation and f-strings and turns
back into a node when the text is appended; anything that would need the value behind it ends the trace there. What
Python's own C code does with such a string (`re.match(p, x)`, `x in "abc"`) goes unnoticed: it sees the mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Any, NoReturn

from palmette.errors import BranchEnded, InvalidOption, ProgramError, TraceStopped, UnknownHole
from palmette.interpreter.hole import Hole
from palmette.ir import (
    Argument,
    CallPath,
    Checkpoint,
    Constraint,
    Expr,
    ExprList,
    Fork,
    Graph,
    HoleOptions,
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

# Private-use characters that no author's text contains: <open> kind : call path : stream path : name <close>
_OPEN, _CLOSE = "\ue0b0", "\ue0b1"
_MARK = re.compile(f"{_OPEN}([av]):([0-9.]*):([0-9.]*):([^{_CLOSE}]*){_CLOSE}")


class Symbol(str):
    """A value that only a run knows. It can be concatenated and formatted; deciding by it ends the trace."""

    __slots__ = ("what",)
    what: str

    @classmethod
    def argument(cls, name: str, call: CallPath = ()) -> Symbol:
        return cls._make(f"{_OPEN}a:{_joined(call)}::{name}{_CLOSE}", f"argument {name!r}")

    @classmethod
    def variable(cls, name: str, path: StreamPath, call: CallPath = ()) -> Symbol:
        return cls._make(f"{_OPEN}v:{_joined(call)}:{_joined(path)}:{name}{_CLOSE}", f"hole {name!r}")

    @classmethod
    def _make(cls, text: str, what: str) -> Symbol:
        symbol = str.__new__(cls, text)
        symbol.what = what
        return symbol

    def __add__(self, other: object) -> Symbol:
        if isinstance(other, Expr):
            return NotImplemented  # it concatenates from its side
        if not isinstance(other, str):
            self._decide("arithmetic")
        return self._make(str.__str__(self) + str.__str__(other), self.what)

    def __radd__(self, other: object) -> Symbol:
        if isinstance(other, Expr):
            return NotImplemented
        if not isinstance(other, str):
            self._decide("arithmetic")
        return self._make(str.__str__(other) + str.__str__(self), self.what)

    def __str__(self) -> Symbol:
        return self  # str(x) is still a symbol

    def __format__(self, spec: str) -> Symbol:
        if spec:
            self._decide(f"format spec {spec!r}")
        return self

    def __getattr__(self, name: str) -> NoReturn:
        """Arguments need not be strings: what any other type has depends on the value."""
        if name.startswith("__"):  # Python probing for a protocol
            raise AttributeError(name)
        self._decide(f"attribute {name}")

    def _decide(self, how: str) -> NoReturn:
        raise TraceStopped(f"{how} depends on {self.what}", source=author_position())


def _deciding(how: str) -> Callable[..., NoReturn]:
    def decide(self: Symbol, *args: object, **kwargs: object) -> NoReturn:
        self._decide(how)

    return decide


_ARITHMETIC = ("sub", "mul", "truediv", "floordiv", "mod", "pow")
_DECIDING = {
    "a comparison": ("eq", "ne", "lt", "le", "gt", "ge"),
    "arithmetic": (*_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC if name != "mod"), "neg", "abs", "round"),
    "a condition": ("bool",),
    "a length": ("len",),
    "iteration": ("iter",),
    "a search": ("contains",),
    "an index or a slice": ("getitem",),
    "a conversion to a number": ("int", "float", "index"),
    "a lookup": ("hash",),
    "repr": ("repr",),
}
for _how, _methods in _DECIDING.items():
    for _method in _methods:
        setattr(Symbol, f"__{_method}__", _deciding(_how))
for _method in dir(str):
    if not _method.startswith("_"):
        setattr(Symbol, _method, _deciding(f"str.{_method}"))


class TraceStream:
    """Records what one stream would execute. The sink of a traced body."""

    def __init__(self, trace: _Recorder, path: StreamPath = (), values: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.recorder = trace
        self._values: dict[str, Any] = dict(values or {})  # what reading a name gives
        self._inherited = frozenset(self._values)
        self._scopes: list[str] = []
        self._counts = {"fork": 0, "checkpoint": 0}
        self._saved: dict[int, dict[str, Any]] = {}
        self._ended = False
        self._nodes: list[Node] = trace.streams.setdefault(path, [])

    def append(self, node: Node) -> Hole | None:
        if self._ended:
            raise BranchEnded("nothing can be appended to a branch that was joined", source=node.source)
        if isinstance(node, Text):
            self._nodes.extend(self._unmarked(node.text, node.source))
            return None
        if isinstance(node, SetVariable) and isinstance(node.value, str) and is_symbolic(node.value):
            parts = ExprList(tuple(self._unmarked(str.__str__(node.value), node.source)))
            self._nodes.append(SetVariable(node.name, parts, node.source))
        else:
            if any(is_symbolic(getattr(node, field.name)) for field in fields(node)):
                raise TraceStopped(f"a field of {type(node).__name__} is known only in a run", source=node.source)
            self._nodes.append(node)
        for name in defined_names(node):
            symbol = Symbol.variable(name, self.path, self.recorder.call)
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
                names += [n for n in branch._values if n not in branch._inherited]
        self.append(Join(branches[0].path[-2], mode, policy, tuple(dict.fromkeys(names)), source))

    def checkpoint(self, source: SourcePos | None) -> int:
        index = self._next("checkpoint")
        self.append(Checkpoint(index, source))
        self._saved[index] = dict(self._values)
        return index

    def rollback(self, index: int, source: SourcePos | None) -> None:
        if index not in self._saved:
            raise ProgramError("no such checkpoint in this stream, or it was rolled back itself", source=source)
        self.append(Rollback(index, source))
        self._values = dict(self._saved[index])
        self._saved = {i: values for i, values in self._saved.items() if i <= index}

    def host_step(self, name: str, source: SourcePos | None) -> None:
        self.append(HostStep(name, source))
        raise TraceStopped(f"{name} is a Python callable that decides in a run", source=source)

    def _next(self, what: str) -> int:
        self._counts[what] += 1
        return self._counts[what] - 1

    def _unmarked(self, text: str, source: SourcePos | None) -> Iterator[Node]:
        """The nodes of a text that carries marks."""
        position = 0
        for mark in _MARK.finditer(text):
            if mark.start() > position:
                yield Text(text[position : mark.start()], source)
            kind, owner, path, name = mark.groups()
            call = None if _split(owner) == self.recorder.call else _split(owner)
            yield Argument(name, call, source) if kind == "a" else Variable(name, _split(path), call, source)
            position = mark.end()
        if position < len(text):
            yield Text(text[position:], source)


class _Recorder:
    """The streams of one traced program, and the programs it called. `call` is its own path in the tree of calls."""

    def __init__(self, call: CallPath = ()) -> None:
        self.call = call
        self.streams: dict[StreamPath, list[Node]] = {}
        self.calls: list[Graph] = []

    def called(self, name: str) -> _Recorder:
        """The recorder of a program that this one calls; its graph takes the place kept here."""
        self.calls.append(Graph(name, (), {}))
        return _Recorder((*self.call, len(self.calls) - 1))


class Trace:
    """What `Program.trace` returns: the graph, and ways to look at it.

    Attributes:
        graph: the program as data.
        stream: what the body wrote into.
        ret_value: what the body returned; holes and arguments in it are symbols.
    """

    def __init__(self, graph: Graph, stream: TraceStream, ret_value: Any) -> None:
        self.graph = graph
        self.stream = stream
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
    """Run `body` with a recorder and a symbol for each name in `symbols`, to its end or the first thing unknown.

    Raises:
        TraceStopped: inside another trace, which cannot go on behind a program that did not.
    """
    outer = _recording.get()
    recorder, stopped, value = _Recorder() if outer is None else outer.called(name), None, None
    with _scope(recorder):
        stream = TraceStream(recorder)
        try:
            value = body(stream, {symbol: Symbol.argument(symbol, recorder.call) for symbol in symbols})
        except TraceStopped as stop:
            stopped = Stop(stop.args[0], stop.source if isinstance(stop.source, SourcePos) else None)
    streams = {path: tuple(nodes) for path, nodes in recorder.streams.items()}
    graph = Graph(name, tuple(symbols), streams, tuple(recorder.calls), stopped)
    if outer is not None:
        outer.calls[recorder.call[-1]] = graph
        if stopped is not None:
            raise TraceStopped(stopped.reason, source=stopped.source)
    return Trace(graph, stream, value)


@contextmanager
def _scope(recorder: _Recorder) -> Iterator[None]:
    token = _recording.set(recorder)
    try:
        yield
    finally:
        _recording.reset(token)


def is_symbolic(value: object) -> bool:
    """Whether a symbol, or text with one in it, is in there: only a run knows what it stands for."""
    pending = [value]  # data of an author's may be deep
    while pending:
        found = pending.pop()
        if isinstance(found, str) and _OPEN in str.__str__(found):
            return True
        if isinstance(found, tuple | list):
            pending.extend(found)
        elif isinstance(found, dict):
            pending.extend(found.values())
        elif isinstance(found, Constraint):
            pending.append(found.value)
        elif isinstance(found, HoleOptions):
            pending.append(found.stop)
    return False


def _joined(path: tuple[int, ...]) -> str:
    return ".".join(map(str, path))


def _split(path: str) -> tuple[int, ...]:
    return tuple(int(part) for part in path.split(".")) if path else ()
