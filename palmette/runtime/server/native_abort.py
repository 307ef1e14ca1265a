"""Requests that a client may end by their ids: what runs, under which names, and how it is ended.

A client's names are its own: nobody aborts what another sent. What the engine computes is told to it, and its last
event says how far it came; what waits for a turn, or for an engine, ends here.

Used by one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from palmette.errors import Cancelled
from palmette.runtime.server.clients import Client
from palmette.runtime.server.service import Service
from palmette.types import Finish, FinishReason, GenerateRequest, TokenEvent, Usage

_PATIENCE = 5.0  # seconds that an engine may take to say how far it came


class Aborted(Cancelled):
    """The client ended the request by its id."""


class Aborts:
    """All requests that run, by client and name."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._running: dict[tuple[str, str], set[_Running]] = {}

    def __len__(self) -> int:
        """Names."""
        return len(self._running)

    async def events(
        self, client: Client, request: GenerateRequest, rids: Iterable[str], *, whole: bool, pace: float = 0.0
    ) -> AsyncGenerator[TokenEvent]:
        """The events of a request that can be aborted under any of `rids`. To be closed, which cancels the rest.

        Aborted, it ends in CANCELLED with an Aborted as its error.

        Raises:
            PalmetteError: as Service.submit.
        """
        running = _Running(self._service, request.request_id)
        names = [(client.name, rid) for rid in rids]
        for name in names:
            self._running.setdefault(name, set()).add(running)
        try:
            running.task = asyncio.current_task()
            async with self._service.submit(client, request, whole=whole, pace=pace) as events:
                running.is_flying = True
                async for event in events:
                    assert isinstance(event, TokenEvent), "a generate request is answered by token events"
                    running.task = None  # the reader's time
                    yield running.shown(event)
                    if event.finish is not None:
                        return
                    if running.gave_up:
                        break
                    running.task = asyncio.current_task()
            yield running.end(request)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not running.gave_up or (task is not None and task.uncancel() > 0):
                raise  # the reader left, or the server stops
            running.task = None
            yield running.end(request)
        finally:
            running.task = None
            for name in names:
                self._running[name].discard(running)
                if not self._running[name]:
                    del self._running[name]

    def abort(self, client: Client, rid: str) -> int:
        """End the client's requests of this name. Returns how many ran."""
        found = list(self._running.get((client.name, rid), ()))
        for running in found:
            running.abort()
        return len(found)

    def abort_all(self) -> int:
        """End everybody's."""
        found = {running for same in self._running.values() for running in same}
        for running in found:
            running.abort()
        return len(found)


class _Running:
    """One request."""

    def __init__(self, service: Service, request_id: str) -> None:
        self._service, self._request_id = service, request_id
        self.is_flying = False  # let in by the gate
        self.is_aborted = False
        self.gave_up = False  # ends here, whatever the engine says
        self.task: asyncio.Task[object] | None = None  # that waits for an event

    def abort(self) -> None:
        if self.is_aborted:
            return
        self.is_aborted = True
        link = self._service.link
        if self.is_flying and link is not None and self._service.flights.is_attached:
            link.cancel(self._request_id)
            asyncio.get_running_loop().call_later(_PATIENCE, self._give_up)
        else:
            self._give_up()

    def shown(self, event: TokenEvent) -> TokenEvent:
        """The event; an end that was asked for says so."""
        finish = event.finish
        if finish is None or finish.reason is not FinishReason.CANCELLED or not self.is_aborted:
            return event
        ended = Finish(finish.reason, finish.token_ids, finish.tail, finish.matched, finish.usage,
                       finish.prompt_logprobs, _error(), finish.steered, finish.unenforced)  # fmt: skip
        return TokenEvent(event.request_id, event.text, event.token_ids, event.logprobs, ended)

    def end(self, request: GenerateRequest) -> TokenEvent:
        """The last event of what ends here."""
        usage = Usage(prompt_tokens=len(request.token_ids))
        return TokenEvent(request.request_id, finish=Finish(FinishReason.CANCELLED, usage=usage, error=_error()))

    def _give_up(self) -> None:
        self.gave_up = True
        if self.task is not None:
            self.task.cancel()


def _error() -> Aborted:
    return Aborted("the client aborted the request")
