"""Tools for testing programs without a real model; product code, used by this package's own tests too.

`ScriptedBackend` answers prompts with text you choose. `tiny_runtime` runs the real engine on a tiny model with random
weights: slow paths, caches and batching are real, only the text is nonsense.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from palmette.errors import Cancelled, EngineDied, PalmetteError, RequestError, UnsupportedFeature
from palmette.specs import Healed, Spec
from palmette.types import (
    Capabilities,
    Deliver,
    EmbedRequest,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    Message,
    ProgramEvent,
    Request,
    RolePieces,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
    TextPiece,
    TokenEvent,
    TokenLogprob,
    Usage,
)

if TYPE_CHECKING:
    from palmette.fsm.vocabulary import Vocabulary
    from palmette.interpreter.backends.local import Runtime


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of a script that tells more than its text."""

    text: str
    steered: bool = False  # the token budget closed it: a typed hole raises Truncated


Replies: TypeAlias = Callable[[str], str | Reply] | Mapping[str, str | Reply] | Sequence[str | Reply]

CONSTRAINTS = ("regex", "choices", "json_schema", "grammar", "stop_regex", "structural_tag", "token_healing")
_BYTES = 256
_BEGIN, _END = 256, 257  # role marks


class ScriptedBackend:
    """A backend whose model is a script; a token is one byte of UTF-8.

    Args:
        replies: a function of the prompt's text; or a mapping from the end of a prompt to its reply; or a list,
            answered in the order of arrival. A reply is a text, or a `Reply`.
        piece: characters of a reply that come in one event.
        manual: hold every request until `release()`; for tests of cancelling and of concurrency.
        score: the logprob of a token behind a prompt, for `select`; by default the longer the text the same.
        constraints: kinds of constraint that it takes. A reply that does not satisfy the constraint of its hole fails
            the request: a model under that constraint could not have written it.
        chat_template: the Jinja source that tells the family of the model, whose tool calls it writes; messages are
            not rendered with it.

    Where a seam is healed the script sees and answers the prompt as the author wrote it.

    `requests` lists what was submitted, `program_events` the hints, `cancelled` the ids that were cancelled.

    >>> from palmette import function, gen
    >>> @function
    ... def hello(s):
    ...     s += "Say hello:" + gen("word")
    >>> hello.run(backend=ScriptedBackend({"hello:": " hi"}))["word"]
    ' hi'
    """

    def __init__(
        self,
        replies: Replies = (),
        *,
        piece: int = 4,
        manual: bool = False,
        score: Callable[[str, str], float] | None = None,
        context_len: int = 1 << 20,
        constraints: Iterable[str] = CONSTRAINTS,
        chat_template: str = "",
    ) -> None:
        self._replies = list(replies) if isinstance(replies, Sequence) else replies
        self._piece = max(1, piece)
        self._manual = manual
        self._score = score or (lambda prompt, token: -1.0)
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Request, Deliver]] = {}
        self._closed = False
        self.capabilities = Capabilities(
            model="scripted",
            digest="scripted",
            context_len=context_len,
            constraints=frozenset(constraints),
            chat_template=chat_template,
        )
        self.requests: list[Request] = []
        self.program_events: list[ProgramEvent] = []
        self.cancelled: list[str] = []

    # -- the Backend protocol --

    def begin_ids(self) -> tuple[int, ...]:
        return ()

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            for char in piece.text:
                mark = {"\x02": _BEGIN, "\x03": _END}.get(char) if piece.special else None
                ids.extend([mark] if mark is not None else char.encode("utf-8"))
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(t for t in token_ids if t < _BYTES).decode("utf-8", errors="replace")

    def role_pieces(self, messages: Sequence[Message], role: str) -> RolePieces:
        return RolePieces(f"\x02{role}\n", "\x03\n")

    def rerender(self, messages: Sequence[Message], role: str) -> tuple[tuple[TextPiece, ...], RolePieces]:
        pieces = [
            piece
            for m in messages
            for piece in (TextPiece(f"\x02{m.role}\n", True), TextPiece(m.content), TextPiece("\x03\n", True))
        ]
        pieces.append(TextPiece(f"\x02{role}\n", True))
        return tuple(pieces), RolePieces("", "\x03\n")

    def submit(self, request: Request, deliver: Deliver) -> None:
        with self._lock:
            self.requests.append(request)
            closed = self._closed
            if self._manual and not closed:
                self._held[request.request_id] = (request, deliver)
                return
        deliver([_ended(request, EngineDied("the backend is closed"))] if closed else self._answer(request))

    def cancel(self, request_id: str) -> None:
        with self._lock:
            self.cancelled.append(request_id)
            held = self._held.pop(request_id, None)
        if held is not None:
            held[1]([_ended(held[0], Cancelled("cancelled"), FinishReason.CANCELLED)])

    def notify(self, event: ProgramEvent) -> None:
        self.program_events.append(event)

    def flush_cache(self) -> None:
        """There is none."""

    def server_info(self) -> dict[str, Any]:
        return {"model": "scripted", "requests": len(self.requests)}

    def close(self) -> None:
        with self._lock:
            self._closed = True
            held, self._held = list(self._held.values()), {}
        for request, deliver in held:
            deliver([_ended(request, EngineDied("the backend was closed"))])

    # -- for tests --

    def wait_for(self, count: int, seconds: float = 10.0) -> None:
        """Wait until `count` requests are held.

        Raises:
            TimeoutError: they did not come.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._lock:
                if len(self._held) >= count:
                    return
            time.sleep(0.001)
        raise TimeoutError(f"{len(self._held)} of {count} requests came within {seconds} s")

    def release(self, count: int | None = None) -> None:
        """Answer the held requests, oldest first: all, or `count` of them."""
        with self._lock:
            ids = list(self._held)[:count]
            held = [self._held.pop(request_id) for request_id in ids]
        for request, deliver in held:
            deliver(self._answer(request))

    def _answer(self, request: Request) -> list[Event]:
        try:
            if isinstance(request, ScoreRequest):
                return [self._scores(request)]
            if isinstance(request, EmbedRequest):
                raise UnsupportedFeature("embeddings", "a script has none")
            return self._reply(request)
        except PalmetteError as error:
            return [_ended(request, error)]

    def _reply(self, request: GenerateRequest) -> list[Event]:
        prefix = request.constraint.prefix if isinstance(request.constraint, Healed) else ""
        reply = self._text(self.decode(request.token_ids) + prefix)
        whole, steered = (reply.text, reply.steered) if isinstance(reply, Reply) else (reply, False)
        whole = prefix + whole
        text, written, matched = _stopped(whole, request.params)
        reason = FinishReason.LENGTH if steered else FinishReason.STOP
        is_cut = len(text.encode()) > request.params.max_new_tokens
        if request.constraint is not None:
            _check_reply(request.constraint, written, is_whole=matched is None)
            if is_cut:
                raise RequestError(
                    f"the script's reply has {len(text.encode())} tokens, and max_new_tokens is "
                    f"{request.params.max_new_tokens}: a constrained hole is closed in time, not cut; make the reply "
                    "shorter, or say Reply(text, steered=True) for one that was closed"
                )
        if is_cut:
            text = text.encode()[: request.params.max_new_tokens].decode("utf-8", errors="ignore")
            reason, matched = FinishReason.LENGTH, None
        ids = tuple(text.encode())
        usage = Usage(prompt_tokens=len(request.token_ids), sampled_tokens=len(ids))
        events: list[Event] = []
        for start in range(0, len(text), self._piece):
            piece = text[start : start + self._piece]
            tokens = tuple(piece.encode())
            rows = tuple(TokenLogprob(t, -1.0) for t in tokens) if request.logprobs else ()
            events.append(TokenEvent(request.request_id, piece, tokens, rows))
        finish = Finish(reason, ids, "", matched, usage, steered=steered)
        events.append(TokenEvent(request.request_id, finish=finish))
        return events

    def _text(self, prompt: str) -> str | Reply:
        if callable(self._replies):
            return self._replies(prompt)
        if isinstance(self._replies, Mapping):
            found = [end for end in self._replies if prompt.endswith(end)]
            if not found:
                raise Cancelled(f"the script has no reply to a prompt that ends with {prompt[-40:]!r}")
            return self._replies[max(found, key=len)]
        with self._lock:
            if not self._replies:
                raise Cancelled("the script has no reply left")
            return self._replies.pop(0)

    def _scores(self, request: ScoreRequest) -> ScoreEvent:
        def rows(prompt: str) -> tuple[float, ...]:
            return tuple(self._score(prompt, self.decode([t])) for t in request.trie.token_ids)

        alone = tuple(
            0.0 if parent < 0 else value for value, parent in zip(rows(""), request.trie.parents, strict=True)
        )
        return ScoreEvent(
            request.request_id,
            rows(self.decode(request.token_ids)),
            alone if request.unconditional else (),
            Usage(prompt_tokens=len(request.token_ids)),
        )


def _stopped(text: str, params: SamplingParams) -> tuple[str, str, str | None]:
    """The text before what ends it, the text up to there, and what it was: the stop or pattern that is whole first."""
    ends = [(at + len(stop), at, stop) for stop in params.stop if (at := text.find(stop)) >= 0]
    for pattern in params.stop_regex:
        found = re.compile(pattern)
        places = ((end, at) for end in range(1, len(text) + 1) for at in range(end) if found.fullmatch(text, at, end))
        ends += [(end, at, pattern) for end, at in places][:1]
    if not ends:
        return text, text, None
    end, start, matched = min(ends)
    return text[:start], text[:end], matched


def _check_reply(spec: Spec, text: str, *, is_whole: bool) -> None:
    """Raises RequestError for a reply that no model could have written under `spec`."""
    from palmette.fsm.compile import compile as compile_spec  # brings numpy, which only constrained holes need

    matcher = compile_spec(spec, _bytes_vocabulary()).matcher()
    allowed = 0
    for char in text:
        if not matcher.advance_bytes(char.encode("utf-8", "surrogatepass")):
            break
        allowed += 1
    if allowed < len(text) or (is_whole and not matcher.is_accepting):
        what = f"what follows {text[:allowed][-40:]!r} does not" if allowed < len(text) else "it ends too early"
        asked = repr(spec) if len(repr(spec)) <= 200 else f"{repr(spec)[:200]}..."
        raise RequestError(f"the script's reply {text!r} does not satisfy the hole's constraint: {what} ({asked})")


@lru_cache(maxsize=1)
def _bytes_vocabulary() -> Vocabulary:
    from palmette.fsm.vocabulary import Vocabulary

    return Vocabulary([bytes([i]) for i in range(_BYTES)], eos_ids=())


def _ended(request: Request, error: PalmetteError, reason: FinishReason = FinishReason.FAILED) -> Event:
    if isinstance(request, GenerateRequest):
        return TokenEvent(request.request_id, finish=Finish(reason, error=error))
    return ScoreEvent(request.request_id, error=error)


def tiny_runtime(**options: Any) -> Runtime:
    """A Runtime on a tiny model with random weights and a byte tokenizer; takes every option of `Runtime`."""
    from palmette.interpreter.backends.local import Runtime

    return Runtime(model_path="tiny", **options)
