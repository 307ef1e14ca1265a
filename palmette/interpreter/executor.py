"""The one event loop, in one background thread, that executes every stream of every program.

It owns the loop, routes the backends' events to the requests that wait for them, and ends everything at interpreter
exit. What a stream does with its turn stands in stream.py.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from palmette.errors import Cancelled, HoleTimeout, PalmetteError
from palmette.interpreter.promise import Promise
from palmette.types import (
    Backend,
    EmbedEvent,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    Request,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
)

T = TypeVar("T")
_EXIT_SECONDS = 2.0


class LiveRun(Protocol):
    def cancel(self, error: PalmetteError) -> None: ...


class _Started(Promise[T]):
    """What a coroutine on the loop will have returned."""

    __slots__ = ("_coroutine", "_loop", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        super().__init__(self._stop)
        self._loop = loop
        self._coroutine: Coroutine[Any, Any, T] | None = coroutine
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        coroutine, self._coroutine = self._coroutine, None
        assert coroutine is not None, "begun twice"
        if self.done():  # cancelled before
            coroutine.close()
            return
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._take)

    def _take(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if task.cancelled():
            self._end(None, CancelledError())
        elif (error := task.exception()) is not None:
            self._end(None, error)
        else:
            self._end(task.result(), None)

    def _stop(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and the task with it
            self._loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()


@dataclass(slots=True)
class Generated:
    """What a generate request came to."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # all that were sampled, kept or not
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish = Finish(FinishReason.FAILED)

    def take(self, event: Event, on_text: Callable[[str], None]) -> Generated | None:
        """Take in an event; itself with the last.

        Raises:
            PalmetteError: what the backend failed or cancelled the request with.
        """
        assert isinstance(event, TokenEvent), f"a generate request was answered by {event!r}"
        self.token_ids.extend(event.token_ids)
        self.logprobs.extend(event.logprobs)
        if event.text:
            self.text += event.text
            on_text(event.text)
        if event.finish is None:
            return None
        self.finish = event.finish
        if not self.is_finished:
            raise event.finish.error or Cancelled(f"the request was {event.finish.reason}")
        return self

    @property
    def sampled(self) -> int:
        return len(self.token_ids)

    @property
    def is_finished(self) -> bool:
        return self.finish.reason in (FinishReason.STOP, FinishReason.LENGTH)


class _Route(Generic[T]):
    """Where a request's events go: to `handle`, until it returns something or raises."""

    __slots__ = ("done", "handle")

    def __init__(self, done: asyncio.Future[T], handle: Callable[[Event], T | None]) -> None:
        self.done, self.handle = done, handle

    def take(self, event: Event) -> None:
        try:
            result = self.handle(event)
        except Exception as error:  # noqa: BLE001 - the waiting hole raises it
            if not self.done.done():
                self.done.set_exception(error)
            return
        if result is not None and not self.done.done():
            self.done.set_result(result)


class Executor:
    """Starts its thread at first use; `close` ends every program it runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.live: set[LiveRun] = set()
        self._handlers: dict[str, _Route[Any]] = {}
        self._name = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._main, name="palmette-executor", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # -- from any thread --

    @property
    def is_closed(self) -> bool:
        return self.loop.is_closed()

    def on_loop_thread(self) -> bool:
        return threading.get_ident() == self._thread.ident

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run a function on the loop; at once when already there."""
        if self.on_loop_thread():
            function(*args)
        else:
            self.loop.call_soon_threadsafe(function, *args)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop; cancelling what this returns cancels it."""
        started = _Started(self.loop, coroutine)
        self.loop.call_soon_threadsafe(started.begin)
        return started

    def next_request_id(self) -> str:
        """An id that no other request of any executor has; safe from any thread, since `count` is one step."""
        return f"{self._name}-{next(self._numbers)}"

    def close(self) -> None:
        """Cancel what is live, so that every waiting reader gets an error, and stop the loop. May be called twice."""
        atexit.unregister(self.close)
        if self.loop.is_closed() or not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self.loop)
        if not self.on_loop_thread():
            self._thread.join(_EXIT_SECONDS)

    # -- on the loop --

    def generate(
        self, backend: Backend, request: GenerateRequest, on_text: Callable[[str], None], progress: Generated
    ) -> Coroutine[Any, Any, Generated]:
        """Submit, follow, and fill `progress`; cancelling what this returns cancels the request.

        Raises:
            HoleTimeout: request.timeout ran out.
            PalmetteError: what the backend failed or cancelled the request with.
        """
        return self._follow(backend, request, lambda event: progress.take(event, on_text))

    async def score(self, backend: Backend, request: ScoreRequest) -> ScoreEvent:
        """Submit a score request and wait for its one event."""

        def handle(event: Event) -> ScoreEvent:
            assert isinstance(event, ScoreEvent), f"a score request was answered by {event!r}"
            return event

        event = await self._follow(backend, request, handle)
        if event.error is not None:
            raise event.error
        return event

    async def embed(self, backend: Backend, request: Request) -> EmbedEvent:
        """Submit an embedding request and wait for its one event."""

        def handle(event: Event) -> EmbedEvent:
            assert isinstance(event, EmbedEvent), f"an embedding request was answered by {event!r}"
            return event

        event = await self._follow(backend, request, handle)
        if event.error is not None:
            raise event.error
        return event

    async def _follow(self, backend: Backend, request: Request, handle: Callable[[Event], T | None]) -> T:
        """Wait until `handle` returns something for one of the request's events."""
        route: _Route[T] = _Route(self.loop.create_future(), handle)
        self._handlers[request.request_id] = route
        try:
            backend.submit(request, self._deliver)
            if request.timeout is None:
                return await route.done
            async with asyncio.timeout(request.timeout):
                return await route.done
        except HoleTimeout:
            raise  # the backend's own
        except TimeoutError as error:
            backend.cancel(request.request_id)
            raise HoleTimeout(f"not filled within {request.timeout} s") from error
        except asyncio.CancelledError:
            backend.cancel(request.request_id)
            raise
        finally:
            del self._handlers[request.request_id]

    def _deliver(self, events: Sequence[Event]) -> None:
        try:
            self.loop.call_soon_threadsafe(self._dispatch, events)
        except RuntimeError:
            return  # the loop is closed: the interpreter exits and every reader was told

    def _dispatch(self, events: Sequence[Event]) -> None:
        for event in events:
            handler = self._handlers.get(event.request_id)
            if handler is not None:  # None: cancelled here, while the event was on its way
                handler.take(event)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while True:
                try:
                    self.loop.run_forever()
                    return
                except (KeyboardInterrupt, SystemExit):
                    # A body raised it: asyncio hands it to whoever waits for the body, and lets it through to here.
                    # The other programs go on.
                    continue
        finally:
            self.loop.close()

    async def _shut_down(self) -> None:
        """Fail what is live, give its tasks a moment to end with that, cancel the rest, stop."""
        for run in list(self.live):
            run.cancel(Cancelled("the interpreter exits, or the executor was closed"))
        tasks = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_EXIT_SECONDS / 2)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_EXIT_SECONDS / 4)
        self.loop.stop()
