"""The engine as a process: messages in from a ZeroMQ socket, events out to another.

    PULL --main thread--> EngineThread --engine's thread--> PUSH

Every second the engine's own thread writes a beat to stdout, between two steps, and sends its numbers to the front: a
loop that hangs stops beating. Run as `python -m palmette.runtime.server.engine_process` by the supervisor.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

import msgspec
import zmq

from palmette.errors import EngineDied, PalmetteError, RequestError
from palmette.runtime.config import ENFORCED
from palmette.runtime.driver import EngineThread
from palmette.runtime.engine import EngineCore, build_engine
from palmette.runtime.models.open_model import open_model
from palmette.runtime.request import refusal
from palmette.runtime.server import lease, wire
from palmette.runtime.server.orders import BAD_SETTINGS, EngineReport, EngineSettings, Ready
from palmette.runtime.stats import Stats
from palmette.types import Event, Finish, FinishReason, Request, TokenEvent

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
NICENESS = 15  # computing can wait for the front, which has little to do and should do it at once
DIED = 4  # exit code: an error that is not one request's


class EngineServer:
    """Requests from the wire to an engine and its events back."""

    def __init__(self, core: EngineCore, settings: EngineSettings) -> None:
        self._secret = bytes.fromhex(settings.process.secret)
        self._live: set[str] = set()  # the engine's thread's, but for what Reset reads
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        address_in, address_out = lease.engine_addresses(settings.process.directory, settings.generation)
        self._inbox = context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE)
        self._inbox.set_hwm(0)
        self._outbox = context.socket(zmq.PUSH)  # the engine's thread's
        self._outbox.set_hwm(0)  # what the front admitted bounds it
        self._outbox.setsockopt(zmq.LINGER, 0)
        self._inbox.bind(address_in)
        self._outbox.bind(address_out)
        self._thread = EngineThread(core)

    def serve(self) -> None:
        """For ever."""
        next_beat = 0.0
        while True:
            left = next_beat - time.monotonic()
            if left <= 0:
                self._thread.call(self._beat)
                next_beat, left = time.monotonic() + BEAT_SECONDS, BEAT_SECONDS
            if self._inbox.poll(int(left * 1000) + 1):
                self._receive(self._inbox.recv_multipart())

    def _receive(self, frames: list[bytes]) -> None:
        try:
            message = wire.read_for_engine(self._secret, frames)
        except wire.BadMessage as error:
            logger.error("refused: %s", error)
            return
        match message:
            case wire.Generate() | wire.Score() | wire.Embed():
                self._submit(message)
            case wire.Cancel(id=request_id):
                self._thread.cancel(request_id)
            case wire.Flush():
                self._thread.flush_cache()
            case wire.Reset():
                for request_id in list(self._live):
                    self._thread.cancel(request_id)
            case event:
                self._thread.notify(wire.program_of(event))

    def _submit(self, message: wire.Generate | wire.Score | wire.Embed) -> None:
        try:
            request: Request = wire.request_of(message)
        except PalmetteError as error:
            bare = (
                message if not isinstance(message, wire.Generate) else msgspec.structs.replace(message, constraint=None)
            )
            refused = refusal(wire.request_of(bare), FinishReason.FAILED, error)
            self._thread.call(lambda _: self._deliver([refused]))
            return
        self._live.add(request.request_id)
        self._thread.submit(request, self._deliver)

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            is_last = not isinstance(event, TokenEvent) or event.finish is not None
            if is_last:
                self._live.discard(event.request_id)
                error = event.finish.error if isinstance(event, TokenEvent) and event.finish else None
                if isinstance(error or getattr(event, "error", None), EngineDied):
                    os._exit(DIED)  # the front learns it from the supervisor, and sends what it may again
        self._send(wire.Step(tuple(map(wire.event_to_wire, events))))

    def _beat(self, stats: Stats) -> None:
        lease.tell(EngineReport(beat=True))
        self._send(wire.Step((), stats))
        if not stats.running and not stats.waiting and stats.kv_free + stats.kv_evictable != stats.kv_total:
            logger.critical("%d of %d KV slots are nobody's", stats.kv_total - stats.kv_free, stats.kv_total)
            os._exit(DIED)

    def _send(self, step: wire.Step) -> None:
        frames = wire.to_frames(self._secret, step)
        if len(frames[1]) <= wire.MAX_MESSAGE:
            self._outbox.send_multipart(frames, copy=False)
        elif len(step.events) > 1:
            for event in step.events:
                self._send(wire.Step((event,)))
        else:
            request_id = step.events[0].id
            self._thread.cancel(request_id)
            error = RequestError(f"the answer is larger than {wire.MAX_MESSAGE >> 20} MiB: ask for fewer logprobs")
            failed = TokenEvent(request_id, finish=Finish(FinishReason.FAILED, error=error))
            self._send(wire.Step((wire.event_to_wire(failed),)))


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager may send it to all of us: the supervisor drains
    logging.basicConfig(level=logging.INFO, format="%(levelname)s engine: %(message)s", stream=sys.stderr)
    lease.own_stdout()
    source = lease.lines()
    settings = lease.read_settings(source, EngineSettings)
    lease.hold(source, settings.process.directory)
    os.nice(NICENESS)
    try:
        loaded = open_model(settings.config.runtime.model)
        core = build_engine(loaded, settings.config.runtime)
        _ = core.compiler.vocabulary  # now, not in the middle of the first constraint's step
        core.commit_memory()
    except PalmetteError as error:
        lease.tell(EngineReport(failed=str(error)))
        raise SystemExit(BAD_SETTINGS) from None
    server = EngineServer(core, settings)
    model, cache = core.config.model, core.config.cache
    enforced = ENFORCED[core.config.constraints.constraint_engine]
    lease.tell(
        EngineReport(
            Ready(
                settings.config.served_model_name or loaded.name, loaded.digest, model.context_len or 0,
                loaded.config.vocab_size, cache.kv_tokens or 0, tuple(sorted(enforced)),
            )
        )
    )  # fmt: skip
    server.serve()


if __name__ == "__main__":
    main()
