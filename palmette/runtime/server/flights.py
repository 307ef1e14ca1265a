"""Requests on their way through the engine, seen from the front: exactly one end each, whatever becomes of the engine.

    launch --> WAITING --attach--> SENT --events--> ENDED
                  ^                  |
                  `---detach---------'   once, and only if nothing of it was handed out

An engine that dies takes nobody's answer silently: who was told nothing yet is sent to the next engine, once; who was
told something gets an error as the last event; who was in flight at two deaths is not sent again.

Knows no sockets; of clocks the one it is given and, for a pace, the loop's. Used by one event loop, on its thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

from palmette.errors import Cancelled, EngineDied, HoleTimeout, PalmetteError, RequestError
from palmette.runtime.request import as_request_error, refusal
from palmette.types import Event, FinishReason, GenerateRequest, Request, TokenEvent

MAX_CRASHES = 2  # of the engine with the same request in flight
_LOGPROB_SIZE = 64  # characters that a logprob counts as


class Transport(Protocol):
    """What carries to the engine that lives now. Never blocks."""

    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> None: ...


class Flight:
    """One request. An async iterator of its events, the last of which ends it; leaving the block cancels the rest.

    async with flights.launch(request, ...) as flight:
        async for event in flight: ...
    """

    __slots__ = ("_due", "_events", "_flights", "_pace", "_timer", "_unread", "_waiter", "crashes", "deadline", "ended",
                 "handed_out", "request", "sent", "times", "whole")  # fmt: skip

    def __init__(self, flights: Flights, request: Request, deadline: float, *, whole: bool, pace: float) -> None:
        self.request = request
        self.deadline = deadline  # on the flights' clock
        self.whole = whole  # hand nothing out before the end
        self.crashes = 0
        self.sent = False  # to the engine that lives now
        self.handed_out = False
        self.ended = False  # its last event is known
        self.times: list[float] = []  # at which events with tokens came, whether or not somebody read them
        self._flights = flights
        self._events: deque[Event] = deque()
        self._unread = 0  # as _size counts
        self._waiter: asyncio.Future[None] | None = None
        self._pace = pace  # seconds between two events that are handed out; what comes meanwhile is one event
        self._due = 0.0  # on the loop's clock: when the next one may be
        self._timer: asyncio.TimerHandle | None = None  # wakes the reader then

    async def __aenter__(self) -> Flight:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> Flight:
        return self

    async def __anext__(self) -> Event:
        loop = asyncio.get_running_loop()
        while not self._events or (not self.ended and (self.whole or loop.time() < self._due)):
            if self.ended:
                raise StopAsyncIteration
            self._waiter = loop.create_future()
            if self._events and not self.whole:
                self._timer = loop.call_at(self._due, _release, self._waiter)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
        self.handed_out = True
        if not self._pace:
            event = self._events.popleft()
            self._unread -= _size(event)
            return event
        event = _joined(self._events)
        self._events.clear()
        self._unread = 0
        self._due = loop.time() + self._pace
        return event

    def close(self) -> None:
        """Nobody reads it any more. May be called twice."""
        self._flights.forget(self)

    def take(self, event: Event, now: float) -> None:
        """An event of the engine's, or the end that it did not bring."""
        self._events.append(event)
        self._unread += _size(event)
        if isinstance(event, TokenEvent):
            if event.token_ids:
                self.times.append(now)
            self.ended = event.finish is not None
        else:
            self.ended = True
        self._wake()

    @property
    def unread(self) -> int:
        """Characters that wait for the reader, and what counts as such."""
        return 0 if self.whole else self._unread

    def restart(self) -> None:
        """Forget what came from an engine that died."""
        self._events.clear()
        self.times.clear()
        self._unread = 0
        self.sent = False

    def _wake(self) -> None:
        if self._waiter is not None and (self.ended or not (self.whole or self._timer is not None)):
            _release(self._waiter)


