"""What every request passes before an endpoint sees it: its address, its size, its key. Plain ASGI.

Host in the allow-list -> headers and body within bounds -> a client with a key -> the endpoint
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palmette.runtime.server.config import ServerConfig
from palmette.runtime.server.http import HTTPError, error_response
from palmette.runtime.server.protocol import ABORT, WORK
from palmette.runtime.server.service import Service

logger = logging.getLogger(__name__)

PUBLIC = frozenset({"/health", "/live", "/ping"})  # tell nothing but whether the server serves
ADMIN = frozenset({"/flush_cache"})  # touch every client
_READ = frozenset({b"host", b"authorization", b"content-length", b"origin", b"sec-fetch-site"})
_PIECE = 256 << 10  # bytes of an answer that a client must take within the time for it


class Guard:
    """ASGI middleware. Puts the client into `scope["state"]["client"]`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._hosts = _allowed_hosts(service.config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except HTTPError as error:
            await error_response(error)(scope, receive, send)
            return
        bounded = _BoundedBody(receive, self._service.config.limits.max_body)
        is_work = scope["path"] in WORK
        if is_work and self._service.is_full:
            await error_response(self._service.refusal())(scope, receive, send)
            return
        self._service.num_working += is_work
        try:
            await self._app(scope, bounded, _Sent(send, scope, self._service.config.limits.write_timeout))
        except HTTPError as error:
            if error.status != 413:
                raise
            await error_response(error)(scope, receive, send)
        finally:
            self._service.num_working -= is_work

    def _check(self, scope: Scope) -> None:
        limits = self._service.config.limits
        headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > limits.max_header:
            raise HTTPError(431, f"the headers are larger than {limits.max_header} bytes")
        named = {name: value for name, value in headers if name in _READ}
        self._check_host(named.get(b"host", b"").decode("latin-1"))
        self._check_site(named)
        length = named.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limits.max_body:
            raise HTTPError(413, f"the body is larger than {limits.max_body} bytes")
        client = self._service.clients.find(named.get(b"authorization", b"").decode("latin-1"))
        path = scope["path"]
        if client is None and path not in PUBLIC:
            raise HTTPError(401, "no valid API key: send `Authorization: Bearer <key>`", code="invalid_api_key")
        if path in ADMIN and client is not None and not client.is_admin:
            raise HTTPError(403, "this endpoint touches every client: use the admin key", code="admin_only")
        scope.setdefault("state", {})["client"] = client

    def _check_host(self, host: str) -> None:
        """A browser that was led here by another site's name sends that name (DNS rebinding)."""
        if self._hosts is None:
            return
        if _name(host) not in self._hosts:
            raise HTTPError(421, f"this server does not answer for {host[:100]!r}: allow it with --allowed-host")

    def _check_site(self, headers: Mapping[bytes, bytes]) -> None:
        """A browser that another site's page sends here says so; it would not show the page what we answer anyway."""
        if self._hosts is None:
            return
        origin = headers.get(b"origin", b"").decode("latin-1")
        scheme, _, host = origin.partition("://")
        is_other = origin == "null" or (scheme in ("http", "https") and _name(host) not in self._hosts)
        if is_other or (not origin and headers.get(b"sec-fetch-site") == b"cross-site"):
            raise HTTPError(403, "a page of another site may not send requests here: allow it with --allowed-host")


def _name(host: str) -> str:
    """Without the port and an IPv6 address's brackets."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name.strip("[]").lower()


class _Sent:
    """`send`, for a whole answer: in pieces that the client must take in time each. Streams see to that themselves.

    Else a client that asks for much and reads nothing would hold its place among the requests for ever.
    """

    def __init__(self, send: Send, scope: Scope, seconds: float) -> None:
        self._send, self._scope, self._seconds = send, scope, seconds

    async def __call__(self, message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or message.get("more_body") or len(body) <= _PIECE:
            await self._send(message)
            return
        try:
            for start in range(0, len(body), _PIECE):
                end = start + _PIECE
                async with asyncio.timeout(self._seconds):
                    await self._send({**message, "body": body[start:end], "more_body": end < len(body)})
        except TimeoutError:
            logger.info("a client did not read its answer for %s s: hung up", self._seconds)
            self._scope["extensions"][ABORT]()


class _BoundedBody:
    """`receive`, until the body is longer than it may be."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._size = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise HTTPError(413, f"the body is larger than {self._limit} bytes")
        return message


def _allowed_hosts(config: ServerConfig) -> frozenset[str] | None:
    """None = any."""
    if "*" in config.allowed_hosts:
        return None
    names = {"localhost", "127.0.0.1", "::1", *(host.lower() for host in config.allowed_hosts)}
    if not _is_wildcard(config.host):
        names.add(config.host.lower())
    elif not config.allowed_hosts:
        return None  # bound to every address, behind keys: whoever knows a key may name it as he likes
    return frozenset(names)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
