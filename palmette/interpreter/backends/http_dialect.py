"""What the two kinds of servers have in common, seen from here: the seam between a request's way and its wording.

Knows the fields that SGLang's `/generate` and ours share. A dialect says what else a request is written as, and reads
what comes back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias

from palmette.errors import PalmetteError
from palmette.types import (
    BranchesEnded,
    ForkDeclared,
    GenerateRequest,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
)

Post: TypeAlias = Callable[[str, object], Awaitable[bytes]]  # (path, body) -> the answer's body
Row: TypeAlias = tuple[float | None, int, Any]  # (logprob, token id, text or None)


class Reader(Protocol):
    """Reads the stream of one generate request."""

    def take(self, data: bytes) -> TokenEvent | None:
        """The event that a server-sent event stands for; None if it brought nothing.

        Raises:
            PalmetteError: the request failed, or this is no answer to it.
        """
        ...


class Dialect(Protocol):
    """How a kind of server is spoken to. Stateless."""

    constraints: frozenset[str]  # kinds that it enforces, as in Capabilities

    def body(self, request: GenerateRequest, *, salt: str, priority: int, timeout: float | None) -> dict[str, Any]:
        """The body for POST /generate.

        Args:
            salt: of the namespace; "" = everybody's.
            priority: of the endpoint, which the request's own adds to.
            timeout: seconds that are left.

        Raises:
            PalmetteError: this server cannot do it; nothing was sent.
        """
        ...

    def reader(self, request: GenerateRequest) -> Reader: ...

    async def score(
        self, request: ScoreRequest, post: Post, *, salt: str, priority: int, timeout: float | None
    ) -> ScoreEvent:
        """Raises what `post` raises."""
        ...

    def hint(self, event: ForkDeclared | BranchesEnded, *, salt: str) -> tuple[str, dict[str, Any]] | None:
        """(path, body) of what tells the server; None if it would not listen."""
        ...

    def ends(self, programs: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """The same of programs of which nothing more comes."""
        ...


def sampling(request: GenerateRequest) -> dict[str, Any]:
    """`sampling_params` under SGLang's names, without a constraint. What is at its default is left out."""
    params = request.params
    fields: dict[str, Any] = {
        "max_new_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "min_new_tokens": params.min_new_tokens or None,
        "top_p": None if params.top_p == 1.0 else params.top_p,
        "top_k": None if params.top_k == -1 else params.top_k,
        "min_p": params.min_p or None,
        "frequency_penalty": params.frequency_penalty or None,
        "presence_penalty": params.presence_penalty or None,
        "repetition_penalty": None if params.repetition_penalty == 1.0 else params.repetition_penalty,
        "stop": list(params.stop) or None,
        "stop_regex": list(params.stop_regex) or None,
        "stop_token_ids": list(params.stop_token_ids) or None,
        "ignore_eos": params.ignore_eos or None,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias} or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def asked_logprobs(request: GenerateRequest) -> dict[str, Any]:
    """The fields of a request that ask for logprobs."""
    wanted = request.logprobs
    if wanted is None:
        return {}
    start = -1 if wanted.start_len is None else wanted.start_len
    return {"return_logprob": True, "logprob_start_len": start, "top_logprobs_num": wanted.top}


def logprob_rows(rows: list[Row], top: list[list[Row] | None] | None) -> tuple[TokenLogprob, ...]:
    """Rows as the server writes them, with their alternatives where there are any."""
    tops = top or [None] * len(rows)
    return tuple(
        TokenLogprob(token, logprob, tuple((t, p) for p, t, _ in best or () if p is not None))
        for (logprob, token, _), best in zip(rows, tops, strict=False)
    )


def failed(event: TokenEvent) -> PalmetteError | None:
    """What an event's request failed with, if this is its end."""
    return None if event.finish is None else event.finish.error
