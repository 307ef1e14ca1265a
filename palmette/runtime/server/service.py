"""What every endpoint stands on: a model's card and tokenizer, the gate, the constraint workers, requests in flight.

    handler --submit--> gate --launch--> Flights --transport--> engine
            <-------------------- events ------------------------'

Knows no HTTP, and not in which process the engine lives.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from palmette.errors import (
    Cancelled,
    EngineDied,
    HoleTimeout,
    Overloaded,
    PalmetteError,
    PromptTooLong,
    RequestError,
)
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.server.clients import Client, Clients
from palmette.runtime.server.config import ServerConfig
from palmette.runtime.server.flights import Flight, Flights, Transport
from palmette.runtime.server.gate import Gate
from palmette.runtime.server.turnstile import Turnstile
from palmette.runtime.stats import Stats
from palmette.runtime.tokenizer import Tokenizer
from palmette.specs import Spec
from palmette.types import (
    EmbedRequest,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    ProgramEvent,
    Request,
    TextPiece,
    TokenEvent,
    TokenLogprob,
)

_TRIALS = 2  # requests of one client, where there are several, whose constraints are tried at once
_INLINE_TEXT = 4096  # characters that are tokenized on the loop: a fraction of a millisecond


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What clients are told of the model."""

    name: str
    digest: str
    context_len: int  # tokens of prompt and output together
    vocab_size: int
    kv_tokens: int
    created: int  # unix seconds
    constraints: frozenset[str] = frozenset()  # kinds that are enforced


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole generation."""

    text: str
    token_ids: tuple[int, ...]  # all that were sampled, the one that ended it included
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish  # stop or length


class EngineLink(Transport, Protocol):
    """The engine's side of the service."""

    def notify(self, event: ProgramEvent) -> None: ...
    def flush_cache(self) -> None: ...
    def stats(self) -> Stats | None:
        """As of the last sign of life."""
        ...


