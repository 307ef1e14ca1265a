"""SGLang's server through the native API that it documents: what that cannot say is refused here.

Its text is not used: tokens are spelled by the model's own tokenizer here, as the local runtime does, so that a state
holds exactly the tokens that the server generated. A choice is scored by the logprobs of a prompt that ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from palmette.errors import RequestError, UnsupportedConstraint
from palmette.interpreter.backends.http_dialect import Post, Row, asked_logprobs, logprob_rows, sampling
from palmette.interpreter.backends.http_errors import chunk_error
from palmette.runtime.detokenizer import Detokenizer
from palmette.specs import Grammar, JsonSchema, Regex, SchemaOptions, Spec
from palmette.types import (
    BranchesEnded,
    ChoiceTrie,
    Finish,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
    Usage,
)

CONSTRAINTS = frozenset({"regex", "json_schema", "grammar"})
_SEED_BITS = (1 << 63) - 1  # its seeds are signed


class _Meta(msgspec.Struct):
    finish_reason: dict[str, Any] | None = None
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    cached_tokens: int | None = 0
    e2e_latency: float = 0.0
    input_token_logprobs: list[Row] | None = None
    input_top_logprobs: list[list[Row] | None] | None = None
    output_token_logprobs: list[Row] | None = None
    output_top_logprobs: list[list[Row] | None] | None = None


class _Chunk(msgspec.Struct):
    output_ids: list[int] | None = None
    meta_info: _Meta | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class Spelling:
    """What of a tokenizer reading a stream takes."""

    token_bytes: Callable[[int], bytes]
    eos_ids: frozenset[int]


class SGLangDialect:
    """See Dialect."""

    constraints = CONSTRAINTS

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling

    def body(self, request: GenerateRequest, *, salt: str, priority: int, timeout: float | None) -> dict[str, Any]:
        params = {**sampling(request), "sampling_seed": request.seed & _SEED_BITS}
        if request.params.stop_regex:
            raise UnsupportedConstraint("", "stop_regex", "SGLang's server does not stop at this dialect's patterns")
        if request.constraint is not None:
            params.update(_constraint(request.constraint))
        return {
            "rid": request.request_id,
            "input_ids": tuple(request.token_ids),
            "sampling_params": params,
            "stream": True,
            **asked_logprobs(request),
            **_extras(salt, request.priority + priority),
        }

    def reader(self, request: GenerateRequest) -> _SGLangReader:
        return _SGLangReader(request, self._spelling)

    async def score(
        self, request: ScoreRequest, post: Post, *, salt: str, priority: int, timeout: float | None
    ) -> ScoreEvent:
        prompt, trie = tuple(request.token_ids), request.trie
        extras = _extras(salt, request.priority + priority)
        paths = leaf_paths(trie)

        async def rows(ids: tuple[int, ...], last: int) -> tuple[list[float], Usage]:
            """Logprobs of the last tokens of a prompt."""
            body = {
                "input_ids": ids,
                "sampling_params": {"max_new_tokens": 0, "temperature": 0},
                "return_logprob": True,
                "logprob_start_len": max(0, len(ids) - last - 1),
                **extras,
            }
            return _prompt_rows(await post("/generate", body), ids[len(ids) - last :])

        # The first path alone: what all of them share is in the cache then.
        first = [await rows((*prompt, *_tokens(trie, paths[0])), len(paths[0]))]
        jobs = [rows((*prompt, *_tokens(trie, path)), len(path)) for path in paths[1:]]
        alone = [path for path in paths if request.unconditional and len(path) > 1]
        jobs += [rows(_tokens(trie, path), len(path) - 1) for path in alone]
        results = first + await asyncio.gather(*jobs)
        logprobs, unconditional = [0.0] * len(trie.token_ids), [0.0] * len(trie.token_ids)
        for path, (values, _) in zip(paths, results, strict=False):
            for node, value in zip(path, values, strict=True):
                logprobs[node] = value
        for path, (values, _) in zip(alone, results[len(paths) :], strict=True):
            for node, value in zip(path[1:], values, strict=True):
                unconditional[node] = value
        usage = sum((usage for _, usage in results), Usage())
        return ScoreEvent(
            request.request_id, tuple(logprobs), tuple(unconditional) if request.unconditional else (), usage
        )

    def hint(self, event: ForkDeclared | BranchesEnded, *, salt: str) -> tuple[str, dict[str, Any]] | None:
        return None

    def ends(self, programs: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        return []


class _SGLangReader:
    """Follows one stream. The server writes tokens and logprobs either all so far or only new ones, as it was started;
    how many there are tells which."""

    def __init__(self, request: GenerateRequest, spelling: Spelling) -> None:
        params = request.params
        self._request = request
        self._end_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else spelling.eos_ids)
        self._detokenizer = Detokenizer(spelling.token_bytes, params.stop)
        self._num_seen = 0  # tokens that came
        self._num_rows = 0  # logprobs that came
        self._pushed: list[int] = []  # tokens that are text
        self._end: tuple[FinishReason, str | int | None] | None = None

    def take(self, data: bytes) -> TokenEvent | None:
        if data == b"[DONE]":
            return None
        try:
            chunk = _chunks.decode(data)
        except msgspec.MsgspecError as error:
            raise RequestError(f"a chunk of the server's cannot be read: {error}") from error
        if chunk.error is not None:
            raise chunk_error(chunk.error)
        if chunk.meta_info is None or chunk.output_ids is None:
            raise RequestError("a chunk of the server's has no output_ids: its version is older than this client reads")
        meta = chunk.meta_info
        reason = meta.finish_reason
        if reason is not None and reason.get("type") == "abort":
            raise RequestError(f"the server aborted the request: {reason.get('message') or 'it gave no reason'}")
        new = self._new_ids(chunk.output_ids, meta)
        text = self._push(new, reason)
        rows = self._new_rows(meta) if self._request.logprobs is not None else ()
        if self._end is None and reason is not None:
            kind = FinishReason.STOP if reason.get("type") == "stop" else FinishReason.LENGTH
            matched = reason.get("matched")
            self._end = (kind, matched if kind is FinishReason.STOP and isinstance(matched, str | int) else None)
        if self._end is None:
            return TokenEvent(self._request.request_id, text, new, rows)
        finish, held = self._finish(*self._end, meta)
        return TokenEvent(self._request.request_id, text + held, new, rows, finish)

    def _new_ids(self, ids: list[int], meta: _Meta) -> tuple[int, ...]:
        total = meta.completion_tokens if meta.completion_tokens is not None else len(ids)
        is_whole = len(ids) >= total or self._num_seen + len(ids) > total
        new = ids[self._num_seen :] if is_whole else ids
        new = new[: max(0, self._request.params.max_new_tokens - self._num_seen)]
        self._num_seen += len(new)
        return tuple(new)

    def _new_rows(self, meta: _Meta) -> tuple[TokenLogprob, ...]:
        rows = meta.output_token_logprobs or []
        is_whole = self._num_rows and len(rows) >= self._num_seen
        start = self._num_rows if is_whole else 0
        top = meta.output_top_logprobs[start:] if meta.output_top_logprobs else None
        new = rows[start:][: self._num_seen - self._num_rows]
        self._num_rows += len(new)
        return logprob_rows(new, top)

    def _push(self, ids: Sequence[int], reason: dict[str, Any] | None) -> str:
        """The text of new tokens, up to the one that ends it."""
        text = ""
        matched = reason.get("matched") if reason is not None else None
        for index, token in enumerate(ids):
            if self._end is not None:
                break
            if token in self._end_ids or (token == matched and index == len(ids) - 1):
                self._end = FinishReason.STOP, token
                break
            self._pushed.append(token)
            may_stop = len(self._pushed) >= self._request.params.min_new_tokens
            delta = self._detokenizer.push(token, may_stop=may_stop)
            text += delta.text
            if delta.matched is not None:
                self._end = FinishReason.STOP, delta.matched
        return text

    def _finish(self, kind: FinishReason, matched: str | int | None, meta: _Meta) -> tuple[Finish, str]:
        """The end, and the text that was held back."""
        ended = self._detokenizer.finish()
        wanted = self._request.logprobs
        with_prompt = wanted is not None and wanted.start_len is not None
        usage = Usage(
            prompt_tokens=meta.prompt_tokens,
            cached_tokens=meta.cached_tokens or 0,
            sampled_tokens=self._num_seen,
            wasted_tokens=len(self._pushed) - ended.num_tokens - bool(ended.tail),
            seconds=meta.e2e_latency,
        )
        finish = Finish(
            kind,
            tuple(self._pushed[: ended.num_tokens]),
            ended.tail,
            matched,
            usage,
            logprob_rows(meta.input_token_logprobs or [], meta.input_top_logprobs) if with_prompt else (),
        )
        return finish, ended.text


def leaf_paths(trie: ChoiceTrie) -> list[list[int]]:
    """The nodes from root to leaf, of each leaf; a node's parent stands before it.

    >>> leaf_paths(ChoiceTrie((1, 2, 3, 4), (-1, 0, 0, -1)))
    [[0, 1], [0, 2], [3]]
    """
    inner = set(trie.parents)
    paths: list[list[int]] = []
    for leaf in range(len(trie.token_ids)):
        if leaf in inner:
            continue
        path = [leaf]
        while (parent := trie.parents[path[-1]]) >= 0:
            path.append(parent)
        paths.append(path[::-1])
    return paths


def _tokens(trie: ChoiceTrie, path: Sequence[int]) -> tuple[int, ...]:
    return tuple(trie.token_ids[node] for node in path)


def _prompt_rows(data: bytes, expected: Sequence[int]) -> tuple[list[float], Usage]:
    """The logprobs of the last prompt tokens, which must be `expected`."""
    try:
        meta = _chunks.decode(data).meta_info
    except msgspec.MsgspecError as error:
        raise RequestError(f"the server's answer cannot be read: {error}") from error
    rows = (meta.input_token_logprobs if meta is not None else None) or []
    rows = rows[len(rows) - len(expected) :] if len(rows) >= len(expected) else []
    values = [logprob for logprob, token, _ in rows if logprob is not None]
    if [token for _, token, _ in rows] != list(expected) or len(values) != len(expected):
        raise RequestError("the server did not give the logprobs of a choice's tokens: input_token_logprobs lacks them")
    assert meta is not None, "it had rows"
    return values, Usage(meta.prompt_tokens, meta.cached_tokens or 0, seconds=meta.e2e_latency)


def _constraint(spec: Spec) -> dict[str, str]:
    match spec:
        case Regex(pattern):
            return {"regex": pattern}
        case JsonSchema(text, options):
            if options != SchemaOptions():
                raise UnsupportedConstraint("", "json_schema", f"SGLang's server knows nothing of {options}")
            return {"json_schema": text}
        case Grammar(text):
            return {"ebnf": text}
    raise UnsupportedConstraint(
        "", type(spec).__name__.lower(), "SGLang's server takes a regex, a json_schema or a grammar alone"
    )


def _extras(salt: str, priority: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"cache_salt": salt} if salt else {}
    if priority:
        fields["priority"] = priority
    return fields
