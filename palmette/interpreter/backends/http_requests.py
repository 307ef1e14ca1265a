"""Requests on their way over HTTP: each ends in exactly one terminal event, and is tried again only while that is safe.

    submit --> attempt --> events --> end
                 ^  |
                 `--' nothing came, and it was the connection, 429 or 503: wait, until the request's time is up

A request carries its id and its seed, so a second attempt asks for the very same tokens; behind the first event there
is none, since its reader has seen what another one might repeat. All of this runs on the client's loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

from palmette.errors import Cancelled, EngineDied, HoleTimeout, PalmetteError, RequestError, UnsupportedFeature
from palmette.interpreter.backends.http_client import HttpClient
from palmette.interpreter.backends.http_dialect import Dialect
from palmette.interpreter.backends.http_errors import TryAgain
from palmette.types import (
    Deliver,
    EmbedEvent,
    EmbedRequest,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    Request,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
)

logger = logging.getLogger(__name__)

_FIRST_WAIT = 0.1  # seconds before the second attempt, doubled for each further one
_LONGEST_WAIT = 5.0
_GRACE = 30.0  # seconds beyond a request's own timeout in which the server may tell of it
_DRAIN_SECONDS = 1.0  # for what follows a stream's last event, so that its connection can be used again


@dataclass(slots=True, eq=False)
class _Live:
    request: Request
    deliver: Deliver
    started: float  # on the monotonic clock
    task: asyncio.Task[None] | None = None
    has_events: bool = False
    has_ended: bool = False


class Requests:
    """All requests of one endpoint that have not ended."""

    def __init__(
        self,
        client: HttpClient,
        connect: Callable[[], Awaitable[Dialect]],
        recheck: Callable[[], Awaitable[None]],
        *,
        salt: Callable[[str], str],
        priority: int,
        patience: float,
    ) -> None:
        """
        Args:
            recheck: raises if another model is served now; asked after a connection was lost.
            salt: the cache salt of a namespace.
            patience: seconds in which a request of which nothing came is tried again.
        """
        self._client, self._connect, self._recheck = client, connect, recheck
        self._salt, self._priority, self._patience = salt, priority, patience
        self._live: dict[str, _Live] = {}
        self._outbox: defaultdict[Deliver, list[Event]] = defaultdict(list)
        self._closing: EngineDied | None = None

    def __len__(self) -> int:
        return len(self._live)

    def start(self, request: Request, deliver: Deliver, started: float) -> None:
        """Begin a request.

        Args:
            started: when it was submitted, on the monotonic clock.
        """
        live = _Live(request, deliver, started)
        if self._closing is not None:
            self._end(live, self._closing)
            return
        if request.request_id in self._live:
            self._end(live, RequestError(f"request_id {request.request_id!r} is that of a live request"))
            return
        self._live[request.request_id] = live
        live.task = self._client.spawn(self._follow(live))
        live.task.add_done_callback(lambda task: self._over(live, task))

    def cancel(self, request_id: str) -> None:
        """Hang up; the server notices and frees what the request held."""
        live = self._live.get(request_id)
        if live is not None and live.task is not None and not live.has_ended:
            live.task.cancel()

    def close(self) -> None:
        """End everything with EngineDied."""
        self._closing = EngineDied("the RuntimeEndpoint was closed")
        for live in list(self._live.values()):
            self._end(live, self._closing)
        self._flush()

    # -- one request --

    async def _follow(self, live: _Live) -> None:
        patience = self._patience if live.request.timeout is None else min(self._patience, live.request.timeout)
        attempt = 0
        while True:
            try:
                await self._attempt(live)
                return
            except TryAgain as failure:
                if live.has_ended:
                    return
                if live.has_events:
                    raise EngineDied(f"{failure.error} while it answered this request") from failure
                wait = pause(attempt, failure.after)
                if time.monotonic() - live.started + wait > patience:
                    raise self._given_up(live, failure, patience) from failure
                logger.debug("request %s is tried again in %.2f s: %s", live.request.request_id, wait, failure)
                lost = failure.lost
            attempt += 1
            await asyncio.sleep(wait)
            if lost:
                await self._check_again()

    async def _attempt(self, live: _Live) -> None:
        dialect = await self._connect()
        request = live.request
        timeout = None
        if request.timeout is not None:
            timeout = max(0.01, request.timeout - (time.monotonic() - live.started))
        silence = None if timeout is None else timeout + _GRACE
        if isinstance(request, GenerateRequest):
            salt = self._salt(request.namespace)
            body = dialect.body(request, salt=salt, priority=self._priority, timeout=timeout)
            reader = dialect.reader(request)
            async with aclosing(self._client.events("/generate", body, seconds=silence)) as chunks:
                async for data in chunks:
                    event = reader.take(data)
                    if event is None:
                        continue
                    self._put(live, event)
                    if live.has_ended:
                        break
                else:
                    raise TryAgain(EngineDied(f"the stream of {self._client.base_url} ended before its end"), lost=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DRAIN_SECONDS):
                        async for _ in chunks:
                            pass
        elif isinstance(request, ScoreRequest):
            salt = self._salt(request.namespace)

            async def post(path: str, body: object) -> bytes:
                return await self._client.post(path, body, seconds=silence)

            score = dialect.score(request, post, salt=salt, priority=self._priority, timeout=timeout)
            self._put(live, await score)
        else:
            raise UnsupportedFeature("embeddings", "RuntimeEndpoint generates and scores; ask /v1/embeddings for them")

    async def _check_again(self) -> None:
        with suppress(TryAgain):  # the attempt that follows will say so
            await self._recheck()

    def _given_up(self, live: _Live, failure: TryAgain, patience: float) -> PalmetteError:
        if live.request.timeout is not None and patience >= live.request.timeout:
            return HoleTimeout(f"not filled within {live.request.timeout} s: {failure.error}")
        if failure.lost:
            return EngineDied(f"{failure.error}; tried for {patience:g} s")
        return failure.error

    # -- events --

    def _over(self, live: _Live, task: asyncio.Task[None]) -> None:
        """The task has ended, for whatever reason; the request must have, too."""
        if task.cancelled():
            self._end(live, Cancelled("the request was cancelled"), FinishReason.CANCELLED)
            return
        error = task.exception()
        if live.has_ended:
            return
        if error is None:
            self._end(live, RequestError("the request ended without an end"))  # unreachable: _attempt returns with one
        elif isinstance(error, PalmetteError):
            self._end(live, error)
        else:
            logger.error("a request failed by an error of ours", exc_info=error)
            failure = RequestError(f"the request failed by an error of the client's: {error!r}")
            failure.__cause__ = error
            self._end(live, failure)

    def _end(self, live: _Live, error: PalmetteError, reason: FinishReason = FinishReason.FAILED) -> None:
        if not live.has_ended:
            self._put(live, ended(live.request, error, reason))

    def _put(self, live: _Live, event: Event) -> None:
        """Hand an event over, with all others of this turn of the loop in one call."""
        if live.has_ended:
            return
        live.has_events = True
        if not isinstance(event, TokenEvent) or event.finish is not None:
            live.has_ended = True
            if self._live.get(live.request.request_id) is live:
                del self._live[live.request.request_id]
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox[live.deliver].append(event)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, defaultdict(list)
        for deliver, events in outbox.items():
            try:
                deliver(events)
            except Exception:
                logger.exception("events could not be delivered; their requests are cancelled")
                for event in events:
                    self.cancel(event.request_id)


def ended(request: Request, error: PalmetteError, reason: FinishReason) -> Event:
    """The one event of a request that came to nothing."""
    if isinstance(request, GenerateRequest):
        return TokenEvent(request.request_id, finish=Finish(reason, error=error))
    if isinstance(request, EmbedRequest):
        return EmbedEvent(request.request_id, error=error)
    return ScoreEvent(request.request_id, error=error)


def pause(attempt: int, asked: float | None) -> float:
    """Seconds to wait: what the server asked for and a bit, or twice as long each time; never all at once."""
    if asked is not None:
        return asked + random.uniform(0.0, 0.25 * asked + _FIRST_WAIT)
    return random.uniform(0.5, 1.0) * min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt)
