"""Filling a `gen` hole: one request per sample, text as it comes, tokens behind the chain at the end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from palmette.errors import ProgramError
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.executor import Generated
from palmette.interpreter.hole import Filled, Hole
from palmette.interpreter.meta import meta_info
from palmette.interpreter.reasoning import ReasoningSplitter, reasoning_format
from palmette.interpreter.run import HoleRecord
from palmette.interpreter.seeds import draw_key
from palmette.interpreter.typed import value_of
from palmette.ir import Binding, Gen, HoleOptions
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
    options = node.options.over(run.options)
    params = options.sampling_params()
    binding = node.constraint.binding if node.constraint is not None else None
    if binding is not None and binding.stop:
        params = replace(params, stop=tuple(dict.fromkeys((*params.stop, *binding.stop))))
    stream.cursor = with_prompt(stream.cursor, run.backend)
    n = options.n or 1

    granted = await run.purse.reserve(params.max_new_tokens * n, n)
    params = _capped(params, granted // n)
    samples = [Generated() for _ in range(n)]
    sink = _TextSink(stream, node, hole, holes)
    try:
        ids = await _run_samples(stream, options, params, binding, hole, samples, sink)
    finally:
        used = sum(s.sampled for s in samples)
        run.purse.settle(granted, used)
        if any(not s.is_finished for s in samples):  # cancelled or failed: what was generated is lost
            run.count(Usage(sampled_tokens=used, wasted_tokens=used))
    sink.finish()

    usage = sum((_usage(s) for s in samples), Usage())
    run.count(usage)
    for index, sample in enumerate(samples):
        finish = sample.finish
        run.records.append(
            HoleRecord(stream.path, hole.index, node.name, index, finish.token_ids, sample.text, finish.reason.value)
        )
    infos = [_info(run.backend, request_id, s, options, params) for request_id, s in zip(ids, samples, strict=True)]
    first = samples[0]
    stream.cursor = _advance(stream.cursor, first)
    text = sink.answer if node.reasoning is not None else first.text
    close = options.on_budget == "close"
    values = [value_of(binding, sample.text, sample.finish, close=close) for sample in samples]
    if n == 1 and node.reasoning is not None:  # never beside a constraint
        values = [text]
    hole.fill(
        Filled(
            value=values[0] if n == 1 else values,
            text=text,
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


async def _run_samples(
    stream: Stream,
    options: HoleOptions,
    params: SamplingParams,
    binding: Binding | None,
    hole: Hole,
    samples: list[Generated],
    sink: _TextSink,
) -> list[str]:
    run = stream.run
    prompt = stream.cursor.chain.all_ids()
    hints = next_hints(stream)
    if len(samples) > 1 and not hints.siblings:
        hints = replace(hints, shared_len=len(prompt), siblings=len(samples))
    seed = run.seed if options.seed is None else options.seed
    path = stream.path if options.seed is None else ()
    requests = [
        GenerateRequest(
            request_id=run.executor.next_request_id(),
            token_ids=prompt,
            params=params,
            seed=draw_key(seed, path, hole.index if options.seed is None else 0, index),
            logprobs=options.logprob_params(),
            hints=hints,
            namespace=run.namespace,
            timeout=options.timeout,
            constraint=None if binding is None else binding.spec,
        )
        for index in range(len(samples))
    ]
    shows = [sink.feed] + [_ignore] * (len(samples) - 1)
    jobs = [
        run.executor.generate(run.backend, request, show, sample)
        for request, show, sample in zip(requests, shows, samples, strict=True)
    ]
    if len(jobs) == 1:
        await jobs[0]
    else:
        tasks = [asyncio.ensure_future(job) for job in jobs]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one sample failed or the hole was cancelled: the others are of no use
                task.cancel()
    return [request.request_id for request in requests]


class _TextSink:
    """Where the text of the first sample goes while it comes: the hole, or the answer and the reasoning apart."""

    def __init__(self, stream: Stream, node: Gen, hole: Hole, holes: dict[str, Hole]) -> None:
        self._stream = stream
        self._hole = hole
        self._splitter = ReasoningSplitter(reasoning_format(node.reasoning)) if node.reasoning is not None else None
        self._thoughts = next((h for h in holes.values() if h is not hole), None)
        self._thought = ""
        self.answer = ""

    def feed(self, text: str) -> None:
        self._stream.transcript.emit(text)
        if self._splitter is None:
            self._hole.push(text)
        else:
            self._deal(*self._splitter.feed(text))

    def finish(self) -> None:
        if self._splitter is not None:
            self._deal(*self._splitter.finish())
            if self._thoughts is not None:
                self._thoughts.fill(Filled(value=self._thought, text=self._thought))

    def _deal(self, thought: str, answer: str) -> None:
        self._thought += thought
        self.answer += answer
        if self._thoughts is not None:
            self._thoughts.push(thought)
        self._hole.push(answer)


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


def _usage(sample: Generated) -> Usage:
    return sample.finish.usage + Usage(retokenized_tokens=1 if sample.finish.tail else 0)


def _info(
    backend: Backend, request_id: str, sample: Generated, options: HoleOptions, params: SamplingParams
) -> dict[str, Any]:
    return meta_info(
        request_id,
        sample.finish,
        sample.logprobs,
        max_new_tokens=params.max_new_tokens,
        with_logprobs=options.logprob_params() is not None,
        with_top=bool(options.top_logprobs_num),
        token_text=(lambda token: backend.decode([token])) if options.return_text_in_logprobs else None,
    )
