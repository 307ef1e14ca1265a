"""Bugs that were, or could have been: each is put back, and the simulation or a state machine must see it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from starlette.types import Receive

from palmette.errors import EngineDied, HoleTimeout, PalmetteError
from palmette.runtime.detokenizer import Detokenizer
from palmette.runtime.memory import KVMemory
from palmette.runtime.request import AnyJob, Job
from palmette.runtime.request import refusal as true_refusal
from palmette.runtime.scheduler import Scheduler
from palmette.runtime.server import flights as flights_module
from palmette.runtime.server import http, native, wire
from palmette.runtime.server.engine_process import EngineServer
from palmette.runtime.server.flights import Flight, Flights
from palmette.runtime.server.gate import Gate, _Lane
from palmette.runtime.server.native import _error_event as true_error_event
from palmette.types import Event, FinishReason, GenerateRequest, Request, SamplingParams
from tests.runtime.server.sim_engine import Link
from tests.runtime.server.sim_world import Violation
from tests.runtime.server.simulation import run_seed
from tests.runtime.server.test_flights import FlightsMachine
from tests.runtime.server.test_gate import GateMachine

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]

MAX_SEEDS = 1000  # within which the simulation must see a bug; most are seen in the first twenty


# -- of the flights ----------------------------------------------------------------------------------------------------


def a_flight_is_not_sent_again(patch: Patch) -> None:
    restart = Flight.restart

    def restart_but_stay_sent(flight: Flight) -> None:
        sent = flight.sent
        restart(flight)
        flight.sent = sent

    patch.setattr(Flight, "restart", restart_but_stay_sent)


def the_last_event_comes_twice(patch: Patch) -> None:
    take = Flight.take

    def take_twice(flight: Flight, event: Event, now: float) -> None:
        take(flight, event, now)
        if flight.ended:
            take(flight, event, now)

    patch.setattr(Flight, "take", take_twice)


def events_of_a_dead_engine_are_believed(patch: Patch) -> None:
    def take(flights: Flights, events: Sequence[Event]) -> None:
        for event in events:
            flight = flights._live.get(event.request_id)
            if flight is not None and not flight.ended:
                sent, flight.sent = flight.sent, True
                true_take(flights, [event])
                flight.sent = sent and flight.sent

    true_take = Flights.take
    patch.setattr(Flights, "take", take)
    patch.setattr(Link, "close", lambda link: link._to_engine.close())  # the socket it comes from is left open


def a_cancel_is_lost(patch: Patch) -> None:
    patch.setattr(Flights, "_cancel", lambda flights, flight: None)


def who_leaves_is_not_cancelled(patch: Patch) -> None:
    def forget(flights: Flights, flight: Flight) -> None:
        flights._live.pop(flight.request.request_id, None)

    patch.setattr(Flights, "forget", forget)


def a_flight_that_ended_is_never_forgotten(patch: Patch) -> None:
    forget = Flights.forget

    def forget_some(flights: Flights, flight: Flight) -> None:
        if not flight.ended:
            forget(flights, flight)

    patch.setattr(Flights, "forget", forget_some)


def a_stream_says_stop_after_a_crash(patch: Patch) -> None:
    def refusal(request: Request, reason: FinishReason, error: PalmetteError) -> Event:
        return true_refusal(request, FinishReason.STOP if isinstance(error, EngineDied) else reason, error)

    patch.setattr(flights_module, "refusal", refusal)


def a_stream_begins_again_after_a_crash(patch: Patch) -> None:
    async def next_event(flight: Flight) -> Event:
        event = await true_next(flight)
        flight.handed_out = False
        return event

    true_next = Flight.__anext__
    patch.setattr(Flight, "__anext__", next_event)


def a_whole_answer_is_handed_out_in_pieces(patch: Patch) -> None:
    def launch(flights: Flights, request: Request, deadline: float, *, whole: bool) -> Flight:
        return true_launch(flights, request, deadline, whole=False)

    true_launch = Flights.launch
    patch.setattr(Flights, "launch", launch)


def poison_is_tried_for_ever(patch: Patch) -> None:
    patch.setattr(flights_module, "MAX_CRASHES", 1 << 30)


def a_request_dies_with_the_first_engine(patch: Patch) -> None:
    patch.setattr(flights_module, "MAX_CRASHES", 1)


def deadlines_are_the_engines_business(patch: Patch) -> None:
    patch.setattr(Flights, "expire", lambda flights: None)


def every_attempt_has_the_whole_time(patch: Patch) -> None:
    def send(flights: Flights, flight: Flight) -> None:
        flight.deadline = max(flight.deadline, flights._clock() + (flight.request.timeout or 0.0))
        true_send(flights, flight)

    true_send = Flights._send
    patch.setattr(Flights, "_send", send)


def what_a_slow_reader_leaves_is_kept(patch: Patch) -> None:
    def take(flights: Flights, events: Sequence[Event]) -> None:
        for event in events:
            flight = flights._live.get(event.request_id)
            if flight is not None and not flight.ended and flight.sent:
                flight.take(event, flights._clock())

    patch.setattr(Flights, "take", take)


# -- of the gate -------------------------------------------------------------------------------------------------------


def the_gate_leaks_on_a_timeout(patch: Patch) -> None:
    def drop(gate: Gate, lane: _Lane, tokens: int) -> None:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            true_drop(gate, lane, tokens)

    async def wait(gate: Gate, lane: _Lane, tokens: int, priority: int, timeout: float) -> None:
        try:
            await true_wait(gate, lane, tokens, priority, timeout)
        except HoleTimeout:
            lane.num_waiting += 1
            gate.num_waiting += 1
            raise

    true_drop, true_wait = Gate._drop, Gate._wait
    patch.setattr(Gate, "_wait", wait)


def a_turn_is_lost_with_who_gave_up(patch: Patch) -> None:
    """Who is let in while giving up does not hand the turn on."""

    async def wait(gate: Gate, lane: _Lane, tokens: int, priority: int, timeout: float) -> None:
        leave, gate.leave = gate.leave, lambda: None  # type: ignore[method-assign]
        try:
            await true_wait(gate, lane, tokens, priority, timeout)
        finally:
            gate.leave = leave  # type: ignore[method-assign]

    true_wait = Gate._wait
    patch.setattr(Gate, "_wait", wait)


def the_gate_stumbles_over_who_gave_up(patch: Patch) -> None:
    """As it once did: somebody who gave up a moment ago is counted, and no longer in the heap."""

    def admit(gate: Gate) -> None:
        while gate.num_inside < gate._limits.max_in_engine and gate.num_waiting:
            lane = min((lane for lane in gate._lanes.values() if lane.num_waiting), key=lambda lane: lane.virtual_time)
            waiting = heapq.heappop(lane.waiting)
            if waiting.admitted.done():
                continue
            gate._drop(lane, waiting.tokens)
            gate._advance(lane, waiting.tokens)
            gate.num_inside += 1
            waiting.admitted.set_result(None)

    patch.setattr(Gate, "_admit", admit)


def nobody_is_let_in_when_one_leaves(patch: Patch) -> None:
    def leave(gate: Gate) -> None:
        gate.num_inside -= 1

    patch.setattr(Gate, "leave", leave)


def the_gate_lets_in_one_too_many(patch: Patch) -> None:
    def leave(gate: Gate) -> None:
        gate.num_inside -= 1
        true_leave(gate)
        gate.num_inside += 1

    true_leave = Gate.leave
    patch.setattr(Gate, "leave", leave)


def priority_is_not_looked_at(patch: Patch) -> None:
    async def enter(gate: Gate, client: str, tokens: int, *, priority: int = 0, timeout: float) -> None:
        await true_enter(gate, client, tokens, priority=0, timeout=timeout)

    true_enter = Gate.enter
    patch.setattr(Gate, "enter", enter)


def the_queue_has_no_end(patch: Patch) -> None:
    def make(gate: Gate, limits: Any, clock: Callable[[], float], *, shares: bool = False) -> None:
        true_make(gate, replace(limits, max_waiting=1 << 20, max_waiting_tokens=1 << 30), clock, shares=shares)

    true_make = Gate.__init__
    patch.setattr(Gate, "__init__", make)


# -- of the wire and the engine's process ------------------------------------------------------------------------------


def stop_strings_do_not_cross(patch: Patch) -> None:
    def to_wire(request: Request) -> wire.Generate | wire.Score | wire.Embed:
        if isinstance(request, GenerateRequest):
            request = replace(request, params=SamplingParams(request.params.max_new_tokens))
        return true_to_wire(request)

    true_to_wire = wire.request_to_wire
    patch.setattr(wire, "request_to_wire", to_wire)


def an_error_becomes_a_good_end(patch: Patch) -> None:
    patch.setattr(wire, "error_to_wire", lambda error: None)


def the_engine_does_not_hear_a_new_front(patch: Patch) -> None:
    def receive(engine: EngineServer, frames: list[bytes]) -> None:
        if not isinstance(wire.read_for_engine(engine._secret, frames), wire.Reset):
            true_receive(engine, frames)

    true_receive = EngineServer._receive
    patch.setattr(EngineServer, "_receive", receive)


# -- of the engine -----------------------------------------------------------------------------------------------------


def slots_are_not_freed_on_cancel(patch: Patch) -> None:
    def cancel(scheduler: Scheduler, request_id: str, now: float) -> Event | None:
        job = scheduler._jobs.get(request_id)
        if job is not None and job.node is not None:
            scheduler.memory.tree.lock_ref(job.node)
        return true_cancel(scheduler, request_id, now)

    true_cancel = Scheduler.cancel
    patch.setattr(Scheduler, "cancel", cancel)


def slots_are_not_freed_at_the_end(patch: Patch) -> None:
    def drop(memory: KVMemory, job: Job) -> None:
        job.tail = []
        true_drop(memory, job)

    true_drop = KVMemory.drop
    patch.setattr(KVMemory, "drop", drop)


def rows_are_not_given_back(patch: Patch) -> None:
    def free_rows(scheduler: Scheduler, job: AnyJob) -> None:
        if job.request_id != "r3":
            true_free_rows(scheduler, job)

    true_free_rows = Scheduler._free_rows
    patch.setattr(Scheduler, "_free_rows", free_rows)


def half_a_character_comes_out(patch: Patch) -> None:
    class Hasty:
        """Does not wait for a character's last byte."""

        def decode(self, data: bytes) -> str:
            return data.decode("utf-8", "replace")

        def getstate(self) -> tuple[bytes, int]:
            return b"", 0

    def make(detokenizer: Detokenizer, *args: Any) -> None:
        true_make(detokenizer, *args)
        detokenizer._decoder = Hasty()  # type: ignore[assignment]

    true_make = Detokenizer.__init__
    patch.setattr(Detokenizer, "__init__", make)


