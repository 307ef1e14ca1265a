"""The server continues its caller's trace, where its process is set up for OpenTelemetry."""

from __future__ import annotations

import re
import time

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from palmette.runtime.server.tracing import REQUEST_SPAN
from tests.runtime.server.serving import Served
from tests.spans import KeepingProvider, KeptSpan

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
HEADER = {"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01"}
BODY = {"prompt": "a private prompt", "max_tokens": 6, "ignore_eos": True}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> KeepingProvider:
    keeping = KeepingProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: keeping)
    return keeping


def only(provider: KeepingProvider) -> KeptSpan:
    """The one span, which ends some moments after the answer was read."""
    until = time.monotonic() + 10
    while time.monotonic() < until and not all(span.num_ends for span in provider.spans):
        time.sleep(0.005)
    (span,) = provider.spans
    assert span.num_ends == 1
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_child_of_its_callers_span(provider: KeepingProvider, served: Served, stream: bool) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json={**BODY, "stream": stream, "n": 2}, headers=HEADER)
        assert answer.status_code == 200
    span = only(provider)
    assert (span.name, span.kind, span.status) == (REQUEST_SPAN, SpanKind.SERVER, StatusCode.UNSET)
    assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (TRACE, PARENT, True)
    told = span.attributes
    assert told["http.response.status_code"] == 200
    assert told["url.path"] == "/v1/completions"
    assert told["gen_ai.request.model"] == served.service.model.name
    assert told["palmette.num_requests"] == 2
    assert told["gen_ai.usage.input_tokens"] == 2 * len("a private prompt")
    assert told["gen_ai.usage.output_tokens"] == 12
    assert told["gen_ai.response.finish_reasons"] == ("length", "length")
    assert "private" not in repr(told)


def test_what_goes_wrong_is_told_by_its_class(provider: KeepingProvider, served: Served) -> None:
    with served.client() as client:
        assert client.post("/v1/completions", json={**BODY, "max_tokens": 2000, "timeout": 0.05}).status_code == 504
    span = only(provider)
    assert not span.parent.is_valid
    assert span.attributes["error.type"] == "HoleTimeout"
    assert span.attributes["http.response.status_code"] == 504
    assert span.status is StatusCode.ERROR
    assert not span.exceptions


def test_a_bad_request_is_no_error_of_the_server(provider: KeepingProvider, served: Served) -> None:
    with served.client() as client:
        assert client.post("/v1/completions", content=b"{").status_code == 400
    span = only(provider)
    assert span.attributes["http.response.status_code"] == 400
    assert span.status is StatusCode.UNSET


def test_a_traceparent_that_is_none_begins_a_trace(provider: KeepingProvider, served: Served) -> None:
    with served.client() as client:
        client.post("/v1/completions", json=BODY, headers={b"traceparent": b"00-zz-\xff-01"})
    assert not only(provider).parent.is_valid


def test_looking_at_the_server_makes_no_spans(provider: KeepingProvider, served: Served) -> None:
    with served.client() as client:
        for path in ("/health", "/stats", "/metrics", "/v1/models"):
            assert client.get(path).status_code == 200
    assert not provider.spans


def test_without_a_provider_a_traceparent_is_ignored(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/v1/completions", json=BODY, headers=HEADER)
    assert answer.status_code == 200
    assert not re.search("traceparent", str(answer.headers))
