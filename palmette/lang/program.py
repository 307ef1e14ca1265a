"""What `@function` makes of a function: something to run, map, stream and trace."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal, TypeAlias, overload

from palmette.errors import BlockingRead, InvalidOption, TraceStopped
from palmette.interpreter.hole import awaited
from palmette.interpreter.seeds import fresh_seed, instance_seed
from palmette.interpreter.stream import Stream, runs_event_loop
from palmette.interpreter.tracer import Trace, TraceStream, is_tracing, traced
from palmette.interpreter.workers import in_thread, on_worker
from palmette.ir import Gen, HoleOptions, Select, author_position
from palmette.lang.batch import WINDOW, Bodies, async_outcomes, plain_outcomes, thread_count
from palmette.lang.call import RunOptions, Signature
from palmette.lang.execution import Call, Execution, Outcome, wait_for
from palmette.lang.progress import progressed
from palmette.lang.session import current_options, resolve_backend, shared_executor
from palmette.lang.state import State
from palmette.types import Backend

OnError: TypeAlias = Literal["raise", "return"]


class Program:
    """A program. Its body's first parameter is the state; the others are the program's parameters.

    Parameters of the program win over run options of the same name; pass such an option with `options(...)`.
    Run options: every sampling option of `gen`, and `backend`, `seed`, `budget`, `stream`, `roles`, `namespace`,
    `record`.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        num_api_spec_tokens: int | None = None,
        bound: Mapping[str, Any] | None = None,
    ) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.num_api_spec_tokens = num_api_spec_tokens
        self.bound = dict(bound or {})
        self.signature = Signature(func)
        self.is_async = inspect.iscoroutinefunction(func)

    @property
    def arg_names(self) -> list[str]:
        return [p.name for p in self.signature.parameters]

    def __repr__(self) -> str:
        return f"<program {self.signature.name}({', '.join(self.arg_names)})>"

    def bind(self, **kwargs: Any) -> Program:
        """The same program with some arguments fixed."""
        self.signature.missing((), kwargs)  # an unknown name fails here
        return Program(self.func, num_api_spec_tokens=self.num_api_spec_tokens, bound={**self.bound, **kwargs})

    # -- one instance ----------------------------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> State:
        """Run the program and return its finished state; with `stream=True` return at once.

        A plain body runs on this thread, an `async def` body on the background loop.

        Raises:
            PalmetteError: what a hole failed with, with `.state`; an exception of the body is raised as it is.
            BlockingRead: this thread runs an event loop; use `await program.arun(...)`.
        """
        if is_tracing():
            return self._traced_call(args, kwargs)[0]
        call = self._call(args, kwargs)
        if call.options.stream:
            return Execution(call).in_background()
        if runs_event_loop():
            raise BlockingRead("run", "await program.arun(...)")
        return self._wait(call)

    def run_with(self, args: Sequence[Any], kwargs: Mapping[str, Any], options: RunOptions) -> State:
        """`run` with arguments and options told apart: a parameter may be called like an option."""
        return self._wait(Call(self.func, self.signature.name, args, {**self.bound, **kwargs}, options))

    async def arun(self, *args: Any, **kwargs: Any) -> State:
        """`run` for a coroutine: an `async def` body runs on this loop, a plain one on a thread of its own."""
        if is_tracing():
            return self._traced_call(args, kwargs)[0]
        return await Execution(self._call(args, kwargs)).there()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; the body's return value if it returns one (of a hole its value), else the finished state.

        With a state as first argument the body writes into that state. Inside a trace it is traced.
        """
        if args and isinstance(args[0], State):
            return self._inline(args, {**self.bound, **kwargs})
        if is_tracing():
            state, value = self._traced_call(args, kwargs)
            return state if value is None else value
        state = self.run(*args, **kwargs)
        return state if state.ret_value is None else state.ret_value

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        """Run it and yield the program's text in pieces as it is written."""
        state = self.run(*args, stream=True, **kwargs)
        try:
            yield from state.text_iter()
        finally:
            _leave(state)

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        """The same, for `async for`."""
        state = self.run(*args, stream=True, **kwargs)
        try:
            async for piece in state.text_async_iter():
                yield piece
        finally:
            _leave(state)

    # -- many instances --------------------------------------------------------------------------------------------

    @overload
    def run_batch(
        self,
        batch_kwargs: Iterable[Any],
        *,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: Literal[False] = False,
        **run_options: Any,
    ) -> list[State]: ...
    @overload
    def run_batch(
        self,
        batch_kwargs: Iterable[Any],
        *,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: Literal[True],
        **run_options: Any,
    ) -> Iterator[State]: ...
    def run_batch(
        self,
        batch_kwargs: Iterable[Any],
        *,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **run_options: Any,
    ) -> list[State] | Iterator[State]:
        """Run one instance for each item, many at a time; states come back in order.

        An item is a dict of arguments, a tuple or list of positional ones, or the single argument itself. A failed
        instance comes back as its state with `.error()` set. With `generator_style` states are yielded as they are
        finished, in order, and at most a window of instances is held.
        """
        calls = self._calls(batch_kwargs, run_options, lists_are_arguments=True)
        outcomes = self._outcomes(calls, num_threads, _len(batch_kwargs))
        states = (state for state, _ in progressed(outcomes, _len(batch_kwargs), enabled=progress_bar))
        return states if generator_style else list(states)

    def map(
        self,
        items: Iterable[Any],
        *,
        progress: bool = False,
        on_error: OnError = "raise",
        num_threads: int | Literal["auto"] = "auto",
        **run_options: Any,
    ) -> list[Any]:
        """The values of one call for each item (see `__call__`), in order.

        An item is a dict of arguments, a tuple of positional ones, or the single argument itself, lists included.
        With on_error="return" a failed item's exception stands in its place; with "raise" the first one is raised,
        after every item has ended.
        """
        _check_on_error(on_error)
        outcomes = self._outcomes(self._calls(items, run_options), num_threads, _len(items))
        return _values(list(progressed(outcomes, _len(items), enabled=progress)), on_error)

    async def amap(
        self,
        items: Iterable[Any],
        *,
        on_error: OnError = "raise",
        num_threads: int | Literal["auto"] = "auto",
        max_in_flight: int = WINDOW,
        **run_options: Any,
    ) -> list[Any]:
        """`map` for a coroutine; `async def` bodies run on this loop, plain ones on at most `num_threads` workers."""
        _check_on_error(on_error)
        calls = list(self._calls(items, run_options))
        gate = asyncio.Semaphore(max_in_flight)
        bodies = None if self.is_async else Bodies(thread_count(num_threads, len(calls)))

        async def one(call: Call) -> Outcome:
            async with gate:
                return await (Execution(call).aoutcome() if bodies is None else awaited(bodies.submit(call)))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(call)) for call in calls]
        finally:
            if bodies is not None:
                bodies.close()
        return _values([task.result() for task in tasks], on_error)

    # -- without a model -------------------------------------------------------------------------------------------

    def trace(self, *args: Any, backend: Backend | None = None, **kwargs: Any) -> Trace:
        """Run the body with symbols for the arguments that are not given, and return the program as data.

        No model is needed; `backend` is accepted for SGLang's sake. The trace ends at the first decision that depends
        on a value only a run knows, and names it.
        """
        kwargs = {**self.bound, **kwargs}
        symbols = self.signature.missing(args, kwargs)

        def body(stream: TraceStream, values: Mapping[str, Any]) -> Any:
            state = State(stream)
            result = self.func(state, *args, **kwargs, **values)
            value = _driven(result) if self.is_async else result
            return state.gen(value) if isinstance(value, Gen | Select) else value

        return traced(self.signature.name, body, symbols)

    def cache(self, backend: Backend | None = None) -> None:
        """Compute the program's constant beginning once, so that the first instance finds it cached."""
        if runs_event_loop():
            raise BlockingRead("cache", "await asyncio.to_thread(program.cache)")
        found = resolve_backend(backend)
        prefix = self.trace().constant_prefix()
        if not prefix:
            return
        run = RunOptions(holes=current_options(), backend=found).start()
        stream = Stream(run)
        try:
            for node in prefix:
                stream.append(node)
            stream.append(Gen(None, HoleOptions(max_new_tokens=0)))  # computes the prompt and nothing else
            wait_for(shared_executor().start(run.settle()))
        finally:
            run.executor.call(run.finish)
        if stream.error is not None:
            raise stream.error

    # -- internals -------------------------------------------------------------------------------------------------

    def _inline(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Write into the state that is given; a hole that the body returns is written too, and read."""
        state: State = args[0]
        if not self.is_async:
            value = self.func(*args, **kwargs)
            return state.gen(value) if isinstance(value, Gen | Select) else value

        async def body() -> Any:
            value = await self.func(*args, **kwargs)
            return await state.agen(value) if isinstance(value, Gen | Select) else value

        return body()

    def _traced_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[State, Any]:
        """Called by a body that is being traced: trace this one too; its state and what its body returned."""
        trace = self.trace(*args, **self.signature.split(kwargs)[0])
        return State(trace.stream), trace.ret_value

    def _wait(self, call: Call) -> State:
        execution = Execution(call)
        return wait_for(shared_executor().start(execution.there())) if self.is_async else execution.here()

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        arguments, run = self.signature.split(kwargs)
        arguments = {**self.bound, **arguments}
        self.signature.bind(args, arguments)
        return Call(self.func, self.signature.name, args, arguments, RunOptions.of(run))

    def _calls(
        self, items: Iterable[Any], run_options: Mapping[str, Any], *, lists_are_arguments: bool = False
    ) -> Iterator[Call]:
        """One call for each item, under one set of options, each with a seed of its own.

        Options are checked at once. Arguments that do not fit are the failure of their item.
        """
        if is_tracing():
            raise TraceStopped(f"a batch of {self.signature.name} exists only in a run", source=author_position())
        shared = RunOptions.of(run_options)
        if shared.stream or shared.record:
            raise InvalidOption("stream" if shared.stream else "record", True, "for `run`, not for a batch")
        base = fresh_seed() if shared.seed is None else shared.seed

        def call(index: int, item: Any) -> Call:
            args, kwargs = _arguments(tuple(item) if lists_are_arguments and isinstance(item, list) else item)
            return Call(
                self.func, self.signature.name, args, {**self.bound, **kwargs}, shared, instance_seed(base, index)
            )

        return (call(index, item) for index, item in enumerate(items))

    def _outcomes(
        self, calls: Iterator[Call], num_threads: int | Literal["auto"], size: int | None
    ) -> Iterator[Outcome]:
        """Run every call, a window of them at a time, and yield what became of each in order."""
        if runs_event_loop():
            raise BlockingRead("a batch", "await program.amap(...)")
        if self.is_async:
            return async_outcomes(calls)
        threads = 1 if num_threads == "auto" and on_worker() else thread_count(num_threads, size)
        return plain_outcomes(calls, threads)


def _leave(state: State) -> None:
    """Whoever read the program's text is gone: abort what is left of it."""
    if not state._stream.run.is_over:
        state.cancel()


def _driven(body: Coroutine[Any, Any, Any]) -> Any:
    """Run an `async def` body that is traced to its end; where a loop runs already, on a thread beside it."""
    if not runs_event_loop():
        return asyncio.run(body)
    return in_thread(lambda: asyncio.run(body)).result()


def _arguments(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A dict is keyword arguments, a tuple positional ones, anything else the one argument."""
    if isinstance(item, Mapping):
        return (), dict(item)
    return (tuple(item), {}) if isinstance(item, tuple) else ((item,), {})


def _values(outcomes: Sequence[Outcome], on_error: OnError) -> list[Any]:
    if on_error == "raise":
        for _, error in outcomes:
            if error is not None:
                raise error
    return [error or _value(state) for state, error in outcomes]


def _value(state: State) -> Any:
    return state if state.ret_value is None else state.ret_value


def _len(items: Iterable[Any]) -> int | None:
    return len(items) if isinstance(items, Sized) else None


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "return"):
        raise InvalidOption("on_error", on_error, "'raise' or 'return'")


@overload
def function(func: Callable[..., Any], /) -> Program: ...
@overload
def function(*, num_api_spec_tokens: int | None = None) -> Callable[[Callable[..., Any]], Program]: ...
def function(
    func: Callable[..., Any] | None = None, /, *, num_api_spec_tokens: int | None = None
) -> Program | Callable[[Callable[..., Any]], Program]:
    """Make a program of a function whose first parameter is the state. Bare or called, on `def` and `async def`.

    Args:
        num_api_spec_tokens: for API backends: how many tokens to generate ahead of the program in one call.
    """
    if func is not None:
        return Program(func)
    return lambda f: Program(f, num_api_spec_tokens=num_api_spec_tokens)
