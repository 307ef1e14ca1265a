"""Requests in flight: exactly one end each, whatever becomes of engine, reader and time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from palmette.errors import Cancelled, EngineDied, HoleTimeout, InvalidOption, PalmetteError, RequestError
from palmette.runtime.server.flights import MAX_CRASHES, Flight, Flights
from palmette.types import (
    ChoiceTrie,
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
from tests.runtime.server.virtual_loop import VirtualLoop

MAX_UNREAD = 5
STOP = Finish(FinishReason.STOP)


@dataclass
class Engine:
    """One engine's end of the transport: what it was sent and not sent since."""

    submitted: list[str] = field(default_factory=list)
    timeouts: dict[str, float] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    refuses: PalmetteError | None = None  # raised by the next submit

    def submit(self, request: Request) -> None:
        if self.refuses is not None:
            raise self.refuses
        assert request.request_id not in self.submitted, "one engine got one request twice"
        self.submitted.append(request.request_id)
        assert request.timeout is not None
        self.timeouts[request.request_id] = request.timeout

    def cancel(self, request_id: str) -> None:
        assert request_id in self.submitted, "a cancel of what this engine never got"
        assert request_id not in self.cancelled, "cancelled twice"
        self.cancelled.append(request_id)


def error_in(event: Event) -> PalmetteError | None:
    """What the event fails with."""
    if isinstance(event, TokenEvent):
        return None if event.finish is None else event.finish.error
    return event.error


def is_last(event: Event) -> bool:
    return not isinstance(event, TokenEvent) or event.finish is not None


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


async def read(flight: Flight) -> Event | None:
    """The next event; None behind the last."""
    return await anext(aiter(flight), None)


# -- one thing at a time -----------------------------------------------------------------------------------------------


def test_leaving_the_block_cancels_at_the_engine(loop: VirtualLoop) -> None:
    flights, engine = Flights(loop.time, max_unread=MAX_UNREAD), Engine()
    flights.attach(engine)

    async def leave() -> None:
        async with flights.launch(GenerateRequest("a", (1,)), 10.0, whole=False):
            assert len(flights) == 1

    loop.run(leave())
    assert engine.cancelled == ["a"]
    assert len(flights) == 0


def test_a_reader_that_waits_is_told_of_a_close(loop: VirtualLoop) -> None:
    flights = Flights(loop.time, max_unread=MAX_UNREAD)
    flight = flights.launch(GenerateRequest("a", (1,)), 10.0, whole=True)
    reading = loop.create_task(read(flight))
    loop.settle()
    flight.close()
    event = loop.run(reading)
    assert event is not None
    assert isinstance(error_in(event), Cancelled)
    assert loop.run(read(flight)) is None


def test_what_cannot_be_sent_fails_alone(loop: VirtualLoop) -> None:
    flights, engine = Flights(loop.time, max_unread=MAX_UNREAD), Engine()
    flights.attach(engine)
    engine.refuses = InvalidOption("stop", "...", "Unicode text")
    bad = flights.launch(GenerateRequest("bad", (1,)), 10.0, whole=True)
    engine.refuses = None
    good = flights.launch(GenerateRequest("good", (1,)), 10.0, whole=True)
    event = loop.run(read(bad))
    assert event is not None
    assert isinstance(error_in(event), InvalidOption)
    bad.close()
    assert engine.cancelled == []
    flights.detach()
    flights.attach(Engine())  # it does not stand in the way of the others
    flights.take([TokenEvent("good", finish=STOP)])
    assert loop.run(read(good)) == TokenEvent("good", finish=STOP)


def test_what_waits_for_an_engine_and_cannot_be_sent_fails_alone(loop: VirtualLoop) -> None:
    flights, engine = Flights(loop.time, max_unread=MAX_UNREAD), Engine()
    engine.refuses = InvalidOption("stop", "...", "Unicode text")
    waiting = [flights.launch(GenerateRequest(name, (1,)), 10.0, whole=True) for name in "ab"]
    flights.attach(engine)
    for flight in waiting:
        event = loop.run(read(flight))
        assert event is not None
        assert isinstance(error_in(event), InvalidOption)


