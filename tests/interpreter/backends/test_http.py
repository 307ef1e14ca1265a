"""Programs behind a URL come to what they come to in this process, and whatever goes wrong ends as it does here."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import palmette as pm
from palmette.errors import NumericalError, Overloaded, PromptTooLong, RequestError
from palmette.interpreter.backends.http import RuntimeEndpoint
from palmette.interpreter.backends.http_errors import TryAgain, named_error, refusal
from palmette.interpreter.backends.http_requests import pause
from palmette.interpreter.backends.local import Runtime
from palmette.runtime.models.load import load_model
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.config import ServerConfig, ServerLimits
from palmette.types import (
    Backend,
    Capabilities,
    ChoiceTrie,
    EmbedEvent,
    EmbedRequest,
    Event,
    FinishReason,
    GenerateRequest,
    Hints,
    ProgramEvent,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
)
from tests.interpreter.backends.comparing import (
    PROGRAMS,
    choosing,
    differences,
    forked,
    fresh,
    outcome,
    plain,
    talking,
    typed,
)
from tests.interpreter.backends.sglang_server import SGLangServer, sglang_serving
from tests.runtime.server.serving import Served, serving

ROOT = Path(__file__).parents[3]
KEY, ADMIN = "a-key-of-a-client", "the-key-of-the-admin"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(tiny_model()) as running:
        yield running


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    """The same model in this process: the oracle."""
    with Runtime(tiny_model()) as runtime:
        yield runtime


@pytest.fixture
def endpoint(served: Served) -> Iterator[RuntimeEndpoint]:
    with RuntimeEndpoint(served.url) as endpoint:
        yield endpoint


class Heard:
    """What a request was answered with."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()
        self.begun = threading.Event()

    def __call__(self, events: Any) -> None:
        for event in events:
            self.events.append(event)
            if isinstance(event, TokenEvent) and event.token_ids:
                self.begun.set()
            if not isinstance(event, TokenEvent) or event.finish is not None:
                self.over.set()

    def wait(self, seconds: float = 20.0) -> Event:
        """The terminal event."""
        assert self.over.wait(seconds), "the request did not end"
        return self.events[-1]

    def error(self) -> BaseException | None:
        """What it failed with."""
        event = self.wait()
        if isinstance(event, TokenEvent):
            assert event.finish is not None
            return event.finish.error
        return event.error


def ask(backend: Backend, name: str, prompt: str = "Once", **fields: Any) -> Heard:
    heard = Heard()
    params = fields.pop("params", SamplingParams(max_new_tokens=8))
    ids = tuple(prompt.encode())
    backend.submit(GenerateRequest(name, ids, params, namespace=fields.pop("namespace", name), **fields), heard)
    return heard


def name_of(program: pm.Program) -> str:
    return program.func.__name__


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


LONG = SamplingParams(max_new_tokens=1500, ignore_eos=True)


# -- the same programs -------------------------------------------------------------------------------------------------


def test_it_is_a_backend_and_knows_its_model(endpoint: RuntimeEndpoint, runtime: Runtime) -> None:
    assert isinstance(endpoint, Backend)
    assert endpoint.capabilities == runtime.capabilities
    assert endpoint.get_model_name() == runtime.capabilities.model
    assert endpoint.begin_ids() == runtime.begin_ids()


@pytest.mark.parametrize("program", PROGRAMS, ids=name_of)
def test_a_program_comes_to_the_same_as_in_this_process(
    program: pm.Program, endpoint: RuntimeEndpoint, runtime: Runtime
) -> None:
    namespace = fresh()
    assert not differences(outcome(program, endpoint, namespace), outcome(program, runtime, namespace))


def test_a_stream_comes_in_pieces_that_add_up(endpoint: RuntimeEndpoint) -> None:
    @pm.function
    def story(s: pm.State) -> None:
        s += "Once" + pm.gen("x", max_tokens=60, ignore_eos=True)

    state = story.run(backend=endpoint, stream=True, seed=3, namespace=fresh())
    pieces = list(state.text_iter("x"))
    assert "".join(pieces) == state["x"]
    heard = ask(endpoint, "pieces", params=SamplingParams(max_new_tokens=300, ignore_eos=True))
    heard.wait()
    assert len(heard.events) > 3, "it came at once"


