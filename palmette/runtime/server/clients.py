"""Who sends a request: the API key's owner, told in constant time. Keys are kept as digests."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from palmette.runtime.server.config import ServerConfig


@dataclass(frozen=True, slots=True)
class Client:
    """One tenant: its name in logs and queues, and the namespace its cached prefixes are in."""

    name: str
    namespace: str = ""
    is_admin: bool = False

    def scope(self, cache_salt: str = "") -> str:
        """The namespace of a request: requests share cached prefixes only within one."""
        return f"{self.namespace}/{cache_salt}" if cache_salt else self.namespace


class Clients:
    """The clients of a server, by key."""

    def __init__(self, config: ServerConfig) -> None:
        self._by_digest: list[tuple[bytes, Client]] = []
        for key in config.api_keys:
            digest = _digest(key)
            name = digest.hex()[:12]
            self._by_digest.append((digest, Client(name, name, is_admin=key == config.admin_key)))
        if config.admin_key and config.admin_key not in config.api_keys:
            self._by_digest.append((_digest(config.admin_key), Client("admin", "admin", is_admin=True)))
        # Without keys everybody is the same client; it may do everything, unless an admin key says who may.
        self._anonymous = None if config.api_keys else Client("local", "", is_admin=not config.admin_key)

    def find(self, authorization: str) -> Client | None:
        """The client behind an Authorization header; None if there is no such key. Every key is compared."""
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        found = self._anonymous
        for known, client in self._by_digest:
            if hmac.compare_digest(known, digest):
                found = client
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
