"""Filling a `gen` hole: one request per sample, text as it comes, tokens behind the chain at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from palmette.errors import ProgramError
from palmette.interpreter.asking import Ask, ask, laid_over
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.executor import Generated
from palmette.interpreter.hole import Filled, Hole
from palmette.interpreter.meta import meta_info
from palmette.interpreter.reading import Delta, HoleText
from palmette.interpreter.run import HoleRecord
from palmette.interpreter.seeds import draw_key
from palmette.interpreter.typed import value_of
from palmette.ir import Gen, HoleOptions
from palmette.types import Backend, Finish, GenerateRequest, Hints, SamplingParams, Usage

if TYPE_CHECKING:  # stream.py reaches this through steps.py: types only
    from palmette.interpreter.stream import Stream


async def complete(stream: Stream, node: Gen, holes: dict[str, Hole]) -> None:
    """Generate, extend the stream's chain by what was kept, and fill the holes.

    With n > 1 the value is the list of samples and the stream goes on with the first. What a stop string cut out of a
    token becomes pending text. A typed hole whose text has no value fails, with its text in the stream all the same.
    """
    run = stream.run
    hole = holes[node.name or ""]
    options = laid_over(node.options, run.options)
    before = stream.cursor
    stream.cursor = with_prompt(before, run.backend)
    asked = ask(node, options, run.backend, before=before, flushed=stream.cursor)
    n = options.n or 1

    granted = await run.purse.reserve(asked.params.max_new_tokens * n, n)
    if granted < asked.params.max_new_tokens * n:
        asked = replace(asked, params=_capped(asked.params, granted // n))
    samples = [Generated() for _ in range(n)]
    sink = _TextSink(stream, hole, holes, asked.text())
    try:
        requests = _requests(stream, options, asked, hole, n)
        shows = [sink.feed] + [_ignore] * (n - 1)
        jobs = [
            run.executor.generate(run.backend, request, show, sample)
            for request, show, sample in zip(requests, shows, samples, strict=True)
        ]
        await (jobs[0] if n == 1 else _all_of(jobs))
    finally:
        used = sum(s.sampled for s in samples)
        run.purse.settle(granted, used)
        if any(not s.is_finished for s in samples):  # cancelled or failed: what was generated is lost
            run.count(Usage(sampled_tokens=used, wasted_tokens=used))
    sink.finish()

    texts = [sink.text, *(_read(asked, sample) for sample in samples[1:])]
    for sample, text in zip(samples, texts, strict=True):
        if text.matched is not None:
            _drop_end(sample, text.matched, run.backend)
    usage = sum((_usage(s, asked) for s in samples), Usage())
    run.count(usage)
    for index, sample in enumerate(samples):
        finish, written = sample.finish, sample.text[len(asked.prefix) :]
        run.records.append(
            HoleRecord(stream.path, hole.index, node.name, index, finish.token_ids, written, finish.reason.value)
        )
    infos = [_info(run.backend, r.request_id, s, options, asked) for r, s in zip(requests, samples, strict=True)]
    first = samples[0]
    stream.cursor = _advance(asked.cursor, first)
    if sink.thoughts is not None:
        thoughts: Any = [text.thought for text in texts]
        sink.thoughts.fill(Filled(value=thoughts[0] if n == 1 else thoughts, text=sink.text.thought))
    close = options.on_budget == "close"
    values = [value_of(asked.binding, t.answer, s.finish, close=close) for t, s in zip(texts, samples, strict=True)]
    hole.fill(
        Filled(
            value=values[0] if n == 1 else values,
            text=sink.text.answer,
            token_ids=first.finish.token_ids,
            reason=first.finish.reason,
            usage=usage,
            meta=infos[0] if n == 1 else {**infos[0], "samples": infos},
        )
    )


def with_prompt(cursor: Cursor, backend: Backend) -> Cursor:
    """Tokenize what is pending; a prompt has at least one token."""
    cursor = cursor.flush(backend)
    if cursor.chain.length == 0:
        begin = backend.begin_ids()
        if not begin:
            raise ProgramError("the prompt is empty and the model has no token to begin with: append text first")
        cursor = cursor.extend(begin, "")
    return cursor


def next_hints(stream: Stream) -> Hints:
    """The hints of this request; a branch names its siblings once."""
    hints, stream.hints = stream.hints, Hints(program=stream.run.program_id)
    return replace(hints, last_use=True) if stream.is_last_use else hints


def _requests(stream: Stream, options: HoleOptions, asked: Ask, hole: Hole, n: int) -> list[GenerateRequest]:
    """One for each sample. The prompt is the chain itself: nobody copies it."""
    run = stream.run
    prompt = asked.cursor.chain
    hints = next_hints(stream)
    if n > 1 and not hints.siblings:
        hints = replace(hints, shared_len=len(prompt), siblings=n)
    seed = run.seed if options.seed is None else options.seed
    path = stream.path if options.seed is None else ()
    return [
        GenerateRequest(
            request_id=run.executor.next_request_id(),
            token_ids=prompt,
            params=asked.params,
            seed=draw_key(seed, path, hole.index if options.seed is None else 0, index),
            logprobs=options.logprob_params(),
            hints=hints,
            namespace=run.namespace,
            timeout=options.timeout,
            constraint=asked.spec,
        )
        for index in range(n)
    ]


async def _all_of(jobs: list[Coroutine[Any, Any, Generated]]) -> None:
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # one sample failed or the hole was cancelled: the others are of no use
            task.cancel()


class _TextSink:
    """Where the text of the first sample goes while it comes: to the transcript, the hole, and the reasoning's hole."""

    __slots__ = ("_hole", "_stream", "text", "thoughts")

    def __init__(self, stream: Stream, hole: Hole, holes: dict[str, Hole], text: HoleText) -> None:
        self.text = text
        self.thoughts = next((h for h in holes.values() if h is not hole), None)
        self._stream = stream
        self._hole = hole

    def feed(self, text: str) -> None:
        self._deal(self.text.feed(text))

    def finish(self) -> None:
        self._deal(self.text.finish())

    def _deal(self, delta: Delta) -> None:
        if delta.written:
            self._stream.transcript.emit(delta.written)
        if self.thoughts is not None:
            self.thoughts.push(delta.thought)
        self._hole.push(delta.shown)