class Flights:
    """All requests that were launched and have not ended or been closed."""

    def __init__(self, clock: Callable[[], float], *, max_unread: int) -> None:
        """
        Args:
            clock: seconds.
            max_unread: characters a streaming flight may hold for its reader; more ends it.
        """
        self._clock = clock
        self._max_unread = max_unread
        self._live: dict[str, Flight] = {}
        self._transport: Transport | None = None

    def __len__(self) -> int:
        return len(self._live)

    @property
    def is_attached(self) -> bool:
        return self._transport is not None

    def launch(self, request: Request, deadline: float, *, whole: bool, pace: float = 0.0) -> Flight:
        """Send a request, now or as soon as there is an engine.

        Args:
            deadline: when it fails with HoleTimeout at the latest, on the clock.
            whole: hand out nothing before the end, so that the request survives an engine's death.
            pace: hand out an event in so many seconds at most, the first one and the end at once: what comes between
                is joined, which spares both sides of a connection most of their work.
        """
        assert request.request_id not in self._live, "ids are made here, one for each request"
        flight = Flight(self, request, deadline, whole=whole, pace=pace)
        self._live[request.request_id] = flight
        if self._transport is not None:
            self._send(flight)
        return flight

    def attach(self, transport: Transport) -> None:
        """An engine is there."""
        self._transport = transport
        for flight in list(self._live.values()):
            if not flight.ended and not flight.sent:
                self._send(flight)

    def detach(self, reason: str = "the engine died") -> None:
        """The engine is gone. See the module's diagram for who is told what."""
        if self._transport is None:
            return
        self._transport = None
        for flight in list(self._live.values()):
            if flight.ended or not flight.sent:
                continue
            flight.crashes += 1
            if flight.handed_out:
                self._end(flight, EngineDied(f"{reason} while it answered this request: send it again"))
            elif flight.crashes >= MAX_CRASHES:
                self._end(flight, RequestError(f"{reason} twice with this request in flight; it is not tried again"))
            else:
                flight.restart()

    def take(self, events: Iterable[Event]) -> None:
        """Events of the engine that lives now."""
        now = self._clock()
        for event in events:
            flight = self._live.get(event.request_id)
            if flight is None or flight.ended or not flight.sent:
                continue  # closed here while the event was on its way, or an answer of an engine that died
            flight.take(event, now)
            if not flight.ended and flight.unread > self._max_unread:
                self._cancel(flight)
                self._end(flight, RequestError(f"the client left {flight.unread} characters unread"))

    def expire(self) -> None:
        """End what is past its deadline; the engine does so itself, so this is for those it does not answer."""
        now = self._clock()
        for flight in list(self._live.values()):
            if not flight.ended and now >= flight.deadline:
                self._cancel(flight)
                self._end(flight, HoleTimeout("the request's time ran out"))

    def fail_all(self, error: PalmetteError) -> None:
        """End everything with an error."""
        for flight in list(self._live.values()):
            if not flight.ended:
                self._cancel(flight)
                self._end(flight, error)

    def forget(self, flight: Flight) -> None:
        """Its reader is gone: what has not ended is cancelled."""
        if self._live.pop(flight.request.request_id, None) is flight and not flight.ended:
            self._cancel(flight)
            flight.take(refusal(flight.request, FinishReason.CANCELLED, Cancelled("the reader left")), self._clock())

    def _send(self, flight: Flight) -> None:
        assert self._transport is not None, "there is an engine"
        left = flight.deadline - self._clock()
        if left <= 0:
            self._end(flight, HoleTimeout("the request's time ran out"))
            return
        try:
            self._transport.submit(replace(flight.request, timeout=left))
        except Exception as error:  # noqa: BLE001 - one request is one failure domain: the others are sent
            self._end(flight, as_request_error(error))
            return
        flight.sent = True

    def _cancel(self, flight: Flight) -> None:
        if flight.sent and self._transport is not None:
            self._transport.cancel(flight.request.request_id)

    def _end(self, flight: Flight, error: PalmetteError) -> None:
        kept = flight.handed_out and isinstance(flight.request, GenerateRequest)
        if not kept:
            flight.restart()
        flight.take(refusal(flight.request, FinishReason.FAILED, error), self._clock())


def _joined(events: Sequence[Event]) -> Event:
    """One event that says what all of one request say; only token events are several."""
    if len(events) == 1:
        return events[0]
    parts = [event for event in events if isinstance(event, TokenEvent)]
    assert len(parts) == len(events), "a request has one event, or token events"
    return TokenEvent(
        parts[0].request_id,
        "".join(part.text for part in parts),
        tuple(chain.from_iterable(part.token_ids for part in parts)),
        tuple(chain.from_iterable(part.logprobs for part in parts)),
        parts[-1].finish,
    )


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _size(event: Event) -> int:
    """How many characters it counts as while it waits for its reader: logprobs hold more memory than the text."""
    if not isinstance(event, TokenEvent):
        return 0
    return len(event.text) + _LOGPROB_SIZE * sum(1 + len(row.top) for row in event.logprobs)
