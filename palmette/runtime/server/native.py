"""SGLang's native endpoints, so that its frontend and its users' scripts work against this server.

    POST /generate              one prompt or many, text or token ids, whole or as a stream
    GET  /model_info            and /get_model_info: what is served; `palmette` says what more it understands
    GET  /server_info           and /get_server_info: limits and the engine's numbers
    POST /flush_cache           forget cached prefixes; for an admin
    POST /abort_request         end requests by the client's own ids
    POST /concate_and_append_request    nothing to do: SGLang's client sends the whole text again

Knows HTTP and the order of things; what a body means is in native_plan, what is answered in native_answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from palmette.errors import PalmetteError, RequestError
from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import (
    HTTPError,
    client_of,
    error_body,
    json_response,
    read_body,
    service_of,
    sse,
    stream_response,
    until_gone,
)
from palmette.runtime.server.native_abort import Aborted, Aborts
from palmette.runtime.server.native_answer import Writer
from palmette.runtime.server.native_plan import Plan, Sample, plan_of
from palmette.runtime.server.native_schema import AbortBody, GenerateBody
from palmette.runtime.server.programs import ProgramBody, ProgramBook, book_of
from palmette.runtime.server.service import Service
from palmette.runtime.server.together import gathered, merged
from palmette.types import Finish, FinishReason, GenerateRequest, TokenEvent

T = TypeVar("T")

API_VERSION = 1  # of what `palmette` in /model_info announces
_PACE = 0.03  # seconds between two chunks for a RuntimeEndpoint, whose program mostly waits for the end
FEATURES = ("program", "ends", "constraint", "score", "tokenizer")


# -- /generate ---------------------------------------------------------------------------------------------------------


async def generate(request: Request) -> Response:
    body = await read_body(request, GenerateBody)
    service, client = service_of(request), client_of(request)
    plan = await plan_of(service, client, body)
    run = _Run(service, client, aborts_of(request), book_of(request), plan, is_palmette=bool(body.palmette))
    if body.stream:
        return await stream_response(request, run.chunks(), on_error=_error_event)
    return json_response(await until_gone(request, run.whole()))


class _Broken(PalmetteError):
    """A stream that had begun failed. A class of its own, because some failures are TimeoutErrors to who writes it."""

    def __init__(self, cause: PalmetteError, *, was_told: bool) -> None:
        """
        Args:
            was_told: the last chunk told of it.
        """
        super().__init__(str(cause))
        self.cause, self.was_told = cause, was_told


@dataclass(slots=True)
class _Run:
    """One request to /generate on its way."""

    service: Service
    client: Client
    aborts: Aborts
    book: ProgramBook
    plan: Plan
    is_palmette: bool

    async def whole(self) -> Any:
        """The answer: an object, or a list of them."""
        samples = self.plan.samples
        if self.plan.is_single:
            return await self._whole(samples[0])
        return await gathered([self._whole(sample) for sample in samples])

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Server-sent events; those of a batch as they come, each with its `index`."""
        samples = self.plan.samples
        if len(samples) == 1:
            async with aclosing(self._chunks(samples[0])) as source:
                async for chunk in source:
                    yield chunk
            return
        async with aclosing(merged([self._chunks(sample) for sample in samples])) as source_chunks:
            async for _, chunk in source_chunks:
                yield chunk

    async def _whole(self, sample: Sample) -> dict[str, Any]:
        writer = self._writer(sample)
        with self.book.request(self.client, self._program(sample)) as hints:
            request = replace(sample.request, hints=hints) if hints.program else sample.request
            async with aclosing(self._events(sample, request, whole=True)) as events:
                async for event in events:
                    writer.take(event)
                    if event.finish is not None:
                        error = _failure(event.finish)
                        if error is not None:
                            raise error
                        return writer.whole(event.finish)
        raise RequestError("the request ended without an end")  # unreachable while Flights keeps its promise

    async def _chunks(self, sample: Sample) -> AsyncGenerator[bytes]:
        writer, has_begun = self._writer(sample), False
        with self.book.request(self.client, self._program(sample)) as hints:
            request = replace(sample.request, hints=hints) if hints.program else sample.request
            async with aclosing(self._events(sample, request, whole=False)) as events:
                async for event in events:
                    error = None if event.finish is None else _failure(event.finish)
                    if error is not None and not has_begun:
                        raise error
                    if error is None or self.is_palmette:
                        yield sse(writer.chunk(event))
                        has_begun = True
                    if error is not None:
                        raise _Broken(error, was_told=self.is_palmette)

    def _events(self, sample: Sample, request: GenerateRequest, *, whole: bool) -> AsyncGenerator[TokenEvent]:
        return self.aborts.events(
            self.client, request, sample.rids, whole=whole, pace=_PACE if self.is_palmette and not whole else 0.0
        )

    def _program(self, sample: Sample) -> ProgramBody | None:
        """The samples of one prompt are siblings, unless the program says of which fork they are."""
        program, own = self.plan.program, sample.request.hints
        if program is None or program.siblings or own.siblings < 2:
            return program
        return program.model_copy(update={"shared_len": own.shared_len, "siblings": own.siblings})

    def _writer(self, sample: Sample) -> Writer:
        return Writer(sample, self.service.tokenizer, palmette=self.is_palmette, indexed=not self.plan.is_single)


