"""uvicorn's HTTP protocol with two things it has not: a bound on headers while they arrive, and a way to hang up.

A response that nobody reads stays in the socket's buffer for ever if it is closed politely: `scope["extensions"]` gets
`palmette.abort`, which drops the connection at once.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from palmette.runtime.server.config import ServerLimits

ABORT = "palmette.abort"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def bounded_protocol(limits: ServerLimits) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http=`."""

    class BoundedProtocol(HttpToolsProtocol):
        _header_bytes = 0
        _in_headers = True

        def data_received(self, data: bytes) -> None:
            if self._in_headers:
                self._header_bytes += len(data)
                # A body may have come with the last of the headers: that is bounded by the size of one read.
                if self._header_bytes > limits.max_header + (256 << 10):
                    self.transport.write(_TOO_LARGE)
                    self.transport.abort()
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            self._in_headers, self._header_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
            extensions[ABORT] = self.transport.abort
            super().on_headers_complete()

    return BoundedProtocol
