"""A real server for tests: uvicorn on the loopback in a thread, the engine in another thread of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import uvicorn

from palmette.runtime.compiling import Compiler
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.server.app import build_app
from palmette.runtime.server.config import ServerConfig
from palmette.runtime.server.local_link import LocalLink
from palmette.runtime.server.protocol import bounded_protocol
from palmette.runtime.server.service import Service
from palmette.runtime.tokenizer import Tokenizer
from palmette.specs import Spec


class ThreadConstraints:
    """Constraints tried in this process: what these tests look at is not the worker."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compiler = Compiler(tokenizer)
        self.observe: Callable[[float], None] = lambda _: None

    async def check(self, spec: Spec) -> tuple[str, ...]:
        begin = time.monotonic()
        try:
            return (await asyncio.to_thread(self._compiler.compile, spec)).unenforced
        finally:
            self.observe(time.monotonic() - begin)

    async def check_pattern(self, text: str) -> None:
        self._compiler.pattern(text)


@dataclass
class Served:
    """A running server."""

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop
    link: LocalLink

    def client(self, **options: object) -> httpx2.Client:
        """An HTTP client of it."""
        return httpx2.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]


@contextmanager
def serving(loaded: LoadedModel, config: ServerConfig | None = None) -> Iterator[Served]:
    """Serve a model until the block is left."""
    config = config or ServerConfig()
    sock = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's algorithm on
    sock.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    started = threading.Event()
    box: list[Served] = []
    servers: list[uvicorn.Server] = []

    async def main() -> None:
        tokenizer = loaded.tokenizer
        constraints = ThreadConstraints(tokenizer)
        service = Service(config, tokenizer, tokenizer.chat_template, constraints, time.monotonic)
        constraints.observe = service.observe_trial
        link = LocalLink(service, loaded)
        settings = uvicorn.Config(
            build_app(service), http=bounded_protocol(service), lifespan="off", log_level="warning",
            access_log=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(settings)
        servers.append(server)
        box.append(Served(url, service, asyncio.get_running_loop(), link))
        started.set()
        try:
            await server.serve(sockets=[sock])
        finally:
            link.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(30), "the server did not start"
    while not servers[0].started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield box[0]
    finally:
        servers[0].should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive(), "the server did not stop"
