"""The server without processes, sockets, threads and a clock: one seed is one history, and every history is checked.

    visits --[ Door: the application, as ASGI ]--> Service: gate, flights --Link--> EngineEnd --> engine, fake model
                                                         ^                              |
                                                         `--- Overseer: starts engines -'

Real are the application, the service, its gate and flights, the wire's encoding both ways, the engine process's
dispatch, and the engine down to the step; a forward pass is a sum. Engines crash before or after any message, stall,
and come again; the front dies; clients leave, read slowly, set deadlines and are too many.

    python -m tests.runtime.server.simulation --seed 17 --trace
    python -m tests.runtime.server.simulation --seeds 0 10000
    python -m tests.runtime.server.simulation --seeds 0 2000 --http

Here are who starts engines, the front, and the course of a history. What is drawn is in sim_world, what is owed in
sim_golden, the engine's end in sim_engine, the way in over HTTP in sim_http, and what may happen to a request in
sim_judge.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from palmette.errors import EngineDied, PalmetteError, UnsupportedConstraint
from palmette.runtime.server.service import ModelCard, Observed, Service, checked
from palmette.specs import Spec
from palmette.types import Event, GenerateRequest, ProgramEvent
from tests.runtime.server.sim_engine import EngineEnd, Link, Pipe
from tests.runtime.server.sim_http import Door, SimService
from tests.runtime.server.sim_judge import Judge
from tests.runtime.server.sim_world import EXPIRE_SECONDS, SLACK, TOKENIZER, VOCAB, Violation, Visit, draw_world
from tests.runtime.server.virtual_loop import Stuck, VirtualLoop

HORIZON = 3000.0  # seconds after which somebody waits for ever
REPLAY = "python -m tests.runtime.server.simulation"


class Overseer:
    """The supervisor: one engine after the other, and orders to the front in their order."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.engine: EngineEnd | None = None
        self.orders: Pipe[Callable[[Front], None]] = Pipe(sim, lambda order: order(sim.front))
        self._generation = 0

    def start_engine(self) -> None:
        self._generation += 1
        self.sim.loop.call_later(self.sim.rng.choice((0.05, 0.5, 3.0)), self._loaded)

    def engine_is_gone(self) -> None:
        self.sim.loop.call_later(self.sim.rng.random() * self.sim.rng.choice((0.001, 0.2)), self._bury)

    def stall(self, seconds: float) -> None:
        engine = self.engine
        if engine is None or engine.is_dead or engine.is_still:
            return
        self.sim.note(f"engine {engine.generation} stands still for {seconds} s")
        engine.stand_still()
        limits = self.sim.world.config.limits
        loop = self.sim.loop
        loop.call_later(limits.stall_unready, self._tell_stalled, engine)
        loop.call_later(limits.stall_kill, self._give_up, engine)
        loop.call_later(seconds, self._recovered, engine)

    def tell(self, order: Callable[[Front], None]) -> None:
        self.orders.send(order)

    def _loaded(self) -> None:
        engine = self.engine = EngineEnd(self.sim, self._generation)
        self.sim.note(f"engine {engine.generation} is ready")
        self.tell(lambda front: front.attach(engine))

    def _bury(self) -> None:
        self.engine = None
        self.tell(lambda front: front.detach("the engine died"))
        self.start_engine()

    def _tell_stalled(self, engine: EngineEnd) -> None:
        if engine.is_still and not engine.is_dead:
            self.tell(lambda front: front.set_stalled(True))

    def _give_up(self, engine: EngineEnd) -> None:
        if engine.is_still:
            engine.kill("no sign of life")

    def _recovered(self, engine: EngineEnd) -> None:
        if engine.is_still and not engine.is_dead:
            engine.go_on()
            self.tell(lambda front: front.set_stalled(False))


