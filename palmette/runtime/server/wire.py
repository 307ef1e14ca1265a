"""What the front and the engine say to each other: msgpack of closed, typed structs, each message behind a token.

    front --> engine    Generate, Score, Embed, Cancel, Fork, Branches, End, Flush, Reset
    engine --> front    Step: the events of one step, or the engine's numbers

A message is two frames: the secret that both were started with, and the struct. What does not decode into one of these
types is refused; nothing that arrives names code. Decoding builds the frozen types of `palmette.types`, which check
their ranges. Exceptions cross as a name out of a closed table, a message and plain fields.
"""

from __future__ import annotations

import hmac
from typing import Any, TypeAlias

import msgspec

from palmette import errors
from palmette.errors import InvalidOption, PalmetteError, RequestError
from palmette.ir.spec_data import spec_data, spec_of
from palmette.runtime.stats import Stats
from palmette.types import (
    BranchesEnded,
    ChoiceTrie,
    EmbedEvent,
    EmbedRequest,
    Event,
    Finish,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    Hints,
    LogprobParams,
    ProgramEnded,
    ProgramEvent,
    Request,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
    Usage,
)

MAX_MESSAGE = 64 << 20  # bytes

_ERRORS: dict[str, type[PalmetteError]] = {
    name: kind
    for name in errors.__all__
    if isinstance(kind := getattr(errors, name), type) and issubclass(kind, PalmetteError)
}


class WireError(msgspec.Struct, frozen=True):
    """An exception: `fields` are its attributes that are plain data."""

    kind: str
    message: str
    fields: dict[str, str | int | float | bool | None] = {}


# -- to the engine -------------------------------------------------------------------------------------------------


class Generate(msgspec.Struct, frozen=True, tag=True):
    id: str
    tokens: tuple[int, ...]
    params: SamplingParams
    seed: int
    logprobs: LogprobParams | None
    hints: Hints
    namespace: str
    priority: int
    timeout: float | None
    constraint: dict[str, Any] | None  # palmette.ir.spec_data


class Score(msgspec.Struct, frozen=True, tag=True):
    id: str
    tokens: tuple[int, ...]
    trie: ChoiceTrie
    unconditional: bool
    hints: Hints
    namespace: str
    priority: int
    timeout: float | None


class Embed(msgspec.Struct, frozen=True, tag=True):
    id: str
    tokens: tuple[int, ...]
    timeout: float | None


class Cancel(msgspec.Struct, frozen=True, tag=True):
    id: str


class Fork(msgspec.Struct, frozen=True, tag=True):
    program: str
    tokens: tuple[int, ...]
    siblings: int
    namespace: str


class Branches(msgspec.Struct, frozen=True, tag=True):
    program: str
    tokens: tuple[int, ...]
    count: int
    namespace: str


class End(msgspec.Struct, frozen=True, tag=True):
    program: str


class Flush(msgspec.Struct, frozen=True, tag=True):
    """Forget what is cached."""


class Reset(msgspec.Struct, frozen=True, tag=True):
    """A front begins: whatever another one asked for has no reader."""


ToEngine: TypeAlias = Generate | Score | Embed | Cancel | Fork | Branches | End | Flush | Reset


# -- to the front --------------------------------------------------------------------------------------------------


class Ended(msgspec.Struct, frozen=True):
    reason: FinishReason
    token_ids: tuple[int, ...]
    tail: str
    matched: str | int | None
    usage: Usage
    prompt_logprobs: tuple[TokenLogprob, ...]
    error: WireError | None
    steered: bool
    unenforced: tuple[str, ...]