def test_a_set_default_backend_is_used(endpoint: RuntimeEndpoint) -> None:
    pm.set_default_backend(endpoint)
    try:
        assert plain.run(seed=1).text().startswith("Tell me:")
        assert pm.get_server_info() == endpoint.get_server_info()
        pm.flush_cache()
    finally:
        pm.set_default_backend(None)


def test_programs_in_coroutines_run_side_by_side(endpoint: RuntimeEndpoint, runtime: Runtime) -> None:
    """200 at once: no stream owns a thread, and none waits for another's connection."""

    @pm.function
    async def one(s: pm.State, number: int) -> None:
        s += f"Number {number}:" + pm.gen("x", max_tokens=4, ignore_eos=True)
        await s.get("x")

    numbers = [(n,) for n in range(200)]
    before = threading.active_count()
    theirs = [state["x"] for state in one.map(numbers, backend=endpoint, seed=5, temperature=0)]
    assert threading.active_count() <= before + 3
    ours = [state["x"] for state in one.map(numbers[:20], backend=runtime, seed=5, temperature=0)]
    assert theirs[:20] == ours
    assert len(theirs) == 200


def test_requests_of_one_namespace_share_and_others_do_not(served: Served) -> None:
    prompt = "A prefix that is worth remembering."
    with (
        RuntimeEndpoint(served.url, cache_salt=fresh()) as endpoint,
        RuntimeEndpoint(served.url, cache_salt=fresh()) as other,
    ):

        def cached(name: str, namespace: str, backend: Backend = endpoint) -> int:
            event = ask(backend, name, prompt, namespace=namespace).wait()
            assert isinstance(event, TokenEvent)
            assert event.finish is not None
            return event.finish.usage.cached_tokens

        assert [cached("s1", "a"), cached("s2", "a"), cached("s3", "b")] == [0, len(prompt) - 1, 0]
        assert cached("s3", "a", other) == 0
        endpoint.flush_cache()
        assert cached("s4", "a") == 0


def test_scores_equal_those_of_this_process(endpoint: RuntimeEndpoint, runtime: Runtime) -> None:
    trie = ChoiceTrie(tuple(b"yest!"), (-1, 0, 1, 1, -1))
    events: list[ScoreEvent] = []
    for backend in (endpoint, runtime):
        heard = Heard()
        backend.submit(ScoreRequest("score", tuple(b"Is it?"), trie, True, namespace=fresh()), heard)
        event = heard.wait()
        assert isinstance(event, ScoreEvent)
        events.append(event)
    assert not differences(events[0].logprobs, events[1].logprobs)
    assert not differences(events[0].unconditional, events[1].unconditional)
    assert events[0].usage.prompt_tokens == events[1].usage.prompt_tokens
    assert len(events[0].unconditional) == 5


# -- hints -------------------------------------------------------------------------------------------------------------


