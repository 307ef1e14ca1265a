"""The engine in a thread of its own: the only thread crossing, one inbox in, one callback out.

    submit, cancel, notify ...  -->  inbox  -->  [ drain, step, deliver ]  -->  deliver(events of one step)

Idle, the thread blocks on its inbox. Knows threads and the clock, and nothing of what a request is.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeAlias

from palmette.errors import Cancelled, EngineDied, InvalidOption, PalmetteError
from palmette.fsm.cursor import CompiledConstraint
from palmette.runtime.compiling import CompileThread
from palmette.runtime.engine import EngineCore
from palmette.runtime.request import as_request_error, refusal
from palmette.runtime.stats import Stats
from palmette.types import Deliver, Event, FinishReason, GenerateRequest, ProgramEvent, Request, TokenEvent

logger = logging.getLogger(__name__)

EXIT_SECONDS = 4.0  # that the interpreter's exit waits for the step that is running


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request
    deliver: Deliver
    at: float  # seconds, on the driver's clock


@dataclass(frozen=True, slots=True)
class _Compiled:
    submit: _Submit
    result: CompiledConstraint | PalmetteError


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Flush:
    pass


@dataclass(frozen=True, slots=True)
class _Wake:
    """Look at the stop flag."""


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[Stats], None]


_Message: TypeAlias = _Submit | _Compiled | _Cancel | _Flush | _Wake | _Call | ProgramEvent


class EngineThread:
    """Drives an EngineCore. All methods are thread-safe and none waits for the model, `close` excepted.

    `deliver` is called on the engine's thread, once a step, with all events of the requests that were submitted with
    an equal one; it must be hashable and quick. If it raises, its requests are cancelled: their consumer is gone.
    """

    def __init__(self, core: EngineCore, *, name: str = "palmette-engine") -> None:
        self._core = core  # touched by the thread alone from here on
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._live: dict[str, _Submit] = {}  # by request id; the thread's
        self._compiling: dict[str, _Submit] = {}  # whose constraint is not there yet; the thread's
        self._compile = CompileThread(core.compiler, name=f"{name}-constraints")
        self._stopping = threading.Event()
        self._gate = threading.Lock()  # between putting a message and the death that empties the inbox
        self._death: EngineDied | None = None  # set once, under the gate
        self._stats = core.stats()  # replaced after each step
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # A daemon, because a user who forgets close() must still be able to leave. The interpreter would freeze it in
        # the middle of a kernel, so atexit, which runs while threads still do, stops it between two steps.
        self._at_exit = _close_weakly(weakref.ref(self))
        atexit.register(self._at_exit)
        self._thread.start()

    def submit(self, request: Request, deliver: Deliver) -> None:
        """Queue a request. After the engine's end it is answered at once, on the caller's thread, with EngineDied."""
        death = self._put(_Submit(request, deliver, time.monotonic()))
        if death is not None:
            deliver([refusal(request, FinishReason.FAILED, _again(death))])

    def cancel(self, request_id: str) -> None:
        """End a request within one step; one that ended, or that never was, is left alone."""
        self._put(_Cancel(request_id))

    def notify(self, event: ProgramEvent) -> None:
        self._put(event)

    def flush_cache(self) -> None:
        """Forget what is cached before any request submitted later is looked at."""
        self._put(_Flush())

    def call(self, function: Callable[[Stats], None]) -> None:
        """Call `function` with this moment's numbers on the engine's thread, between two steps: a sign of its life."""
        self._put(_Call(function))

    def stats(self) -> Stats:
        """As of the last finished step. What an event tells has been counted when it is delivered."""
        return self._stats

    @property
    def is_alive(self) -> bool:
        """Will requests still be served?"""
        return self._death is None and not self._stopping.is_set()

    def close(self, timeout: float | None = None) -> None:
        """Fail what is live with EngineDied and stop the thread. May be called twice, and from a callback.

        Args:
            timeout: seconds to wait for the step that is running; None = until it ends.
        """
        atexit.unregister(self._at_exit)
        self._stopping.set()
        self._inbox.put(_Wake())
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    # -- the engine's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
            death = EngineDied("the runtime was closed")
        except Exception as error:  # not one request's fault: nothing that was computed can be trusted
            logger.exception("the engine died")
            death = EngineDied(f"the engine died: {error}")
            death.__cause__ = error
        self._die(death)
        self._core.close()

    def _serve(self) -> None:
        """Until it is told to stop."""
        while True:
            self._take(self._inbox.get())  # idle: blocks
            while not self._stopping.is_set():
                self._drain()
                if not self._core.has_work:
                    self._stats = self._core.stats()
                    break
                events = self._core.step(time.monotonic())
                self._stats = self._core.stats()
                self._hand_out(events)
            if self._stopping.is_set():
                return

    def _drain(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._take(self._inbox.get_nowait())

    def _take(self, message: _Message) -> None:
        match message:
            case _Submit():
                self._accept(message)
            case _Compiled(submit, result):
                self._accept_compiled(submit, result)
            case _Cancel(request_id):
                self._cancel(request_id)
            case _Flush():
                self._core.flush_cache()
            case _Call(function):
                function(self._core.stats())
            case _Wake():
                pass
            case event:
                self._core.notify(event)

    def _accept(self, submit: _Submit) -> None:
        request = submit.request
        if request.request_id in self._compiling:
            self._refuse(submit, InvalidOption("request_id", request.request_id, "an id that no live request has"))
            return
        spec = request.constraint if isinstance(request, GenerateRequest) else None
        if spec is None:
            self._add(submit)
            return
        known = self._core.compiler.cached(spec)
        if known is not None:
            self._add(submit, known)
            return
        self._compiling[request.request_id] = submit
        self._compile.submit(spec, lambda result: self._inbox.put(_Compiled(submit, result)))

    def _accept_compiled(self, submit: _Submit, result: CompiledConstraint | PalmetteError) -> None:
        if self._compiling.pop(submit.request.request_id, None) is not submit:
            return  # it was cancelled meanwhile
        if isinstance(result, PalmetteError):
            self._refuse(submit, result)
        else:
            self._add(submit, result)

    def _add(self, submit: _Submit, constraint: CompiledConstraint | None = None) -> None:
        try:
            self._core.add(submit.request, submit.at, constraint)
        except Exception as error:  # noqa: BLE001 - one request is one failure domain: it is told, nobody else
            self._refuse(submit, as_request_error(error))
            return
        self._live[submit.request.request_id] = submit

    def _refuse(self, submit: _Submit, error: PalmetteError, reason: FinishReason = FinishReason.FAILED) -> None:
        # Not through _live: if its id is taken, the event must not reach the request that has it.
        self._call(submit.deliver, [refusal(submit.request, reason, error)])

    def _cancel(self, request_id: str) -> None:
        waiting = self._compiling.pop(request_id, None)
        if waiting is not None:
            self._refuse(waiting, Cancelled("the request was cancelled"), FinishReason.CANCELLED)
        else:
            self._core.cancel(request_id, time.monotonic())

    def _hand_out(self, events: Sequence[Event]) -> None:
        by_deliver: defaultdict[Deliver, list[Event]] = defaultdict(list)
        for event in events:
            request_id = event.request_id
            is_last = not isinstance(event, TokenEvent) or event.finish is not None
            submit = self._live.pop(request_id, None) if is_last else self._live.get(request_id)
            if submit is not None:
                by_deliver[submit.deliver].append(event)
        for deliver, theirs in by_deliver.items():
            self._call(deliver, theirs)

    def _call(self, deliver: Deliver, events: Sequence[Event]) -> None:
        try:
            deliver(events)
        except Exception:
            if self._stopping.is_set():  # the interpreter may be leaving, and the consumer with it
                logger.debug("events could not be delivered", exc_info=True)
                return
            logger.exception("events could not be delivered; their requests are cancelled")
            for request_id in {event.request_id for event in events} & self._live.keys():
                del self._live[request_id]
                self._core.cancel(request_id, time.monotonic())

    def _die(self, death: EngineDied) -> None:
        """Answer everybody, now and for ever. The core is not asked: its books may be what broke."""
        with self._gate:
            self._death = death  # from here on nothing is put into the inbox
        with contextlib.suppress(Empty):
            while True:
                message = self._inbox.get_nowait()
                if isinstance(message, _Submit):
                    self._live.setdefault(message.request.request_id, message)
        for submit in self._compiling.values():
            self._live.setdefault(submit.request.request_id, submit)
        self._compile.close()
        events = [refusal(submit.request, FinishReason.FAILED, _again(death)) for submit in self._live.values()]
        self._hand_out(events)

    def _put(self, message: _Message) -> EngineDied | None:
        """Returns why nothing can be put, if so."""
        with self._gate:
            if self._death is None:
                self._inbox.put(message)
            return self._death


def _again(death: EngineDied) -> EngineDied:
    """A copy for one request: an exception that is raised in two threads would mix their tracebacks."""
    copy = EngineDied(*death.args)
    copy.__cause__ = death.__cause__
    return copy


def _close_weakly(thread: weakref.ref[EngineThread]) -> Callable[[], None]:
    def close() -> None:
        found = thread()
        if found is not None:
            found.close(EXIT_SECONDS)

    return close
