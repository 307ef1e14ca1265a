"""The state `s` of a program: what an author appends to and reads from.

A state is a thin face of a sink. It never executes anything and appending to it never blocks; reading a hole waits for
that hole alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, overload

from palmette.errors import BlockingRead, Cancelled, InvalidOption, PalmetteError, TraceStopped, UsageError
from palmette.interpreter.hole import Filled, Hole, awaited
from palmette.interpreter.sink import Sink
from palmette.interpreter.stream import Stream, runs_event_loop
from palmette.ir import (
    Expr,
    Gen,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVariable,
    author_position,
    flatten,
)
from palmette.lang.constraints import with_binding
from palmette.lang.expressions import gen
from palmette.lang.partials import apartials, is_typed, partials
from palmette.types import Usage

if TYPE_CHECKING:  # these build on State: types only
    from palmette.lang.branches import Branches
    from palmette.lang.retry import Checkpoint, Retry

T = TypeVar("T")


class State:
    """Append with `+=`, read holes with `s["name"]`."""

    def __init__(self, sink: Sink, *, observes: bool = False) -> None:
        self._sink = sink
        self._observes = observes  # the body runs elsewhere: a name may still be appended

    # -- appending -------------------------------------------------------------------------------------------------

    def __iadd__(self, expr: str | Expr) -> State:
        """Append an expression. Never blocks; the same state comes back."""
        self._append(expr)
        return self

    @overload
    def gen(self, type_: type[T], /, **kwargs: Any) -> T: ...
    @overload
    def gen(self, /, *args: Any, **kwargs: Any) -> Any: ...
    def gen(self, /, *args: Any, **kwargs: Any) -> Any:
        """Append `gen(...)`, wait, and return the value: `invoice = s.gen(Invoice)`."""
        hole = self._append(_hole(args, kwargs))
        if not isinstance(self._sink, Stream):
            return self._sink.read_last()
        assert hole is not None
        return self._read(hole)

    @overload
    async def agen(self, type_: type[T], /, **kwargs: Any) -> T: ...
    @overload
    async def agen(self, /, *args: Any, **kwargs: Any) -> Any: ...
    async def agen(self, /, *args: Any, **kwargs: Any) -> Any:
        """Append `gen(...)` and await its value."""
        hole = self._append(_hole(args, kwargs))
        if not isinstance(self._sink, Stream):
            return self._sink.read_last()
        assert hole is not None
        return await self._await(hole)

    def __setitem__(self, name: str, value: Any) -> None:
        """Name a value of the program's own; nothing is written."""
        self._sink.append(SetVariable(name, value, author_position()))

    def system(self, expr: str | Expr | None = None) -> AbstractContextManager[State]:
        """Append a system message, or open one: `with s.system(): ...`."""
        return self._role("system", expr)

    def user(self, expr: str | Expr | None = None) -> AbstractContextManager[State]:
        """Append a user message, or open one."""
        return self._role("user", expr)

    def assistant(self, expr: str | Expr | None = None) -> AbstractContextManager[State]:
        """Append an assistant message, or open one."""
        return self._role("assistant", expr)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[State]:
        """The text appended inside becomes the variable `name`, readable behind the block."""
        self._sink.append(ScopeBegin(name, author_position()))
        self._sink.open_scope(name)
        try:
            yield self
        finally:
            self._sink.close_scope()
        self._sink.append(ScopeEnd(name, author_position()))

    def _append(self, expr: object) -> Hole | None:
        hole = None
        for node in flatten(expr, author_position()):
            hole = self._sink.append(with_binding(node)) or hole
        return hole

    def _role(self, role: str, expr: str | Expr | None) -> AbstractContextManager[State]:
        source = author_position()
        if expr is None:
            return self._open_role(role)
        self._sink.append(RoleBegin(role, source))
        self._append(expr)
        self._sink.append(RoleEnd(role, source))
        return _already_closed(self)

    @contextmanager
    def _open_role(self, role: str) -> Iterator[State]:
        self._sink.append(RoleBegin(role, author_position()))
        yield self
        self._sink.append(RoleEnd(role, author_position()))

    # -- reading ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """The value of a hole; waits until it is filled.

        Raises:
            UnknownHole: nothing appended so far defines the name.
            BlockingRead: it is not filled and this thread runs an event loop; use `await s.get(name)`.
            PalmetteError: what the hole failed with.
        """
        try:
            return self._read(self._find(name)) if self._observes else self._sink.read(name)
        except PalmetteError as error:
            error.state = error.state or self
            raise

    async def get(self, name: str) -> Any:
        """The value of a hole, awaited on whatever loop runs here."""
        if not isinstance(self._sink, Stream):
            return self._sink.read(name)
        return await self._await(await self._afind(name))

    def __contains__(self, name: object) -> bool:
        return name in self._sink.names()

    def get_var(self, name: str) -> Any:
        return self[name]

    def set_var(self, name: str, value: Any) -> None:
        self[name] = value

    def text_of(self, name: str) -> str:
        """The raw text of a hole, also where its value is not text."""
        self[name]
        return self._filled(name).text

    def get_meta_info(self, name: str) -> dict[str, Any]:
        """What the runtime reported of a hole: token counts, finish reason, logprobs if asked for, time in seconds."""
        self[name]
        return dict(self._filled(name).meta)

    def text(self) -> str:
        """The whole text, template text included; waits for everything appended so far."""
        self.sync()
        return self._stream.cursor.text_from(0)

    def messages(self) -> list[dict[str, str]]:
        """The conversation in OpenAI's form; waits for everything appended so far."""
        self.sync()
        return [{"role": m.role, "content": m.content} for m in self._stream.cursor.all_messages()]

    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the state; text that waits for the next boundary is not among them."""
        self.sync()
        return self._stream.cursor.chain.all_ids()

    def sync(self) -> None:
        """Wait until everything appended so far was executed. Errors are not raised here; see `error`."""
        if not isinstance(self._sink, Stream):
            return  # a trace executes nothing
        stream = self._stream
        waits = self._observes and not stream.run.is_over
        if not waits and stream.is_idle:
            return
        if runs_event_loop():
            raise BlockingRead("waiting for the state", "await s.wait()").at(source=author_position())
        if waits:
            stream.run.over.result()
        stream.barrier().result()

    async def wait(self) -> None:
        """The same, awaited."""
        if not isinstance(self._sink, Stream):
            return
        stream = self._stream
        if self._observes and not stream.run.is_over:
            await awaited(stream.run.over)
        await awaited(stream.barrier())

    def error(self) -> BaseException | None:
        """What this stream failed with, None if nothing did; waits for everything appended so far.

        For the program's own state that is also an exception of the body.
        """
        self.sync()
        stream = self._stream
        stream.error_was_read = True
        return stream.error if stream.path else stream.run.body_error or stream.error

    @property
    def ret_value(self) -> Any:
        """What the program's body returned, once it is over."""
        return self._stream.run.ret_value

    @property
    def usage(self) -> Usage:
        """Tokens and seconds of the whole program so far."""
        return self._stream.run.usage

    @property
    def seed(self) -> int:
        """The seed of the run; the same program, arguments and seed give the same tokens."""
        return self._stream.run.seed

    # -- streaming -------------------------------------------------------------------------------------------------

    def stream(self, name: str) -> Iterator[Any]:
        """The text of a hole in pieces as it comes; blocks between them.

        Of a typed hole: what is closed so far, as plain data, whenever something new was closed, and at the end the
        value. `text_iter` gives its text.
        """
        hole = self._find(name)
        if not is_typed(hole):
            yield from self._pieces(hole)
            return
        yield from partials(hole, self._pieces(hole))
        yield self._value(hole)

    async def astream(self, name: str) -> AsyncIterator[Any]:
        """The same, for `async for`."""
        hole = await self._afind(name)
        if not is_typed(hole):
            async for piece in hole.apieces():
                yield piece
            return
        async for part in apartials(hole, hole.apieces()):
            yield part
        yield await self._await(hole)

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Pieces of a hole's text, or of the whole text as it is written: everything appended so far, or all that the
        program writes where it runs elsewhere (`run(stream=True)`)."""
        yield from self._pieces(self._find(var_name) if var_name else self._watch().result())

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """The same, for `async for`; with `return_meta_data` pairs of (piece, meta info known so far)."""
        hole = await self._afind(var_name) if var_name else await awaited(self._watch())
        async for piece in hole.apieces():
            yield (piece, hole.future.result().meta if hole.is_done else {}) if return_meta_data else piece

    # -- branches --------------------------------------------------------------------------------------------------

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> Branches:
        """`size` branches that go on from here; the runtime computes what they share once.

        Raises:
            InvalidOption: a size below 1 or beyond the limit, or `position_ids_offset` (which this runtime lacks).
        """
        from palmette.lang.branches import Branches

        if position_ids_offset is not None:
            raise InvalidOption("position_ids_offset", position_ids_offset, "None: positions always follow the tokens")
        return Branches(self, [State(sink) for sink in self._sink.fork(size, author_position())])

    @contextmanager
    def copy(self, position_ids_offset: Sequence[int] | None = None) -> Iterator[State]:
        """A copy to try something on: its text is dropped behind the block, its new variables are kept."""
        group = self.fork(1, position_ids_offset)
        with group.cancelled_on_error():
            yield group[0]
        group.join("copy")

    def checkpoint(self) -> Checkpoint:
        """Remember this place, for `rollback`."""
        from palmette.lang.retry import Checkpoint

        return Checkpoint(self._sink.checkpoint(author_position()), self._sink)

    def rollback(self, checkpoint: Checkpoint) -> None:
        """Undo everything since the checkpoint, also what is still being generated; its prefix stays cached.

        Raises:
            UsageError: a checkpoint of another state.
        """
        if checkpoint.sink is not self._sink:
            raise UsageError("this checkpoint was made by another state").at(source=author_position())
        self._sink.rollback(checkpoint.index, author_position())

    def retry(self, until: Callable[[State], Any], attempts: int = 3) -> Retry:
        """Repeat a block, rewinding to this place before each further attempt.

            for attempt in s.retry(until=lambda s: s["n"].strip().isdigit(), attempts=5):
                s += gen("n", max_tokens=4)

        Raises:
            RetryExhausted: (behind the last attempt) `until` was never true.
        """
        from palmette.lang.retry import Retry

        return Retry(self, until, attempts)

    def cancel(self) -> None:
        """Abort what is unfinished, here and in every branch below; reads of it raise Cancelled."""
        if isinstance(self._sink, Stream):  # a trace has nothing to abort
            self._sink.cancel(Cancelled("the state was cancelled", source=author_position()))

    # -- internals -------------------------------------------------------------------------------------------------

    @property
    def _stream(self) -> Stream:
        if not isinstance(self._sink, Stream):
            raise TraceStopped("text and results are known only in a run", source=author_position())
        return self._sink

    def _find(self, name: str) -> Hole:
        if not self._observes:
            return self._stream.hole(name)
        named = self._stream.when_named(name)
        if not named.done() and runs_event_loop():
            raise BlockingRead(name)
        return named.result()

    async def _afind(self, name: str) -> Hole:
        if self._observes:
            return await awaited(self._stream.when_named(name))
        return self._stream.hole(name)

    def _filled(self, name: str) -> Filled:
        return self._find(name).future.result()

    def _read(self, hole: Hole) -> Any:
        if not hole.is_done and runs_event_loop():
            raise BlockingRead(hole.name) if hole.name else BlockingRead("s.gen", "await s.agen(...)")
        return self._value(hole)

    def _pieces(self, hole: Hole) -> Iterator[str]:
        if not hole.is_done and runs_event_loop():
            raise BlockingRead("streaming", "async for piece in s.text_async_iter(...)")
        yield from hole.pieces()

    def _value(self, hole: Hole) -> Any:
        try:
            return self._stream.value(hole)
        except PalmetteError as error:
            error.state = error.state or self
            raise

    async def _await(self, hole: Hole) -> Any:
        if not hole.is_done:
            with suppress(PalmetteError):  # raised below, with the state
                await awaited(hole.future)
        return self._value(hole)

    def _watch(self) -> Future[Hole]:
        """The whole text as a hole, set up on the loop: an observer's until the program ends."""
        found: Future[Hole] = Future()
        self._stream.run.executor.call(lambda: found.set_result(self._stream.watch(to_end=self._observes)))
        return found


def _hole(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Gen | Select:
    """The arguments of `gen`, or a hole that is there already."""
    return args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Gen | Select) else gen(*args, **kwargs)


@contextmanager
def _already_closed(state: State) -> Iterator[State]:
    """What `s.user("text")` returns: it was appended whole, so there is nothing left to open."""
    raise UsageError('write either s.user("text"), or `with s.user(): ...` without an argument')
    yield state