class Front:
    """The front's process: a Service, and what tells it of the engine."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        config, constraints = sim.world.config, SimConstraints(sim)
        self.service = SimService(config, TOKENIZER, TOKENIZER.chat_template, constraints, sim.loop.time)
        self.door = Door(self.service) if sim.over_http else None
        self.service.observers.append(self._observe)
        self.num_observed = 0
        self.num_asked = 0
        self.num_deaths = 0
        self.is_dead = False
        self._link: Link | None = None
        self._generation = 0  # of the engine that is there
        sim.loop.call_later(EXPIRE_SECONDS, self._expire)

    def attach(self, engine: EngineEnd) -> None:
        if engine.generation == self._generation:
            return
        self.detach("the engine was replaced")
        self._generation = engine.generation
        self.sim.note(f"front: engine {engine.generation} is there")
        self._link = Link(self, engine)
        card = ModelCard("sim", "", 1 << 20, len(VOCAB), self.sim.world.kv_tokens, 0)
        self.service.attach(self._link, card)

    def detach(self, reason: str) -> None:
        if self._link is None:
            return
        self.sim.note(f"front: {reason}")
        self.num_deaths += 1
        self._link.close()
        self._link = None
        self.service.detach(reason)

    def set_stalled(self, value: bool) -> None:
        self.sim.note("front: the engine", "is stalled" if value else "goes on")
        self.service.is_stalled = value

    def take(self, events: list[Event]) -> None:
        self.service.flights.take(events)
        self._check_bounds()

    def die(self) -> None:
        self.is_dead = True
        if self._link is not None:
            self._link.close()

    def _expire(self) -> None:
        if not self.is_dead and not self.sim.is_over:
            self.service.flights.expire()
            self._check_bounds()
            self.sim.loop.call_later(EXPIRE_SECONDS, self._expire)

    def _observe(self, observed: Observed) -> None:
        self.num_observed += 1

    def _check_bounds(self) -> None:
        gate, limits = self.service.gate, self.sim.world.config.limits
        if not 0 <= gate.num_inside <= limits.max_in_engine or not 0 <= gate.num_waiting <= limits.max_waiting:
            raise Violation(f"{gate.num_inside} inside and {gate.num_waiting} waiting")
        for flight in self.service.flights._live.values():
            if not flight.ended and flight.unread > limits.max_unread:
                raise Violation(f"{flight.unread} characters wait for the reader of {flight.request.request_id}")
        if len(self.service.flights) > gate.num_inside:
            raise Violation(f"{len(self.service.flights)} flights of {gate.num_inside} that were let in")


class SimConstraints:
    """A worker that takes its time and refuses."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim

    async def check(self, spec: Spec) -> tuple[str, ...]:
        await asyncio.sleep(self._sim.rng.random() * 0.1)
        raise UnsupportedConstraint("", "regex", "it does not parse")

    async def check_pattern(self, text: str) -> None:
        raise AssertionError("no history has a stop pattern")


