"""Programs and holes as OpenTelemetry spans, for those who set it up, and nothing for those who did not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

import palmette as pm
from palmette.errors import Cancelled, PalmetteError, RequestError
from palmette.interpreter.tracing import outgoing_headers
from palmette.testing import ScriptedBackend
from palmette.types import Deliver, Request
from tests.spans import KeepingProvider, KeptSpan


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> KeepingProvider:
    keeping = KeepingProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: keeping)
    return keeping


@pm.function
def judged(s: pm.State, essay: str) -> None:
    s += essay + pm.gen("remark", max_tokens=8) + pm.select("grade", ["good", "bad"])


def backend() -> ScriptedBackend:
    return ScriptedBackend(lambda prompt: "so")


def ended(spans: Callable[[], list[KeptSpan]], count: int) -> list[KeptSpan]:
    """Spans that end on the executor's loop, some moments after the program."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = spans()
        if len(found) == count and all(span.num_ends for span in found):
            return found
        time.sleep(0.005)
    raise AssertionError(f"{len(spans())} spans, of which {[s.num_ends for s in spans()]} ended")


def test_a_program_and_its_holes_are_spans_below_the_callers(provider: KeepingProvider) -> None:
    tracer = provider.get_tracer("palmette")
    with tracer.start_as_current_span("mine"):
        state = judged.run("An essay.", backend=backend())
    mine, program, *holes = provider.spans
    assert [span.name for span in provider.spans] == ["mine", "palmette.program", "palmette.hole", "palmette.hole"]
    assert program.parent == mine.own
    assert [hole.parent for hole in holes] == [program.own, program.own]
    assert program.attributes["palmette.program.name"] == "judged"
    assert [hole.attributes["palmette.hole.name"] for hole in holes] == ["remark", "grade"]
    assert [hole.attributes["palmette.hole.kind"] for hole in holes] == ["gen", "select"]
    assert all(span.num_ends == 1 and span.status is StatusCode.UNSET for span in (program, *holes))
    usage = state.usage
    assert program.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens > 0
    assert sum(hole.attributes["gen_ai.usage.input_tokens"] for hole in holes) == usage.prompt_tokens
    assert holes[0].attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens == 2
    assert holes[0].attributes["palmette.cached_tokens"] == 0
    assert holes[0].attributes["gen_ai.response.finish_reasons"] == ("stop",)


def test_neither_arguments_nor_texts_are_told(provider: KeepingProvider) -> None:
    script = ScriptedBackend(lambda prompt: "a private answer")
    judged.run("a private essay", backend=script)
    assert provider.spans
    assert "private" not in repr([(span.name, span.attributes, span.exceptions) for span in provider.spans])


def test_spans_of_the_body_are_children_of_the_program(provider: KeepingProvider) -> None:
    tracer = provider.get_tracer("palmette")

    @pm.function
    def outer(s: pm.State) -> None:
        with tracer.start_as_current_span("look something up"):
            pass
        judged.run("inner", backend=backend())

    outer.run(backend=backend())
    first, second = provider.named("palmette.program")
    assert [span.name for span in provider.children(first)] == ["look something up", "palmette.program"]
    assert [span.name for span in provider.children(second)] == ["palmette.hole", "palmette.hole"]


def test_every_way_to_run_keeps_the_callers_span(provider: KeepingProvider) -> None:
    @pm.function
    async def asks(s: pm.State, question: str) -> None:
        s += question + pm.gen("answer", max_tokens=8)
        await s.get("answer")

    def batch() -> None:
        judged.map(["a", "b", "c"], backend=backend(), num_threads=2)

    def async_batch() -> None:
        asks.map(["a", "b", "c"], backend=backend())

    def awaited() -> None:
        async def main() -> None:
            await asks.amap(["a", "b"], backend=backend())
            await judged.arun("c", backend=backend())

        asyncio.run(main())

    def streamed() -> None:
        for _ in range(3):
            assert "".join(judged.stream("a", backend=backend()))

    for run in (batch, async_batch, awaited, streamed):
        provider.spans.clear()
        with provider.get_tracer("palmette").start_as_current_span(run.__name__) as span:
            run()
        assert isinstance(span, KeptSpan)
        programs = ended(lambda: provider.named("palmette.program"), 3)
        assert [program.parent for program in programs] == [span.own] * 3, run.__name__


def test_branches_and_samples_belong_to_their_program(provider: KeepingProvider) -> None:
    @pm.function
    def forks(s: pm.State) -> None:
        s += "Q"
        with s.fork(3) as branches:
            for branch in branches:
                branch += pm.gen("a", max_tokens=4)
        s += pm.gen("b", max_tokens=4, n=2)

    forks.run(backend=backend())
    (program,) = provider.named("palmette.program")
    holes = provider.children(program)
    assert [hole.attributes["palmette.hole.name"] for hole in holes] == ["a", "a", "a", "b"]
    assert holes[-1].attributes["gen_ai.usage.output_tokens"] == 4  # of both samples
    assert program.attributes["gen_ai.usage.output_tokens"] == 10


class Failing(ScriptedBackend):
    def submit(self, request: Request, deliver: Deliver) -> None:
        raise RequestError("the model wrote something private")


def test_an_error_is_told_by_its_class(provider: KeepingProvider) -> None:
    with pytest.raises(RequestError):
        judged.run("a", backend=Failing())
    (program,) = provider.named("palmette.program")
    (hole,) = ended(lambda: provider.named("palmette.hole"), 1)  # the second one's turn never came
    for span in (program, hole):
        assert span.attributes["error.type"] == "RequestError"
        assert span.status is StatusCode.ERROR
        assert not span.exceptions
        assert span.num_ends == 1


def test_a_cancelled_hole_ends_its_span(provider: KeepingProvider) -> None:
    state = judged.run("a", backend=ScriptedBackend(lambda prompt: "so", manual=True), stream=True)
    until = time.monotonic() + 10
    while not provider.named("palmette.hole") and time.monotonic() < until:
        time.sleep(0.005)
    state.cancel()
    with suppress(PalmetteError):
        state.text()
    (hole,) = ended(lambda: provider.named("palmette.hole"), 1)
    assert hole.attributes["error.type"] == Cancelled.__name__


def test_a_request_that_leaves_the_process_names_its_hole(provider: KeepingProvider) -> None:
    sent: list[dict[str, str]] = []

    class Remote(ScriptedBackend):
        def submit(self, request: Request, deliver: Deliver) -> None:
            sent.append(outgoing_headers())
            super().submit(request, deliver)

    judged.run("a", backend=Remote(lambda prompt: "so"))
    holes = provider.named("palmette.hole")
    assert [headers["traceparent"] for headers in sent] == [
        f"00-{hole.own.trace_id:032x}-{hole.own.span_id:016x}-01" for hole in holes
    ]
    assert len(sent) == 2


def test_without_a_provider_there_is_no_span_and_no_header() -> None:
    """The API is imported here, and its own provider is the one that does nothing."""
    seen: list[Any] = []

    @pm.function
    def looks(s: pm.State) -> None:
        s += "a" + pm.gen("b", max_tokens=4)
        seen.append(s._stream.run.span)

    looks.run(backend=backend())
    assert seen == [None]
    assert outgoing_headers() == {}


def test_nobody_imports_opentelemetry_for_you() -> None:
    code = """
import sys
import palmette as pm
from palmette.testing import ScriptedBackend
@pm.function
def qa(s, q):
    s += q + pm.gen("a", max_tokens=4)
assert qa.run("why", backend=ScriptedBackend(["so"]))["a"] == "so"
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
