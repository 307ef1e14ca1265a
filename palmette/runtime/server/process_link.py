"""The front's end of the sockets to one engine process. A new engine gets a new link; nothing crosses over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio

from palmette.runtime.server import lease, wire
from palmette.runtime.stats import Stats
from palmette.types import Event, ProgramEvent, Request

logger = logging.getLogger(__name__)


class ProcessLink:
    """An EngineLink over ZeroMQ. Made and used on the front's loop."""

    def __init__(
        self, process: lease.ProcessSettings, generation: int, take: Callable[[Sequence[Event]], None]
    ) -> None:
        """
        Args:
            take: is handed the events of each step.
        """
        self._secret = bytes.fromhex(process.secret)
        self._take = take
        self._stats: Stats | None = None
        engine_in, engine_out = lease.engine_addresses(process.directory, generation)
        context = zmq.asyncio.Context.instance()
        self._outbox: zmq.Socket[bytes] = zmq.Context(context).socket(zmq.PUSH)
        self._inbox = context.socket(zmq.PULL)
        for socket in (self._outbox, self._inbox):
            socket.set_hwm(0)  # what the gate lets in bounds it
            socket.setsockopt(zmq.LINGER, 0)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE)
        self._outbox.connect(engine_in)
        self._inbox.connect(engine_out)
        self._send(wire.Reset())
        self._receiving = asyncio.ensure_future(self._receive())

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
        """Let go of the engine; it is told nothing."""
        self._receiving.cancel()
        self._inbox.close(0)
        self._outbox.close(0)

    def _send(self, message: wire.ToEngine) -> None:
        self._outbox.send_multipart(wire.to_frames(self._secret, message), zmq.NOBLOCK)

    async def _receive(self) -> None:
        while True:
            frames = await self._inbox.recv_multipart()
            try:
                step = wire.read_for_front(self._secret, frames)
            except wire.BadMessage as error:
                logger.error("refused: %s", error)
                continue
            if step.stats is not None:
                self._stats = step.stats
            if step.events:
                self._take([wire.event_of(event) for event in step.events])
