"""/v1/completions: prompts as texts or tokens, continued as they are.

    prompts x n  ->  choices, prompt-major

Prompts' tokens may be told of with `echo`: their text before the choice's own, their rows of logprobs before its rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from palmette.errors import InvalidOption
from palmette.runtime.server.http import client_of, read_body, service_of, stream_response, until_gone
from palmette.runtime.server.openai.envelope import Envelope, notes, usage_data
from palmette.runtime.server.openai.logprobs import CompletionRows
from palmette.runtime.server.openai.params import (
    check_body,
    check_token_ids,
    constraint_of,
    prompts_of,
    requests_for,
)
from palmette.runtime.server.openai.sampling import answers, events, stop_reason, usage_of
from palmette.runtime.server.openai.schema import CompletionBody
from palmette.runtime.server.service import Answer, Service
from palmette.types import Finish, GenerateRequest, Hints, LogprobParams, TokenEvent, TokenLogprob, Usage

DEFAULT_MAX_TOKENS = 16
MAX_TOTAL_CHOICES = 1024


@dataclass(frozen=True, slots=True)
class _Prompt:
    text: str
    token_ids: tuple[int, ...]
    requests: list[GenerateRequest]  # one for each sample


async def completions(request: Request) -> Response:
    body = await read_body(request, CompletionBody)
    service, client = service_of(request), client_of(request)
    card = check_body(service, body)
    answer_id = service.new_id("cmpl-")
    envelope = Envelope.of(answer_id, "text_completion", card, body)
    prompts = await _prompts(service, request, body, answer_id)
    if body.stream:
        writer = _Stream(service, body, envelope, prompts)
        response = await stream_response(request, writer.chunks(request))
        response.headers.update(envelope.headers)
        return response
    requests = [each for prompt in prompts for each in prompt.requests]
    found = await until_gone(request, answers(service, client, requests))
    n = body.n or 1
    choices = []
    for i, answer in enumerate(found):
        prompt = prompts[i // n]
        prompt_rows = found[i - i % n].finish.prompt_logprobs
        choices.append(_choice(service, body, i, prompt, prompt_rows, answer))
    usage = usage_of([answer.finish for answer in found[i : i + n]] for i in range(0, len(found), n))
    return envelope.whole(choices, usage_data(usage))


async def _prompts(service: Service, request: Request, body: CompletionBody, answer_id: str) -> list[_Prompt]:
    """
    Raises:
        InvalidOption: too much at once.
    """
    given = prompts_of(body.prompt)
    n = body.n or 1
    if len(given) * n > MAX_TOTAL_CHOICES:
        raise InvalidOption(
            "n", n, f"at most {MAX_TOTAL_CHOICES} choices in one request: here are {len(given)} prompts"
        )
    constraint = constraint_of(body)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    logprobs = None if body.logprobs is None else LogprobParams(0 if body.echo else None, body.logprobs)
    prompts = []
    for i, prompt in enumerate(given):
        field = "prompt" if len(given) == 1 else f"prompt[{i}]"
        if isinstance(prompt, str):
            text, token_ids = prompt, await service.encode_plain(prompt)
        else:
            check_token_ids(service.model, prompt, field)
            text, token_ids = service.tokenizer.decode(prompt) if body.echo else "", tuple(prompt)
        prompts.append(
            _Prompt(
                text,
                token_ids,
                requests_for(
                    service, client_of(request), body, token_ids, request_id=f"{answer_id}-{i}", max_tokens=max_tokens,
                    logprobs=logprobs, constraint=constraint, n=n, field=field,
                ),
            )
        )  # fmt: skip
    return prompts


def _choice(
    service: Service,
    body: CompletionBody,
    index: int,
    prompt: _Prompt,
    prompt_rows: Sequence[TokenLogprob],
    answer: Answer,
) -> dict[str, Any]:
    """A whole choice. Each sampled token has a row, the one that ended the text included."""
    rows = None
    if body.logprobs is not None:
        rows = _rows(service, prompt).take((*prompt_rows, *answer.logprobs))
    return {
        "index": index,
        "text": (prompt.text if body.echo else "") + answer.text,
        "logprobs": rows,
        "finish_reason": str(answer.finish.reason),
        "stop_reason": stop_reason(answer.finish, body.stop_token_ids),
        **notes(answer.finish),
    }


def _rows(service: Service, prompt: _Prompt) -> CompletionRows:
    return CompletionRows(service.tokenizer, shows_special=prompt.requests[0].constraint is not None)


class _Stream:
    """The chunks of a streamed answer."""

    def __init__(self, service: Service, body: CompletionBody, envelope: Envelope, prompts: list[_Prompt]) -> None:
        self._service, self._body, self._envelope, self._prompts = service, body, envelope, prompts
        self._n = body.n or 1
        count = len(prompts) * self._n
        self._rows = [_rows(service, prompt) for prompt in prompts for _ in prompt.requests]
        self._has_begun = [not body.echo] * count
        self._counts = [0] * count  # generated tokens
        self._finishes: list[Finish | None] = [None] * count
        self._prompt_rows: list[tuple[TokenLogprob, ...]] = [()] * len(prompts)

    async def chunks(self, request: Request) -> AsyncIterator[bytes]:
        client = client_of(request)
        requests = [each for prompt in self._prompts for each in prompt.requests]
        if self._body.echo and self._body.logprobs is not None:
            # They come at the end of a request, and belong before the text: so they are a request of their own.
            asked = [
                replace(
                    prompt.requests[0], request_id=f"{prompt.requests[0].request_id}-echo", constraint=None,
                    params=replace(prompt.requests[0].params, max_new_tokens=0, min_new_tokens=0), hints=Hints(),
                )
                for prompt in self._prompts
            ]  # fmt: skip
            found = await answers(self._service, client, asked)
            self._prompt_rows = [answer.finish.prompt_logprobs for answer in found]
            requests = [replace(each, logprobs=LogprobParams(top=self._body.logprobs)) for each in requests]
        async with aclosing(events(self._service, client, requests)) as source:
            async for index, event in source:
                chunk = self._chunk(index, event)
                if chunk is not None:
                    yield chunk
        finishes = [finish for finish in self._finishes if finish is not None]
        usage = usage_of(finishes[i : i + self._n] for i in range(0, len(finishes), self._n))
        yield self._envelope.usage_chunk(usage_data(usage))

    def _chunk(self, index: int, event: TokenEvent) -> bytes | None:
        text, rows, finish = event.text, event.logprobs, event.finish
        self._counts[index] += len(event.token_ids)
        if not self._has_begun[index]:
            self._has_begun[index] = True
            prompt = index // self._n
            text, rows = self._prompts[prompt].text + text, (*self._prompt_rows[prompt], *rows)
        if not text and not rows and finish is None:
            return None
        self._finishes[index] = finish
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        if rows:
            choice["logprobs"] = self._rows[index].take(rows)
        if finish is not None:
            choice["finish_reason"] = str(finish.reason)
            choice["stop_reason"] = stop_reason(finish, self._body.stop_token_ids)
            choice.update(notes(finish))
        return self._envelope.chunk(choice, self._running() if self._envelope.with_running_usage else None)

    def _running(self) -> dict[str, Any]:
        prompt_tokens = sum(len(prompt.token_ids) for prompt in self._prompts)
        return usage_data(Usage(prompt_tokens=prompt_tokens, sampled_tokens=sum(self._counts)))


ROUTES = (("/v1/completions", ("POST",), completions),)
