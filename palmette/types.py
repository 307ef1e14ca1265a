"""What crosses the seam between the language half and the runtime half: frozen data, and the `Backend` protocol.

Knows nothing of Python programs and nothing of tensors. The language half (`lang`, `ir`, `interpreter`) produces
requests and reads events; the runtime half (`fsm`, `kernels`, `runtime`) does the reverse. Lengths are in tokens and
times in seconds throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any, Literal, Protocol, TypeAlias, overload, runtime_checkable

from palmette.errors import InvalidOption, PalmetteError
from palmette.specs import Spec

MAX_STOPS = 64
MAX_TOP_LOGPROBS = 20
GREEDY_BELOW = 1e-6  # temperatures: a logit divided by less may be no number
LEAST_REPETITION_PENALTY = 0.01


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidOption(name, value, f"an integer from {low} to {high}")


def _check_float(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not (low < value if open_low else low <= value) or value > high:  # type: ignore[operator]
        raise InvalidOption(name, value, f"a number from {low}{' (excluded)' if open_low else ''} to {high}")


class FinishReason(StrEnum):
    """How a hole ends: exactly one of these, once."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one hole are drawn. Validated once, here; everything after trusts it."""

    max_new_tokens: int = 128  # 0 = only compute (and cache) the prompt
    min_new_tokens: int = 0  # end-of-sequence, stop tokens and stop strings do not end the hole before this many
    temperature: float = 1.0  # 0 = greedy, and so is what lies below GREEDY_BELOW
    top_p: float = 1.0
    top_k: int = -1  # -1 = the whole vocabulary
    min_p: float = 0.0
    frequency_penalty: float = 0.0  # per occurrence among the generated tokens
    presence_penalty: float = 0.0  # once for each generated token id
    repetition_penalty: float = (
        1.0  # on prompt and generated tokens (Keskar et al. 2019, arXiv 1909.05858, section 4.1)
    )
    stop: tuple[str, ...] = ()  # never part of the text
    stop_regex: tuple[str, ...] = ()  # what one of them matches ends the hole and is no part of the text
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 0, 1 << 24)
        _check_int("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        _check_float("temperature", self.temperature, 0.0, 100.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, LEAST_REPETITION_PENALTY, 10.0)
        if not isinstance(self.top_k, int) or (self.top_k < 1 and self.top_k != -1):
            raise InvalidOption("top_k", self.top_k, "-1 (off) or an integer >= 1")
        if len(self.stop) > MAX_STOPS or any(not isinstance(s, str) or not s for s in self.stop):
            raise InvalidOption("stop", self.stop, f"at most {MAX_STOPS} non-empty strings")
        if len(self.stop_regex) > MAX_STOPS or any(not isinstance(s, str) or not s for s in self.stop_regex):
            raise InvalidOption("stop_regex", self.stop_regex, f"at most {MAX_STOPS} non-empty patterns")
        if any(not isinstance(t, int) or t < 0 for t in self.stop_token_ids):
            raise InvalidOption("stop_token_ids", self.stop_token_ids, "token ids >= 0")
        for token, bias in self.logit_bias:
            if not isinstance(token, int) or token < 0:
                raise InvalidOption("logit_bias", token, "token ids >= 0")
            _check_float(f"logit_bias[{token}]", bias, -1000.0, 1000.0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1


@dataclass(frozen=True, slots=True)
class LogprobParams:
    """Which logprobs to return: natural logarithms of the model's own distribution, before temperature and filters."""

    start_len: int | None = None  # first prompt position that gets a row; None = generated tokens only
    top: int = 0  # alternatives per position

    def __post_init__(self) -> None:
        if self.start_len is not None:
            _check_int("logprob_start_len", self.start_len, 0, 1 << 30)
        _check_int("top_logprobs_num", self.top, 0, MAX_TOP_LOGPROBS)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's logprob. `logprob` is None only for the very first token of a prompt."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Hints:
    """What a program tells the runtime of its future. Hints change speed, never results."""

    program: str = ""  # one program instance; "" = none
    shared_len: int = 0  # the first shared_len prompt tokens are shared with the siblings of a fork
    siblings: int = 0  # how many streams extend those tokens, this one included
    last_use: bool = False  # nothing will extend this request's tokens
    critical: bool = False  # on the program's critical path


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a hole, a stream or a program; adds up with `+`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, read from the cache
    sampled_tokens: int = 0
    forced_tokens: int = 0  # put there by a constraint without a decode step
    retokenized_tokens: int = 0  # kept text whose token a stop string cut, or constants re-rendered
    wasted_tokens: int = 0  # generated, then dropped: behind a stop string, rolled back, cancelled
    seconds: float = 0.0  # from submission to the end, summed over holes

    @property
    def completion_tokens(self) -> int:
        return self.sampled_tokens + self.forced_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.sampled_tokens + other.sampled_tokens,
            self.forced_tokens + other.forced_tokens,
            self.retokenized_tokens + other.retokenized_tokens,
            self.wasted_tokens + other.wasted_tokens,
            self.seconds + other.seconds,
        )


# -- tokens --------------------------------------------------------------------------------------------------------


class TokenPath(Sequence[int]):
    """Token ids as a segment behind another path, which whoever continues it shares: extending costs what is added.

        the stream's beginning <-- what a hole wrote <-- the text behind it
                                            `----------- a branch's own

    Immutable, and equal to any sequence of the same ids. Reading all of it costs its length; a backend reads from its
    end, back to a segment that it knows.
    """

    __slots__ = ("high", "length", "low", "parent", "place", "token_ids")

    def __init__(self, parent: TokenPath | None, token_ids: Sequence[int]) -> None:
        own = self.token_ids = tuple(token_ids)  # of this segment
        self.parent = parent
        self.length: int = len(own) + (parent.length if parent is not None else 0)
        low, high = (min(own), max(own)) if own else (0, 0)
        # Of the whole path, 0 among them: whether every id is a model's is seen without reading it.
        self.low: int = low if parent is None else min(low, parent.low)
        self.high: int = high if parent is None else max(high, parent.high)
        self.place: object | None = None  # where a backend has these tokens: its own note, of no meaning elsewhere

    def all_ids(self) -> tuple[int, ...]:
        """Every token from the start."""
        return self.ids_from(0)

    def ids_from(self, start: int) -> tuple[int, ...]:
        """The tokens from index `start` on; reads no segment before it."""
        parts: list[tuple[int, ...]] = []
        begin = self.length
        segment: TokenPath | None = self
        while segment is not None and begin > start:
            parts.append(segment.token_ids)
            begin -= len(segment.token_ids)
            segment = segment.parent
        ids = tuple(chain.from_iterable(reversed(parts))) if len(parts) != 1 else parts[0]
        return ids[start - begin :] if start > begin else ids

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(self.all_ids())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self.all_ids()[index]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return self.all_ids() == tuple(other)

    def __hash__(self) -> int:
        return hash(self.all_ids())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.all_ids()!r}"

    def __reduce__(self) -> tuple[Callable[..., TokenPath], tuple[None, tuple[int, ...]]]:
        """To another process goes one segment: not who shares it, nor where a backend has it."""
        return TokenPath, (None, self.all_ids())


