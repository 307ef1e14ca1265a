"""A tracer provider for tests, by OpenTelemetry's API alone: remembers what was started and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer, TracerProvider


@dataclass(eq=False)
class KeptSpan(Span):
    name: str
    parent: SpanContext  # not valid = there is none
    own: SpanContext
    kind: SpanKind
    attributes: dict[str, Any] = field(default_factory=dict)
    status: StatusCode = StatusCode.UNSET
    num_ends: int = 0
    exceptions: list[BaseException] = field(default_factory=list)

    def end(self, end_time: int | None = None) -> None:
        self.num_ends += 1

    def get_span_context(self) -> SpanContext:
        return self.own

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        assert not self.num_ends, "an ended span is not written to"
        self.attributes.update(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        self.set_attributes({key: value})

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        raise AssertionError(f"no events are expected, and {name} came")

    def update_name(self, name: str) -> None:
        self.name = name

    def is_recording(self) -> bool:
        return not self.num_ends

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        assert description is None, "a description may quote texts"
        self.status = status if isinstance(status, StatusCode) else status.status_code

    def record_exception(self, exception: BaseException, *args: Any, **kwargs: Any) -> None:
        self.exceptions.append(exception)


class KeepingTracer(Tracer):
    def __init__(self, spans: list[KeptSpan]) -> None:
        self._spans = spans

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[Any] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> KeptSpan:
        parent = trace.get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else len(self._spans) + 1
        own = SpanContext(trace_id, len(self._spans) + 1, is_remote=False, trace_flags=TraceFlags(1))
        self._spans.append(KeptSpan(name, parent, own, kind, dict(attributes or {})))
        return self._spans[-1]

    @contextmanager
    def _current(self, span: KeptSpan, **options: Any) -> Iterator[Span]:
        with trace.use_span(span, end_on_exit=True, **options):
            yield span

    def start_as_current_span(self, name: str, *args: Any, **options: Any) -> Any:
        flags = {key: options[key] for key in ("record_exception", "set_status_on_exception") if key in options}
        return self._current(self.start_span(name, *args, **options), **flags)


class KeepingProvider(TracerProvider):
    """`spans` in the order in which they were started."""

    def __init__(self) -> None:
        self.spans: list[KeptSpan] = []

    def get_tracer(self, instrumenting_module_name: str, *args: Any, **kwargs: Any) -> Tracer:
        assert instrumenting_module_name == "palmette"
        return KeepingTracer(self.spans)

    def named(self, name: str) -> list[KeptSpan]:
        return [span for span in self.spans if span.name == name]

    def children(self, span: KeptSpan) -> list[KeptSpan]:
        return [child for child in self.spans if child.parent.span_id == span.own.span_id]
