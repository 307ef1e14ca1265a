"""What is promised when processes die, hang or are told to stop (the crash matrix), with the real ones."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.runtime.server.processes import SECONDS, Spawned, read_events, spawned, wait_for

LONG: dict[str, Any] = {"prompt": "once upon a time", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Spawned]:
    with spawned("--model", "tiny") as running:
        yield running


def stream(client: httpx2.Client, after: int, act: Any) -> list[Any]:
    """The events of a long completion; `act` is called behind the first `after` of them."""
    events: list[Any] = []
    with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        for event in read_events(response):
            events.append(event)
            if len(events) == after:
                act()
    return events


def posted(body: dict[str, Any]) -> bytes:
    """A completion's request as it goes over a connection."""
    data = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n%s" % (len(data), data)


def check_broken(events: list[Any]) -> None:
    """A stream that failed says so, once, at its end; it never says stop and is not done."""
    assert "error" in events[-1], events[-1]
    assert "[DONE]" not in events
    reasons = [choice["finish_reason"] for event in events[:-1] for choice in event.get("choices", [])]
    assert set(reasons) == {None}


def test_kill_9_of_the_engine_breaks_no_promise(server: Spawned, full: bool) -> None:
    """Streams get an error event; who was told nothing yet gets an answer; the server is ready again in 10 s."""
    with server.client() as client:
        expected = client.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
        for _ in range(200 if full else 2):
            server.wait_ready()
            engine = server.child("engine_process")
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                whole = [pool.submit(client.post, "/v1/completions", json=LONG) for _ in range(2)]
                events = stream(client, 3, engine.kill)
                died = time.monotonic()
                check_broken(events)
                server.wait_ready(10.0 if full else SECONDS)
                assert time.monotonic() - died < SECONDS
                for answer in (each.result() for each in whole):
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["choices"][0]["text"] == expected
            server.wait_idle()


def test_a_request_in_flight_at_two_crashes_is_refused(server: Spawned) -> None:
    """It is in flight once a stream that was asked for behind it has begun, and again as soon as there is an engine."""
    server.wait_ready()
    restarts = server.stats()["engine_restarts"]
    with server.client() as client, server.connected() as connection:
        connection.sendall(posted(LONG))
        events = stream(client, 3, server.child("engine_process").kill)
        check_broken(events)
        wait_for(lambda: server.stats()["engine_restarts"] > restarts and server.is_ready(), "the next engine")
        server.child("engine_process").kill()
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 422
        assert "twice" in json.loads(answer.read())["error"]["message"]
    server.wait_ready()
    server.wait_idle()


def test_requests_that_come_while_there_is_no_engine_wait_for_the_next_one(server: Spawned) -> None:
    server.wait_ready()
    server.child("engine_process").kill()
    with server.client() as client:
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).status_code == 200


def test_kill_9_of_the_front_brings_another_on_the_same_port(server: Spawned) -> None:
    server.wait_ready()
    with server.client() as client, contextlib.suppress(httpx2.HTTPError):
        stream(client, 2, server.child("front_process").kill)
    server.wait_ready()
    with server.client() as client:
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).status_code == 200
    server.wait_idle()


def test_clients_that_disconnect_free_their_tokens(server: Spawned) -> None:
    """Streaming or not, before the first token or behind it."""
    server.wait_ready()
    before = server.stats()["prompt_tokens"]
    for number in range(60):
        with server.connected() as connection:
            connection.sendall(posted({**LONG, "prompt": "never read", "stream": bool(number % 2)}))
            if number % 3:
                time.sleep(0.01 * (number % 3))
    wait_for(lambda: server.stats()["prompt_tokens"] > before, "numbers with these requests in them")
    server.wait_idle()


def test_a_reader_that_does_not_read_is_hung_up_on() -> None:
    """What waits for it is bounded, its work ends, and its stream is cut off: no answer has an end like this one's."""
    asked: dict[str, Any] = {"prompt": "slow", "max_tokens": 1900, "ignore_eos": True, "stream": True, "logprobs": 5}
    limits = ("-o", "write_timeout=2", "-o", "max_unread=100000")  # of some 700,000 that all of it counts as
    with spawned("--model", "tiny", *limits) as server, server.connected(is_narrow=True) as connection:
        connection.sendall(posted(asked))
        front = server.child("front_process")

        def is_gone() -> bool:
            return not [c for c in front.net_connections() if c.status == psutil.CONN_ESTABLISHED and c.raddr]

        wait_for(lambda: server.metric("request_failure_total"), "a request that failed")  # so it was let in
        wait_for(is_gone, "a connection that was dropped")
        wait_for(lambda: server.stats()["sampled_tokens"], "the engine's numbers")
        assert server.wait_idle()["sampled_tokens"] < asked["max_tokens"]
        assert sum(server.metric("request_failure_total").values()) == 1
        assert not server.metric("request_success_total")
        told = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert told.startswith(b"HTTP/1.1 200")
        assert b"data: [DONE]" not in told
        assert not told.endswith(b"0\r\n\r\n")


