"""An HTTP client on an event loop in a thread of its own, and its failures as ours.

    any thread --run, call--> loop --> pools of connections --> server

The thread starts at first use. A pool looks at all of its connections whenever a request comes or goes, so each has few
of them, and a thousand streams take many pools. Knows connections and status codes; does not know what is asked or
answered.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from palmette.errors import EngineDied, InvalidOption, NoBackend, RequestError
from palmette.interpreter.backends.http_errors import TryAgain, refusal
from palmette.interpreter.tracing import outgoing_headers

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

MAX_EVENT = 64 << 20  # bytes of one server-sent event
_MAX_ERROR = 1 << 20  # bytes of an error's body that are read
_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 4.0
# Above the silence that a server at its limits allows itself: 120 s in its queue and 600 s of work.
_SILENCE = 900.0
_POOL_SIZE = 32  # requests at once on one pool
_IDLE_SECONDS = 2.0  # less than servers keep an idle connection, so that none is used while it is being closed


@dataclass(slots=True)
class _Pool:
    client: httpx2.AsyncClient
    num_live: int = 0  # requests


class HttpClient:
    """`run` from other threads, `post` and `stream` on the loop."""

    def __init__(self, base_url: str, *, api_key: str | None, verify: bool | str | ssl.SSLContext) -> None:
        self.base_url = base_url
        self._headers = {"accept-encoding": "gzip"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._verify = verify
        self._lock = threading.Lock()  # around starting and closing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pools: list[_Pool] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    # -- from any thread --

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        """Run a function on the loop, soon; False if the client was closed."""
        with self._lock:
            if self._is_closed:
                return False
            self._start().call_soon_threadsafe(function, *args)
            return True

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for what a coroutine on the loop returns.

        Raises:
            EngineDied: the client was closed, before or meanwhile.
        """
        assert threading.current_thread() is not self._thread, "the loop's own thread cannot wait for the loop"
        with self._lock:
            if self._is_closed:
                raise EngineDied("the RuntimeEndpoint was closed: make a new one")
            future = asyncio.run_coroutine_threadsafe(self._awaited(make), self._start())
        try:
            return future.result()
        except CancelledError:
            raise EngineDied("the RuntimeEndpoint was closed meanwhile") from None
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits any more
            raise

    def close(self, ending: Callable[[], None]) -> None:
        """Stop; `ending` is called on the loop first. May be called twice, and on the loop."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with suppress(RuntimeError):  # the loop is closed: the interpreter exits
            loop.call_soon_threadsafe(lambda: loop.create_task(self._end(ending)))
        if threading.current_thread() is not thread:
            thread.join(_CLOSE_SECONDS)

    # -- on the loop --

    async def post(self, path: str, body: object, *, seconds: float | None = None) -> bytes:
        """The body of the answer to a POST of JSON.

        Raises:
            TryAgain, PalmetteError
        """
        async with self.answered("POST", path, body, seconds=seconds) as response:
            with _translated(self.base_url):
                return await response.aread()

    async def get(self, path: str, *, seconds: float | None = None) -> bytes:
        """The body of the answer to a GET; raises as `post`."""
        async with self.answered("GET", path, None, seconds=seconds) as response:
            with _translated(self.base_url):
                return await response.aread()

    async def events(self, path: str, body: object, *, seconds: float | None = None) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event of the answer to a POST. Leaving it early hangs up.

        Raises:
            TryAgain, PalmetteError
        """
        async with self.answered("POST", path, body, seconds=seconds) as response:
            with _translated(self.base_url):
                async for data in _event_data(response.aiter_bytes()):
                    yield data

    @asynccontextmanager
    async def answered(
        self, method: str, path: str, body: object, *, seconds: float | None
    ) -> AsyncIterator[httpx2.Response]:
        """An answer that is a success, not read yet.

        Args:
            body: what JSON can hold; None = no body.
            seconds: of silence after which the server counts as lost; None = a generous bound.
        """
        import httpx2

        content = None if body is None else encoded(body)
        silence = httpx2.Timeout(None, connect=_CONNECT_SECONDS, read=seconds or _SILENCE, write=_SILENCE)
        headers = outgoing_headers()  # of the hole's span: whoever put this on the loop brought its context along
        if content is not None:
            headers["content-type"] = "application/json"
        pool = self._free_pool()
        url = self.base_url + path
        request = pool.client.build_request(method, url, content=content, headers=headers, timeout=silence)
        pool.num_live += 1
        try:
            with _translated(self.base_url):
                response = await pool.client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    with _translated(self.base_url):
                        words = await _bounded(response.aiter_bytes(), _MAX_ERROR)
                    raise refusal(response.status_code, words, response.headers.get("retry-after"), url)
                yield response
            finally:
                with suppress(httpx2.HTTPError):
                    await response.aclose()
        finally:
            pool.num_live -= 1

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that `close` ends. Only such tasks are cancelled: the libraries below look after their own."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _free_pool(self) -> _Pool:
        """The first that has room, so that few connections stay open where there are few requests."""
        found = next((pool for pool in self._pools if pool.num_live < _POOL_SIZE), None)
        if found is None:
            import httpx2

            if not self._pools and self.base_url.startswith("https"):
                self._verify = httpx2.create_ssl_context(self._verify)  # once: it reads files
            transport = httpx2.AsyncHTTPTransport(
                verify=self._verify if self.base_url.startswith("https") else False,
                limits=httpx2.Limits(max_connections=None, keepalive_expiry=_IDLE_SECONDS),
                socket_options=_keepalive(),
            )
            found = _Pool(httpx2.AsyncClient(transport=transport, headers=self._headers))
            self._pools.append(found)
        return found

    def _start(self) -> asyncio.AbstractEventLoop:
        """The loop, running. Under the lock."""
        if self._loop is None:
            try:
                import httpx2  # noqa: F401 - a missing package is the caller's to know, not the thread's
            except ImportError as error:
                raise NoBackend(
                    "RuntimeEndpoint speaks HTTP through httpx2, which is missing: pip install httpx2"
                ) from error
            self._loop = asyncio.new_event_loop()
            # A daemon: who forgets close() must still be able to leave.
            self._thread = threading.Thread(target=_main, args=(self._loop,), name="palmette-http", daemon=True)
            self._thread.start()
        return self._loop

    async def _end(self, ending: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            ending()
            tasks = self._tasks - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=_CLOSE_SECONDS / 2)
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS / 4):
                    for pool in self._pools:
                        await pool.client.aclose()
        finally:
            loop.stop()

    async def _awaited(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self.spawn(make())


def encoded(body: object) -> bytes:
    """
    Raises:
        InvalidOption: a text in it has no encoding.
    """
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError as error:
        shown = error.object[max(0, error.start - 20) : error.start + 20]
        raise InvalidOption("text", shown, "Unicode text; it holds a lone surrogate") from error


def _main(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


class _translated:  # noqa: N801 - read as a verb: with _translated(...)
    """Inside, a connection's failures become TryAgain: nobody knows here whether something came before."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import httpx2

        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            if isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE" in str(error):
                raise InvalidOption(
                    "verify", "...", f"what the certificate of {self._url} satisfies: {error}"
                ) from error
            raise TryAgain(
                EngineDied(f"nothing answers at {self._url} ({error or type(error).__name__}): start a server there "
                           f"(palmette serve), or give RuntimeEndpoint the base_url of one that runs"),
                lost=True,
            ) from error  # fmt: skip
        if isinstance(error, httpx2.HTTPError):
            what = str(error) or type(error).__name__
            raise TryAgain(EngineDied(f"the connection to {self._url} broke off: {what}"), lost=True) from error


async def _event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event, lines joined; comments and other fields are passed over."""
    rest = b""
    data: list[bytes] = []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
        if len(rest) > MAX_EVENT:
            raise RequestError(f"the server sent an event of more than {MAX_EVENT} bytes")
    if data and not rest:
        yield b"\n".join(data)


async def _bounded(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    body = b""
    async for chunk in chunks:
        body += chunk
        if len(body) >= limit:
            break
    return body[:limit]


def _keepalive() -> list[tuple[int, int, int]]:
    """A server whose machine is gone says nothing; the kernel asks for it after half a minute."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
