"""What every request passes before an endpoint sees it: its address, its size, its key. Plain ASGI.

Host in the allow-list -> headers and body within bounds -> a client with a key -> the endpoint
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palmette.runtime.server.config import ServerConfig
from palmette.runtime.server.http import HTTPError, error_response
from palmette.runtime.server.protocol import WORK
from palmette.runtime.server.service import Service

PUBLIC = frozenset({"/health", "/live", "/ping"})  # tell nothing but whether the server serves
ADMIN = frozenset({"/flush_cache"})  # touch every client


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
            await self._app(scope, bounded, send)
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
        named = {name: value for name, value in headers if name in (b"host", b"authorization", b"content-length")}
        self._check_host(named.get(b"host", b"").decode("latin-1"))
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
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name.strip("[]").lower() not in self._hosts:
            raise HTTPError(421, f"this server does not answer for {host[:100]!r}: allow it with --allowed-host")


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