class Simulation:
    """One seed. `run` returns what happened, by kind, or raises Violation."""

    def __init__(self, seed: int, *, over_http: bool = False, trace: list[str] | None = None) -> None:
        """
        Args:
            over_http: generations are asked for at the application's door.
            trace: gets a line for whatever happens.
        """
        self.seed, self.over_http, self.trace = seed, over_http, trace
        self.rng = Random(seed)
        self.world = draw_world(self.rng)
        self.loop = VirtualLoop()
        self.closed: dict[str, float] = {}  # when a request's client had its end, or left
        self.is_over = False
        self.happened: Counter[str] = Counter()
        self.overseer = Overseer(self)
        self.front = Front(self)
        self._errors: list[BaseException] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._has_ended = False  # the server

    def run(self) -> Counter[str]:
        """
        Raises:
            Violation: names the seed.
        """
        self.loop.set_exception_handler(self._note_error)
        try:
            self.loop.run(self._live())
        except Exception as error:
            what = error if isinstance(error, Violation | Stuck) else f"{type(error).__name__}: {error}"
            replay = f"{REPLAY} --seed {self.seed} --trace" + (" --http" if self.over_http else "")
            raise Violation(f"seed {self.seed}: {what}\n  replay: {replay}") from error
        finally:
            self.is_over = True
            self.loop.abandon()
        return self.happened

    def note(self, *words: object) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.loop.time():9.4f}  " + " ".join(map(str, words)))

    def _note_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._errors.append(context.get("exception") or Violation(context["message"]))

    def _raise_noted(self) -> None:
        if self._errors:
            raise self._errors[0]

    async def _live(self) -> None:
        world = self.world
        self.note("faults:", ", ".join(sorted(world.faults)) or "none")
        self.overseer.start_engine()
        while self.over_http and self.front.service.card is None:  # before that everybody is refused
            await asyncio.sleep(0.05)
        for when, seconds in world.stalls:
            self.loop.call_later(when, self.overseer.stall, seconds)
        if world.front_dies_at is not None:
            self.loop.call_later(world.front_dies_at, self._kill_front)
        for when, event in world.programs:
            self.loop.call_later(when, self._notify, event)
        if world.flushes_at is not None:
            self.loop.call_later(world.flushes_at, self._flush)
        for visit in world.visits:
            self.loop.call_later(visit.arrives, self._arrive, visit)
        if world.drains_at is not None:
            await asyncio.sleep(world.drains_at)
            await self._drain()
        await asyncio.sleep(max(visit.arrives for visit in world.visits) + SLACK)
        deadline = self.loop.time() + HORIZON
        while any(not task.done() for task in self._tasks.values()):
            self._raise_noted()
            if self.loop.time() > deadline:
                waiting = [name for name, task in self._tasks.items() if not task.done()]
                raise Violation(f"{', '.join(waiting)} wait for ever")
            await asyncio.wait([task for task in self._tasks.values() if not task.done()], timeout=1.0)
        for task in self._tasks.values():
            task.result()
        await self._be_quiet()
        self._raise_noted()
        self._check_end()
        for visit in world.visits:
            Judge(world, visit, self.happened).judge()

    def _notify(self, event: ProgramEvent) -> None:
        self.front.service.notify(event)

    def _flush(self) -> None:
        with contextlib.suppress(EngineDied):  # there may be none
            self.front.service.flush_cache()

    # -- clients --

    def _arrive(self, visit: Visit) -> None:
        if self._has_ended:
            visit.outcome, visit.is_sent_away = "left", True
            return
        task = self._tasks[visit.name] = self.loop.create_task(self._visit(visit))
        if visit.leaves is not None:
            self.loop.call_later(visit.leaves, task.cancel)
        if visit.aborts is not None and self.front.door is not None:
            self.loop.call_later(visit.aborts, self.front.door.abort, visit)

    async def _visit(self, visit: Visit) -> None:
        front = self.front
        visit.asked, deaths = self.loop.time(), front.num_deaths
        visit.could_serve = not (front.service.is_draining or front.service.is_stalled)
        self.note(f"{visit.client.name} asks for {visit.name} ({visit.kind})")
        try:
            if front.door is not None and visit.kind in ("stream", "whole"):
                visit.could_serve = visit.could_serve and front.service.card is not None
                await front.door.ask(visit)
            else:
                await self._ask(front.service, visit)
            visit.outcome = "answered"
        except asyncio.CancelledError:
            visit.outcome = "left"
        except PalmetteError as error:
            visit.outcome, visit.error = type(error).__name__, error
        visit.ended, visit.deaths = self.loop.time(), front.num_deaths - deaths
        if not front.is_dead:
            self.closed[visit.name] = visit.ended
        self.happened[visit.outcome] += 1
        self.note(f"{visit.name} {visit.outcome}: {visit.error or visit.text!r}")

    async def _ask(self, service: Service, visit: Visit) -> None:
        if service.is_full:  # as the guard asks before anything is read
            raise service.refusal()
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        service.turnstile.call(partial(_begin, begun))
        await begun
        self.front.num_asked += 1
        if visit.kind == "whole":
            assert isinstance(visit.request, GenerateRequest)
            answer = await service.collect(visit.client, visit.request)
            visit.text, visit.tokens, visit.finish = answer.text, list(answer.token_ids), answer.finish
            return
        async with service.submit(visit.client, visit.request, whole=visit.kind != "stream") as events:
            async for event in events:
                visit.take(event)
                if visit.pause:
                    await asyncio.sleep(visit.pause)
        if visit.finish is None:
            raise Violation(f"the stream of {visit.name} ended without an end")
        checked(visit.finish)

    # -- the ways of the server --

    def _kill_front(self) -> None:
        """Its clients lose their connections; the next one listens on the same socket."""
        if self._has_ended:
            return
        self.note("the front dies")
        self.happened["front died"] += 1
        front, self.front = self.front, Front(self)
        front.die()
        for visit in self.world.visits:
            task = self._tasks.get(visit.name)
            if task is not None and not task.done():
                visit.is_sent_away = True
                task.cancel()
        self.closed.clear()  # its last cancels may be lost; the next front's first message makes up for them
        self.loop.call_later(0.1, self._introduce_engine, list(self._tasks))

    def _introduce_engine(self, names: list[str]) -> None:
        """What the supervisor last said, for the front that is new."""
        self.closed.update({name: self.loop.time() + self.world.max_delay for name in names})
        engine = self.overseer.engine
        if engine is not None and not engine.is_dead and self.front.service.link is None:
            self.overseer.tell(lambda front: front.attach(engine))

    async def _drain(self) -> None:
        """SIGTERM: who is there may finish, for a while."""
        self.note("draining")
        service = self.front.service
        service.is_draining = True
        deadline = self.loop.time() + self.world.config.limits.drain_timeout
        while (len(service.flights) or service.gate.num_waiting) and self.loop.time() < deadline:
            await asyncio.sleep(0.05)
        self._has_ended = True
        for visit in self.world.visits:
            task = self._tasks.get(visit.name)
            if task is not None and not task.done():
                visit.is_sent_away = True
                task.cancel()

    async def _be_quiet(self) -> None:
        """Until all messages have arrived and the engine, if there is one, has nothing to do."""
        self.closed.clear()
        for _ in range(200):
            self._raise_noted()
            await asyncio.sleep(self.world.max_delay + 0.1)
            engine = self.overseer.engine
            if engine is None or engine.is_dead or engine.is_idle:
                return
        raise Violation("the engine never comes to rest")

    def _check_end(self) -> None:
        gate, flights = self.front.service.gate, self.front.service.flights
        if gate.num_inside or gate.num_waiting or gate.waiting_tokens or len(flights):
            raise Violation(
                f"all is over, and {gate.num_inside} are inside, {gate.num_waiting} wait with {gate.waiting_tokens} "
                f"tokens, {len(flights)} are in flight"
            )
        service = self.front.service
        if service.num_working or len(service.turnstile):
            raise Violation(f"all is over, and {service.num_working} are worked on, {len(service.turnstile)} in line")
        if self.front.door is not None and self.front.door.num_remembered:
            raise Violation(f"{self.front.door.num_remembered} requests that ended could still be aborted")
        if self.front.num_observed != self.front.num_asked and not self.over_http:
            raise Violation(f"{self.front.num_observed} requests were seen to end of {self.front.num_asked}")
        engine = self.overseer.engine
        if engine is not None and not engine.is_dead:
            engine.check_books()
            engine.core.check_integrity()
            self.happened["retracted"] += engine.core.stats().retractions


