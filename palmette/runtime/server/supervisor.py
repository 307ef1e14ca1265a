"""Starts the front and the engine, and starts them anew when they die. The only judge of who lives.

    engine  LOADING --ready--> READY --no beat 10 s--> STALLED --60 s--> killed
               ^                  |        `--beat--> READY       |
               `------------------+-------- died <----------------'

The listening socket is opened here and handed to the front, so that a front that is started anew answers on the same
port. SIGTERM and SIGINT drain; a second one ends at once. Everything this made on disk is one directory, removed on
every way out; the children remove it when this process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from palmette.errors import InvalidOption, PalmetteError
from palmette.runtime.models.find import find_model
from palmette.runtime.server.config import ServerConfig
from palmette.runtime.server.lease import ProcessSettings
from palmette.runtime.server.orders import EngineReport, EngineSettings, FrontReport, FrontSettings, Order

logger = logging.getLogger(__name__)

LOAD_SECONDS = 600.0  # that an engine may take to load its model
MAX_PAUSE = 30.0  # seconds before an engine that does not come up is tried again
MAX_FILES = 65536
TINY = "tiny"
KEY_VARIABLES = ("PALMETTE_API_KEY", "PALMETTE_ADMIN_KEY")
PREFIX = "palmette-"  # of the directory


class CannotServe(PalmetteError):
    """The server did not come up; says why."""


class Supervisor:
    """Owns one front and one engine."""

    def __init__(self, config: ServerConfig, *, log_level: str = "info") -> None:
        self._config, self._log_level = config, log_level
        self._process = ProcessSettings("", secrets.token_hex(32))
        self._front: Process | None = None
        self._engine: Process | None = None
        self._stopping = asyncio.Event()
        self._beat = 0.0  # when the engine last gave a sign of life
        self._order = Order()  # the last one on the engine, for a front that comes anew
        self._restarts = 0
        self._failure: str | None = None

    async def run(self, started: Callable[[str], None]) -> None:
        """Serve until a signal says otherwise.

        Args:
            started: is told the URL once requests are served.

        Raises:
            InvalidOption: the address cannot be bound.
            CannotServe: front or engine could not start.
        """
        listening = _listen(self._config.host, self._config.port)
        directory = tempfile.mkdtemp(prefix=PREFIX)  # mode 0700
        self._process = ProcessSettings(directory, self._process.secret)
        Path(directory, "owner").write_text(str(os.getpid()))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        is_up = asyncio.Event()
        tasks = [
            asyncio.ensure_future(self._keep_engine(is_up)),
            asyncio.ensure_future(self._keep_front(listening)),
            asyncio.ensure_future(self._watch_beats()),
        ]
        stopping = asyncio.ensure_future(self._stopping.wait())
        announcing = asyncio.ensure_future(self._announce(is_up, listening, started))
        try:
            await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            for task in (*tasks, stopping, announcing):
                task.cancel()
            results = await asyncio.gather(*tasks, stopping, announcing, return_exceptions=True)
            await self._end()
            listening.close()
            shutil.rmtree(directory, ignore_errors=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    # -- the engine ----------------------------------------------------------------------------------------------------

    async def _keep_engine(self, is_up: asyncio.Event) -> None:
        generation, failed_starts = 0, 0  # those that died before they were ready
        reason = "there was no engine yet"
        while not self._stopping.is_set():
            generation += 1
            reason = await self._run_engine(generation, is_up)
            if self._failure is not None and not is_up.is_set():
                raise CannotServe(self._failure)
            if self._stopping.is_set():
                break
            self._restarts += 1
            logger.error("%s; it is started anew", reason)
            failed_starts = 0 if self._order.generation == generation else failed_starts + 1
            self._tell_front(Order(died=reason, restarts=self._restarts))
            if failed_starts > 1:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(MAX_PAUSE, 2.0 ** (failed_starts - 1))):
                        await self._stopping.wait()
        self._tell_front(Order(died=reason, restarts=self._restarts, drain=True))  # and no other will come

    async def _run_engine(self, generation: int, is_up: asyncio.Event) -> str:
        """Start one, follow its reports until it is gone, and say why it went."""
        engine = self._engine = await _spawn("engine_process")
        _write(engine, EngineSettings(self._process, self._config, generation))
        self._beat = time.monotonic() + LOAD_SECONDS
        assert engine.stdout is not None, "it is a pipe"
        async for line in engine.stdout:
            report = msgspec.json.decode(line, type=EngineReport)
            self._beat = time.monotonic()
            if report.failed is not None:
                self._failure = report.failed
            if report.ready is not None:
                self._tell_front(Order(ready=report.ready, generation=generation, restarts=self._restarts))
                is_up.set()
            elif report.beat and self._order.stalled:
                self._tell_front(Order(self._order.ready, generation, stalled=False, restarts=self._restarts))
        code = await engine.wait()
        for name in ("in", "out"):
            Path(self._process.directory, f"engine-{generation}.{name}").unlink(missing_ok=True)
        self._engine = None
        return f"the engine died ({_how(code)})"

    async def _watch_beats(self) -> None:
        limits = self._config.limits
        pause = min(0.5, limits.stall_unready / 4)
        while True:
            slept = time.monotonic()
            await asyncio.sleep(pause)
            if time.monotonic() - slept > 2 * pause + 0.5:
                continue  # this process did not run either: beats may be waiting to be read
            silent = time.monotonic() - self._beat
            if self._engine is None or silent < limits.stall_unready:
                continue
            if not self._order.stalled and self._order.ready is not None:
                logger.error("the engine has given no sign of life for %.0f s", silent)
                self._tell_front(
                    Order(self._order.ready, self._order.generation, stalled=True, restarts=self._restarts)
                )
            if silent >= limits.stall_kill:
                self._beat = time.monotonic() + LOAD_SECONDS
                self._engine.kill()

    # -- the front -----------------------------------------------------------------------------------------------------

    async def _keep_front(self, listening: socket.socket) -> None:
        has_started = False
        while True:
            front = self._front = await _spawn("front_process", listening.fileno())
            _write(front, FrontSettings(self._process, self._config, listening.fileno(), self._log_level))
            if self._order.ready is not None or self._order.died is not None:
                _write(front, self._order)
            failure = None
            assert front.stdout is not None, "it is a pipe"
            async for line in front.stdout:
                report = msgspec.json.decode(line, type=FrontReport)
                has_started = has_started or report.started
                failure = report.failed or failure
            code = await front.wait()
            if self._stopping.is_set():
                return
            if not has_started:
                raise CannotServe(failure or f"the front died while it started ({_how(code)})")
            logger.error("the front died (%s); it is started anew", _how(code))
            await asyncio.sleep(0.2)

    def _tell_front(self, order: Order) -> None:
        self._order = order
        if self._front is not None:
            _write(self._front, order)

    # -- beginning and end ---------------------------------------------------------------------------------------------

    async def _announce(self, is_up: asyncio.Event, listening: socket.socket, started: Callable[[str], None]) -> None:
        await is_up.wait()
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        while not await asyncio.to_thread(_answers, host, port):
            await asyncio.sleep(0.05)
        started(url)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            logger.warning("told twice to stop: stopping at once")
            for process in (self._front, self._engine):
                if process is not None and process.returncode is None:
                    process.kill()
        self._stopping.set()

    async def _drain(self) -> None:
        """Let the front finish what runs."""
        self._stopping.set()
        front = self._front
        if front is None or front.returncode is not None:
            return
        _write(front, Order(drain=True))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.limits.drain_timeout + 10.0):
                await front.wait()

    async def _end(self) -> None:
        """Both children are gone afterwards."""
        for process in (self._front, self._engine):
            if process is None or process.returncode is not None:
                continue
            if process.stdin is not None:
                process.stdin.close()  # its lease
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3.0):
                    await process.wait()
                continue
            process.kill()
            await process.wait()


def sweep() -> None:
    """Remove directories whose supervisor and children were all killed at once."""
    for directory in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError, ValueError):
            if directory.stat().st_uid != os.getuid():
                continue
            owner = int((directory / "owner").read_text())
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                shutil.rmtree(directory, ignore_errors=True)


def resolved(config: ServerConfig) -> ServerConfig:
    """With the model's path and name found, so that none of the children looks for it, least of all on a hub.

    Raises:
        ModelNotFound: nothing has this name.
    """
    options = config.runtime.model
    if options.model_path == TINY:
        return config
    path, name = find_model(options.model_path)
    runtime = replace(config.runtime, model=replace(options, model_path=str(path)))
    return replace(config, runtime=runtime, served_model_name=config.served_model_name or name)


def serve(config: ServerConfig, started: Callable[[str], None], *, log_level: str = "info") -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        ModelNotFound: nothing has this name.
        InvalidOption, CannotServe: see `Supervisor.run`.
    """
    config = resolved(config)
    sweep()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # each client's connection is a file
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_FILES)), hard))

    async def main() -> None:
        await Supervisor(config, log_level=log_level).run(started)

    asyncio.run(main())


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(4096)
    except OSError as error:
        raise InvalidOption("port", port, f"a free port of {host}: {error.strerror or error}") from None
    listening.setblocking(False)
    return listening


async def _spawn(module: str, *fds: int) -> Process:
    """A child of its own session, so that Ctrl-C in a terminal reaches the supervisor alone. Keys come as settings, to
    whom they concern, and not by the environment, which the constraint workers would inherit."""
    environment = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"palmette.runtime.server.{module}",
        stdin=PIPE, stdout=PIPE, pass_fds=fds, start_new_session=True, limit=1 << 20,
        env=environment,
    )  # fmt: skip


def _write(process: Process, message: object) -> None:
    if process.stdin is not None and not process.stdin.is_closing():
        process.stdin.write(msgspec.json.encode(message) + b"\n")


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _answers(host: str, port: int) -> bool:
    """Does the front accept connections and answer?"""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False