def test_hints_travel_and_change_no_result(served: Served, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    sent: list[GenerateRequest] = []
    notify, submit = served.link.notify, served.link.submit

    def watched(event: ProgramEvent) -> None:
        seen.append(event)
        notify(event)

    def followed(request: GenerateRequest) -> None:
        sent.append(request)
        submit(request)

    monkeypatch.setattr(served.link, "notify", watched)
    monkeypatch.setattr(served.link, "submit", followed)
    with RuntimeEndpoint(served.url) as endpoint:
        namespace = fresh()
        assert not differences(outcome(forked, endpoint, namespace), outcome(forked, runtime, namespace))
        until(lambda: any(type(event).__name__ == "ProgramEnded" for event in seen))
    kinds = [type(event).__name__ for event in seen]
    assert kinds.index("ForkDeclared") < kinds.index("ProgramEnded")
    fork = seen[kinds.index("ForkDeclared")]
    shared = b"A shared beginning that is a little longer."
    assert (fork.siblings, bytes(fork.token_ids)) == (3, shared)
    assert [request.hints.program for request in sent] == [fork.program] * 4
    assert [(r.hints.siblings, r.hints.shared_len) for r in sent] == [(3, len(shared))] * 3 + [(0, 0)]


def test_a_program_runs_all_the_same_where_hints_are_lost(served: Served, runtime: Runtime) -> None:
    with RuntimeEndpoint(served.url) as endpoint:
        assert endpoint.capabilities.tokens

        async def lost(*args: object) -> object:
            raise RequestError("lost")

        endpoint._link._send_hint = lost  # type: ignore[method-assign,assignment]
        namespace = fresh()
        assert not differences(outcome(forked, endpoint, namespace), outcome(forked, runtime, namespace))


# -- endings -----------------------------------------------------------------------------------------------------------


def test_cancelling_frees_on_the_server(endpoint: RuntimeEndpoint, served: Served) -> None:
    heard = ask(endpoint, "cancelled", params=LONG)
    assert heard.begun.wait(10)
    assert served.service.gate.num_inside == 1
    endpoint.cancel("cancelled")
    event = heard.wait()
    assert isinstance(event, TokenEvent)
    assert event.finish is not None
    assert event.finish.reason is FinishReason.CANCELLED
    assert isinstance(event.finish.error, pm.Cancelled)
    until(lambda: served.service.gate.num_inside == 0)
    until(lambda: served.link.stats().running == 0)  # type: ignore[union-attr]
    endpoint.cancel("cancelled")  # it ended: left alone
    count = len(heard.events)
    time.sleep(0.05)
    assert len(heard.events) == count


def test_cancelling_before_the_first_event_ends_it_too(endpoint: RuntimeEndpoint) -> None:
    heard = ask(endpoint, "at-once", params=LONG)
    endpoint.cancel("at-once")
    assert isinstance(heard.error(), pm.Cancelled)


def test_a_hole_that_is_cancelled_in_a_program_frees_on_the_server(endpoint: RuntimeEndpoint, served: Served) -> None:
    @pm.function
    def endless(s: pm.State) -> None:
        s += "On and on" + pm.gen("x", max_tokens=1500, ignore_eos=True)

    state = endless.run(backend=endpoint, stream=True, namespace=fresh())
    next(iter(state.text_iter("x")))
    state.cancel()
    with pytest.raises(pm.Cancelled):
        state["x"]
    until(lambda: served.service.gate.num_inside == 0)


def test_a_timeout_is_a_timeout(endpoint: RuntimeEndpoint, served: Served) -> None:
    @pm.function
    def slow(s: pm.State) -> None:
        s += "Slow" + pm.gen("x", max_tokens=1900, ignore_eos=True, timeout=0.05)

    with pytest.raises(pm.HoleTimeout):
        slow.run(backend=endpoint, namespace=fresh())["x"]
    until(lambda: served.service.gate.num_inside == 0)


def test_closing_fails_what_is_live_and_refuses_what_follows(served: Served) -> None:
    endpoint = RuntimeEndpoint(served.url)
    heard = ask(endpoint, "live", params=LONG)
    assert heard.begun.wait(10)
    endpoint.close()
    endpoint.close()
    assert isinstance(heard.error(), pm.EngineDied)
    assert isinstance(ask(endpoint, "late").error(), pm.EngineDied)
    with pytest.raises(pm.EngineDied, match="closed"):
        endpoint.server_info()
    until(lambda: served.service.gate.num_inside == 0)
    assert not [t for t in threading.enumerate() if t.name == "palmette-http"]


def test_an_endpoint_that_nobody_holds_leaves_no_thread(served: Served) -> None:
    endpoint = RuntimeEndpoint(served.url)
    assert endpoint.server_info()
    del endpoint
    until(lambda: not [t for t in threading.enumerate() if t.name == "palmette-http"])


def test_the_interpreter_leaves_with_a_live_stream(served: Served) -> None:
    script = f"""
import palmette.compat.sglang as sgl
@sgl.function
def endless(s):
    s += "On" + sgl.gen("x", max_tokens=1900, ignore_eos=True)
import sys
endpoint = sgl.RuntimeEndpoint({served.url!r})
assert not [m for m in ("httpx2", "tokenizers", "jinja2", "numpy") if m in sys.modules], "making one is cheap"
state = endless.run(backend=endpoint, stream=True)
next(iter(state.text_iter("x")))
print([m for m in ("torch", "transformers") if m in sys.modules])
"""
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert (out.returncode, out.stdout.strip(), out.stderr) == (0, "[]", "")
    until(lambda: served.service.gate.num_inside == 0)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_the_model_cannot_hold_is_refused_as_here(endpoint: RuntimeEndpoint, runtime: Runtime) -> None:
    for backend in (endpoint, runtime):
        error = ask(backend, "long", "x" * 5000).error()
        assert isinstance(error, PromptTooLong)


def test_a_constraint_that_nobody_enforces_is_refused_as_here(endpoint: RuntimeEndpoint, runtime: Runtime) -> None:
    @pm.function
    def lookbehind(s: pm.State) -> None:
        s += "x" + pm.gen("x", regex="(?<=a)b", max_tokens=5)

    @pm.function
    def backwards(s: pm.State) -> None:
        s += "x" + pm.gen("x", json_schema={"type": "integer", "minimum": 3, "maximum": 1}, max_tokens=5)

    for program in (lookbehind, backwards):
        messages = []
        for backend in (endpoint, runtime):
            with pytest.raises(pm.UnsupportedConstraint) as caught:
                program.run(backend=backend)["x"]
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_embeddings_are_refused(endpoint: RuntimeEndpoint) -> None:
    heard = Heard()
    endpoint.submit(EmbedRequest("embed", (1, 2)), heard)
    assert isinstance(heard.wait(), EmbedEvent)
    assert isinstance(heard.error(), pm.UnsupportedFeature)


def test_two_live_requests_cannot_have_one_id(endpoint: RuntimeEndpoint) -> None:
    first = ask(endpoint, "twice", params=LONG)
    assert first.begun.wait(10)
    assert isinstance(ask(endpoint, "twice").error(), RequestError)
    endpoint.cancel("twice")
    assert isinstance(first.error(), pm.Cancelled)


def test_text_without_an_encoding_is_named(endpoint: RuntimeEndpoint) -> None:
    error = ask(endpoint, "surrogate", params=SamplingParams(stop=("\ud800",))).error()
    assert isinstance(error, pm.InvalidOption)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:30000", "ftp://host", "http://", "http://h:99999", "http://a b", "http://h?x=1", 7, None]
)
def test_a_bad_url_fails_at_once(url: Any) -> None:
    with pytest.raises(pm.InvalidOption, match="base_url"):
        RuntimeEndpoint(url)