def run_seed(seed: int, *, over_http: bool = False) -> Counter[str]:
    """
    Raises:
        Violation: names the seed.
    """
    return Simulation(seed, over_http=over_http).run()


def run_seeds(seeds: range, *, over_http: bool = False) -> Counter[str]:
    """All of them, added up.

    Raises:
        Violation: of the first that fails.
    """
    total: Counter[str] = Counter()
    for seed in seeds:
        total.update(run_seed(seed, over_http=over_http))
    return total


def _begin(waits: asyncio.Future[None]) -> None:
    if not waits.done():  # else it gave up
        waits.set_result(None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Live through the histories of some seeds, and check each.")
    parser.add_argument("--seed", type=int, help="one")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FIRST", "BEHIND"), default=(0, 1000))
    parser.add_argument("--http", action="store_true", help="through the application's door")
    parser.add_argument("--trace", action="store_true", help="write down what happens")
    options = parser.parse_args(arguments)
    seeds = range(*options.seeds) if options.seed is None else range(options.seed, options.seed + 1)
    failed, total, start = 0, Counter[str](), time.perf_counter()
    for seed in seeds:
        trace: list[str] | None = [] if options.trace else None
        try:
            total.update(Simulation(seed, over_http=options.http, trace=trace).run())
        except Violation as error:
            failed += 1
            (trace if trace is not None else []).append(f"VIOLATION {error}")
            if trace is None:
                sys.stdout.write(f"{error}\n")
        if trace:
            sys.stdout.write("\n".join(trace) + "\n")
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{len(seeds)} seeds, {failed} failed, {1000 * seconds / len(seeds):.1f} ms each\n")
    sys.stdout.write(
        "".join(f"  {count:7} {what}\n" for what, count in total.most_common()) if not options.trace else ""
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
