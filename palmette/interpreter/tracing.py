"""Spans of programs and holes: OpenTelemetry, where the author's process is set up for it.

    the caller's current span
      `-- palmette.program      current while the body runs: spans of the body's own are its children too
            `-- palmette.hole   each gen and select, from its turn in the stream to its end

Only the API is used, and only if somebody has imported it and configured a tracer provider; otherwise nothing is
imported and nothing is made. Spans carry names, counts and outcomes: no arguments, no texts, no messages of errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from palmette.interpreter.item import Item
from palmette.interpreter.run import ProgramRun
from palmette.ir import Gen, Select
from palmette.tracers import configured_tracer
from palmette.types import Usage

if TYPE_CHECKING:  # imported by whoever configures it
    from opentelemetry.trace import Span, Tracer

PROGRAM_SPAN, HOLE_SPAN = "palmette.program", "palmette.hole"


@contextmanager
def program_span(run: ProgramRun, name: str) -> Iterator[None]:
    """A span around a program's body and the end of its streams, if anybody wants one."""
    tracer = configured_tracer()
    if tracer is None:
        yield
        return
    attributes = {"palmette.program.name": name, "palmette.program.id": run.program_id}
    with tracer.start_as_current_span(
        PROGRAM_SPAN, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        run.span = span
        try:
            yield
        except BaseException as error:
            _fail(span, error)
            raise
        finally:
            span.set_attributes(_usage(run.usage))


class HoleSpan:
    """The span of one hole, and the context in which the hole is filled."""

    __slots__ = ("_item", "_name", "_span", "_token")

    def __init__(self, tracer: Tracer, run: ProgramRun, item: Item, name: str | None) -> None:
        from opentelemetry import context
        from opentelemetry.trace import set_span_in_context

        self._item, self._name = item, name
        attributes = {
            "palmette.hole.name": name or "",
            "palmette.hole.kind": type(item.node).__name__.lower(),
            "gen_ai.request.model": run.backend.capabilities.model,
        }
        self._span: Span = tracer.start_span(HOLE_SPAN, set_span_in_context(run.span), attributes=attributes)
        self._token = context.attach(set_span_in_context(self._span))

    def end(self) -> None:
        """The hole is filled or has failed. On the task that made this."""
        from opentelemetry import context

        context.detach(self._token)
        future = self._item.holes[self._name or ""].future
        if future.cancelled() or (error := future.exception()) is not None:
            _fail(self._span, None if future.cancelled() else error)
        else:
            filled = future.result()
            self._span.set_attributes(
                {**_usage(filled.usage), "gen_ai.response.finish_reasons": (filled.reason.value,)}
            )
        self._span.end()


def begin_hole(run: ProgramRun, item: Item) -> HoleSpan | None:
    """A span for a hole whose turn has come, if its program has one."""
    tracer = configured_tracer() if run.span is not None else None
    if tracer is None or not isinstance(item.node, Gen | Select):
        return None
    return HoleSpan(tracer, run, item, item.node.name)


def outgoing_headers() -> dict[str, str]:
    """`traceparent` and `tracestate` of the current span for a request that leaves this process; often empty."""
    if configured_tracer() is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "palmette.cached_tokens": usage.cached_tokens,
        "palmette.forced_tokens": usage.forced_tokens,
    }


def _fail(span: Span, error: BaseException | None) -> None:
    """By class alone: a message may quote what was generated."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", "Cancelled" if error is None else type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))
