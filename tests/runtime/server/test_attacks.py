"""What somebody who means harm sends: numbers at the ends of their ranges, millions of errors, bodies that never end,
answers that nobody reads; and a server that is told to stop at the worst moment.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from pydantic import BaseModel, ValidationError

from palmette.errors import HoleTimeout
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.clients import Client
from palmette.runtime.server.config import ServerConfig, ServerLimits
from palmette.runtime.server.native_schema import GenerateBody, ScoreBody
from palmette.runtime.server.openai.responses_schema import ResponsesBody
from palmette.runtime.server.openai.schema import ChatBody, CompletionBody, DetokenizeBody
from palmette.runtime.server.service import Service
from palmette.specs import Regex, Spec
from palmette.types import GenerateRequest, SamplingParams
from tests.runtime.server.processes import ROOT, SECONDS, read_events, spawned, wait_for
from tests.runtime.server.serving import Served, serving

HOST = b"host: 127.0.0.1\r\n"
LONG = {"prompt": "abc", "max_tokens": 1900, "ignore_eos": True, "n": 8, "stream": True}


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    """A server that waits for nobody."""
    with serving(tiny_model(), ServerConfig(limits=ServerLimits(read_timeout=0.3, write_timeout=0.3))) as running:
        yield running


def connected(served: Served, data: bytes, *, buffer: int | None = None) -> socket.socket:
    url = urlsplit(served.url)
    assert url.port is not None
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(SECONDS)
    sock.connect(("127.0.0.1", url.port))
    sock.sendall(data)
    return sock


def rest_of(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except ConnectionError:
        pass
    return data


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 9e-7, 1e-6])
def test_no_temperature_is_too_small(served: Served, temperature: float) -> None:
    """Logits divided by such a number are none, and the engine died of them."""
    asked = {"temperature": temperature, "top_p": 0.9, "repetition_penalty": 0.01, "logit_bias": {"97": -100.0}}
    with served.client() as client:
        whole = client.post("/v1/completions", json={"prompt": "abcab", "max_tokens": 8, **asked})
        native = client.post("/generate", json={"text": "abcab", "sampling_params": {"max_new_tokens": 8, **asked}})
    assert whole.status_code == 200, whole.text
    assert native.status_code == 200, native.text


def test_a_penalty_that_divides_by_nothing_is_refused(served: Served) -> None:
    with served.client() as client:
        whole = client.post("/v1/completions", json={"prompt": "aba", "repetition_penalty": 5e-324})
        native = client.post("/generate", json={"text": "aba", "sampling_params": {"repetition_penalty": 1e-300}})
    assert (whole.status_code, whole.json()["error"]["param"]) == (400, "repetition_penalty")
    assert (native.status_code, native.json()["error"]["param"]) == (400, "sampling_params.repetition_penalty")


# -- sizes -------------------------------------------------------------------------------------------------------------

_MANY = 5000
_BAD_BIASES = {str(i): "" for i in range(_MANY)}
_MESSAGES = [{"role": "user", "content": [1] * 1000}] * 10


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (GenerateBody, {"input_ids": [-1] * _MANY}),
        (GenerateBody, {"input_ids": [[-1] * 100] * 100}),
        (GenerateBody, {"text": [1] * 1000}),
        (GenerateBody, {"text": "a", "sampling_params": {"logit_bias": _BAD_BIASES}}),
        (ScoreBody, {"input_ids": [1], "trie": {"token_ids": [1], "parents": [-2] * _MANY}}),
        (CompletionBody, {"prompt": "a", "logit_bias": _BAD_BIASES}),
        (CompletionBody, {"prompt": "a", "stop_token_ids": [-1] * 1000}),
        (ChatBody, {"messages": _MESSAGES}),
        (ResponsesBody, {"input": _MESSAGES}),
        (DetokenizeBody, {"tokens": [-1] * _MANY}),
    ],
)
def test_of_many_errors_one_is_made(kind: type[BaseModel], data: dict[str, Any]) -> None:
    """An error is a thousand bytes and more: a body of a few megabytes made gigabytes of them, on the event loop."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(data)
    assert caught.value.error_count() < 10


def test_detokenizing_is_bounded(served: Served) -> None:
    with served.client() as client:
        answer = client.post("/detokenize", json={"tokens": [65] * ((1 << 18) + 1)})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tokens"


def test_trailers_are_bounded_as_headers_are(served: Served) -> None:
    begin = b"POST /nothing HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    trailers = b"x: " + b"y" * (1 << 16) + b"\r\n"
    with connected(served, begin) as sock, pytest.raises(ConnectionError):
        sock.sendall(trailers * 500)  # 32 MB, of which nobody keeps more than a fraction of one


# -- slow clients ------------------------------------------------------------------------------------------------------


def test_headers_that_do_not_come_are_not_waited_for(impatient: Served) -> None:
    for begun in (b"", b"POST /v1/completions HTTP/1.1\r\nhost: 127"):
        with connected(impatient, begun) as sock:
            assert rest_of(sock) == b""