@pytest.mark.parametrize(
    "options", [{"timeout": -1}, {"timeout": float("inf")}, {"priority": 1.5}, {"api_key": "ä\n"}, {"cache_salt": 3}]
)
def test_an_argument_that_cannot_be_right_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(pm.InvalidOption, match=next(iter(options))):
        RuntimeEndpoint("http://127.0.0.1:1", **options)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_a_server_that_is_not_there_is_named_at_first_use(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    with RuntimeEndpoint(url) as endpoint:
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
        with pytest.raises(pm.EngineDied, match=url) as caught:
            _ = endpoint.capabilities
        monkeypatch.undo()
        assert "palmette serve" in str(caught.value)
    with RuntimeEndpoint(url, timeout=0.3) as endpoint:
        assert isinstance(ask(endpoint, "nobody").error(), pm.EngineDied)
        timed = ask(endpoint, "nobody-in-time", timeout=0.1).error()
        assert isinstance(timed, pm.HoleTimeout)


def test_a_server_that_comes_a_little_later_is_waited_for(
    closed_port: int, unreliable: Callable[..., Unreliable]
) -> None:
    with RuntimeEndpoint(f"http://127.0.0.1:{closed_port}", timeout=20) as endpoint:
        heard = ask(endpoint, "early")
        assert not heard.over.wait(0.3)
        unreliable([], closed_port)
        assert heard.error() is None


def test_something_else_behind_the_url_is_told_apart(served: Served) -> None:
    with RuntimeEndpoint(f"{served.url}/v1") as endpoint, pytest.raises(RequestError, match="/v1/model_info"):
        _ = endpoint.capabilities


def test_keys(runtime: Runtime) -> None:
    config = ServerConfig(api_keys=(KEY,), admin_key=ADMIN)
    with serving(tiny_model(), config) as served:
        for wrong in (None, "not-the-key"):
            with RuntimeEndpoint(served.url, wrong) as endpoint:
                with pytest.raises(pm.InvalidOption, match="api_key"):
                    _ = endpoint.capabilities
                assert isinstance(ask(endpoint, "who").error(), pm.InvalidOption)
        with RuntimeEndpoint(served.url, KEY) as endpoint:
            assert not differences(outcome(plain, endpoint, "k"), outcome(plain, runtime, fresh()))
            with pytest.raises(pm.InvalidOption, match="api_key"):
                endpoint.flush_cache()
        with RuntimeEndpoint(served.url, ADMIN) as endpoint:
            endpoint.flush_cache()


def test_a_full_server_is_asked_again() -> None:
    limits = ServerLimits(max_in_engine=1, max_waiting=1)
    with serving(tiny_model(), ServerConfig(limits=limits)) as served:
        with RuntimeEndpoint(served.url, timeout=30) as endpoint:
            heard = [ask(endpoint, f"full-{n}", params=SamplingParams(max_new_tokens=40)) for n in range(6)]
            assert [each.error() for each in heard] == [None] * 6
            assert served.service.gate.num_refused > 0
        with RuntimeEndpoint(served.url, timeout=0) as endpoint:
            long = [ask(endpoint, f"long-{n}", params=LONG) for n in range(2)]
            until(lambda: served.service.gate.num_waiting == 1)
            error = ask(endpoint, "refused").error()
            assert isinstance(error, Overloaded)
            assert error.retry_after >= 1
            for n in range(2):
                endpoint.cancel(f"long-{n}")
            assert [type(each.error()) for each in long] == [pm.Cancelled] * 2


def test_a_server_without_an_engine_is_waited_for(served: Served) -> None:
    with RuntimeEndpoint(served.url, timeout=20) as endpoint:
        assert endpoint.capabilities.tokens
        served.service.is_draining = True
        try:
            heard = ask(endpoint, "draining")
            assert not heard.over.wait(0.2)
        finally:
            served.service.is_draining = False
        assert heard.error() is None


def test_an_engine_that_dies_mid_stream_ends_the_hole_with_it() -> None:
    with serving(tiny_model()) as served, RuntimeEndpoint(served.url) as endpoint:
        heard = ask(endpoint, "dies", params=LONG)
        assert heard.begun.wait(10)
        served.loop.call_soon_threadsafe(served.service.detach, "the engine died")
        event = heard.wait()
        assert isinstance(event, TokenEvent)
        assert event.finish is not None
        assert event.finish.reason is FinishReason.FAILED
        assert isinstance(event.finish.error, pm.EngineDied)


SERVER = """
import sys
from palmette.runtime.models.load import load_model
from palmette.runtime.models.tiny import tiny_model
from tests.runtime.server.serving import serving
with serving(tiny_model()) as served:
    print(served.url, flush=True)
    sys.stdin.read()
"""


def test_a_server_that_is_killed_mid_stream_ends_the_hole_with_it() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        with RuntimeEndpoint(process.stdout.readline().strip(), timeout=0.5) as endpoint:
            heard = [ask(endpoint, f"killed-{n}", params=LONG) for n in range(5)]
            assert all(each.begun.wait(20) for each in heard)
            process.kill()
            for each in heard:
                assert isinstance(each.error(), pm.EngineDied)
                ends = [event.finish for event in each.events if isinstance(event, TokenEvent)]
                assert [end is not None for end in ends] == [False] * (len(ends) - 1) + [True]
            assert isinstance(ask(endpoint, "behind").error(), pm.EngineDied)
            assert endpoint.capabilities.tokens, "what is known stays known"
    finally:
        process.kill()
        process.communicate()


# -- a server that misbehaves ------------------------------------------------------------------------------------------


class Unreliable:
    """A proxy in front of a server that cuts connections: answers to /generate after so many bytes."""

    def __init__(self, target: str, cuts: list[int | None], port: int = 0) -> None:
        self._target = int(target.rsplit(":", 1)[1])
        self._port = port
        self.cuts, self.generates = cuts, 0
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, ready: Callable[[], None], stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready()
        await stop.wait()
        server.close()
        for writer in self._writers:
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
        limit: int | None = None
        sent = 0

        async def forward() -> None:
            nonlocal limit, sent
            while data := await reader.read(1 << 16):
                if b"POST /generate" in data:
                    limit = self.cuts[self.generates] if self.generates < len(self.cuts) else None
                    self.generates += 1
                    sent = 0
                there.write(data)
            there.close()

        async def back() -> None:
            nonlocal sent
            while data := await there_reader.read(1 << 16):
                if limit is not None and sent + len(data) >= limit:
                    writer.write(data[: limit - sent])
                    await writer.drain()
                    break
                sent += len(data)
                writer.write(data)
            writer.close()
            there.close()

        jobs = [asyncio.ensure_future(forward()), asyncio.ensure_future(back())]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.01)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            writer.close()
            there.close()