def _failure(finish: Finish) -> PalmetteError | None:
    """What a request failed with. To be aborted by its client is an answer."""
    if finish.reason in (FinishReason.STOP, FinishReason.LENGTH) or isinstance(finish.error, Aborted):
        return None
    return finish.error or RequestError(f"the request was {finish.reason}")


def _error_event(error: PalmetteError) -> bytes:
    if not isinstance(error, _Broken):
        return sse(error_body(error))
    return b"" if error.was_told else sse(error_body(error.cause))


# -- the rest ----------------------------------------------------------------------------------------------------------


async def model_info(request: Request) -> Response:
    service = service_of(request)
    card = service.model
    return json_response(
        {
            "model_path": card.name,
            "served_model_name": card.name,
            "tokenizer_path": card.name,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": card.digest[:16],
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "palmette": {
                "version": API_VERSION,
                "features": FEATURES,
                "context_len": card.context_len,
                "vocab_size": card.vocab_size,
                "digest": card.digest,
                "constraints": sorted(card.constraints),
            },
        }
    )


async def server_info(request: Request) -> Response:
    """Under SGLang's names where it has them. Neither keys nor paths."""
    service = service_of(request)
    card, limits, stats = service.model, service.config.limits, service.stats()
    state: dict[str, Any] = {}
    if stats is not None:
        state = asdict(stats) | {"hit_rate": stats.hit_rate}
    return json_response(
        {
            "model_path": card.name,
            "served_model_name": card.name,
            "tokenizer_path": card.name,
            "is_embedding": service.config.embeddings,
            "context_length": card.context_len,
            "max_total_num_tokens": card.kv_tokens,
            "max_running_requests": limits.max_in_engine,
            "max_queued_requests": limits.max_waiting,
            "status": "ready" if service.is_ready else "not ready",
            "num_in_engine": service.gate.num_inside,
            "num_queued": service.gate.num_waiting,
            "internal_states": [state],
        }
    )


async def flush_cache(request: Request) -> Response:
    """The guard lets nobody but an admin come here."""
    service_of(request).flush_cache()
    return PlainTextResponse("The cache is flushed.\n")


async def abort_request(request: Request) -> Response:
    body = await read_body(request, AbortBody)
    aborts, client = aborts_of(request), client_of(request)
    if body.abort_all:
        if not client.is_admin:
            raise HTTPError(403, "abort_all ends everybody's requests: use the admin key", code="admin_only")
        return json_response({"aborted": aborts.abort_all()})
    if not body.rid:
        raise HTTPError(400, "rid: the id of a request, or abort_all", param="rid", code="invalid_value")
    return json_response({"aborted": aborts.abort(client, body.rid)})


async def concate_and_append_request(request: Request) -> Response:
    return json_response({})


def aborts_of(request: Request) -> Aborts:
    """The application's requests that can be aborted, kept from first use on."""
    state = request.app.state
    if not hasattr(state, "aborts"):
        state.aborts = Aborts(service_of(request))
    aborts: Aborts = state.aborts
    return aborts


ROUTES = (
    ("/generate", ("POST", "PUT"), generate),
    ("/model_info", ("GET",), model_info),
    ("/get_model_info", ("GET",), model_info),
    ("/server_info", ("GET",), server_info),
    ("/get_server_info", ("GET",), server_info),
    ("/flush_cache", ("GET", "POST"), flush_cache),
    ("/abort_request", ("POST",), abort_request),
    ("/concate_and_append_request", ("POST",), concate_and_append_request),
)
