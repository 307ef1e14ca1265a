"""A span for each request, as a child of the caller's: OpenTelemetry, where the process is set up for it.

Only the API is used, and only if somebody has imported it and configured a tracer provider (`opentelemetry-instrument
palmette serve ...` does); else this costs one look into a dictionary a request. A span tells counts and outcomes, never
texts. What the caller's `traceparent` says is continued for clients that the guard let in.

    palmette.request    one POST; tokens summed over the requests to the engine that it made
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palmette.runtime.server.service import Observed, Service
from palmette.tracers import configured_tracer

if TYPE_CHECKING:  # imported by whoever configures it
    from opentelemetry.trace import Span

REQUEST_SPAN = "palmette.request"
_W3C = ("traceparent", "tracestate")


class _Tally:
    """What one HTTP request asked of the engine."""

    __slots__ = ("cached_tokens", "completion_tokens", "error", "num_requests", "prompt_tokens", "reasons")

    def __init__(self) -> None:
        self.num_requests = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.reasons: list[str] = []
        self.error: str | None = None

    def add(self, seen: Observed) -> None:
        self.num_requests += 1
        if seen.finish is not None:
            usage = seen.finish.usage
            self.prompt_tokens += usage.prompt_tokens
            self.completion_tokens += usage.completion_tokens
            self.cached_tokens += usage.cached_tokens
            self.reasons.append(seen.finish.reason.value)
        if seen.error is not None:
            self.error = type(seen.error).__name__


_tally: ContextVar[_Tally | None] = ContextVar("palmette_tally", default=None)


class Tracing:
    """ASGI middleware, behind the guard."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        service.observers.append(_observe)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tracer = configured_tracer() if scope["type"] == "http" and scope["method"] == "POST" else None
        if tracer is None:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, use_span

        card = self._service.card
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"][:200],
            "gen_ai.request.model": "" if card is None else card.name,
        }
        span = tracer.start_span(
            REQUEST_SPAN, _caller_of(scope), SpanKind.SERVER, attributes, record_exception=False,
            set_status_on_exception=False,
        )  # fmt: skip
        tally, status = _Tally(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = _tally.set(tally)
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                await self._app(scope, receive, watched)
        finally:
            _tally.reset(token)
            _end(span, tally, status)


def _caller_of(scope: Scope) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
    return TraceContextTextMapPropagator().extract({key: carrier[key] for key in _W3C if key in carrier})


def _observe(seen: Observed) -> None:
    tally = _tally.get()
    if tally is not None:
        tally.add(seen)


def _end(span: Span, tally: _Tally, status: int) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("http.response.status_code", status)
    if tally.num_requests:
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": tally.prompt_tokens,
                "gen_ai.usage.output_tokens": tally.completion_tokens,
                "gen_ai.response.finish_reasons": tuple(tally.reasons),
                "palmette.cached_tokens": tally.cached_tokens,
                "palmette.num_requests": tally.num_requests,
            }
        )
    if tally.error is not None:
        span.set_attribute("error.type", tally.error)
    if tally.error is not None or status >= 500 or not status:
        span.set_status(Status(StatusCode.ERROR))
    span.end()