def test_a_body_that_does_not_come_is_not_waited_for(impatient: Served) -> None:
    begun = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"content-length: 50\r\n\r\n{"
    with connected(impatient, begun) as sock:
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    wait_for(lambda: impatient.service.num_working == 0, "its place to be free")


def test_a_whole_answer_that_nobody_reads_holds_no_place(impatient: Served) -> None:
    body = b'{"prompt": "%s"}' % (b"a" * 4_000_000)  # its tokens are three times as long
    head = b"POST /tokenize HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % len(body)
    with connected(impatient, head + body, buffer=4096) as sock:
        begun = sock.recv(64)
        assert begun.startswith(b"HTTP/1.1 200 ")
        wait_for(lambda: impatient.service.num_working == 0, "its place to be free")
        assert len(rest_of(sock)) < 12_000_000
    with impatient.client() as client:
        assert client.post("/tokenize", content=body).json()["count"] == 4_000_000


# -- other sites -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing(served: Served, headers: dict[str, str]) -> None:
    """A browser sends a plain POST anywhere without asking first."""
    with served.client(headers={**headers, "content-type": "text/plain"}) as client:
        assert client.post("/abort_request", content=b'{"abort_all": true}').status_code == 403
        assert client.get("/flush_cache").status_code == 403


@pytest.mark.parametrize("headers", [{"origin": "http://localhost:3000"}, {"origin": "tauri://app"}, {}])
def test_a_page_of_this_machine_is_served(served: Served, headers: dict[str, str]) -> None:
    with served.client(headers=headers) as client:
        assert client.post("/tokenize", json={"prompt": "a"}).status_code == 200


# -- constraints -------------------------------------------------------------------------------------------------------


class _Slow:
    """Trials that end when they are told to, in the order in which they came."""

    def __init__(self) -> None:
        self.asked: list[Spec] = []
        self.done = asyncio.Event()

    async def check(self, spec: Spec) -> tuple[str, ...]:
        self.asked.append(spec)
        await self.done.wait()
        return ()

    async def check_pattern(self, text: str) -> None:
        await self.done.wait()


def _constrained(service: Service, pattern: str, timeout: float | None = None) -> GenerateRequest:
    return GenerateRequest(
        service.new_id(), (1,), SamplingParams(max_new_tokens=1), constraint=Regex(pattern), timeout=timeout
    )


def _service(constraints: _Slow, **options: Any) -> Service:
    tokenizer = tiny_model().tokenizer
    return Service(ServerConfig(**options), tokenizer, tokenizer.chat_template, constraints, time.monotonic)


def test_the_time_of_a_request_holds_for_its_constraint_too() -> None:
    async def main() -> None:
        service = _service(_Slow())
        with pytest.raises(HoleTimeout):
            await service.collect(Client("a"), _constrained(service, "a", timeout=0.05))

    asyncio.run(main())


def test_one_client_does_not_fill_the_line_of_trials() -> None:
    async def main() -> None:
        slow = _Slow()
        service = _service(slow, api_keys=("first-key", "other-key"))
        work = [service.collect(Client("a"), _constrained(service, f"a{i}")) for i in range(20)]
        tasks = [asyncio.ensure_future(each) for each in work]
        await asyncio.sleep(0.01)
        tasks.append(asyncio.ensure_future(service.collect(Client("b"), _constrained(service, "b"))))
        await asyncio.sleep(0.01)
        assert slow.asked == [Regex("a0"), Regex("a1"), Regex("b")]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


# -- told to stop ------------------------------------------------------------------------------------------------------


def test_a_server_that_is_told_to_stop_while_it_starts_stops() -> None:
    command = [sys.executable, "-m", "palmette", "serve", "--port", "0", "--model", "tiny"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        wait_for(lambda: len(psutil.Process(process.pid).children()) == 2, "front and engine to be begun")
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0  # not only when the time for running requests is over
    finally:
        process.kill()
        process.wait(10)


def test_an_engine_that_dies_while_the_server_drains_is_told_of() -> None:
    with spawned("--model", "tiny", "-o", "drain_timeout=60") as server, server.client() as client:
        engine, front = server.child("engine_process"), server.child("front_process")
        with client.stream("POST", "/v1/completions", json=LONG) as response:
            events = read_events(response)
            next(events)
            for child in (engine, front):
                child.terminate()  # as a service manager does that signals every process of a service
            assert list(events)[-1] == "[DONE]"
        with client.stream("POST", "/v1/completions", json=LONG) as response:
            events = read_events(response)
            next(events)
            engine.suspend()
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not server.is_ready(), "a server that drains")
            engine.kill()
            told = list(events)
        assert "error" in told[-1]
        assert server.process.wait(25) == 0


def test_what_runs_when_the_time_to_drain_is_over_is_told_so() -> None:
    with spawned("--model", "tiny", "-o", "drain_timeout=0.3") as server, server.client() as client:
        engine = server.child("engine_process")
        with client.stream("POST", "/v1/completions", json=LONG) as response:
            events = read_events(response)
            next(events)
            engine.suspend()
            server.process.send_signal(signal.SIGTERM)
            told = list(events)
        assert "error" in told[-1]
        assert server.process.wait(25) == 0