@pytest.fixture
def unreliable(served: Served) -> Iterator[Callable[..., Unreliable]]:
    """Make a proxy that cuts the first answers to /generate after so many bytes each."""
    stops: list[tuple[asyncio.Event, Any]] = []

    def make(cuts: list[int | None], port: int = 0) -> Unreliable:
        proxy, ready, stop = Unreliable(served.url, cuts, port), threading.Event(), asyncio.Event()
        stops.append((stop, asyncio.run_coroutine_threadsafe(proxy.serve(ready.set, stop), served.loop)))
        assert ready.wait(10)
        return proxy

    yield make
    for stop, running in stops:
        served.loop.call_soon_threadsafe(stop.set)
        running.result(10)


def test_a_connection_that_breaks_before_an_event_is_tried_again(
    unreliable: Callable[..., Unreliable], runtime: Runtime
) -> None:
    proxy = unreliable([0, 40])  # bytes: nothing at all, and a part of the headers
    with RuntimeEndpoint(proxy.url) as endpoint:
        namespace = fresh()
        params = SamplingParams(max_new_tokens=20)
        ours, theirs = (ask(b, "again", params=params, seed=11, namespace=namespace) for b in (runtime, endpoint))
        events = [heard.wait() for heard in (ours, theirs)]
        assert proxy.generates == 3
    finishes = [event.finish for event in events if isinstance(event, TokenEvent)]
    assert len(finishes) == 2
    assert finishes[0] is not None
    assert finishes[1] is not None
    assert finishes[0].token_ids == finishes[1].token_ids


