"""The front as a process: uvicorn on a socket that the supervisor opened, and links to one engine after the other.

The supervisor's lines say what becomes of the engine; this process believes them and judges nothing itself. Imports no
torch. Run as `python -m palmette.runtime.server.front_process` by the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator

import msgspec
import uvicorn
from uvicorn.config import LOGGING_CONFIG

from palmette.errors import EngineDied, PalmetteError
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.models.tokenizer_of import tokenizer_of
from palmette.runtime.server import lease
from palmette.runtime.server.app import build_app
from palmette.runtime.server.constraints import ConstraintWorkers
from palmette.runtime.server.orders import BAD_SETTINGS, FrontReport, FrontSettings, Order, Ready
from palmette.runtime.server.process_link import ProcessLink
from palmette.runtime.server.protocol import bounded_protocol
from palmette.runtime.server.service import ModelCard, Service
from palmette.runtime.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EXPIRE_SECONDS = 0.25  # between looks at deadlines


class Front:
    """The service of this process, led by the supervisor's orders."""

    def __init__(self, settings: FrontSettings, tokenizer: Tokenizer) -> None:
        config = settings.config
        template = tokenizer.chat_template
        if config.chat_template:
            template = ChatTemplate(config.chat_template, bos_token=template.bos_token, eos_token=template.eos_token)
        limits = config.limits
        self.constraints = ConstraintWorkers(
            config.runtime.model.model_path,
            config=config.runtime.constraints,
            timeout=limits.compile_timeout,
            memory_bytes=limits.compile_memory,
            observe=lambda seconds: self.service.observe_trial(seconds),
        )
        self.service = Service(config, tokenizer, template, self.constraints, time.monotonic)
        self._settings = settings
        self._link: ProcessLink | None = None
        self._generation = 0  # of the engine it leads to, or led to
        self._server: uvicorn.Server | None = None
        self._last_word: PalmetteError | None = None  # for what runs, once nobody will answer it

    async def serve(self, source: Iterator[bytes]) -> None:
        """Until it has drained."""
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            build_app(self.service), http=bounded_protocol(self.service), lifespan="off", log_config=_log_config(),
            log_level=self._settings.log_level, access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=5, backlog=4096,
        )  # fmt: skip
        self._server = _Server(config)
        # Now that there is what an order to drain ends: it may be the first one.
        lease.hold(source, self._settings.process.directory, lambda line: loop.call_soon_threadsafe(self._obey, line))
        await self.constraints.start()
        expiring = asyncio.ensure_future(self._expire())
        listening = socket.socket(fileno=self._settings.listen_fd)
        lease.tell(FrontReport(started=True))
        try:
            await self._server.serve(sockets=[listening])
        finally:
            expiring.cancel()
            await self.constraints.close()

    def _obey(self, line: bytes) -> None:
        order = msgspec.json.decode(line, type=Order)
        if order.ready is not None and order.generation != self._generation:
            self._attach(order.ready, order.generation)
        if order.died is not None:
            self._detach(order.died)
            if order.drain:
                self._end(EngineDied(f"{order.died} while the server was shutting down"))
        if order.stalled is not None:
            self.service.is_stalled = order.stalled
        self.service.num_restarts = max(self.service.num_restarts, order.restarts)
        if order.drain and not self.service.is_draining:
            self.service.is_draining = True
            self._draining = asyncio.ensure_future(self._drain())

    def _attach(self, ready: Ready, generation: int) -> None:
        self._detach("the engine was replaced")
        self._generation = generation
        link = ProcessLink(self._settings.process, generation, self.service.flights.take)
        self._link = link
        card = ModelCard(
            ready.name, ready.digest, ready.context_len, ready.vocab_size, ready.kv_tokens, int(time.time()),
            frozenset(ready.constraints),
        )  # fmt: skip
        self.service.attach(link, card)

    def _detach(self, reason: str) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
            self.service.detach(reason)

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._settings.config.limits.drain_timeout
        while (len(self.service.flights) or self.service.gate.num_waiting) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self._end(EngineDied("the server is shutting down and could not wait any longer"))
        assert self._server is not None, "orders come once the server is there"
        self._server.should_exit = True

    def _end(self, error: PalmetteError) -> None:
        """Nothing will come of what runs: it is told so, and what is let in after it, too."""
        self._last_word = error
        self.service.flights.fail_all(error)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_SECONDS)
            self.service.flights.expire()
            if self._last_word is not None:
                self.service.flights.fail_all(self._last_word)


class _Server(uvicorn.Server):
    """Leaves signals to the supervisor, which ends this process by its lease."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _log_config() -> dict[str, object]:
    config = {**LOGGING_CONFIG, "handlers": dict(LOGGING_CONFIG["handlers"])}
    for name, handler in config["handlers"].items():  # stdout is the supervisor's
        config["handlers"][name] = {**handler, "stream": "ext://sys.stderr"}
    return config


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager may send it to all of us: the supervisor drains
    logging.basicConfig(level=logging.INFO, format="%(levelname)s front: %(message)s", stream=sys.stderr)
    lease.own_stdout()
    source = lease.lines()
    settings = lease.read_settings(source, FrontSettings)
    try:
        tokenizer, _ = tokenizer_of(settings.config.runtime.model.model_path)
        front = Front(settings, tokenizer)
    except PalmetteError as error:
        lease.tell(FrontReport(failed=str(error)))
        raise SystemExit(BAD_SETTINGS) from None
    # What is here now stays; and a burst of requests is not to be looked through every few hundred objects.
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
        runner.run(front.serve(source))


if __name__ == "__main__":
    main()