def a_stop_string_leaks(patch: Patch) -> None:
    patch.setattr(Detokenizer, "_could_begin_stop", lambda detokenizer: 0)


def what_was_held_back_is_lost_at_the_end(patch: Patch) -> None:
    def finish(detokenizer: Detokenizer) -> Any:
        return true_finish(detokenizer)._replace(text="")

    true_finish = Detokenizer.finish
    patch.setattr(Detokenizer, "finish", finish)


def the_engine_drops_a_cancelled_request_without_an_event(patch: Patch) -> None:
    def cancel(scheduler: Scheduler, request_id: str, now: float) -> Event | None:
        true_cancel(scheduler, request_id, now)
        return None

    true_cancel = Scheduler.cancel
    patch.setattr(Scheduler, "cancel", cancel)


def a_retracted_request_forgets_what_it_said(patch: Patch) -> None:
    def requeue(scheduler: Scheduler, job: AnyJob, *, keep: bool) -> None:
        true_requeue(scheduler, job, keep=keep)
        job.tokens.truncate(job.prompt_len)

    true_requeue = Scheduler._requeue
    patch.setattr(Scheduler, "_requeue", requeue)


# -- of the answers over HTTP ------------------------------------------------------------------------------------------


def a_failed_stream_says_done(patch: Patch) -> None:
    patch.setattr(native, "_error_event", lambda error: true_error_event(error) + http.DONE)


