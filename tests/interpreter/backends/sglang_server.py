"""The part of SGLang's native API that RuntimeEndpoint uses, over the engine of a running test server.

Its dialect as its documentation has it: text and tokens so far in every chunk (or only new ones), logprobs so far, a
first prompt row without a logprob, a constraint among the sampling parameters, and nothing of Palmette's.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from palmette.runtime.server.clients import Client
from palmette.specs import Grammar, JsonSchema, Regex, Spec
from palmette.types import (
    Finish,
    FinishReason,
    GenerateRequest,
    LogprobParams,
    SamplingParams,
    TokenEvent,
    TokenLogprob,
)
from tests.runtime.server.serving import Served

CLIENT = Client("sglang")
PARAMS = frozenset({
    "max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "ignore_eos",
})  # fmt: skip


class SGLangServer:
    """See the module. `bodies` are the requests that came."""

    def __init__(self, served: Served, *, incremental: bool, knows_old_paths: bool = True) -> None:
        self._served, self._incremental = served, incremental
        self.bodies: list[dict[str, Any]] = []
        self.url = ""
        info = "/get_model_info" if knows_old_paths else "/model_info"
        self.app = Starlette(
            routes=[
                Route(info, self._model_info),
                Route("/server_info", self._server_info),
                Route("/flush_cache", self._flush, methods=["POST"]),
                Route("/generate", self._generate, methods=["POST"]),
            ]
        )

    async def _model_info(self, request: Request) -> Response:
        return JSONResponse({"model_path": "org/some-model", "is_generation": True, "weight_version": "default"})

    async def _server_info(self, request: Request) -> Response:
        return JSONResponse({"context_length": 2048, "version": "0.5.23"})

    async def _flush(self, request: Request) -> Response:
        self._served.service.flush_cache()
        return Response("Cache flushed.")

    async def _generate(self, http: Request) -> Response:
        body = json.loads(await http.body())
        self.bodies.append(body)
        given = body["sampling_params"]
        if "fail" in given.get("stop", ()):
            return JSONResponse({"error": {"message": "the scheduler says no"}}, 400)
        start = body.get("logprob_start_len", -1)
        request = GenerateRequest(
            self._served.service.new_id("sgl-"),
            tuple(body["input_ids"]),
            SamplingParams(
                **{name: given[name] for name in PARAMS & given.keys()},
                stop=tuple(given.get("stop", ())),
                stop_token_ids=tuple(given.get("stop_token_ids", ())),
            ),
            seed=given.get("sampling_seed", 0),
            logprobs=LogprobParams(start if start >= 0 else None, body.get("top_logprobs_num", 0))
            if body.get("return_logprob")
            else None,
            namespace=body.get("cache_salt", ""),
            constraint=_spec(given),
        )
        if not body.get("stream"):
            answer = await self._served.service.collect(CLIENT, request)
            event = TokenEvent("", answer.text, answer.token_ids, answer.logprobs, answer.finish)
            return JSONResponse(_Chunks(request, incremental=False).chunk(event))
        return StreamingResponse(self._chunks(request), media_type="text/event-stream")

    async def _chunks(self, request: GenerateRequest) -> AsyncIterator[bytes]:
        chunks = _Chunks(request, incremental=self._incremental)
        async with self._served.service.submit(CLIENT, request, whole=False) as events:
            async for event in events:
                assert isinstance(event, TokenEvent)
                yield b"data: " + json.dumps(chunks.chunk(event)).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


class _Chunks:
    """What a stream's chunks say."""

    def __init__(self, request: GenerateRequest, *, incremental: bool) -> None:
        self._request, self._incremental = request, incremental
        self._text, self._ids, self._rows = "", list[int](), list[TokenLogprob]()

    def chunk(self, event: TokenEvent) -> dict[str, Any]:
        self._text += event.text
        self._ids += event.token_ids
        self._rows += event.logprobs
        end = event.finish
        meta: dict[str, Any] = {
            "id": self._request.request_id,
            "prompt_tokens": len(self._request.token_ids),
            "completion_tokens": len(self._ids),
            "cached_tokens": end.usage.cached_tokens if end is not None else 0,
            "finish_reason": None if end is None else _reason(end, self._request),
        }
        if self._request.logprobs is not None:
            rows = event.logprobs if self._incremental else self._rows
            meta["output_token_logprobs"] = [[row.logprob, row.token_id, None] for row in rows]
            meta["output_top_logprobs"] = [[[p, t, None] for t, p in row.top] for row in rows]
            if end is not None and end.prompt_logprobs:
                first, *others = end.prompt_logprobs
                meta["input_token_logprobs"] = [[None, first.token_id, None]]
                meta["input_token_logprobs"] += [[row.logprob, row.token_id, None] for row in others]
        ids = list(event.token_ids) if self._incremental else list(self._ids)
        return {"text": event.text if self._incremental else self._text, "output_ids": ids, "meta_info": meta}


def _reason(end: Finish, request: GenerateRequest) -> dict[str, Any]:
    if end.reason is FinishReason.STOP:
        return {"type": "stop", "matched": end.matched}
    if end.reason is FinishReason.LENGTH:
        return {"type": "length", "length": request.params.max_new_tokens}
    return {"type": "abort", "message": str(end.error)}


def _spec(given: dict[str, Any]) -> Spec | None:
    if "regex" in given:
        return Regex(given["regex"])
    if "json_schema" in given:
        return JsonSchema(given["json_schema"])
    return Grammar(given["ebnf"]) if "ebnf" in given else None


@contextmanager
def sglang_serving(
    served: Served, *, incremental: bool = False, knows_old_paths: bool = True
) -> Iterator[SGLangServer]:
    """Serve the dialect beside a running server, on its loop."""
    dialect = SGLangServer(served, incremental=incremental, knows_old_paths=knows_old_paths)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()  # who connects before the server accepts waits instead of being refused
    dialect.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    settings = uvicorn.Config(
        dialect.app, lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(settings)
    running = asyncio.run_coroutine_threadsafe(server.serve(sockets=[sock]), served.loop)
    try:
        yield dialect
    finally:
        server.should_exit = True
        running.result(20)
        sock.close()