# -- requests ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Continue `token_ids`. Answered by TokenEvents, the last of which carries a Finish."""

    request_id: str  # unique per backend; the caller's
    token_ids: Sequence[int]  # a tuple, or a TokenPath
    params: SamplingParams = SamplingParams()
    seed: int = 0  # 64 bits; with the position of a token in its hole it is the key of that token's draw
    logprobs: LogprobParams | None = None
    hints: Hints = Hints()
    namespace: str = ""  # requests share cached prefixes only within one namespace
    priority: int = 0  # higher first
    timeout: float | None = None  # seconds from submission
    constraint: Spec | None = None  # what the text must satisfy; end-of-sequence may come only where it does


@dataclass(frozen=True, slots=True)
class ChoiceTrie:
    """The choices' tokens as a trie in depth-first order: a node's parent stands before it.

    choices "yes", "yet"  ->  token_ids = (ye, s, t)   parents = (-1, 0, 0)
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]  # index of the parent node; -1 = child of the prompt's last token


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Score every node of `trie` behind the prompt `token_ids`, in one forward pass. Answered by one ScoreEvent."""

    request_id: str
    token_ids: Sequence[int]  # a tuple, or a TokenPath; at least one
    trie: ChoiceTrie
    unconditional: bool = False  # also score the trie behind an empty prompt
    hints: Hints = Hints()
    namespace: str = ""
    priority: int = 0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Pool the last hidden states of `token_ids`. Answered by one EmbedEvent."""

    request_id: str
    token_ids: tuple[int, ...]
    timeout: float | None = None


Request: TypeAlias = GenerateRequest | ScoreRequest | EmbedRequest


# -- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a generate request.

    The whole text is `detokenized(token_ids) + tail`: where a stop string cuts a token, the kept part of it is `tail`.
    """

    reason: FinishReason
    token_ids: tuple[int, ...] = ()  # what belongs to the state: no end-of-sequence, no stop token, nothing cut
    tail: str = ""
    matched: str | int | None = None  # the stop string or token id that ended it
    usage: Usage = Usage()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # from start_len to the end of the prompt
    error: PalmetteError | None = None  # with CANCELLED and FAILED
    steered: bool = False  # the end of the token budget changed what was drawn, so that the constraint still holds
    unenforced: tuple[str, ...] = ()  # what a schema with strict=False left to a check after generation


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What an engine step added to a generate request, or several did. Texts concatenate to the hole's final text."""

    request_id: str
    text: str = ""  # whole characters, never part of a stop string
    token_ids: tuple[int, ...] = ()  # sampled in it
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id, if asked for
    finish: Finish | None = None  # on exactly one event, the last


