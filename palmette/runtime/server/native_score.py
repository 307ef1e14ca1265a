"""What RuntimeEndpoint asks for beside SGLang's own: scores of a trie in one pass, and the tokenizer.

POST /palmette/score        the logprob of each node behind a prompt
GET  /palmette/tokenizer    what is needed to tokenize elsewhere; does not change while the model is the same
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import asdict

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from palmette.errors import RequestError
from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import client_of, json_response, read_body, service_of, until_gone
from palmette.runtime.server.native_schema import ScoreBody
from palmette.runtime.server.programs import book_of, check_token_ids
from palmette.runtime.server.service import Service
from palmette.runtime.tokenizer_data import tokenizer_data
from palmette.types import ChoiceTrie, Hints, ScoreEvent, ScoreRequest


async def score(request: Request) -> Response:
    body = await read_body(request, ScoreBody)
    service, client = service_of(request), client_of(request)
    check_token_ids(service.model, body.input_ids)
    check_token_ids(service.model, body.trie.token_ids, "trie.token_ids")
    with book_of(request).request(client, body.program) as hints:
        event = await until_gone(request, _scored(service, client, body, hints))
    return json_response(
        {"logprobs": event.logprobs, "unconditional": event.unconditional, "usage": asdict(event.usage)}
    )


async def _scored(service: Service, client: Client, body: ScoreBody, hints: Hints) -> ScoreEvent:
    asked = ScoreRequest(
        service.new_id(),
        tuple(body.input_ids),
        ChoiceTrie(tuple(body.trie.token_ids), tuple(body.trie.parents)),
        bool(body.unconditional),
        hints,
        client.scope(body.cache_salt or ""),
        body.priority or 0,
        body.timeout,
    )
    async with service.submit(client, asked, whole=True) as events:
        async for event in events:
            assert isinstance(event, ScoreEvent), "a score request is answered by one score event"
            if event.error is not None:
                raise event.error
            return event
    raise RequestError("the request ended without an end")  # unreachable while Flights keeps its promise


async def tokenizer(request: Request) -> Response:
    """Packed once, and sent only to those who do not have it yet."""
    service, state = service_of(request), request.app.state
    tag = f'"{service.model.digest}{_template_mark(service)}"'
    headers = {"etag": tag, "vary": "accept-encoding", "cache-control": "private, no-cache"}
    if tag in (part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    kept: tuple[str, bytes] | None = getattr(state, "packed_tokenizer", None)
    if kept is None or kept[0] != tag:
        kept = state.packed_tokenizer = (tag, await asyncio.to_thread(_packed, service))
    if "gzip" not in request.headers.get("accept-encoding", ""):
        plain = await asyncio.to_thread(gzip.decompress, kept[1])
        return Response(plain, headers=headers, media_type="application/json")
    headers["content-encoding"] = "gzip"
    return Response(kept[1], headers=headers, media_type="application/json")


def _packed(service: Service) -> bytes:
    template = service.template
    data = tokenizer_data(service.tokenizer) | {
        "chat_template": template.source,  # the server may have been given another one
        "bos_token": template.bos_token,
        "eos_token": template.eos_token,
    }
    return gzip.compress(msgspec.json.encode(data), 6, mtime=0)


def _template_mark(service: Service) -> str:
    """Of a template that is not the model's own."""
    source = service.template.source
    if source == service.tokenizer.chat_template.source:
        return ""
    return "-" + hashlib.sha256((source or "").encode()).hexdigest()[:8]


ROUTES = (
    ("/palmette/score", ("POST",), score),
    ("/palmette/tokenizer", ("GET",), tokenizer),
)
