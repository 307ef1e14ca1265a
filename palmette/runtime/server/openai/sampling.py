"""Several samples of one HTTP request, as one: answers gathered, events merged, and what they used.

Knows the service and its events. Knows neither bodies nor chunks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar

from palmette.runtime.server.clients import Client
from palmette.runtime.server.service import Answer, Service, checked
from palmette.runtime.server.together import gathered, merged
from palmette.types import Finish, GenerateRequest, ProgramEnded, TokenEvent, TokenLogprob, Usage

T = TypeVar("T")


async def answers(service: Service, client: Client, requests: Sequence[GenerateRequest]) -> list[Answer]:
    """The whole answers, in order.

    Raises:
        PalmetteError: what the first one failed with; the others are cancelled.
    """
    try:
        return await gathered([service.collect(client, request) for request in requests])
    except BaseException:
        _forget(service, requests)
        raise


async def events(
    service: Service, client: Client, requests: Sequence[GenerateRequest]
) -> AsyncGenerator[tuple[int, TokenEvent]]:
    """(index of the request, event) as they come. To be closed: that cancels what has not ended.

    Raises:
        PalmetteError: what the first one failed with.
    """
    try:
        if len(requests) == 1:
            async with aclosing(_events(service, client, requests[0])) as source:
                async for event in source:
                    yield 0, event
            return
        async with aclosing(merged([_events(service, client, request) for request in requests])) as found:
            async for index, event in found:
                yield index, event
    except BaseException:
        _forget(service, requests)
        raise


def usage_of(groups: Iterable[Sequence[Finish]]) -> Usage:
    """What was used: one group for each prompt, which counts once however many samples were drawn behind it."""
    total = Usage()
    for group in groups:
        used = [finish.usage for finish in group]
        total += Usage(
            prompt_tokens=used[0].prompt_tokens,
            cached_tokens=min(each.cached_tokens for each in used),  # the others read what the first one computed
            sampled_tokens=sum(each.sampled_tokens for each in used),
            forced_tokens=sum(each.forced_tokens for each in used),
        )
    return total


def kept_rows(rows: Sequence[TokenLogprob], finish: Finish | None) -> Sequence[TokenLogprob]:
    """Without the row of the token that ended the text and is no part of it."""
    return rows[:-1] if finish is not None and isinstance(finish.matched, int) else rows


def stop_reason(finish: Finish, stop_token_ids: Sequence[int] | None) -> str | int | None:
    """The stop string, or the token of the request's own, that ended the text; None for an end of the model's."""
    matched = finish.matched
    return matched if isinstance(matched, str) or matched in (stop_token_ids or ()) else None


def _forget(service: Service, requests: Sequence[GenerateRequest]) -> None:
    """Siblings that were announced will not come."""
    if len(requests) > 1:
        for program in {request.hints.program for request in requests} - {""}:
            service.notify(ProgramEnded(program))


async def _events(service: Service, client: Client, request: GenerateRequest) -> AsyncGenerator[TokenEvent]:
    async with service.submit(client, request, whole=False) as source:
        async for event in source:
            assert isinstance(event, TokenEvent), "a generate request is answered by token events"
            if event.finish is not None:
                checked(event.finish)
            yield event
