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

from palmette.errors import InvalidOption, PromptTooLong
from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import client_of, json_response, read_body, service_of
from palmette.runtime.server.service import ModelCard
from palmette.types import BranchesEnded, ForkDeclared, Hints, ProgramEnded, ProgramEvent

MAX_PROGRAMS = 4096  # of one client that are remembered at once
MAX_SIBLINGS = 65_536  # of one client that were announced and have not come
MAX_DEPTH = 1024  # forks inside forks of one stream
_MOST_ENDS = 1024  # that one request tells
_MIN_DELAY = 0.01  # seconds between two looks

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
ProgramId = Annotated[str, Field(min_length=1, max_length=128)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(fail_fast=True)
]  # a million errors are costly


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
    last: float  # when it was heard of, on the clock; seconds
    live: int = 0  # requests
    has_ended: bool = False
    # announced siblings that have not come, by the length of what they share: tokens
    awaited: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Tenant:
    """One client's programs, the one that was heard of longest ago first, and the siblings they wait for."""

    programs: OrderedDict[str, _Program] = field(default_factory=OrderedDict)
    awaited: int = 0


class ProgramBook:
    """All programs that anything is remembered of. Used by one event loop; the clock is given."""

    def __init__(self, notify: Callable[[ProgramEvent], None], clock: Callable[[], float], ttl: float) -> None:
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
        program = None if body is None else self._heard_of(client, body.id)
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
            if not program.has_ended:
                self._touch(client, body.id, program)
            elif not program.live:
                self._notify(ProgramEnded(program.name))  # of what it left in the cache since it was ended

    def fork(self, client: Client, program_id: str, token_ids: Sequence[int], siblings: int, namespace: str) -> bool:
        """`siblings` streams are about to extend `token_ids`. Was it passed on?"""
        program = self._heard_of(client, program_id)
        if program is None or not self._announce(client, program, len(token_ids), siblings):
            return False
        self._notify(ForkDeclared(program.name, tuple(token_ids), siblings, namespace))
        return True

    def branches_ended(
        self, client: Client, program_id: str, token_ids: Sequence[int], count: int, namespace: str
    ) -> bool:
        """`count` of the streams announced behind `token_ids` will not come. Was it passed on?"""
        tenant = self._tenants.get(client)
        program = None if tenant is None else tenant.programs.get(program_id)
        if tenant is None or program is None or not self._count(tenant, program, len(token_ids), -count):
            return False
        self._notify(BranchesEnded(program.name, tuple(token_ids), count, namespace))
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
        for client, tenant in list(self._tenants.items()):
            self._sweep(client, tenant)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _heard_of(self, client: Client, program_id: str) -> _Program | None:
        """The program; None = the client has as many as it may."""
        tenant = self._tenants.get(client)
        if tenant is not None:
            self._sweep(client, tenant)
        tenant = self._tenants.setdefault(client, _Tenant())
        program = tenant.programs.get(program_id)
        if program is None:
            if len(tenant.programs) >= MAX_PROGRAMS:
                return None
            # The name of a client holds no "/", so no two clients' programs have the same name.
            program = tenant.programs[program_id] = _Program(f"{client.name}/{program_id}", self._clock())
        self._touch(client, program_id, program)
        return program

    def _touch(self, client: Client, program_id: str, program: _Program) -> None:
        program.last = self._clock()
        self._tenants[client].programs.move_to_end(program_id)
        if self._timer is None:
            self._set_timer(self._ttl)

    def _arrive(self, client: Client, program: _Program, body: ProgramBody) -> bool:
        """One of a fork's streams comes; the first of a fork that nobody announced announces it."""
        is_known = body.shared_len in program.awaited
        if not is_known and not self._announce(client, program, body.shared_len, body.siblings):
            return False
        return self._count(self._tenants[client], program, body.shared_len, -1)

    def _announce(self, client: Client, program: _Program, shared_len: int, siblings: int) -> bool:
        tenant = self._tenants[client]
        if tenant.awaited + siblings > MAX_SIBLINGS:
            return False
        program.awaited.setdefault(shared_len, 0)
        return self._count(tenant, program, shared_len, siblings)

    def _count(self, tenant: _Tenant, program: _Program, shared_len: int, change: int) -> bool:
        """Siblings were announced, came, or never will. False = none are known behind so many tokens."""
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

    def _sweep(self, client: Client, tenant: _Tenant) -> None:
        now = self._clock()
        while tenant.programs:
            program_id, program = next(iter(tenant.programs.items()))
            if now - program.last < self._ttl:
                return
            if program.live:  # its request is its last, and still runs
                program.last = now
                tenant.programs.move_to_end(program_id)
            else:
                self._forget(client, tenant, program_id)

    def _forget(self, client: Client, tenant: _Tenant, program_id: str) -> None:
        program = tenant.programs.pop(program_id)
        program.has_ended = True
        tenant.awaited -= sum(program.awaited.values())
        if not tenant.programs:
            self._tenants.pop(client, None)
        self._notify(ProgramEnded(program.name))

    def _set_timer(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        """One timer, while there are programs: at the time when the first of them may be due."""
        self._timer = None
        self.sweep()
        oldest = [next(iter(tenant.programs.values())).last for tenant in self._tenants.values()]
        if oldest:
            self._set_timer(max(_MIN_DELAY, min(oldest) + self._ttl - self._clock()))


def book_of(request: Request) -> ProgramBook:
    """The application's book, made at first use."""
    state = request.app.state
    if not hasattr(state, "programs"):
        service = service_of(request)
        state.programs = ProgramBook(service.notify, service.clock, service.config.limits.program_ttl)
    book: ProgramBook = state.programs
    return book


# -- endpoints ---------------------------------------------------------------------------------------------------------


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)