def _read(asked: Ask, sample: Generated) -> HoleText:
    text = asked.text()
    text.feed(sample.text)
    text.finish()
    return text


def _ignore(text: str) -> None:
    """Samples behind the first are not streamed."""


def _capped(params: SamplingParams, tokens: int) -> SamplingParams:
    if tokens >= params.max_new_tokens:
        return params
    return replace(params, max_new_tokens=tokens, min_new_tokens=min(params.min_new_tokens, tokens))


def _advance(cursor: Cursor, sample: Generated) -> Cursor:
    finish: Finish = sample.finish
    kept_text = sample.text[: len(sample.text) - len(finish.tail)] if finish.tail else sample.text
    return cursor.extend(finish.token_ids, kept_text, generated=len(finish.token_ids)).add(finish.tail)


def _drop_end(sample: Generated, end: str, backend: Backend) -> None:
    """Take the character that completed the answer, the last of the text, out of the sample: it is what ended it."""
    finish = replace(sample.finish, matched=end)
    if finish.tail:
        finish = replace(finish, tail=finish.tail[:-1])
    else:
        left = backend.decode(finish.token_ids[-1:])[:-1]
        usage = finish.usage + Usage(wasted_tokens=0 if left else 1)
        finish = replace(finish, token_ids=finish.token_ids[:-1], tail=left, usage=usage)
    sample.text, sample.finish = sample.text[:-1], finish


def _usage(sample: Generated, asked: Ask) -> Usage:
    retokenized = (1 if sample.finish.tail else 0) + asked.retokenized(sample.finish.token_ids)
    usage = sample.finish.usage
    return usage + Usage(retokenized_tokens=retokenized) if retokenized else usage


def _info(backend: Backend, request_id: str, sample: Generated, options: HoleOptions, asked: Ask) -> dict[str, Any]:
    finish, usage = sample.finish, _usage(sample, asked)
    return meta_info(
        request_id,
        finish if usage is finish.usage else replace(finish, usage=usage),
        sample.logprobs,
        max_new_tokens=asked.params.max_new_tokens - len(asked.taken),
        with_logprobs=options.logprob_params() is not None,
        with_top=bool(options.top_logprobs_num),
        token_text=(lambda token: backend.decode([token])) if options.return_text_in_logprobs else None,
    )
