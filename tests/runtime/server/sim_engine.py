"""The simulation's engine process and the sockets to it: real messages, real dispatch, a real engine, a fake model.

    Link ==bytes==> EngineEnd --> EngineCore, Scheduler, Detokenizer --> fake model
         <==bytes==

The bus delays each message by a drawn time and never reorders within one socket. The engine dies before or after any
message or step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from palmette.errors import PalmetteError
from palmette.runtime.admission import Limits
from palmette.runtime.config import Overlap
from palmette.runtime.driver import EngineThread
from palmette.runtime.engine import EngineCore
from palmette.runtime.memory import KVMemory
from palmette.runtime.overlap import Queued
from palmette.runtime.request import as_request_error, refusal
from palmette.runtime.runner import Runner
from palmette.runtime.scheduler import Scheduler
from palmette.runtime.server import wire
from palmette.runtime.server.engine_process import EngineServer
from palmette.runtime.stats import Stats
from palmette.runtime.step import ScheduledStep, StepResults
from palmette.types import Deliver, Event, FinishReason, ProgramEvent, Request, TokenEvent
from tests.runtime.fake_model import FakeModel
from tests.runtime.server.sim_golden import drawn_behind
from tests.runtime.server.sim_world import SECRET, SLACK, TOKENIZER, VOCAB, Violation

if TYPE_CHECKING:
    from tests.runtime.server.simulation import Front, Simulation

T = TypeVar("T")


class Pipe(Generic[T]):
    """One direction of one socket: every message late by a drawn time, none before the one sent before it."""

    def __init__(self, sim: Simulation, deliver: Callable[[T], None]) -> None:
        self._sim, self._deliver = sim, deliver
        self._under_way: deque[T] = deque()
        self._last = 0.0
        self._is_closed = False

    def send(self, message: T) -> None:
        if self._is_closed:
            return
        sim = self._sim
        self._last = max(self._last, sim.loop.time() + sim.rng.random() * sim.world.max_delay)
        self._under_way.append(message)
        sim.loop.call_at(self._last, self._arrive)

    def close(self) -> None:
        """Nothing arrives any more."""
        self._is_closed = True
        self._under_way.clear()

    def lose_some(self) -> None:
        """The sender died: what its last messages were is lost."""
        self._is_closed = True
        for _ in range(self._sim.rng.randint(0, len(self._under_way))):
            self._under_way.pop()

    def _arrive(self) -> None:
        if self._under_way:
            self._deliver(self._under_way.popleft())


class Link:
    """The front's end of the sockets to one engine: an EngineLink."""

    def __init__(self, front: Front, engine: EngineEnd) -> None:
        self._front = front
        self._to_engine: Pipe[list[bytes]] = Pipe(front.sim, engine.arrive)
        self._from_engine: Pipe[list[bytes]] = Pipe(front.sim, self._arrive)
        engine.to_front = self._from_engine
        self._stats: Stats | None = None
        self._send(wire.Reset())

    def submit(self, request: Request) -> None:
        self._send(wire.request_to_wire(request))

    def cancel(self, request_id: str) -> None:
        self._send(wire.Cancel(request_id))

    def notify(self, event: ProgramEvent) -> None:
        self._send(wire.program_to_wire(event))

    def flush_cache(self) -> None:
        self._send(wire.Flush())

    def stats(self) -> Stats | None:
        return self._stats

    def close(self) -> None:
        self._to_engine.close()
        self._from_engine.close()

    def _send(self, message: wire.ToEngine) -> None:
        self._to_engine.send(wire.to_frames(SECRET, message))

    def _arrive(self, frames: list[bytes]) -> None:
        step = wire.read_for_front(SECRET, frames)
        self._stats = step.stats or self._stats
        if step.events:
            self._front.take([wire.event_of(event) for event in step.events])


class _Killed(BaseException):
    """The process is gone at this point."""


@dataclass(frozen=True, slots=True)
class SimQueued:
    """A step of an engine that plans ahead; see overlap.Queued."""

    step: ScheduledStep
    core: SimCore

    def start(self) -> SimStarted:
        return SimStarted(self.core.evaluate(self.step))


@dataclass(frozen=True, slots=True)
class SimStarted:
    results: StepResults

    def finish(self) -> StepResults:
        return self.results


class SimCore(EngineCore):
    """The engine with a fake forward pass. In every other world it plans a step while the one before it is computed."""

    def __init__(self, sim: Simulation) -> None:
        config = sim.world.config.runtime
        overlap: Overlap = "on" if len(sim.world.visits) % 2 else "off"
        config = replace(config, scheduler=replace(config.scheduler, overlap=overlap))
        cache = config.cache
        assert cache.kv_tokens is not None
        self._sim, self._model = sim, FakeModel(drawn_behind)
        super().__init__(
            cast(Runner, None),  # what would compute: `_compute` and `_queue` do
            Scheduler(KVMemory(cache.kv_tokens, cache.page_size), config.scheduler),
            Limits(len(VOCAB), 1 << 20, cache.kv_tokens, cache.page_size),
            config=config,
            tokenizer=TOKENIZER,
        )

    def _compute(self, step: ScheduledStep) -> StepResults:
        self._model.forward(step)
        return self.evaluate(step)

    def _queue(self, step: ScheduledStep) -> Queued:
        self._model.forward(step)
        return SimQueued(step, self)

    def evaluate(self, step: ScheduledStep) -> StepResults:
        bad: list[int] = []
        if "bad rows" in self._sim.world.faults:
            bad = [row for row in range(len(step.parts)) if self._sim.rng.random() < 0.05]
        if self._sim.trace is not None:
            self._sim.note("  step", *(f"{part.job.request_id}[{part.start}:{part.end}]" for part in step.parts))
        return self._model.evaluate(step, bad)


