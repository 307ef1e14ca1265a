"""How a server is set up: frozen, checked once. Composes a RuntimeConfig; knows neither sockets nor processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from palmette.errors import InvalidOption
from palmette.runtime.config import RuntimeConfig

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What clients may ask for, and how long anybody waits. Sizes in bytes, times in seconds."""

    max_body: int = 8 << 20
    max_header: int = 64 << 10
    max_waiting: int = 2048  # requests in the queue before the engine
    max_waiting_tokens: int = 1 << 22  # prompt tokens and tokens to generate of those
    max_in_engine: int = 512  # requests the engine knows at once
    request_timeout: float = 600.0  # from arrival to the last token, unless a request asks for less
    queue_timeout: float = 120.0  # of it in the queue
    read_timeout: float = 30.0  # that a client may take for its headers, and again for its body
    write_timeout: float = 30.0  # that a client may leave its stream unread
    max_unread: int = 1 << 20  # text a stream may hold for a client that does not read it
    drain_timeout: float = 30.0  # that SIGTERM waits for running requests
    stall_unready: float = 10.0  # without a sign of life the server says 503
    stall_kill: float = 60.0  # and the engine is started anew
    compile_timeout: float = 5.0  # of one constraint
    compile_memory: int = 2 << 30  # bytes a process that compiles constraints may have
    program_ttl: float = 30.0  # that a program's hints outlive its last request

    def __post_init__(self) -> None:
        for name in ("max_body", "max_header", "max_waiting", "max_waiting_tokens", "max_in_engine", "max_unread"):
            _check_number(name, getattr(self, name), 1, 1 << 50)
        _check_number("compile_memory", self.compile_memory, 256 << 20, 1 << 50)
        for name in (
            "request_timeout", "queue_timeout", "read_timeout", "write_timeout", "drain_timeout", "stall_unready",
            "stall_kill", "compile_timeout", "program_ttl",
        ):  # fmt: skip
            _check_number(name, getattr(self, name), 0.01, 1e7)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything `palmette serve` is started with."""

    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    host: str = "127.0.0.1"
    port: int = 30000  # 0 = any free one
    api_keys: tuple[str, ...] = ()  # each is a tenant with a cache of its own; none = everybody is the same client
    admin_key: str = ""  # for /flush_cache and others that touch everybody; "" = only where there are no keys at all
    allowed_hosts: tuple[str, ...] = ()  # names beside the loopback's that a request may address; "*" = any
    served_model_name: str = ""  # "" = the model's own short name
    embeddings: bool = False  # the model was trained for embeddings: its last token's state is one
    chat_template: str = ""  # Jinja source to use instead of the model's own
    tool_format: str = ""  # of palmette.formats; "" = told by the template
    reasoning_format: str = ""  # of palmette.formats; "" = none is split off
    limits: ServerLimits = field(default_factory=ServerLimits)

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise InvalidOption("host", self.host, "an address or a name, such as 127.0.0.1")
        _check_number("port", self.port, 0, 65535)
        if any(not isinstance(key, str) or len(key) < 8 for key in (*self.api_keys, *filter(None, (self.admin_key,)))):
            raise InvalidOption("api_key", "...", "at least 8 characters")
        if len(set(self.api_keys)) < len(self.api_keys):
            raise InvalidOption("api_key", "...", "a different one for each client")
        if not self.is_loopback and not self.api_keys:
            raise InvalidOption(
                "host", self.host, "a loopback address unless there is an API key (--api-key, or PALMETTE_API_KEY)"
            )

    @property
    def is_loopback(self) -> bool:
        """Can only this machine connect?"""
        return self.host in LOOPBACK or self.host.startswith("127.")


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidOption(name, value, f"a number from {low} to {high}")
    if not low <= value <= high:
        raise InvalidOption(name, value, f"a number from {low} to {high}")