@dataclass(frozen=True, slots=True)
class ScoreEvent:
    """The logprob of each trie node given its path; the one event of a score request."""

    request_id: str
    logprobs: tuple[float, ...] = ()
    unconditional: tuple[float, ...] = ()  # the same behind an empty prompt; depth-0 nodes count 0.0
    usage: Usage = Usage()
    error: PalmetteError | None = None


@dataclass(frozen=True, slots=True)
class EmbedEvent:
    request_id: str
    embedding: tuple[float, ...] = ()
    usage: Usage = Usage()
    error: PalmetteError | None = None


Event: TypeAlias = TokenEvent | ScoreEvent | EmbedEvent
Deliver: TypeAlias = Callable[[Sequence[Event]], None]


# -- program events: hints that belong to no request ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForkDeclared:
    """`siblings` streams are about to extend `token_ids`."""

    program: str
    token_ids: Sequence[int]  # a tuple, or a TokenPath
    siblings: int
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class BranchesEnded:
    """`count` of the streams that a ForkDeclared announced behind `token_ids` will not come any more."""

    program: str
    token_ids: Sequence[int]
    count: int
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """Nothing of this program will be asked for again; what only it used may be dropped first."""

    program: str


ProgramEvent: TypeAlias = ForkDeclared | BranchesEnded | ProgramEnded


# -- text and roles ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text on its way to tokens. Only template text (`special`) is parsed for special tokens, user text never."""

    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class RolePieces:
    """What the model's chat template writes around the content of one message."""

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; what it cannot is refused before a token is paid for."""

    tokens: bool = True  # has a tokenizer; without, a stream's state is messages
    chat: bool = True  # has a chat template
    # of regex, choices, json_schema, grammar, stop_regex, structural_tag (tags, reasoning), token_healing
    constraints: frozenset[str] = frozenset()
    chat_template: str = ""  # Jinja source, which tells how the model writes tool calls; "" = none, or not known
    vision: bool = False
    context_len: int = 1 << 30
    model: str = ""  # a short name
    digest: str = ""  # of the model's weights and config, for run records


@runtime_checkable
class Backend(Protocol):
    """What the interpreter runs on. Thread-safe; `submit` never blocks on the model.

    Every submitted request ends in exactly one terminal event (`TokenEvent.finish`, `ScoreEvent`, `EmbedEvent`), even
    when it is refused or cancelled. `deliver` is called on a thread of the backend's with the events of one step.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def begin_ids(self) -> tuple[int, ...]:
        """The token ids every plain-text stream starts with (the model's BOS where it wants one)."""
        ...

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Tokenize adjacent pieces as one text; adds nothing of its own."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        ...

    def role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
        """The template's text before and after a message of `role` that follows `messages`.

        Raises:
            NoChatTemplate, TemplateNotIncremental, TemplateError
        """
        ...

    def rerender(self, messages: Sequence[Message], role: str) -> tuple[tuple[TextPiece, ...], RolePieces]:
        """The same for a template that is not incremental: all text before the new message's content, rendered anew,
        and its pieces, whose `begin` is empty. Contents of messages are never `special`."""
        ...

    def submit(self, request: Request, deliver: Deliver) -> None: ...

    def cancel(self, request_id: str) -> None:
        """End the request within one step; a request that already ended is left alone."""
        ...

    def notify(self, event: ProgramEvent) -> None: ...

    def flush_cache(self) -> None: ...

    def server_info(self) -> dict[str, Any]: ...

    def close(self) -> None:
        """Fail what is running with EngineDied and free everything. May be called twice."""
        ...


ChoicesMethodName: TypeAlias = Literal[
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
    "exact_probability",
]
