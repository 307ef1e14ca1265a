"""A hole's span goes on in the server that fills it."""

from __future__ import annotations

import pytest
from opentelemetry import trace

import palmette as pm
from palmette.runtime.models.tiny import tiny_model
from tests.runtime.server.serving import serving
from tests.spans import KeepingProvider


@pm.function
def two_holes(s: pm.State) -> None:
    s += "Once" + pm.gen("a", max_tokens=3) + " and " + pm.gen("b", max_tokens=3)


def test_each_request_is_a_child_of_its_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = KeepingProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    with serving(tiny_model()) as served, pm.RuntimeEndpoint(served.url) as endpoint:
        two_holes.run(backend=endpoint)
    holes = [span for span in provider.spans if span.name == "palmette.hole"]
    asked = [
        span
        for span in provider.spans
        if span.name == "palmette.request" and span.attributes["url.path"] == "/generate"
    ]
    assert len(holes) == 2
    assert [span.parent.span_id for span in asked] == [hole.own.span_id for hole in holes]
    assert {span.parent.trace_id for span in asked} == {hole.own.trace_id for hole in holes}
