"""/v1/embeddings: where the operator says that the model was trained for them; else refused."""

from __future__ import annotations

import base64
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from palmette.errors import InvalidOption, PromptTooLong, RequestError, UnsupportedFeature
from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import client_of, json_response, read_body, service_of, until_gone
from palmette.runtime.server.openai.params import check_body, check_token_ids, prompts_of
from palmette.runtime.server.openai.schema import EmbeddingBody
from palmette.runtime.server.service import ModelCard, Service
from palmette.runtime.server.together import gathered
from palmette.types import EmbedEvent, EmbedRequest


async def embeddings(request: Request) -> Response:
    body = await read_body(request, EmbeddingBody)
    service, client = service_of(request), client_of(request)
    card = check_body(service, body)
    if not service.config.embeddings:
        raise UnsupportedFeature(
            "/v1/embeddings",
            f"{card.name} does not say that it was trained for embeddings, and others' are of no use; if it was, start "
            "the server with --embeddings",
        )
    if body.dimensions is not None:
        raise InvalidOption("dimensions", body.dimensions, "absent: a vector is as long as the model makes it")
    answer_id = service.new_id("embd-")
    given = prompts_of(body.input, "input")
    prompts = [await _tokens(service, card, item, f"input[{i}]") for i, item in enumerate(given)]
    work = [_embedded(service, client, EmbedRequest(f"{answer_id}-{i}", p)) for i, p in enumerate(prompts)]
    events = await until_gone(request, gathered(work))
    tokens = sum(event.usage.prompt_tokens for event in events)
    as_text = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _base64(event) if as_text else event.embedding}
        for i, event in enumerate(events)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer: dict[str, Any] = {"object": "list", "data": data, "model": card.name, "usage": usage}
    return json_response(answer, headers={"x-request-id": answer_id})


async def _tokens(service: Service, card: ModelCard, item: str | list[int], field: str) -> tuple[int, ...]:
    if isinstance(item, str):
        tokens = await service.encode_plain(item)
    else:
        check_token_ids(card, item, field)
        tokens = tuple(item)
    if not tokens:
        raise InvalidOption(field, "", "a text of at least one token")
    limit = min(card.context_len, card.kv_tokens)
    if len(tokens) > limit:
        raise PromptTooLong(len(tokens), limit, "the context")
    return tokens


async def _embedded(service: Service, client: Client, request: EmbedRequest) -> EmbedEvent:
    async with service.submit(client, request, whole=True) as events:
        async for event in events:
            assert isinstance(event, EmbedEvent), "an embed request is answered by one EmbedEvent"
            if event.error is not None:
                raise event.error
            return event
    raise RequestError("the request ended without an end")


def _base64(event: EmbedEvent) -> str:
    """float32, least byte first."""
    return base64.b64encode(struct.pack(f"<{len(event.embedding)}f", *event.embedding)).decode("ascii")


ROUTES = (("/v1/embeddings", ("POST",), embeddings),)