def test_a_stream_that_breaks_behind_an_event_is_not_tried_again(
    unreliable: Callable[..., Unreliable], served: Served
) -> None:
    proxy = unreliable([4000])
    with RuntimeEndpoint(proxy.url) as endpoint:
        heard = ask(endpoint, "broken", params=LONG)
        error = heard.error()
        assert heard.begun.is_set()
        assert isinstance(error, pm.EngineDied)
        assert proxy.generates == 1
    until(lambda: served.service.gate.num_inside == 0)


def test_another_model_behind_the_same_url_is_noticed(unreliable: Callable[..., Unreliable], served: Served) -> None:
    proxy = unreliable([0])
    with RuntimeEndpoint(proxy.url) as endpoint:
        known = endpoint.capabilities
        assert isinstance(known, Capabilities)
        card = served.service.card
        assert card is not None
        served.service.card = type(card)(**{
            **{name: getattr(card, name) for name in card.__slots__}, "digest": "another"
        })  # fmt: skip
        try:
            assert isinstance(ask(endpoint, "other").error(), pm.ModelError)
        finally:
            served.service.card = card


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, b'{"error": {"message": "top_p=3", "code": "invalid_value"}}', pm.InvalidOption, "top_p=3"),
        (400, b'{"error": {"message": "too long", "code": "context_length_exceeded"}}', PromptTooLong, "too long"),
        (400, b'{"error": {"message": "no", "code": "unsupported_constraint"}}', pm.UnsupportedConstraint, "no"),
        (400, b'{"detail": "old"}', RequestError, "old"),
        (422, b'{"error": {"message": "failed", "code": "request_failed"}}', RequestError, "failed"),
        (500, b"<html>oops</html>", RequestError, "oops"),
        (504, b"", pm.HoleTimeout, "no reason"),
    ],
)  # fmt: skip
def test_a_refusal_is_an_error_of_its_class_with_the_servers_words(
    status: int, body: bytes, kind: type[Exception], words: str
) -> None:
    error = refusal(status, body, None, "http://there")
    assert isinstance(error, kind)
    assert words in str(error)


