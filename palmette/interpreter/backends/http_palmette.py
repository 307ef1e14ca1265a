"""Palmette's own server: SGLang's `/generate` with token deltas, any constraint, scores in one pass and hints.

Nothing is computed here that the server knows: what it kept of an output, the tail and the usage come as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from palmette.errors import RequestError
from palmette.interpreter.backends.http_dialect import Post, Row, asked_logprobs, logprob_rows, sampling
from palmette.interpreter.backends.http_errors import chunk_error, named_error
from palmette.ir.spec_data import spec_data
from palmette.types import (
    BranchesEnded,
    Finish,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    Hints,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    Usage,
)

# What an older server enforces that does not say it.
CONSTRAINTS = frozenset({"regex", "choices", "json_schema", "grammar", "stop_regex", "structural_tag", "token_healing"})


class _Error(msgspec.Struct):
    kind: str
    message: str
    fields: dict[str, Any] = {}


class _Delta(msgspec.Struct):
    text: str = ""
    token_ids: tuple[int, ...] = ()
    # of the last one
    reason: FinishReason | None = None
    kept: tuple[int, ...] = ()
    tail: str = ""
    matched: str | int | None = None
    usage: Usage | None = None
    steered: bool = False
    unenforced: tuple[str, ...] = ()
    error: _Error | None = None


class _Meta(msgspec.Struct):
    palmette: _Delta | None = None
    finish_reason: dict[str, Any] | None = None
    input_token_logprobs: list[Row] | None = None
    input_top_logprobs: list[list[Row] | None] | None = None
    output_token_logprobs: list[Row] | None = None
    output_top_logprobs: list[list[Row] | None] | None = None


class _Chunk(msgspec.Struct):
    """Of all that a chunk holds only this is read: the texts so far would cost the square of a stream."""

    meta_info: _Meta | None = None
    error: Any = None


class _Scores(msgspec.Struct):
    logprobs: tuple[float, ...]
    unconditional: tuple[float, ...] = ()
    usage: Usage = Usage()


_chunks = msgspec.json.Decoder(_Chunk)
_scores = msgspec.json.Decoder(_Scores)


class PalmetteDialect:
    """See Dialect."""

    def __init__(self, *, constraints: frozenset[str], takes_hints: bool, takes_ends: bool = False) -> None:
        """
        Args:
            takes_ends: several programs' ends in one request.
        """
        self.constraints = constraints
        self._takes_hints, self._takes_ends = takes_hints, takes_ends

    def body(self, request: GenerateRequest, *, salt: str, priority: int, timeout: float | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "rid": request.request_id,
            "input_ids": tuple(request.token_ids),
            "sampling_params": {**sampling(request), "sampling_seed": request.seed},
            "stream": True,
            "palmette": True,
            **asked_logprobs(request),
            **self._shared(request, salt=salt, priority=priority, timeout=timeout),
        }
        if request.constraint is not None:
            body["constraint"] = spec_data(request.constraint)
        return body

    def reader(self, request: GenerateRequest) -> _PalmetteReader:
        return _PalmetteReader(request)

    async def score(
        self, request: ScoreRequest, post: Post, *, salt: str, priority: int, timeout: float | None
    ) -> ScoreEvent:
        body: dict[str, Any] = {
            "rid": request.request_id,
            "input_ids": tuple(request.token_ids),
            "trie": {"token_ids": request.trie.token_ids, "parents": request.trie.parents},
            "unconditional": request.unconditional,
            **self._shared(request, salt=salt, priority=priority, timeout=timeout),
        }
        try:
            scores = _scores.decode(await post("/palmette/score", body))
        except msgspec.MsgspecError as error:
            raise RequestError(f"the server's scores cannot be read: {error}") from error
        return ScoreEvent(request.request_id, scores.logprobs, scores.unconditional, scores.usage)

    def hint(self, event: ForkDeclared | BranchesEnded, *, salt: str) -> tuple[str, dict[str, Any]] | None:
        if not self._takes_hints:
            return None
        body: dict[str, Any] = {"program": event.program, "input_ids": tuple(event.token_ids)}
        if salt:
            body["cache_salt"] = salt
        if isinstance(event, ForkDeclared):
            return "/palmette/program/fork", {**body, "siblings": event.siblings}
        return "/palmette/program/branches_ended", {**body, "count": event.count}

    def ends(self, programs: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        if not self._takes_hints or not programs:
            return []
        if self._takes_ends and len(programs) > 1:
            return [("/program/end", {"programs": list(programs)})]
        return [("/program/end", {"program": program}) for program in programs]

    def _shared(
        self, request: GenerateRequest | ScoreRequest, *, salt: str, priority: int, timeout: float | None
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if salt:
            fields["cache_salt"] = salt
        if request.priority + priority:
            fields["priority"] = request.priority + priority
        if timeout is not None:
            fields["timeout"] = timeout
        if self._takes_hints and request.hints.program:
            fields["program"] = _hints(request.hints)
        return fields


class _PalmetteReader:
    def __init__(self, request: GenerateRequest) -> None:
        self._request = request

    def take(self, data: bytes) -> TokenEvent | None:
        if data == b"[DONE]":
            return None
        try:
            chunk = _chunks.decode(data)
        except msgspec.MsgspecError as error:
            raise RequestError(f"a chunk of the server's cannot be read: {error}") from error
        if chunk.error is not None:
            raise chunk_error(chunk.error)
        if chunk.meta_info is None or chunk.meta_info.palmette is None:
            raise RequestError("a chunk of the server's has no meta_info.palmette: is its version older than this one?")
        meta, delta, wanted = chunk.meta_info, chunk.meta_info.palmette, self._request.logprobs
        rows = logprob_rows(meta.output_token_logprobs or [], meta.output_top_logprobs) if wanted else ()
        finish = None if delta.reason is None else self._finish(delta.reason, delta, meta)
        return TokenEvent(self._request.request_id, delta.text, delta.token_ids, rows, finish)

    def _finish(self, reason: FinishReason, delta: _Delta, meta: _Meta) -> Finish:
        wanted, error = self._request.logprobs, delta.error
        with_prompt = wanted is not None and wanted.start_len is not None
        matched = delta.matched if delta.matched is not None else (meta.finish_reason or {}).get("matched")
        return Finish(
            reason,
            delta.kept,
            delta.tail,
            matched if reason is FinishReason.STOP else None,
            delta.usage or Usage(),
            logprob_rows(meta.input_token_logprobs or [], meta.input_top_logprobs) if with_prompt else (),
            None if error is None else named_error(error.kind, error.message, error.fields),
            delta.steered,
            delta.unenforced,
        )


def _hints(hints: Hints) -> dict[str, Any]:
    fields = {
        "id": hints.program,
        "shared_len": hints.shared_len,
        "siblings": hints.siblings,
        "last_use": hints.last_use,
        "critical": hints.critical,
    }
    return {name: value for name, value in fields.items() if value}
