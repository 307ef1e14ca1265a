"""What the supervisor and its two children say to each other: JSON lines on stdin and stdout, closed structs.

supervisor --EngineSettings--> engine --EngineReport--> supervisor
supervisor --FrontSettings, then Order...--> front --FrontReport--> supervisor
"""

from __future__ import annotations

import msgspec

from palmette.runtime.server.config import ServerConfig
from palmette.runtime.server.lease import ProcessSettings

BAD_SETTINGS = 3  # a child's exit code: what it was told to serve is the reason, and it said so


class Ready(msgspec.Struct, frozen=True):
    """The engine serves; what the front cannot read from the model's files."""

    name: str
    digest: str
    context_len: int
    vocab_size: int
    kv_tokens: int
    constraints: tuple[str, ...]


class EngineSettings(msgspec.Struct, frozen=True):
    process: ProcessSettings
    config: ServerConfig
    generation: int


class EngineReport(msgspec.Struct, frozen=True, omit_defaults=True):
    ready: Ready | None = None
    failed: str | None = None
    beat: bool = False


class FrontSettings(msgspec.Struct, frozen=True):
    process: ProcessSettings
    config: ServerConfig
    listen_fd: int
    log_level: str


class FrontReport(msgspec.Struct, frozen=True, omit_defaults=True):
    started: bool = False
    failed: str | None = None


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the engine, or that it is time to go; both at once: there will be no other engine."""

    ready: Ready | None = None
    generation: int = 0  # of the engine that is ready
    died: str | None = None  # why
    stalled: bool | None = None
    restarts: int = 0  # of the engine so far
    drain: bool = False