def test_busy_is_tried_again_when_the_server_says() -> None:
    error = refusal(429, b'{"error": {"message": "busy", "code": "rate_limit_exceeded"}}', "7", "http://there")
    assert isinstance(error, TryAgain)
    assert isinstance(error.error, Overloaded)
    assert (error.after, error.error.retry_after) == (7.0, 7)
    assert isinstance(refusal(503, b"", None, "http://there"), TryAgain)


def test_pauses_grow_are_not_all_alike_and_heed_the_server() -> None:
    drawn = [[pause(attempt, None) for _ in range(50)] for attempt in range(8)]
    assert max(drawn[0]) <= min(drawn[2])
    assert all(0 < wait <= 5 for waits in drawn for wait in waits)
    assert len(set(drawn[3])) > 1
    assert all(7 <= pause(attempt, 7.0) < 9 for attempt in range(8))


def test_an_error_in_a_stream_keeps_its_class_and_fields() -> None:
    error = named_error("PromptTooLong", "the prompt has 9", {"prompt_len": 9, "limit": 5})
    assert isinstance(error, PromptTooLong)
    assert (str(error), error.prompt_len, error.limit) == ("the prompt has 9", 9, 5)
    assert type(named_error("NumericalError", "x")) is NumericalError
    assert type(named_error("SystemExit", "x")) is RequestError


# -- a real tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_embedded_models_own_tokenizer_and_template_come_over_the_wire() -> None:
    loaded = load_model("smollm2", dtype="auto", cpu_kernels="auto")
    with serving(loaded) as served, RuntimeEndpoint(served.url) as endpoint, Runtime(loaded) as runtime:
        assert endpoint.capabilities == runtime.capabilities
        text = "Zwölf Boxkämpfer <|im_end|> jagen\n\tViktor: 12 345 🙂"
        assert endpoint.get_tokenizer().encode(text) == loaded.tokenizer.encode(text)
        for program in (talking, choosing):
            assert not differences(outcome(program, endpoint, "x"), outcome(program, runtime, "x"))


# -- SGLang's server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["whole", "incremental"])
def sglang(served: Served, request: pytest.FixtureRequest) -> Iterator[SGLangServer]:
    is_incremental = request.param == "incremental"
    with sglang_serving(served, incremental=is_incremental, knows_old_paths=not is_incremental) as dialect:
        yield dialect


# Constraints that its API has not, and a temperature: its seeds have one bit less.
NOT_SGLANG = ("stopped", "conforming", "tools", "healed", "retried")
SUBSET = [program for program in PROGRAMS if name_of(program) not in NOT_SGLANG]


@pytest.mark.parametrize("program", SUBSET, ids=name_of)
def test_a_program_of_the_subset_runs_on_sglangs_server(
    program: pm.Program, sglang: SGLangServer, runtime: Runtime
) -> None:
    with RuntimeEndpoint(sglang.url, tokenizer="tiny") as endpoint:
        namespace = fresh()
        theirs = outcome(program, endpoint, namespace, temperature=0)
        ours = outcome(program, runtime, namespace, temperature=0)
    for name in ("text", "token_ids", "values"):
        assert not differences(theirs[name], ours[name]), name
    for name, meta in theirs["meta"].items():
        for key in meta.keys() & {"finish_reason", "output_token_logprobs", "output_top_logprobs"}:
            assert not differences(meta[key], ours["meta"][name][key])
    assert all("palmette" not in body and "program" not in body for body in sglang.bodies)