class Tokens(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Ended | None = None


class Scored(msgspec.Struct, frozen=True, tag=True):
    id: str
    logprobs: tuple[float, ...]
    unconditional: tuple[float, ...]
    usage: Usage
    error: WireError | None


class Embedded(msgspec.Struct, frozen=True, tag=True):
    id: str
    embedding: tuple[float, ...]
    usage: Usage
    error: WireError | None


class Step(msgspec.Struct, frozen=True, tag=True):
    """What one step of the engine brought; without events, a sign of life."""

    events: tuple[Tokens | Scored | Embedded, ...]
    stats: Stats | None = None


# -- frames --------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_front_decoder: msgspec.msgpack.Decoder[Step] = msgspec.msgpack.Decoder(Step)


class BadMessage(Exception):
    """Frames that nobody of ours sent."""


def to_frames(secret: bytes, message: ToEngine | Step) -> list[bytes]:
    """The frames of a message.

    Raises:
        InvalidOption: it holds a text or a number that nothing can write.
    """
    try:
        return [secret, _encoder.encode(message)]
    except (UnicodeEncodeError, OverflowError):
        raise InvalidOption("request", "...", "texts without lone surrogates, and integers of 64 bits") from None


def read_for_engine(secret: bytes, frames: list[bytes]) -> ToEngine:
    """Raises BadMessage."""
    message: ToEngine = _read(secret, frames, _engine_decoder)
    return message


def read_for_front(secret: bytes, frames: list[bytes]) -> Step:
    """Raises BadMessage."""
    message: Step = _read(secret, frames, _front_decoder)
    return message


def _read(secret: bytes, frames: list[bytes], decoder: Any) -> Any:
    if len(frames) != 2 or not hmac.compare_digest(frames[0], secret):
        raise BadMessage("a message without the secret")
    if len(frames[1]) > MAX_MESSAGE:
        raise BadMessage(f"a message of {len(frames[1])} bytes")
    try:
        return decoder.decode(frames[1])
    except (msgspec.MsgspecError, ValueError, RecursionError, PalmetteError) as error:
        raise BadMessage(f"a message that is none of ours: {error}") from error


# -- to and from the types of the seam -------------------------------------------------------------------------------


def request_to_wire(request: Request) -> Generate | Score | Embed:
    tokens = tuple(request.token_ids)
    if isinstance(request, GenerateRequest):
        spec = None if request.constraint is None else spec_data(request.constraint)
        return Generate(
            request.request_id, tokens, request.params, request.seed, request.logprobs, request.hints,
            request.namespace, request.priority, request.timeout, spec,
        )  # fmt: skip
    if isinstance(request, ScoreRequest):
        return Score(
            request.request_id, tokens, request.trie, request.unconditional, request.hints, request.namespace,
            request.priority, request.timeout,
        )  # fmt: skip
    return Embed(request.request_id, tokens, request.timeout)


def request_of(wire: Generate | Score | Embed) -> Request:
    """
    Raises:
        PalmetteError: a constraint that is none.
    """
    if isinstance(wire, Generate):
        spec = None if wire.constraint is None else spec_of(wire.constraint)
        return GenerateRequest(
            wire.id, wire.tokens, wire.params, wire.seed, wire.logprobs, wire.hints, wire.namespace, wire.priority,
            wire.timeout, spec,
        )  # fmt: skip
    if isinstance(wire, Score):
        return ScoreRequest(
            wire.id, wire.tokens, wire.trie, wire.unconditional, wire.hints, wire.namespace, wire.priority, wire.timeout
        )
    return EmbedRequest(wire.id, wire.tokens, wire.timeout)


def program_to_wire(event: ProgramEvent) -> Fork | Branches | End:
    if isinstance(event, ForkDeclared):
        return Fork(event.program, tuple(event.token_ids), event.siblings, event.namespace)
    if isinstance(event, BranchesEnded):
        return Branches(event.program, tuple(event.token_ids), event.count, event.namespace)
    return End(event.program)


def program_of(wire: Fork | Branches | End) -> ProgramEvent:
    if isinstance(wire, Fork):
        return ForkDeclared(wire.program, wire.tokens, wire.siblings, wire.namespace)
    if isinstance(wire, Branches):
        return BranchesEnded(wire.program, wire.tokens, wire.count, wire.namespace)
    return ProgramEnded(wire.program)


def event_to_wire(event: Event) -> Tokens | Scored | Embedded:
    if isinstance(event, TokenEvent):
        end = event.finish
        ended = None
        if end is not None:
            ended = Ended(
                end.reason, end.token_ids, end.tail, end.matched, end.usage, end.prompt_logprobs,
                error_to_wire(end.error), end.steered, end.unenforced,
            )  # fmt: skip
        return Tokens(event.request_id, event.text, event.token_ids, event.logprobs, ended)
    if isinstance(event, ScoreEvent):
        return Scored(event.request_id, event.logprobs, event.unconditional, event.usage, error_to_wire(event.error))
    return Embedded(event.request_id, event.embedding, event.usage, error_to_wire(event.error))


def event_of(wire: Tokens | Scored | Embedded) -> Event:
    if isinstance(wire, Tokens):
        end = wire.finish
        finish = None
        if end is not None:
            finish = Finish(
                end.reason, end.token_ids, end.tail, end.matched, end.usage, end.prompt_logprobs, error_of(end.error),
                end.steered, end.unenforced,
            )  # fmt: skip
        return TokenEvent(wire.id, wire.text, wire.token_ids, wire.logprobs, finish)
    if isinstance(wire, Scored):
        return ScoreEvent(wire.id, wire.logprobs, wire.unconditional, wire.usage, error_of(wire.error))
    return EmbedEvent(wire.id, wire.embedding, wire.usage, error_of(wire.error))


def error_to_wire(error: PalmetteError | None) -> WireError | None:
    """A cause stays behind: it may name files and addresses."""
    if error is None:
        return None
    plain = {name: _written(value) for name, value in vars(error).items() if _is_plain(value)}
    kind = next(c.__name__ for c in type(error).__mro__ if c.__name__ in _ERRORS or c is PalmetteError)
    return WireError(kind, _written(Exception.__str__(error)), plain)


def error_of(wire: WireError | None) -> PalmetteError | None:
    """The exception again: of its own class if the table has it, with its message and fields."""
    if wire is None:
        return None
    kind = _ERRORS.get(wire.kind, RequestError)
    error = kind.__new__(kind)
    Exception.__init__(error, wire.message)
    vars(error).update(wire.fields)
    return error


def _is_plain(value: object) -> bool:
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    return value is None or isinstance(value, str | float)


def _written(value: Any) -> Any:
    """A text with lone surrogates spelled out: an error may quote what somebody sent."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