class EndBody(_Body):
    program: ProgramId | None = None
    programs: Annotated[list[ProgramId], Field(max_length=_MOST_ENDS)] | None = None  # in place of one


class ForkBody(_Body):
    program: ProgramId
    input_ids: TokenIds  # what the streams extend
    siblings: Annotated[int, Field(ge=1, lt=1 << 31)]
    cache_salt: Annotated[str, Field(max_length=256)] | None = None


class BranchesEndedBody(_Body):
    program: ProgramId
    input_ids: TokenIds
    count: Annotated[int, Field(ge=1, lt=1 << 31)]
    cache_salt: Annotated[str, Field(max_length=256)] | None = None


async def fork(request: Request) -> Response:
    body = await read_body(request, ForkBody)
    client = client_of(request)
    check_token_ids(service_of(request).model, body.input_ids)
    namespace = client.scope(body.cache_salt or "")
    return _told(book_of(request).fork(client, body.program, body.input_ids, body.siblings, namespace))


async def branches_ended(request: Request) -> Response:
    body = await read_body(request, BranchesEndedBody)
    client = client_of(request)
    check_token_ids(service_of(request).model, body.input_ids)
    namespace = client.scope(body.cache_salt or "")
    return _told(book_of(request).branches_ended(client, body.program, body.input_ids, body.count, namespace))


async def end(request: Request) -> Response:
    body = await read_body(request, EndBody)
    if (body.program is None) == (body.programs is None):
        raise InvalidOption("program", body.program, "an id, or several of them as `programs`")
    programs = [body.program] if body.program is not None else body.programs or []
    book, client = book_of(request), client_of(request)
    noted = [book.end(client, program) for program in programs]
    return _told(any(noted))


def check_token_ids(card: ModelCard, token_ids: Sequence[int], field: str = "input_ids") -> None:
    """
    Raises:
        InvalidOption: no token, or one that the model does not have.
        PromptTooLong: more than the context holds.
    """
    if not token_ids:
        raise InvalidOption(field, [], "at least one token id")
    if min(token_ids) < 0 or max(token_ids) >= card.vocab_size:
        wrong = next(token for token in token_ids if not 0 <= token < card.vocab_size)
        raise InvalidOption(field, wrong, f"token ids from 0 to {card.vocab_size - 1}")
    if len(token_ids) > card.context_len:
        raise PromptTooLong(len(token_ids), card.context_len, "the context")


def _told(was_noted: bool) -> Response:
    """Hints that are beyond a client's bounds are no error: they only change nothing."""
    return json_response({"noted": was_noted})


ROUTES = (
    ("/palmette/program/fork", ("POST",), fork),
    ("/palmette/program/branches_ended", ("POST",), branches_ended),
    ("/program/end", ("POST",), end),
)