def a_disconnect_is_not_noticed(patch: Patch) -> None:
    async def gone(receive: Receive) -> None:
        await asyncio.Event().wait()

    patch.setattr(http, "_gone", gone)


def everything_is_our_fault(patch: Patch) -> None:
    patch.setattr(http, "_classify", lambda error: (500, "internal_error", None))


BY_HTTP: tuple[Mutation, ...] = (
    a_failed_stream_says_done,
    a_disconnect_is_not_noticed,
    everything_is_our_fault,
    a_flight_is_not_sent_again,
    a_stream_says_stop_after_a_crash,
    a_cancel_is_lost,
)
BY_SIMULATION: tuple[Mutation, ...] = (
    a_flight_is_not_sent_again,
    the_last_event_comes_twice,
    events_of_a_dead_engine_are_believed,
    a_cancel_is_lost,
    who_leaves_is_not_cancelled,
    a_flight_that_ended_is_never_forgotten,
    a_stream_says_stop_after_a_crash,
    a_stream_begins_again_after_a_crash,
    a_whole_answer_is_handed_out_in_pieces,
    poison_is_tried_for_ever,
    a_request_dies_with_the_first_engine,
    deadlines_are_the_engines_business,
    every_attempt_has_the_whole_time,
    what_a_slow_reader_leaves_is_kept,
    the_gate_leaks_on_a_timeout,
    a_turn_is_lost_with_who_gave_up,
    the_gate_stumbles_over_who_gave_up,
    nobody_is_let_in_when_one_leaves,
    the_gate_lets_in_one_too_many,
    the_queue_has_no_end,
    stop_strings_do_not_cross,
    an_error_becomes_a_good_end,
    the_engine_does_not_hear_a_new_front,
    slots_are_not_freed_on_cancel,
    slots_are_not_freed_at_the_end,
    rows_are_not_given_back,
    half_a_character_comes_out,
    a_stop_string_leaks,
    what_was_held_back_is_lost_at_the_end,
    the_engine_drops_a_cancelled_request_without_an_event,
    a_retracted_request_forgets_what_it_said,
)
BY_MACHINE: tuple[tuple[Mutation, type[RuleBasedStateMachine]], ...] = (
    (a_flight_is_not_sent_again, FlightsMachine),
    (the_last_event_comes_twice, FlightsMachine),
    (events_of_a_dead_engine_are_believed, FlightsMachine),
    (a_cancel_is_lost, FlightsMachine),
    (a_whole_answer_is_handed_out_in_pieces, FlightsMachine),
    (poison_is_tried_for_ever, FlightsMachine),
    (what_a_slow_reader_leaves_is_kept, FlightsMachine),
    (the_gate_leaks_on_a_timeout, GateMachine),
    (the_gate_stumbles_over_who_gave_up, GateMachine),
    (the_gate_lets_in_one_too_many, GateMachine),
    (the_queue_has_no_end, GateMachine),
    (priority_is_not_looked_at, GateMachine),
)