class Constraints(Protocol):
    """What tries specifications where they can hurt nobody: ConstraintWorkers."""

    async def check(self, spec: Spec) -> tuple[str, ...]: ...
    async def check_pattern(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Observed:
    """One request that has ended, for metrics. Times in seconds on the service's clock; None = never came."""

    client: str
    kind: str  # the request's type: GenerateRequest, ScoreRequest, EmbedRequest
    arrived: float
    admitted: float | None
    first: float | None  # event with tokens
    ended: float
    finish: Finish | None
    error: PalmetteError | None
    gaps: tuple[float, ...] = ()  # between events that brought tokens


Observer = Callable[[Observed], None]


@dataclass(slots=True)
class Service:
    """See the module. Made once; `attach` and `detach` say whether there is an engine."""

    config: ServerConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    constraints: Constraints
    clock: Callable[[], float]
    clients: Clients = field(init=False)
    gate: Gate = field(init=False)
    flights: Flights = field(init=False)
    link: EngineLink | None = None
    card: ModelCard | None = None  # known once an engine was there
    is_draining: bool = False
    is_stalled: bool = False  # the engine gives no sign of life
    num_restarts: int = 0  # of the engine
    observers: list[Observer] = field(default_factory=list)
    trial_observers: list[Callable[[float], None]] = field(default_factory=list)  # told the seconds of each trial
    num_working: int = 0  # HTTP requests for work that are being read, waited for or answered
    turnstile: Turnstile = field(default_factory=Turnstile)
    _trials: dict[str, asyncio.Semaphore] = field(default_factory=dict)  # by client; one for each key at most
    _longest_token: int = 0  # bytes; 0 = not looked at yet
    _numbers: int = 0
    _nonce: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        limits = self.config.limits
        self.clients = Clients(self.config)
        self.gate = Gate(limits, self.clock, shares=len(self.config.api_keys) > 1)
        self.flights = Flights(self.clock, max_unread=limits.max_unread)

    # -- the engine's coming and going --

    def attach(self, link: EngineLink, card: ModelCard) -> None:
        """There is an engine, and `link` leads to it."""
        self.link, self.card, self.is_stalled = link, card, False
        self.flights.attach(link)

    def detach(self, reason: str) -> None:
        """There is none until the next `attach`."""
        self.link = None
        self.flights.detach(reason)

    @property
    def is_ready(self) -> bool:
        """Would a request be served now?"""
        return self.link is not None and not self.is_draining and not self.is_stalled

    @property
    def model(self) -> ModelCard:
        """
        Raises:
            EngineDied: no engine was there yet.
        """
        if self.card is None:
            raise EngineDied("the model is still being loaded: try again in a few seconds")
        return self.card

    # -- for endpoints --

    @property
    def is_full(self) -> bool:
        """Is there no room for another HTTP request, so that nothing need be spent on it?"""
        limits = self.config.limits
        return self.num_working + len(self.turnstile) >= limits.max_waiting + limits.max_in_engine

    def refusal(self) -> Overloaded:
        """What a request is told that there is no room for."""
        self.gate.num_refused += 1
        return Overloaded(self.gate.retry_after())

    def new_id(self, prefix: str = "") -> str:
        """An id that no other request has."""
        self._numbers += 1
        return f"{prefix}{self._nonce}{self._numbers:08x}"

    def new_seed(self) -> int:
        """63 random bits."""
        return secrets.randbits(63)

    async def encode(self, pieces: Sequence[TextPiece]) -> tuple[int, ...]:
        """Tokenize adjacent pieces as one text; long texts off the loop.

        Raises:
            InvalidOption: a lone surrogate.
        """
        if sum(len(piece.text) for piece in pieces) <= _INLINE_TEXT:
            return tuple(self.tokenizer.encode_pieces(pieces))
        return tuple(await asyncio.to_thread(self.tokenizer.encode_pieces, pieces))

    def check_length(self, num_chars: int) -> None:
        """Before a text is looked at: could it fit at all, were all its tokens as long as the vocabulary's longest?

        Raises:
            PromptTooLong: no.
        """
        if self._longest_token == 0:
            sizes = (len(self.tokenizer.token_bytes(i)) for i in range(self.tokenizer.vocab_size))
            self._longest_token = max(1, max(sizes))
        least = -(-num_chars // self._longest_token)
        if least > self.model.context_len:
            raise PromptTooLong(least, self.model.context_len, "the context")

    async def encode_plain(self, text: str) -> tuple[int, ...]:
        """A plain text with the model's own beginning, as a completion's prompt."""
        return (*self.tokenizer.begin_ids(), *await self.encode([TextPiece(text)]))

    async def check(self, request: GenerateRequest) -> tuple[str, ...]:
        """Try the request's constraint and stop patterns where they can hurt nobody.

        Returns what a constraint leaves unenforced.

        Raises:
            UnsupportedConstraint: it would not be enforced, or costs too much.
        """
        for pattern in request.params.stop_regex:
            await self.constraints.check_pattern(pattern)
        return await self.constraints.check(request.constraint) if request.constraint is not None else ()

    async def _check_in_time(self, client: Client, request: GenerateRequest, seconds: float) -> None:
        """`check`, a few at a time of each client, so that none waits for all that another one wants tried.

        Raises:
            HoleTimeout: it took too long, most of it spent in the queue.
            PalmetteError: as `check`.
        """
        turn: AbstractAsyncContextManager[object] = nullcontext()
        if len(self.config.api_keys) > 1:
            turn = self._trials.setdefault(client.name, asyncio.Semaphore(_TRIALS))
        waiting = asyncio.timeout(seconds)
        try:
            async with waiting, turn:
                await self.check(request)
        except TimeoutError:
            if not waiting.expired():
                raise  # a failure of the trial's own
            raise HoleTimeout(
                f"no turn came to try the constraint within {seconds:.0f} s: the server is busy"
            ) from None

    @asynccontextmanager
    async def submit(
        self, client: Client, request: Request, *, whole: bool, pace: float = 0.0
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Queue a request and follow it: `async with service.submit(...) as events: async for event in events: ...`.

        Leaving the block cancels what has not ended. The events are those of `palmette.types`; the last one carries
        what the request failed with, if it did.

        Args:
            whole: hand nothing out before the end, so that the request survives a crash of the engine.
            pace: seconds between two events, as Flights.launch.

        Raises:
            Overloaded, HoleTimeout, EngineDied: there is no room, no turn in time, or no engine for now.
            UnsupportedConstraint: as `check`.
        """
        watch = _Watch(self, client, request)
        try:
            if self.is_draining:
                raise EngineDied("the server is shutting down: try another, or again in a while")
            if self.is_stalled:
                raise EngineDied("the engine does not answer: try again in a while")
            limits = self.config.limits
            timeout = min(limits.request_timeout, request.timeout or limits.request_timeout)
            deadline = watch.arrived + timeout
            if isinstance(request, GenerateRequest) and (request.constraint or request.params.stop_regex):
                await self._check_in_time(client, request, min(limits.queue_timeout, timeout))
            await self.gate.enter(
                client.name,
                _tokens(request),
                priority=0 if isinstance(request, EmbedRequest) else request.priority,
                timeout=max(0.0, min(limits.queue_timeout, deadline - self.clock())),
            )
        except PalmetteError as error:
            watch.end(error)
            raise
        except BaseException:
            watch.end(Cancelled("the client left"))
            raise
        try:
            watch.admitted = self.clock()
            async with self.flights.launch(request, deadline, whole=whole, pace=pace) as flight:
                watch.times = flight.times
                yield watch.follow(flight)
        finally:
            self.gate.leave()
            watch.end(None)

    async def collect(self, client: Client, request: GenerateRequest) -> Answer:
        """The whole answer.

        Raises:
            PalmetteError: as `submit`, and whatever the request failed with.
        """
        text: list[str] = []
        token_ids: list[int] = []
        logprobs: list[TokenLogprob] = []
        async with self.submit(client, request, whole=True) as events:
            async for event in events:
                assert isinstance(event, TokenEvent), f"a generate request was answered by {event!r}"
                text.append(event.text)
                token_ids += event.token_ids
                logprobs += event.logprobs
                if event.finish is not None:
                    return Answer("".join(text), tuple(token_ids), tuple(logprobs), checked(event.finish))
        raise RequestError("the request ended without an end")  # unreachable while Flights keeps its promise

    def observe_trial(self, seconds: float) -> None:
        """A constraint was tried."""
        for observer in self.trial_observers:
            observer(seconds)

    def notify(self, event: ProgramEvent) -> None:
        if self.link is not None:
            self.link.notify(event)

    def flush_cache(self) -> None:
        """
        Raises:
            EngineDied: there is no engine for now.
        """
        if self.link is None:
            raise EngineDied("there is no engine for now: try again in a few seconds")
        self.link.flush_cache()

    def stats(self) -> Stats | None:
        """The engine's numbers as of its last sign of life."""
        return None if self.link is None else self.link.stats()


def checked(finish: Finish) -> Finish:
    """
    Raises:
        PalmetteError: what the request failed with.
    """
    if finish.reason in (FinishReason.STOP, FinishReason.LENGTH):
        return finish
    raise finish.error or RequestError(f"the request was {finish.reason}")


class _Watch:
    """Times of one request."""

    def __init__(self, service: Service, client: Client, request: Request) -> None:
        self._service, self._client, self._kind = service, client, type(request).__name__
        self.arrived = service.clock()
        self.admitted: float | None = None
        self.times: list[float] = []  # the flight's
        self._finish: Finish | None = None
        self._error: PalmetteError | None = None
        self._is_over = False

    async def follow(self, flight: Flight) -> AsyncIterator[Event]:
        async for event in flight:
            if isinstance(event, TokenEvent):
                self._finish = event.finish
            else:
                self._error = event.error
            yield event

    def end(self, error: PalmetteError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        error = error or self._error or (self._finish.error if self._finish is not None else None)
        if error is None and self._finish is None and self._kind == GenerateRequest.__name__:
            error = Cancelled("the reader left")
        observed = Observed(
            self._client.name, self._kind, self.arrived, self.admitted, self.times[0] if self.times else None,
            self._service.clock(), self._finish, error, tuple(b - a for a, b in pairwise(self.times)),
        )  # fmt: skip
        for observer in self._service.observers:
            observer(observed)


def _tokens(request: Request) -> int:
    room = request.params.max_new_tokens if isinstance(request, GenerateRequest) else 0
    return len(request.token_ids) + room
