"""One instance of a program being run: its body, the end of its streams, and what became of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from palmette.errors import Cancelled, PalmetteError
from palmette.interpreter.hole import awaited
from palmette.interpreter.stream import Stream
from palmette.interpreter.tracing import program_span
from palmette.interpreter.workers import in_thread
from palmette.ir import Gen, Select
from palmette.lang.call import RunOptions
from palmette.lang.record import make_record, write_record
from palmette.lang.state import State

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A program's body with its arguments and the options of the run."""

    func: Callable[..., Any]
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: RunOptions
    seed: int | None = None  # of this instance, where a batch has one for all


Outcome: TypeAlias = tuple[State, Exception | None]


class Execution:
    """Run a call once, with `here` or `there`. `state` is what the body writes into."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._run = call.options.start(call.seed)
        self._stream = Stream(self._run)
        self.state = State(self._stream)

    def here(self) -> State:
        """Run a plain body on this thread and wait for every stream."""
        with program_span(self._run, self._call.name), self._ending():
            self._run.ret_value = self._returned(self._body())
            wait_for(self._run.executor.start(self._run.settle()))
        return self.state

    async def there(self) -> State:
        """Run the body from this loop: an `async def` here, a plain one on a thread of its own."""
        with program_span(self._run, self._call.name), self._ending():
            if inspect.iscoroutinefunction(self._call.func):
                value = await self._body()
                self._run.ret_value = await self.state.agen(value) if isinstance(value, Gen | Select) else value
            else:
                self._run.ret_value = await awaited(in_thread(lambda: self._returned(self._body())))
            await awaited(self._run.executor.start(self._run.settle()))
        return self.state

    def outcome(self) -> Outcome:
        """`here`, with what it raised beside the state."""
        try:
            return self.here(), None
        except Exception as error:  # noqa: BLE001 - it belongs to this instance and is handed out with it
            return self.state, error

    async def aoutcome(self) -> Outcome:
        """`there`, with what it raised beside the state."""
        try:
            return await self.there(), None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that the body awaited was cancelled, not the body.
            return self.state, _with_cause(Cancelled("the body ended with CancelledError", state=self.state), error)
        except Exception as error:  # noqa: BLE001 - it belongs to this instance and is handed out with it
            return self.state, error

    def in_background(self) -> State:
        """Start it on the executor's loop; the state returned observes, and reading it raises what went wrong."""
        self._run.executor.start(self.there())
        return State(self._stream, observes=True)

    def cancel(self) -> None:
        """Abort it from outside: whatever its body waits for raises Cancelled."""
        self._tell(self._run.cancel, Cancelled("the batch that it belongs to was left"))

    def _body(self) -> Any:
        return self._call.func(self.state, *self._call.args, **self._call.kwargs)

    def _returned(self, value: Any) -> Any:
        """What the body returned; of a hole that is its value: `return gen(Invoice)`."""
        return self.state.gen(value) if isinstance(value, Gen | Select) else value

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Whatever happens, the run ends: on an error nothing of it goes on, and an error nobody read is raised."""
        run = self._run
        try:
            yield
            self._raise_unread()
            if self._call.options.record is not None:
                record = make_record(self._call.name, self._call.args, self._call.kwargs, run)
                write_record(self._call.options.record, record)
        except BaseException as error:
            run.body_error = error
            if isinstance(error, PalmetteError):
                error.state = error.state or self.state
                cause = error
            else:
                error.add_note(f"in the body of program {self._call.name}")
                cause = Cancelled(f"the program's body raised {error!r}")
                cause.__cause__ = error
            self._tell(run.cancel, cause)
            raise
        finally:
            self._tell(run.finish)

    def _tell(self, function: Callable[..., object], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, which ended everything
            self._run.executor.call(function, *args)

    def _raise_unread(self) -> None:
        """The program's own stream must not have failed; a branch may, if the program read its error."""
        if self._stream.error is not None:
            raise self._stream.error
        for stream in self._run.streams.values():
            if stream.error is not None and not stream.error_was_read:
                raise stream.error


def _with_cause(error: Cancelled, cause: BaseException) -> Cancelled:
    error.__cause__ = cause
    return error


def wait_for(future: Future[T]) -> T:
    """Block for a result; on Ctrl-C or exit stop what would have produced it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