def first_seen(seeds: range, *, over_http: bool = False) -> int | None:
    """The first seed that fails."""
    for seed in seeds:
        try:
            run_seed(seed, over_http=over_http)
        except Violation:
            return seed
    return None


@pytest.mark.parametrize("mutation", BY_SIMULATION, ids=lambda mutation: mutation.__name__)
def test_the_simulation_sees(mutation: Mutation, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert first_seen(range(MAX_SEEDS)) is not None, f"no history of {MAX_SEEDS} shows it"


@pytest.mark.parametrize("mutation", BY_HTTP, ids=lambda mutation: mutation.__name__)
def test_the_simulation_sees_over_http(mutation: Mutation, monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert first_seen(range(MAX_SEEDS // 3), over_http=True) is not None, "no history shows it"


QUICK = settings(
    max_examples=300, stateful_step_count=40, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
)  # fmt: skip


@pytest.mark.parametrize(("mutation", "machine"), BY_MACHINE, ids=lambda value: value.__name__)
def test_a_state_machine_sees(
    mutation: Mutation, machine: type[RuleBasedStateMachine], monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutation(monkeypatch)
    try:
        run_state_machine_as_test(machine, settings=QUICK)
    except Exception:  # noqa: BLE001 - however it shows
        return
    pytest.fail("no run shows it")


@pytest.mark.parametrize("machine", [FlightsMachine, GateMachine], ids=lambda machine: machine.__name__)
def test_without_a_mutation_the_machine_sees_nothing(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(QUICK, max_examples=30))