class Driver:
    """An EngineThread that takes messages at once and steps when it is told."""

    def __init__(self, core: EngineCore, clock: Callable[[], float]) -> None:
        self.core, self._clock = core, clock
        self.live: dict[str, Deliver] = {}

    def submit(self, request: Request, deliver: Deliver) -> None:
        try:
            self.core.add(request, self._clock())
        except PalmetteError as error:
            deliver([refusal(request, FinishReason.FAILED, as_request_error(error))])
            return
        self.live[request.request_id] = deliver

    def cancel(self, request_id: str) -> None:
        self.core.cancel(request_id, self._clock())

    def notify(self, event: ProgramEvent) -> None:
        self.core.notify(event)

    def flush_cache(self) -> None:
        self.core.flush_cache()

    def call(self, function: Callable[[Stats], None]) -> None:
        function(self.core.stats())

    def step(self) -> None:
        by_deliver: dict[Deliver, list[Event]] = {}
        for event in self.core.step(self._clock()):
            is_last = not isinstance(event, TokenEvent) or event.finish is not None
            deliver = self.live.pop(event.request_id, None) if is_last else self.live.get(event.request_id)
            if deliver is not None:
                by_deliver.setdefault(deliver, []).append(event)
        for deliver, events in by_deliver.items():
            deliver(events)


class _Ordered(set[str]):
    """Read in the same order in every run of Python."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__()))


class EngineEnd(EngineServer):
    """The engine's process: its own dispatch of messages, on our pipes instead of sockets."""

    def __init__(self, sim: Simulation, generation: int) -> None:
        self.sim, self.generation = sim, generation
        self.driver = Driver(SimCore(sim), sim.loop.time)
        self.to_front: Pipe[list[bytes]] | None = None
        self.is_dead = False
        self.is_still = False  # stalled
        self._secret, self._live = SECRET, _Ordered()
        self._thread = cast(EngineThread, self.driver)
        self._waiting: deque[list[bytes]] = deque()  # messages that arrived
        self._is_awake = False
        # Moments at which it can die: before each message, before and after each step and each of its messages.
        dies = "crashes" in sim.world.faults and generation <= 3 and sim.rng.random() < 0.7
        self._moments_left = sim.rng.randint(1, 80) if dies else -1

    @property
    def core(self) -> EngineCore:
        return self.driver.core

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._is_awake and not self.core.has_work

    def arrive(self, frames: list[bytes]) -> None:
        if not self.is_dead:
            self._waiting.append(frames)
            self._wake(0.0)

    def stand_still(self) -> None:
        self.is_still = True

    def go_on(self) -> None:
        self.is_still = False
        self._wake(0.0)

    def kill(self, why: str) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        self.sim.happened["engine died"] += 1
        self.sim.happened["retracted"] += self.core.stats().retractions
        self.sim.note(f"engine {self.generation} dies: {why}")
        if self.to_front is not None:
            self.to_front.lose_some()
        self.sim.overseer.engine_is_gone()

    def _wake(self, seconds: float) -> None:
        if not self._is_awake and not self.is_dead and not self.is_still:
            self._is_awake = True
            self.sim.loop.call_later(seconds, self._turn)

    def _turn(self) -> None:
        """Take what arrived, and one step."""
        self._is_awake = False
        if self.is_dead or self.is_still:
            return
        try:
            while self._waiting:
                self._moment("before a message")
                self._receive(self._waiting.popleft())
            self._check_nobody_works_for_nobody()
            if self.core.has_work:
                self._moment("before a step")
                self.driver.step()
                self._moment("after a step")
        except _Killed as death:
            self.kill(str(death))
            return
        if self._waiting or self.core.has_work:
            self._wake(self.sim.world.step_seconds)
        else:
            self.check_books()
            self._send(wire.Step((), self.core.stats()))

    def _send(self, step: wire.Step) -> None:
        if self.to_front is None:
            return
        if step.events:
            self._moment("before it tells")
            self.sim.note("engine says", *(_short(event) for event in step.events))
        self.to_front.send(wire.to_frames(SECRET, step))
        if step.events:
            self._moment("having told")

    def _moment(self, what: str) -> None:
        self._moments_left -= 1
        if self._moments_left == 0:
            raise _Killed(what)
        if self.sim.world.poison in self.driver.live and what == "before a step":
            raise _Killed(f"{self.sim.world.poison} is poison")

    def _check_nobody_works_for_nobody(self) -> None:
        """A client that left was heard of: its cancel took no longer than any message does."""
        now = self.sim.loop.time()
        for job in self.core.scheduler.jobs():
            closed = self.sim.closed.get(job.request_id)
            if closed is not None and now > closed + self.sim.world.max_delay + SLACK:
                raise Violation(f"the engine computes {job.request_id} {now - closed:.3f} s after its client's end")

    def check_books(self) -> None:
        """Nobody runs: every slot is free or evictable."""
        stats = self.core.stats()
        if stats.kv_free + stats.kv_evictable != stats.kv_total:
            raise Violation(f"engine {self.generation} is idle and {stats.kv_total - stats.kv_free} slots are held")
        if self.driver.live or self._live or self.core.scheduler.jobs():
            raise Violation(f"engine {self.generation} is idle and remembers {[*self.driver.live, *self._live]}")


def _short(event: wire.Tokens | wire.Scored | wire.Embedded) -> str:
    if isinstance(event, wire.Tokens):
        end = f" {event.finish.reason}" if event.finish is not None else ""
        return f"{event.id}:{event.text!r}{list(event.token_ids)}{end}"
    return f"{event.id}:{type(event).__name__}"