def test_stop_strings_and_constraints_of_sglangs_server(sglang: SGLangServer, runtime: Runtime) -> None:
    @pm.function
    def subset(s: pm.State) -> None:
        s += "Letters:" + pm.gen("a", max_tokens=60, stop=["e", "\x10\x11", "1"], temperature=0)
        s += "|" + pm.gen("b", regex="[a-f]{3,9}", max_tokens=20)
        s += "|" + pm.gen("sum", grammar='root ::= [0-9] ("+" [0-9])*', max_tokens=9)
        s += "|" + pm.gen("n", json_schema={"type": "object", "properties": {"k": {"type": "boolean"}}}, max_tokens=40)

    with RuntimeEndpoint(sglang.url, tokenizer="tiny") as endpoint:
        namespace = fresh()
        theirs = outcome(subset, endpoint, namespace, temperature=0)
        ours = outcome(subset, runtime, namespace, temperature=0)
    for name in ("text", "token_ids", "values"):
        assert not differences(theirs[name], ours[name]), name
    sent = [body["sampling_params"] for body in sglang.bodies[-4:]]
    assert [bool(params.keys() & {"regex", "ebnf", "json_schema"}) for params in sent] == [False, True, True, True]


def test_a_stop_token_of_sglangs_server_is_no_part_of_the_state(sglang: SGLangServer, runtime: Runtime) -> None:
    with RuntimeEndpoint(sglang.url, tokenizer="tiny") as endpoint:
        greedy = ask(runtime, "all", params=SamplingParams(max_new_tokens=12, temperature=0)).wait()
        assert isinstance(greedy, TokenEvent)
        assert greedy.finish is not None
        end = greedy.finish.token_ids[5]
        for name, stops in (("asked", (end,)), ("unasked", ())):
            finishes = []
            for backend in (endpoint, runtime):
                params = SamplingParams(max_new_tokens=12, temperature=0, stop_token_ids=stops)
                event = ask(backend, name, params=params).wait()
                assert isinstance(event, TokenEvent)
                assert event.finish is not None
                end_of = event.finish
                counts = (end_of.usage.completion_tokens, end_of.usage.wasted_tokens)
                finishes.append((end_of.reason, end_of.token_ids, end_of.tail, end_of.matched, counts))
            assert finishes[0] == finishes[1]
            assert (end in finishes[0][1]) == (not stops)


def test_what_sglangs_api_cannot_say_is_refused_before_it_is_paid_for(sglang: SGLangServer) -> None:
    @pm.function
    def patterns(s: pm.State) -> None:
        s += "x" + pm.gen("x", stop_regex="a+", max_tokens=5)

    @pm.function
    def healing(s: pm.State) -> None:
        s += "http:" + pm.gen("x", token_healing=True, max_tokens=5)

    with RuntimeEndpoint(sglang.url, tokenizer="tiny") as endpoint:
        assert endpoint.capabilities.constraints == {"regex", "json_schema", "grammar"}
        assert endpoint.capabilities.context_len == 2048
        before = len(sglang.bodies)
        for program in (patterns, healing):
            with pytest.raises(pm.UnsupportedConstraint):
                program.run(backend=endpoint)["x"]
        assert len(sglang.bodies) == before


def test_an_error_of_sglangs_server_comes_with_its_words(sglang: SGLangServer) -> None:
    with RuntimeEndpoint(sglang.url, tokenizer="tiny") as endpoint:
        error = ask(endpoint, "no", params=SamplingParams(stop=("fail",))).error()
        assert isinstance(error, RequestError)
        assert "the scheduler says no" in str(error)


def test_sglangs_server_needs_a_tokenizer_here(sglang: SGLangServer) -> None:
    with RuntimeEndpoint(sglang.url) as endpoint, pytest.raises(pm.InvalidOption, match="tokenizer=") as caught:
        _ = endpoint.capabilities
    assert "org/some-model" in str(caught.value)


def test_no_hints_go_to_sglangs_server(sglang: SGLangServer) -> None:
    with RuntimeEndpoint(sglang.url, tokenizer="tiny") as endpoint:
        heard = ask(endpoint, "hinted", hints=Hints(program="p", siblings=3))
        assert heard.error() is None
        assert "program" not in sglang.bodies[-1]
        assert typed.run(backend=endpoint, temperature=0)["n"] in range(1, 13)
