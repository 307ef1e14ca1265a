"""Constraints tried in killable processes before they reach the engine, so that none can hurt anybody else.

    check --> known? --> queue (first come, first served) --> worker --> verdict, remembered
                                                                |
                                                takes too long, too much memory: killed, refused
                                                dies: tried once more by a fresh one, then refused

One worker (`constraint_worker`) is there from the start; a second one helps while a single trial holds the first one up
and others wait. Who asks for what is being tried already waits for the same verdict. Used by one event loop. Knows
specifications and processes; nothing of requests or of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from palmette.errors import (
    EngineDied,
    InvalidOption,
    Overloaded,
    RequestError,
    UnsupportedConstraint,
    UnsupportedFeature,
)
from palmette.runtime.config import ConstraintConfig
from palmette.runtime.server.constraint_worker import (
    HEADER_BYTES,
    MAX_MESSAGE,
    Failed,
    NotAllowed,
    NotSupported,
    OutOfMemory,
    Ready,
    Refused,
    Setup,
    TryPattern,
    TrySpec,
    Verdict,
    from_worker,
    message,
    try_pattern,
    try_spec,
)
from palmette.specs import Spec

logger = logging.getLogger(__name__)

MAX_WORKERS: Final = 2
MAX_WAITING: Final = 1024  # trials in the queue
KNOWN_BYTES: Final = 64 << 20  # of the specifications that are remembered
_HELP_AFTER: Final = 0.25  # seconds that one trial may hold up the others
_IDLE: Final = 30.0  # seconds that the second worker outlives the crowd
_LEAVING: Final = 0.5  # seconds between the last word of a worker and its end
_START: Final = 60.0  # seconds for a worker to read its vocabulary
_GRACE: Final = 1.0  # seconds after the time limit at which a worker that nobody killed ends itself
_PASSING: Final = 60.0  # seconds that a refusal is remembered which a busy machine may have caused
_SIMPLER: Final = "simplify it"
_CLOSED: Final = "the server is stopping: constraints are not tried any more"

_Key: TypeAlias = Spec | str  # a specification, or the text of a stop pattern


class _Died(Exception):
    """The worker is gone, or speaks nonsense."""


class _DoesNotStart(Exception):
    """The worker says why it cannot work at all."""


class _Worker:
    """One process, which reads its vocabulary as soon as it is there."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._in, self._out = process.stdin, process.stdout
        self._is_ready = False
        self.num_answers = 0

    @staticmethod
    async def spawn(setup: bytes) -> _Worker:
        """
        Args:
            setup: the message with a Setup.

        Raises:
            OSError: there can be no further process.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "palmette.runtime.server.constraint_worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        worker = _Worker(process)
        worker._in.write(setup)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        return self._process.returncode is not None

    @property
    def rang(self) -> bool:
        """Did its own alarm end it?"""
        return sys.platform != "win32" and self._process.returncode == -signal.SIGALRM

    async def ready(self) -> None:
        """Wait until it has its vocabulary.

        Raises:
            _Died, _DoesNotStart, TimeoutError.
        """
        if self._is_ready:
            return
        async with asyncio.timeout(_START):
            answer = await self._read()
        if isinstance(answer, Failed):
            raise _DoesNotStart(answer.message)
        if not isinstance(answer, Ready):
            raise _Died
        self._is_ready = True

    async def ask(self, order: bytes, seconds: float) -> Verdict | OutOfMemory | Failed:
        """
        Raises:
            _Died, TimeoutError.
        """
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionError):  # what it may have answered before is still to be read
                self._in.write(order)
                await self._in.drain()
            answer = await self._read()
        if isinstance(answer, Ready):
            raise _Died
        self.num_answers += 1
        return answer

    async def end(self, *, leaves: bool = False) -> None:
        """Kill it, and leave no trace of it.

        Args:
            leaves: it is ending by itself: its exit status, which killing might take away, is waited for.
        """
        try:
            if leaves:
                async with asyncio.timeout(_LEAVING):
                    await self._process.wait()
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                if not self.is_gone:
                    self._process.kill()
            self._in.close()
        await self._process.wait()
        with contextlib.suppress(ConnectionError):
            while await self._out.read(1 << 16):
                pass  # up to its end, at which the pipe is closed
            await self._in.wait_closed()

    async def _read(self) -> Ready | Verdict | OutOfMemory | Failed:
        try:
            size = int.from_bytes(await self._out.readexactly(HEADER_BYTES), "big")
            if size > MAX_MESSAGE:
                raise _Died
            return from_worker(await self._out.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError) as error:
            raise _Died from error


@dataclass(slots=True, eq=False)
class _Trial:
    """One specification on its way to a verdict."""

    key: _Key
    order: bytes
    verdict: asyncio.Future[Verdict | Failed | None]  # None: there will be none, the workers close
    num_asking: int = 0


@dataclass(slots=True, eq=False)
class _Lane:
    """A place for a worker, and what holds it up."""

    worker: _Worker | None = None
    busy_since: float | None = None  # by the loop's clock
    task: asyncio.Task[None] | None = None


class ConstraintWorkers:
    """Tries specifications where they can be stopped."""

    def __init__(
        self,
        model_path: str,
        *,
        config: ConstraintConfig | None = None,
        timeout: float = 5.0,
        memory_bytes: int = 2 << 30,
        known: int = 4096,
        observe: Callable[[float], None] | None = None,
    ) -> None:
        """
        Args:
            model_path: as `tokenizer_of` takes it.
            config: the engine's, so that what passes here passes there.
            timeout: seconds for one specification, without the time it waits for its turn.
            memory_bytes: what compiling one may take, in addition to the vocabulary.
            known: verdicts to remember.
            observe: called with the seconds that each trial took.
        """
        self._setup = message(Setup(model_path, config or ConstraintConfig(), memory_bytes, timeout + _GRACE))
        self._timeout, self._memory_bytes = timeout, memory_bytes
        self._observe = observe
        self._verdicts = _Verdicts(known)
        self._trials: dict[_Key, _Trial] = {}  # in the queue or being tried
        self._queue: deque[_Trial] = deque()
        self._wake = asyncio.Event()
        self._lanes: list[_Lane] = []
        self._is_closed = False
        self.num_tried = 0  # trials that were begun
        self.num_killed = 0  # workers that were ended for the time they took, or for their memory

    async def start(self) -> None:
        """Start a worker. It reads its vocabulary meanwhile; a check waits for that.

        Raises:
            OSError: there can be no further process.
        """
        if self._lanes or self._is_closed:
            return
        worker = await _Worker.spawn(self._setup)
        if self._lanes or self._is_closed:  # meanwhile
            await worker.end()
        else:
            self._open_lane(worker)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the workers there are."""
        return tuple(lane.worker.pid for lane in self._lanes if lane.worker is not None and not lane.worker.is_gone)

    async def check(self, spec: Spec) -> tuple[str, ...]:
        """What a specification leaves unenforced.

        Raises:
            UnsupportedConstraint: it cannot be enforced, or it takes too much time or memory to compile.
            Overloaded: too many others wait.
            RequestError: it could not be tried, through no fault of its own; the log says why.
            EngineDied: the workers are closed.
        """
        return await self._unenforced(spec, lambda: try_spec(spec))

    async def check_pattern(self, text: str) -> None:
        """A stop pattern.

        Raises:
            InvalidOption: it matches the empty text, or asks for a text's start or end.
            UnsupportedConstraint, Overloaded, RequestError, EngineDied: as `check`.
        """
        await self._unenforced(text, lambda: try_pattern(text))

    async def close(self) -> None:
        """End the workers; whoever waits gets EngineDied. May be called twice."""
        self._is_closed = True
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes:  # whose task had not begun yet
            await _end(lane)
        self._lanes.clear()
        for trial in self._trials.values():
            trial.verdict.set_result(None)
        self._trials.clear()
        self._queue.clear()

    # -- asking --

    async def _unenforced(self, key: _Key, order: Callable[[], TrySpec | TryPattern]) -> tuple[str, ...]:
        if self._is_closed:
            raise EngineDied(_CLOSED)
        verdict = self._verdicts.get(key) or await self._queued(key, order)
        if verdict is None:
            raise EngineDied(_CLOSED)
        if isinstance(verdict, Refused):
            raise UnsupportedConstraint(verdict.path, verdict.keyword, verdict.reason, verdict.hint)
        if isinstance(verdict, NotAllowed):
            raise InvalidOption(verdict.field, verdict.value, verdict.allowed)
        if isinstance(verdict, NotSupported):
            raise UnsupportedFeature(verdict.feature, verdict.reason)
        if isinstance(verdict, Failed):
            raise RequestError("the constraint could not be tried, which is a fault of the server's: its log says more")
        return verdict.unenforced

    async def _queued(self, key: _Key, order: Callable[[], TrySpec | TryPattern]) -> Verdict | Failed | None:
        """The verdict of this trial, or of the same one that is under way; without anybody asking it is not begun."""
        trial = self._trials.get(key) or self._enqueue(key, message(order()))
        trial.num_asking += 1
        try:
            return await asyncio.shield(trial.verdict)
        finally:
            trial.num_asking -= 1
            if not trial.num_asking and trial in self._queue:
                self._queue.remove(trial)
                del self._trials[key]

    def _enqueue(self, key: _Key, order: bytes) -> _Trial:
        if len(order) - HEADER_BYTES > MAX_MESSAGE:
            raise UnsupportedConstraint(
                "", "specification", f"it takes {len(order)} bytes, and the limit is {MAX_MESSAGE}", _SIMPLER
            )
        if len(self._queue) >= MAX_WAITING:
            raise Overloaded(max(1, round(self._timeout)))
        trial = self._trials[key] = _Trial(key, order, asyncio.get_running_loop().create_future())
        self._queue.append(trial)
        self._wake.set()
        if not self._lanes:
            self._open_lane()
        self._help()
        return trial

    # -- trying --

    def _open_lane(self, worker: _Worker | None = None) -> None:
        lane = _Lane(worker)
        self._lanes.append(lane)
        lane.task = asyncio.create_task(self._serve(lane, stays=len(self._lanes) == 1), name="palmette-constraints")

    def _help(self) -> None:
        """Open a second lane if one trial holds up the others."""
        now = asyncio.get_running_loop().time()
        held_up = any(lane.busy_since is not None and now - lane.busy_since > 0.9 * _HELP_AFTER for lane in self._lanes)
        if held_up and self._queue and len(self._lanes) < MAX_WORKERS and not self._is_closed:
            self._open_lane()

    async def _serve(self, lane: _Lane, *, stays: bool) -> None:
        """One trial after the other. A lane that does not stay ends when there was nothing to do for a while."""
        try:
            while (trial := await self._next(stays=stays)) is not None:
                self.num_tried += 1
                try:
                    verdict = await self._try(lane, trial.order)
                except Exception:  # whoever waits must hear something
                    logger.exception("a constraint could not be tried")
                    verdict = Failed("see above")
                if not isinstance(verdict, Failed):
                    self._verdicts.add(trial.key, verdict, len(trial.order))
                self._trials.pop(trial.key).verdict.set_result(verdict)
        finally:
            self._lanes.remove(lane)
            await _end(lane)

    async def _next(self, *, stays: bool) -> _Trial | None:
        while not self._queue:
            self._wake.clear()
            try:
                async with asyncio.timeout(None if stays else _IDLE):
                    await self._wake.wait()
            except TimeoutError:
                return None
        return self._queue.popleft()

    async def _try(self, lane: _Lane, order: bytes) -> Verdict | Failed:
        for _ in range(2):
            try:
                worker = await self._worker(lane)
            except (_DoesNotStart, OSError) as error:
                logger.error("no process can try constraints: %s", error)
                await _end(lane, leaves=True)
                return Failed("it does not start")
            except _Died:
                await _end(lane, leaves=True)
                continue
            had_answered = worker.num_answers > 0
            began = lane.busy_since = asyncio.get_running_loop().time()
            asyncio.get_running_loop().call_later(_HELP_AFTER, self._help)
            try:
                answer = await worker.ask(order, self._timeout)
            except TimeoutError:
                self.num_killed += 1
                await _end(lane)
                return self._too_slow()
            except _Died:
                await _end(lane, leaves=True)
                if worker.rang:
                    return self._too_slow()
                continue
            finally:
                lane.busy_since = None
                if self._observe is not None:
                    self._observe(asyncio.get_running_loop().time() - began)
            if isinstance(answer, OutOfMemory):
                self.num_killed += 1
                await _end(lane, leaves=True)
                if had_answered:
                    continue  # it may have been what earlier ones left behind
                return self._too_large()
            if isinstance(answer, Failed):
                logger.error("a constraint could not be tried: %s", answer.message)
            return answer
        return Refused("", "constraint", "the process that compiles it died twice", _SIMPLER)

    async def _worker(self, lane: _Lane) -> _Worker:
        """The lane's worker, or a fresh one, with its vocabulary.

        Raises:
            _Died, _DoesNotStart, OSError.
        """
        if lane.worker is not None and lane.worker.is_gone:
            await _end(lane)
        if lane.worker is None:
            lane.worker = await _Worker.spawn(self._setup)
        await lane.worker.ready()
        return lane.worker

    def _too_slow(self) -> Refused:
        return Refused("", "constraint", f"it takes longer than {self._timeout:g} s to compile", _SIMPLER)

    def _too_large(self) -> Refused:
        mib = self._memory_bytes >> 20
        return Refused("", "constraint", f"it takes more than {mib} MiB to compile", _SIMPLER)


async def _end(lane: _Lane, *, leaves: bool = False) -> None:
    worker, lane.worker = lane.worker, None
    if worker is not None:
        await worker.end(leaves=leaves)


@dataclass(frozen=True, slots=True)
class _Entry:
    verdict: Verdict
    num_bytes: int
    until: float  # by time.monotonic


class _Verdicts:
    """The last verdicts that were asked for, bounded in number and in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()  # the last used at the end
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _Key) -> Verdict | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.until < time.monotonic():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.verdict

    def add(self, key: _Key, verdict: Verdict, num_bytes: int) -> None:
        """A refusal that depends on how busy the machine was is forgotten soon."""
        passes = isinstance(verdict, Refused) and verdict.keyword in ("constraint", "compile_seconds")
        until = time.monotonic() + _PASSING if passes else math.inf
        self._entries[key] = _Entry(verdict, num_bytes, until)
        self._num_bytes += num_bytes
        while self._entries and (len(self._entries) > self._limit or self._num_bytes > KNOWN_BYTES):
            self._drop(next(iter(self._entries)))

    def _drop(self, key: _Key) -> None:
        self._num_bytes -= self._entries.pop(key).num_bytes