def test_an_engine_that_hangs_is_reported_and_replaced() -> None:
    with spawned("--model", "tiny", "-o", "stall_unready=1.5", "-o", "stall_kill=4") as server:
        engine = server.child("engine_process")
        engine.send_signal(signal.SIGSTOP)
        wait_for(lambda: not server.is_ready(), "503")
        with server.client() as client:
            answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
        server.wait_ready()
        assert server.child("engine_process").pid != engine.pid


def test_an_engine_that_beats_again_is_ready_again_and_lost_nothing() -> None:
    with spawned("--model", "tiny", "-o", "stall_unready=1.5") as server, server.client() as client:
        engine = server.child("engine_process")

        def stall() -> None:
            engine.send_signal(signal.SIGSTOP)
            wait_for(lambda: not server.is_ready(), "503")
            engine.send_signal(signal.SIGCONT)

        assert stream(client, 3, stall)[-1] == "[DONE]"
        server.wait_ready()
        assert server.child("engine_process").pid == engine.pid


def test_sigterm_drains_and_exits_0() -> None:
    with spawned("--model", "tiny") as server, server.client() as client:
        late: list[int] = []

        def stop() -> None:
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            late.append(httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a"}, timeout=10).status_code)

        events = stream(client, 3, lambda: threading.Thread(target=stop).start())
        assert events[-1] == "[DONE]"
        children = server.processes()[1:]
        assert server.process.wait(SECONDS) == 0
        assert late == [503]
        assert not [child for child in children if child.is_running()]


def test_nothing_is_left_when_the_supervisor_is_killed() -> None:
    with spawned("--model", "tiny") as server:
        children = server.processes()[1:]
        owned = str(server.process.pid)
        owners = Path(tempfile.gettempdir()).glob("palmette-*/owner")
        ours = [owner.parent for owner in owners if owner.read_text() == owned]
        assert len(ours) == 1
        assert ours[0].stat().st_mode & 0o777 == 0o700
        server.process.kill()
        _, alive = psutil.wait_procs(children, timeout=SECONDS)
        assert not alive
        assert not ours[0].exists()


def test_a_busy_server_listens_on_the_loopback_alone_and_connects_nowhere(server: Spawned) -> None:
    server.wait_ready()
    port = int(server.url.rsplit(":", 1)[1])
    seen: set[tuple[str, int, str]] = set()

    def look() -> None:
        for process in server.processes():
            for connection in process.net_connections("inet"):
                seen.add((connection.laddr.ip, connection.laddr.port, connection.status))
                if connection.status == psutil.CONN_LISTEN:
                    assert (connection.laddr.ip, connection.laddr.port) == ("127.0.0.1", port)
                elif connection.raddr:
                    assert connection.laddr.port == port, "an outbound connection"
                    assert connection.raddr.ip == "127.0.0.1"

    with server.client() as client:
        stream(client, 5, look)
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3, "regex": "[a-z]+"})
    look()
    assert {status for *_, status in seen} >= {psutil.CONN_LISTEN, psutil.CONN_ESTABLISHED}


def test_no_child_inherits_a_key() -> None:
    keys = {"PALMETTE_API_KEY": "a-secret-api-key", "PALMETTE_ADMIN_KEY": "a-secret-admin-key"}
    with spawned("--model", "tiny", env=keys) as server:
        children = server.processes()[1:]
        assert len(children) >= 3  # the front, the engine, and a constraint worker
        assert not [child for child in children if keys.keys() & child.environ().keys()]
        with server.client(headers={"authorization": "Bearer a-secret-api-key"}) as client:
            assert client.get("/v1/models").status_code == 200


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "palmette", "serve", *args]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)


def test_a_public_bind_without_a_key_is_refused() -> None:
    ended = run("--model", "tiny", "--host", "0.0.0.0")
    assert ended.returncode != 0
    assert "API key" in ended.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run("--model", "tiny", "--port", str(taken.getsockname()[1]))
    assert ended.returncode != 0
    assert "a free port" in ended.stderr


def test_a_model_that_is_missing_or_corrupt_is_named(tmp_path: Path) -> None:
    ended = run("--model", str(tmp_path / "none.gguf"), "--port", "0")
    assert ended.returncode != 0
    assert "none.gguf" in ended.stderr
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (1 << 60).to_bytes(8, "little") * 2)
    ended = run("--model", str(broken), "--port", "0")
    assert ended.returncode != 0
    assert "broken.gguf" in ended.stderr
    assert "byte" in ended.stderr
