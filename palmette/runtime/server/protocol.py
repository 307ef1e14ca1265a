"""uvicorn's HTTP protocol with three things it has not: bounds on headers and trailers as they come, a refusal that
costs next to nothing, and a way to hang up.

Ten thousand requests that arrive at once, most of which there is no room for, would keep whoever asks for /health
waiting: they are answered here, before anything else is made for them. A response that nobody reads stays in the
socket's buffer for ever if it is closed politely: `scope["extensions"]` gets `palmette.abort`, which drops the
connection at once.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from palmette.errors import Overloaded
from palmette.runtime.server.service import Service

ABORT = "palmette.abort"
WORK = frozenset(  # paths that ask for so much that they are not even read while there is no room
    {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/generate", "/palmette/score",
        "/tokenize", "/detokenize",
    }
)  # fmt: skip
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def bounded_protocol(service: Service) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http=`."""
    max_header, read_timeout = service.config.limits.max_header, service.config.limits.read_timeout

    class BoundedProtocol(HttpToolsProtocol):
        _idle_bytes = 0  # since the last headers or piece of a body was whole: headers, trailers, chunks' extensions
        _patience: asyncio.TimerHandle | None = None  # for headers that do not come

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._patience = self.loop.call_later(read_timeout, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._lose_patience()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._idle_bytes += len(data)
            # What came with the last of the headers or of a body is bounded by the size of one read.
            if self._idle_bytes > max_header + (256 << 10):
                self.transport.write(_TOO_LARGE)
                self.transport.abort()
                return
            super().data_received(data)

        def on_message_begin(self) -> None:
            self._idle_bytes = 0
            if self._patience is None:
                self._patience = self.loop.call_later(read_timeout, self.transport.abort)
            super().on_message_begin()

        def on_body(self, body: bytes) -> None:
            self._idle_bytes = 0
            super().on_body(body)

        def _lose_patience(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def on_headers_complete(self) -> None:
            self._idle_bytes = 0
            self._lose_patience()
            extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
            extensions[ABORT] = self.transport.abort
            super().on_headers_complete()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            if cycle.scope["path"] not in WORK:
                super()._start_asgi_task(cycle, app)
            elif service.is_full:
                cycle.response_started = cycle.response_complete = True
                self.transport.write(_refusal(service.refusal()))
                if not cycle.keep_alive:
                    self.transport.close()
                cycle.on_response()
            else:
                service.turnstile.call(partial(super()._start_asgi_task, cycle, app))

    return BoundedProtocol


def _refusal(error: Overloaded) -> bytes:
    """What `http.error_response` would say, as it goes over the wire."""
    said = {"message": str(error), "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    body = json.dumps({"error": said}).encode()
    return (
        b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: %d\r\n"
        b"content-length: %d\r\n\r\n%s" % (error.retry_after, len(body), body)
    )
