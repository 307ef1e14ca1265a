"""What clients' programs tell of their future: the `program` object of a request, and the events between requests.

    POST /palmette/program/fork             n streams are about to extend these tokens
    POST /palmette/program/branches_ended   so many of them will not come
    POST /program/end                       nothing more comes of this program

Hints change speed, never results, so nothing here fails a request: what a client says beyond its bounds is not passed
on. What a program said is forgotten `program_ttl` seconds after its last request. A client's programs carry its name
when they go to the engine, so nobody tells anything of another's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import client_of, json_response, read_body, service_of
from palmette.runtime.server.service import ModelCard, Service
from palmette.errors import InvalidOption, PromptTooLong
from palmette.types import BranchesEnded, ForkDeclared, Hints, ProgramEnded, ProgramEvent

MAX_PROGRAMS = 4096  # of one client that are remembered at once
MAX_SIBLINGS = 65_536  # of one client that were announced and have not come
MAX_DEPTH = 1024  # forks inside forks of one stream

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
ProgramId = Annotated[str, Field(min_length=1, max_length=128)]
TokenIds = list[Annotated[int, Field(ge=0, lt=1 << 31)]]


class ProgramBody(BaseModel):
    """The `program` object of a request."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    id: ProgramId  # one running program, unique among the client's
    stream: Annotated[list[Count], Field(max_length=MAX_DEPTH)] | None = None  # which of its streams: branch indices
    shared_len: Count = 0  # prompt tokens, from the first on, that the siblings of a fork have in common
    siblings: Count = 0  # streams that extend those tokens, this one included
    last_use: bool = False  # nothing will extend this request's tokens
    critical: bool = False  # the program waits for nothing else


@dataclass(slots=True)
class _Program:
    name: str  # the engine's
    last: float  # request's end or beginning, on the clock; seconds
    live: int = 0  # requests
    # announced siblings that have not come, by the length of what they share: tokens
    awaited: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Tenant:
    """One client's programs, the one that was heard of longest ago first, and the siblings they wait for."""

    programs: OrderedDict[str, _Program] = field(default_factory=OrderedDict)
    awaited: int = 0


class ProgramBook:
    """All programs that anything is remembered of. Used by one event loop; the clock is given."""

    def __init__(self, notify: Callable[[Client, ProgramEvent], None], clock: Callable[[], float], ttl: float) -> None:
        """
        Args:
            notify: tells the engine, if there is one.
            clock: seconds.
            ttl: seconds that hints outlive a program's last request.
        """
        self._notify, self._clock, self._ttl = notify, clock, ttl
        self._tenants: dict[Client, _Tenant] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(len(tenant.programs) for tenant in self._tenants.values())

    @contextmanager
    def request(self, client: Client, body: ProgramBody | None) -> Iterator[Hints]:
        """The hints of a request that runs as long as the block. Hints() where the client's bounds are reached."""
        program = None if body is None else self._program(client, body.id)
        if body is None or program is None:
            yield Hints()
            return
        is_sibling = body.siblings > 1 and body.shared_len > 0 and self._arrive(client, program, body)
        program.live += 1
        try:
            yield Hints(
                program=program.name,
                shared_len=body.shared_len if is_sibling else 0,
                siblings=body.siblings if is_sibling else 0,
                last_use=body.last_use,
                critical=body.critical,
            )
        finally:
            program.live -= 1
            program.last = self._clock()
            self._set_timer()

    def fork(self, client: Client, program_id: str, token_ids: Sequence[int], siblings: int, namespace: str) -> bool:
        """`siblings` streams are about to extend `token_ids`. Was it passed on?"""
        program = self._program(client, program_id)
        if program is None or not self._announce(client, program, len(token_ids), siblings):
            return False
        self._notify(client, ForkDeclared(program.name, tuple(token_ids), siblings, namespace))
        return True

    def branches_ended(
        self, client: Client, program_id: str, token_ids: Sequence[int], count: int, namespace: str
    ) -> bool:
        """`count` of the streams announced behind `token_ids` will not come. Was it passed on?"""
        tenant = self._tenants.get(client)
        program = None if tenant is None else tenant.programs.get(program_id)
        if tenant is None or program is None or not self._awaited(tenant, program, len(token_ids), -count):
            return False
        self._notify(client, BranchesEnded(program.name, tuple(token_ids), count, namespace))
        return True

    def end(self, client: Client, program_id: str) -> bool:
        """Nothing more comes of a program. Was anything known of it?"""
        tenant = self._tenants.get(client)
        if tenant is None or program_id not in tenant.programs:
            return False
        self._forget(client, tenant, program_id)
        return True

    def sweep(self) -> None:
        """Forget the programs of which nothing came for so long."""
        now = self._clock()
        for client, tenant in list(self._tenants.items()):
            for program_id, program in list(tenant.programs.items()):
                if not program.live and now - program.last >= self._ttl:
                    self._forget(client, tenant, program_id)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _program(self, client: Client, program_id: str) -> _Program | None:
        """The program, heard of now; None = the client has as many as it may."""
        tenant = self._tenants.setdefault(client, _Tenant())
        program = tenant.programs.get(program_id)
        if program is None:
            if len(tenant.programs) >= MAX_PROGRAMS:
                self.sweep()
                tenant = self._tenants.setdefault(client, _Tenant())
            if len(tenant.programs) >= MAX_PROGRAMS:
                return None
            # A name holds no "/" that is not ours: clients' names are ours, and come first.
            program = tenant.programs[program_id] = _Program(f"{client.name}/{program_id}", self._clock())
        program.last = self._clock()
        self._set_timer()
        return program

    def _arrive(self, client: Client, program: _Program, body: ProgramBody) -> bool:
        """One of a fork's streams comes; the first of a fork that nobody announced announces it."""
        if body.shared_len not in program.awaited and not self._announce(
            client, program, body.shared_len, body.siblings
        ):
            return False
        self._awaited(self._tenants[client], program, body.shared_len, -1)
        return True

    def _announce(self, client: Client, program: _Program, shared_len: int, siblings: int) -> bool:
        tenant = self._tenants[client]
        if tenant.awaited + siblings > MAX_SIBLINGS:
            return False
        program.awaited.setdefault(shared_len, 0)
        return self._awaited(tenant, program, shared_len, siblings)

    def _awaited(self, tenant: _Tenant, program: _Program, shared_len: int, change: int) -> bool:
        """Count siblings that are announced, or came. False = none are known behind so many tokens."""
        known = program.awaited.get(shared_len)
        if known is None:
            return False
        left = max(0, known + change)
        tenant.awaited += left - known
        if left:
            program.awaited[shared_len] = left
        else:
            del program.awaited[shared_len]
        return True

    def _forget(self, client: Client, tenant: _Tenant, program_id: str) -> None:
        program = tenant.programs.pop(program_id)
        tenant.awaited -= sum(program.awaited.values())
        if not tenant.programs:
            self._tenants.pop(client, None)
        self._notify(client, ProgramEnded(program.name))

    def _set_timer(self) -> None:
        """One timer, while there are programs."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._ttl / 2, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.sweep()
        if self._tenants:
            self._set_timer()
