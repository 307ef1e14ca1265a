"""A server as a backend: the same programs, on a model behind a URL.

    program --> RuntimeEndpoint --POST /generate, a stream each--> palmette serve, or SGLang's server

A stream's state stays here, as tokens; what is sent is tokens, and what comes back is tokens. Text is tokenized here,
by the tokenizer that the server hands out. Knows neither the wording of requests (http_dialect.py) nor how they are
retried (http_requests.py). Imports no torch, and HTTP only at first use.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from palmette.errors import EngineDied, InvalidOption, ModelError
from palmette.interpreter.backends.http_client import HttpClient
from palmette.interpreter.backends.http_connect import Server, identity, meet, model_info, server_info
from palmette.interpreter.backends.http_dialect import Dialect
from palmette.interpreter.backends.http_errors import TryAgain
from palmette.interpreter.backends.http_hints import Hints
from palmette.interpreter.backends.http_requests import Requests, ended
from palmette.runtime.tokenizer import Tokenizer
from palmette.types import (
    Capabilities,
    Deliver,
    FinishReason,
    Message,
    ProgramEnded,
    ProgramEvent,
    Request,
    RolePieces,
    TextPiece,
)

__all__ = ["RuntimeEndpoint"]

T = TypeVar("T")
_START_WAIT = 0.5  # seconds between two looks at a server that says it is not ready


class RuntimeEndpoint:
    """A model behind a URL: `palmette serve`, or SGLang's server as far as its native API goes.

    Making one is cheap and asks nobody; the first use connects. Everything is thread-safe.

    Args:
        base_url: such as http://127.0.0.1:30000; whatever path it has stands before those of the API.
        api_key: sent as `Authorization: Bearer`.
        tokenizer: where the model's tokenizer is (a directory, a .gguf file); None = the server's own, which SGLang's
            server does not hand out: there the model's path must be one on this machine.
        verify: of certificates, as httpx2 takes it: a bool, a file of authorities, an SSLContext.
        timeout: seconds in which a request of which nothing came yet is tried again: after a lost connection, and
            when the server has no room. A request's own timeout bounds it, too.
        cache_salt: requests share cached prefixes on the server only with those of the same salt.
        priority: added to each request's own; higher goes first.

    Raises:
        InvalidOption: an argument that cannot be right.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        tokenizer: str | Path | None = None,
        verify: bool | str | ssl.SSLContext = True,
        timeout: float = 60.0,
        cache_salt: str = "",
        priority: int = 0,
    ) -> None:
        self.base_url = _checked_url(base_url)
        if api_key is not None and (not api_key or not api_key.isascii() or not api_key.isprintable()):
            raise InvalidOption("api_key", "...", "printable ASCII characters, or None")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < math.inf:
            raise InvalidOption("timeout", timeout, "seconds, 0 or more")
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise InvalidOption("priority", priority, "an integer")
        if not isinstance(cache_salt, str):
            raise InvalidOption("cache_salt", cache_salt, "a text")
        self._link = _Link(
            HttpClient(self.base_url, api_key=api_key, verify=verify),
            tokenizer,
            salt=cache_salt,
            priority=priority,
            patience=float(timeout),
        )
        # Also at the interpreter's exit: what waits is told, and the loop stops between two of its turns.
        self._finalizer = weakref.finalize(self, self._link.close)

    # -- the Backend protocol --

    @property
    def capabilities(self) -> Capabilities:
        """
        Raises:
            EngineDied: nobody answers.
            InvalidOption: api_key or tokenizer is not what the server needs.
        """
        return self._link.server().capabilities

    def begin_ids(self) -> tuple[int, ...]:
        return tuple(self._tokenizer.begin_ids())

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        return self._tokenizer.encode_pieces(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)

    def role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
        return self._tokenizer.chat_template.role_pieces(messages, role)

    def rerender(self, messages: Sequence[Message], role: str) -> tuple[tuple[TextPiece, ...], RolePieces]:
        return self._tokenizer.chat_template.rerender(messages, role)

    def submit(self, request: Request, deliver: Deliver) -> None:
        self._link.submit(request, deliver)

    def cancel(self, request_id: str) -> None:
        self._link.cancel(request_id)

    def notify(self, event: ProgramEvent) -> None:
        self._link.notify(event)

    def flush_cache(self) -> None:
        """Ask the server to forget every prefix that no request uses; with keys on it, an admin's to ask."""
        self._link.ask(lambda client: client.post("/flush_cache", {}))

    def server_info(self) -> dict[str, Any]:
        return self._link.ask(server_info)

    def close(self) -> None:
        """Hang up; whatever waits gets EngineDied. May be called twice."""
        self._finalizer()

    shutdown = close  # SGLang's name

    # -- beyond the protocol --

    def get_model_name(self) -> str:
        """The model's name as the server gives it."""
        return str(self._link.ask(model_info).get("model_path", ""))

    def get_server_info(self) -> dict[str, Any]:
        """SGLang's name for `server_info`."""
        return self.server_info()

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: encode, decode, token_bytes."""
        return self._tokenizer

    def __enter__(self) -> RuntimeEndpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def _tokenizer(self) -> Tokenizer:
        return self._link.server().tokenizer


class _Link:
    """What works for an endpoint and does not keep it alive."""

    def __init__(
        self, client: HttpClient, tokenizer: str | Path | None, *, salt: str, priority: int, patience: float
    ) -> None:
        self._client, self._tokenizer_path, self._salt, self._patience = client, tokenizer, salt, patience
        self._requests = Requests(
            client, self._dialect, self._recheck, salt=self._salted, priority=priority, patience=patience
        )
        self._hints: Hints | None = None  # made on the loop
        self._server: Server | None = None  # set once
        self._meeting = asyncio.Lock()  # the loop's
        self._lock = threading.Lock()  # one asks at first use, the others wait for it

    # -- from any thread --

    def server(self) -> Server:
        """Who is there, asked once."""
        if self._server is not None:
            return self._server
        with self._lock:
            return self._server or self.ask(lambda client: self._connect())

    def ask(self, make: Callable[[HttpClient], Coroutine[Any, Any, T]]) -> T:
        """Wait for what the server answers; while it says that it is not ready, ask again.

        Raises:
            PalmetteError
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self._client.run(lambda: make(self._client))
            except TryAgain as failure:
                wait = failure.after or _START_WAIT
                if failure.lost or time.monotonic() + wait > deadline:
                    raise failure.error from failure
                time.sleep(wait)

    def submit(self, request: Request, deliver: Deliver) -> None:
        if not self._client.call(self._requests.start, request, deliver, time.monotonic()):
            deliver([ended(request, EngineDied("the RuntimeEndpoint was closed: make a new one"), FinishReason.FAILED)])

    def cancel(self, request_id: str) -> None:
        self._client.call(self._requests.cancel, request_id)

    def notify(self, event: ProgramEvent) -> None:
        self._client.call(self._tell, event)

    def close(self) -> None:
        self._client.close(self._requests.close)

    # -- on the loop --

    async def _connect(self) -> Server:
        async with self._meeting:
            if self._server is None:
                self._server = await meet(self._client, self._tokenizer_path)
            return self._server

    async def _dialect(self) -> Dialect:
        return (await self._connect()).dialect

    async def _recheck(self) -> None:
        """A server that was started anew may have another model, whose tokens are not those of the live streams.

        Raises:
            ModelError: it has.
            TryAgain, PalmetteError: it does not say.
        """
        known = self._server
        if known is not None and identity(await model_info(self._client)) != known.identity:
            raise ModelError(f"{self._client.base_url} serves another model than before: make a new RuntimeEndpoint")

    def _tell(self, event: ProgramEvent) -> None:
        if self._hints is None:
            self._hints = Hints(self._client.spawn, self._write_hint, self._send_hint)
        self._hints.put(event)

    async def _write_hint(self, events: Sequence[ProgramEvent]) -> Sequence[tuple[str, dict[str, Any]]]:
        dialect = await self._dialect()
        ended = [event.program for event in events if isinstance(event, ProgramEnded)]
        others = [event for event in events if not isinstance(event, ProgramEnded)]
        written = [dialect.hint(event, salt=self._salted(event.namespace)) for event in others]
        return [*(post for post in written if post is not None), *dialect.ends(ended)]

    async def _send_hint(self, path: str, body: dict[str, Any], seconds: float) -> object:
        return await self._client.post(path, body, seconds=seconds)

    def _salted(self, namespace: str) -> str:
        return "/".join(filter(None, (self._salt, namespace)))


def _checked_url(base_url: str) -> str:
    allowed = "the address of a server, such as http://127.0.0.1:30000"
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except (ValueError, AttributeError, TypeError):
        raise InvalidOption("base_url", base_url, allowed) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise InvalidOption("base_url", base_url, allowed)
    if parts.username is not None or parts.query or parts.fragment or any(c.isspace() for c in base_url):
        raise InvalidOption("base_url", "...", f"{allowed}, without user, query, fragment and white space")
    return base_url.rstrip("/")