def test_logprobs_that_nobody_reads_are_bounded_too(loop: VirtualLoop) -> None:
    flights, engine = Flights(loop.time, max_unread=10_000), Engine()
    flights.attach(engine)
    flight = flights.launch(GenerateRequest("a", (1,)), 10.0, whole=False)
    row = TokenLogprob(7, -1.0, top=tuple((token, -2.0) for token in range(20)))
    for _ in range(5):
        flights.take([TokenEvent("a", "", (7,), (row,))])
    assert not flight.ended
    for _ in range(5):
        flights.take([TokenEvent("a", "", (7,), (row,))])
    assert flight.ended
    assert engine.cancelled == ["a"]
    event = loop.run(read(flight))
    assert event is not None
    assert isinstance(error_in(event), RequestError)


def test_what_was_read_counts_no_longer(loop: VirtualLoop) -> None:
    flights = Flights(loop.time, max_unread=100)
    flights.attach(Engine())
    flight = flights.launch(GenerateRequest("a", (1,)), 10.0, whole=False)
    for _ in range(100):
        flights.take([TokenEvent("a", "ab", (7,), (TokenLogprob(7, -1.0),))])
        assert loop.run(read(flight)) is not None
        assert flight.unread == 0
    assert not flight.ended


@settings(max_examples=300)
@given(
    gaps=st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.04, 0.2]), min_size=1, max_size=30),
    late=st.sampled_from([0.0, 0.015, 0.5]),
)
def test_a_pace_joins_events_and_delays_neither_the_first_nor_the_end(gaps: list[float], late: float) -> None:
    loop = VirtualLoop()
    flights = Flights(loop.time, max_unread=10_000)
    flights.attach(Engine())
    flight = flights.launch(GenerateRequest("a", (1,)), 1000.0, whole=False, pace=0.03)
    row = TokenLogprob(7, -1.0)
    events = [TokenEvent("a", f"{i} ", (i,), (row,), STOP if i + 1 == len(gaps) else None) for i in range(len(gaps))]
    came: list[float] = []
    found: list[tuple[float, TokenEvent]] = []

    async def write() -> None:
        for gap, event in zip(gaps, events, strict=True):
            await asyncio.sleep(gap)
            came.append(loop.time())
            flights.take([event])

    async def read_all() -> None:
        await asyncio.sleep(late)
        async for event in flight:
            assert isinstance(event, TokenEvent)
            found.append((loop.time(), event))

    async def both() -> None:
        await asyncio.gather(write(), read_all())

    loop.run(both())
    assert "".join(event.text for _, event in found) == "".join(event.text for event in events)
    assert [i for _, event in found for i in event.token_ids] == list(range(len(gaps)))
    assert sum(len(event.logprobs) for _, event in found) == len(gaps)
    assert [event.finish for _, event in found] == [None] * (len(found) - 1) + [STOP]
    times = [time for time, _ in found]
    assert times[0] - max(came[0], late) < 1e-4
    assert times[-1] - max(came[-1], late) < 1e-4
    assert all(after - before > 0.03 - 1e-9 for before, after in pairwise(times[:-1]))
    assert flight.unread == 0
    loop.close()


def test_the_end_of_an_engine_says_what_a_pace_held_back(loop: VirtualLoop) -> None:
    flights = Flights(loop.time, max_unread=100)
    flights.attach(Engine())
    flight = flights.launch(GenerateRequest("a", (1,)), 10.0, whole=False, pace=1.0)
    flights.take([TokenEvent("a", "x", (1,))])
    assert loop.run(read(flight)) == TokenEvent("a", "x", (1,))
    reading = loop.create_task(read(flight))
    for i in (2, 3):
        flights.take([TokenEvent("a", "y", (i,))])
        loop.settle()
    assert not reading.done()
    flights.detach()
    event = loop.run(reading)
    assert isinstance(event, TokenEvent)
    assert (event.text, event.token_ids) == ("yy", (2, 3))
    assert isinstance(error_in(event), EngineDied)
    assert loop.run(read(flight)) is None


# -- everything at once ------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What is so of one flight."""

    flight: Flight
    request: Request
    whole: bool
    deadline: float
    pending: deque[Event] = field(default_factory=deque)
    got: list[Event] = field(default_factory=list)
    at_engine: bool = False
    num_sent: int = 0
    crashes: int = 0
    ended: bool = False
    closed: bool = False
    is_over: bool = False  # the reader saw the end of the iteration
    reading: asyncio.Task[Event | None] | None = None

    @property
    def kind(self) -> type[Request]:
        return type(self.request)

    @property
    def unread(self) -> int:
        return sum(len(e.text) for e in self.pending if isinstance(e, TokenEvent))


class FlightsMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order: every reader sees exactly what the model says, and one end."""

    @initialize(has_engine=st.booleans())
    def build(self, has_engine: bool) -> None:
        self.loop = VirtualLoop()
        self.flights = Flights(self.loop.time, max_unread=MAX_UNREAD)
        self.models: dict[str, Model] = {}
        self.engine: Engine | None = None
        self.number = 0
        if has_engine:
            self.attach()

    # -- the front --

    @rule(kinds=st.lists(st.sampled_from(["stream", "stream", "whole", "score"]), min_size=1, max_size=4),
          timeout=st.sampled_from([1000.0, 1000.0, 1000.0, 3.0, 0.0]))  # fmt: skip
    def launch(self, kinds: list[str], timeout: float) -> None:
        for kind in kinds:
            self.launch_one(whole=kind == "whole", timeout=timeout, scores=kind == "score")
        self.look()

    def launch_one(self, *, whole: bool, timeout: float, scores: bool) -> None:
        self.number += 1
        name = f"r{self.number}"
        request: Request = GenerateRequest(name, (1, 2))
        if scores:
            request = ScoreRequest(name, (1, 2), ChoiceTrie((1,), (-1,)))
        deadline = self.loop.time() + timeout
        flight = self.flights.launch(request, deadline, whole=whole)
        model = self.models[name] = Model(flight, request, whole, deadline)
        self.model_send(model)

    @precondition(lambda self: self.readable())
    @rule(data=st.data())
    def read_one(self, data: st.DataObject) -> None:
        model = self.models[data.draw(st.sampled_from(self.readable()))]
        model.reading = self.loop.create_task(read(model.flight))
        self.look()

    @precondition(lambda self: self.reading())
    @rule(data=st.data())
    def stop_reading(self, data: st.DataObject) -> None:
        """The task that reads is cancelled; the flight is not closed yet."""
        model = self.models[data.draw(st.sampled_from(self.reading()))]
        assert model.reading is not None
        model.reading.cancel()
        self.loop.settle()
        model.reading = None

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        model = self.models[data.draw(st.sampled_from(sorted(self.models)))]
        model.flight.close()
        if not model.closed and not model.ended:
            self.expect_cancel(model)
            self.model_end(model, Cancelled, keeps=True)
        model.closed = True
        self.look()

    @rule(seconds=st.sampled_from([0.5, 4.0]), looks=st.booleans())
    def pass_time(self, seconds: float, looks: bool) -> None:
        self.loop.settle(seconds)
        if looks:
            self.flights.expire()
            for model in self.models.values():
                if not model.ended and not model.closed and self.loop.time() >= model.deadline:
                    self.expect_cancel(model)
                    self.model_end(model, HoleTimeout)
        self.look()

    @rule(kind=st.sampled_from(["detach", "detach", "fail_all"]))
    def everything_breaks(self, kind: str) -> None:
        if kind == "detach":
            self.detach()
        else:
            self.fail_all()
        self.look()

    def fail_all(self) -> None:
        self.flights.fail_all(EngineDied("the server is closing"))
        for model in self.models.values():
            if not model.ended and not model.closed:
                self.expect_cancel(model)
                self.model_end(model, EngineDied)

    # -- the engine --

    @precondition(lambda self: self.engine is None)
    @rule()
    def attach(self) -> None:
        self.engine = Engine()
        self.flights.attach(self.engine)
        for model in self.models.values():
            if not model.ended and not model.closed:
                self.model_send(model)
        self.look()

    def detach(self) -> None:
        self.flights.detach("the engine died")
        if self.engine is not None:
            self.engine = None
            for model in self.models.values():
                if not model.at_engine or model.ended or model.closed:
                    continue
                model.at_engine = False
                model.crashes += 1
                if model.got:
                    self.model_end(model, EngineDied)
                elif model.crashes >= MAX_CRASHES:
                    self.model_end(model, RequestError)
                else:
                    model.pending.clear()

    @precondition(lambda self: self.models)
    @rule(data=st.data(), texts=st.lists(st.sampled_from(["", "a", "abcd", "é" * 6]), min_size=1, max_size=6))
    def step(self, data: st.DataObject, texts: list[str]) -> None:
        """Events of any requests in any order: also of those that ended, were closed, or went down with an engine."""
        events: list[Event] = []
        working = [name for name, m in self.models.items() if m.at_engine and not m.ended and not m.closed]
        for text in texts:
            name = data.draw(st.sampled_from([*self.models, *working * 4]))
            finish = data.draw(st.sampled_from([None] * 6 + [STOP, Finish(FinishReason.FAILED)]))
            scores = self.models[name].kind is ScoreRequest
            events.append(ScoreEvent(name, (-1.0,)) if scores else TokenEvent(name, text, (7,), finish=finish))
        self.flights.take(events)
        for event in events:
            self.model_take(self.models[event.request_id], event)
        self.look()

    # -- the model --

    def model_send(self, model: Model) -> None:
        if self.engine is None:
            return
        left = model.deadline - self.loop.time()
        name = model.request.request_id
        if left <= 0:
            assert name not in self.engine.submitted
            self.model_end(model, HoleTimeout)
            return
        assert name in self.engine.submitted, "it was not sent"
        assert self.engine.timeouts[name] == pytest.approx(left)
        model.at_engine = True
        model.num_sent += 1
        assert model.num_sent <= MAX_CRASHES, "it was sent again too often"

    def model_take(self, model: Model, event: Event) -> None:
        if model.ended or model.closed or not model.at_engine:
            return
        model.pending.append(event)
        model.ended = is_last(event)
        if not model.ended and not model.whole and model.unread > MAX_UNREAD:
            self.expect_cancel(model)
            self.model_end(model, RequestError)

    def model_end(self, model: Model, error: type[PalmetteError], *, keeps: bool = False) -> None:
        """It ends with an error of ours, behind what the reader has begun to read."""
        if not keeps and not (model.got and model.kind is GenerateRequest):
            model.pending.clear()
        model.ended = True
        finish = Finish(FinishReason.FAILED, error=error("..."))
        scores = model.kind is ScoreRequest
        name = model.request.request_id
        model.pending.append(ScoreEvent(name, error=error("...")) if scores else TokenEvent(name, finish=finish))

    def expect_cancel(self, model: Model) -> None:
        if self.engine is not None and model.at_engine:
            assert model.request.request_id in self.engine.cancelled, "the engine goes on with it"

    def readable(self) -> list[str]:
        return [name for name, model in self.models.items() if model.reading is None]

    def reading(self) -> list[str]:
        return [name for name, model in self.models.items() if model.reading is not None]

    def look(self) -> None:
        """Let the readers run, and compare what they got."""
        self.loop.settle()
        for model in self.models.values():
            has_next = bool(model.pending) and (model.ended or not model.whole)
            if model.reading is None:
                continue
            assert model.reading.done() == (has_next or model.ended), "a reader waits or is served against the model"
            if not model.reading.done():
                continue
            event = model.reading.result()
            model.reading = None
            if event is None:
                assert not model.pending, "the end came before the last event"
                assert model.got, "an end without an event"
                assert is_last(model.got[-1])
                model.is_over = True
                continue
            assert not model.is_over, "an event behind the end"
            assert not any(map(is_last, model.got)), "a second end"
            expected = model.pending.popleft()
            if error_in(expected) is None:
                assert event is expected
            else:
                assert type(error_in(event)) is type(error_in(expected))
                assert is_last(event)
            model.got.append(event)

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "flights"):
            return
        assert len(self.flights) == sum(not model.closed for model in self.models.values())
        assert self.flights.is_attached == (self.engine is not None)
        for model in self.models.values():
            assert model.flight.ended == model.ended
            if not model.ended and not model.whole:
                assert model.flight.unread == model.unread <= MAX_UNREAD

    def teardown(self) -> None:
        if hasattr(self, "flights"):
            try:
                self.read_all()
            finally:
                self.loop.abandon()

    def read_all(self) -> None:
        """Whoever keeps reading comes to exactly one end."""
        self.flights.fail_all(EngineDied("the server is closed"))
        for model in self.models.values():
            if not model.ended and not model.closed:
                self.model_end(model, EngineDied)
        for _ in range(200):
            for model in self.models.values():
                if model.reading is None and not model.is_over:
                    model.reading = self.loop.create_task(read(model.flight))
            self.look()
            if all(model.is_over for model in self.models.values()):
                break
        assert all(sum(map(is_last, model.got)) == 1 for model in self.models.values())
        for model in self.models.values():
            model.flight.close()
        assert len(self.flights) == 0


TestFlightsMachine = FlightsMachine.TestCase
TestFlightsMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
