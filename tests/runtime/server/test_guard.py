"""What a request passes before an endpoint sees it: keys, hosts, sizes; and what answers never say."""

from __future__ import annotations

import ast
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import palmette
from palmette.errors import InvalidOption
from palmette.runtime.config import runtime_config
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.clients import Client, Clients
from palmette.runtime.server.config import ServerConfig, ServerLimits
from tests.runtime.server.serving import Served, serving

ALICE, BOB, ADMIN = "alice-secret-key", "bobby-secret-key", "admin-secret-key"
ASK = {"prompt": "a prompt that is long enough to be cached", "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def keyed() -> Iterator[Served]:
    """A server with two tenants, an administrator, and small limits."""
    config = ServerConfig(
        runtime_config("tiny", {}),
        api_keys=(ALICE, BOB),
        admin_key=ADMIN,
        limits=ServerLimits(max_body=4096, max_header=4096, max_waiting=2, max_in_engine=1),
    )
    with serving(tiny_model(), config) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def cached(client: httpx2.Client, key: str, **more: Any) -> int:
    """Prompt tokens that a request of this key reads from the cache."""
    answer = client.post("/v1/completions", json={**ASK, **more}, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.mark.parametrize("headers", [{}, bearer("wrong-secret-key"), {"authorization": ALICE}, bearer(ALICE[:-1])])
@pytest.mark.parametrize("path", ["/v1/models", "/stats", "/metrics", "/get_model_info"])
def test_without_a_key_nothing_is_told(keyed: Served, path: str, headers: dict[str, str]) -> None:
    with keyed.client() as client:
        answer = client.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_only_whether_it_serves_is_told_to_everybody(keyed: Served) -> None:
    with keyed.client() as client:
        assert client.get("/health").json() == {"status": "ok"}


def test_tenants_share_no_prefix_nor_do_two_salts_of_one(keyed: Served) -> None:
    with keyed.client() as client:
        assert cached(client, ALICE) == 0
        assert cached(client, ALICE) > 30
        assert cached(client, BOB) == 0
        assert cached(client, ALICE, cache_salt="another") == 0
        assert cached(client, ALICE, cache_salt="another") > 30


def test_what_touches_everybody_needs_the_admin_key(keyed: Served) -> None:
    with keyed.client() as client:
        assert client.post("/flush_cache", headers=bearer(ALICE)).status_code == 403
        assert client.post("/flush_cache", headers=bearer(ADMIN)).status_code == 200


def test_every_key_is_compared_and_by_its_digest() -> None:
    clients = Clients(ServerConfig(api_keys=(ALICE, BOB), admin_key=BOB))
    alice, bob = clients.find(f"Bearer {ALICE}"), clients.find(f"bearer {BOB}")
    assert isinstance(alice, Client)
    assert isinstance(bob, Client)
    assert (alice.is_admin, bob.is_admin) == (False, True)
    assert alice.namespace != bob.namespace
    assert ALICE not in repr(vars(clients))
    tree = ast.parse((Path(palmette.__file__).parent / "runtime/server/clients.py").read_text())
    find = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "find")
    calls = [
        node.func.attr for node in ast.walk(find) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert "compare_digest" in calls
    assert not [node for node in ast.walk(find) if isinstance(node, ast.Break)]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_sites_name_is_not_answered_to(keyed: Served, host: str) -> None:
    with keyed.client() as client:
        assert client.get("/health", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:30000"])
def test_names_of_the_loopback_are_answered_to(keyed: Served, host: str) -> None:
    with keyed.client() as client:
        assert client.get("/health", headers={"host": host}).status_code == 200


def test_no_other_site_is_let_in_by_cors(keyed: Served) -> None:
    with keyed.client() as client:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answers = [
            client.get("/health", headers=asked),
            client.options("/v1/completions", headers=asked | bearer(ALICE)),
        ]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(keyed: Served) -> None:
    large = json.dumps({**ASK, "prompt": "x" * 5000}).encode()
    with keyed.client(headers=bearer(ALICE)) as client:
        assert client.post("/v1/completions", content=large).status_code == 413
        assert client.post("/v1/completions", content=iter([large])).status_code == 413


def test_headers_that_are_too_large_are_refused_also_while_they_come(keyed: Served) -> None:
    with keyed.client(headers=bearer(ALICE)) as client:
        assert client.get("/v1/models", headers={"x-large": "y" * 5000}).status_code == 431
    host, port = keyed.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
        got = b""
        try:
            for _ in range(400):
                connection.sendall(b"x: " + b"z" * 1000 + b"\r\n")
            got = connection.recv(100)
        except OSError:
            return  # it hung up, which is what it should do
        assert got == b"" or b" 431 " in got


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b'{"prompt": 1e999}', b"[" * 4000])
def test_a_body_that_is_none_is_a_bad_request(keyed: Served, raw: bytes) -> None:
    with keyed.client(headers=bearer(ALICE)) as client:
        answer = client.post("/v1/completions", content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_there_is_no_room_for_is_refused_with_a_time(keyed: Served) -> None:
    keyed.service.num_working += 3  # as many as there is room for
    try:
        with keyed.client(headers=bearer(ALICE)) as client:
            answer = client.post("/v1/completions", json=ASK)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert client.get("/health").status_code == 200
            assert client.get("/v1/models").status_code == 200  # the connection is still good
    finally:
        keyed.service.num_working -= 3


def test_an_error_of_ours_tells_its_class_and_the_log_no_prompt(
    keyed: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("/secret/path/of/a/file at 10.1.2.3")

    monkeypatch.setattr(type(keyed.service), "encode", broken)
    with caplog.at_level(logging.DEBUG), keyed.client(headers=bearer(ALICE)) as client:
        answer = client.post("/v1/completions", json={**ASK, "prompt": "a very private prompt"})
    assert answer.status_code == 500
    assert "OSError" in answer.text
    assert "/secret" not in answer.text
    assert "10.1.2.3" not in answer.text
    assert "private" not in caplog.text
    assert ALICE not in caplog.text


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"host": "192.168.1.5"}, "host"),
        ({"port": 70000}, "port"),
        ({"api_keys": ("short",)}, "api_key"),
        ({"api_keys": (ALICE, ALICE)}, "api_key"),
    ],
)
def test_a_setting_that_cannot_be_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        ServerConfig(**options)
    assert caught.value.field == field


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1, "10"])
def test_a_limit_is_a_positive_number(value: Any) -> None:
    with pytest.raises(InvalidOption):
        ServerLimits(request_timeout=value)


def test_nothing_in_the_server_opens_a_connection_or_a_tcp_socket_of_its_own() -> None:
    """An absence, not a filter: no client library, no tcp://, no address but the one that is bound."""
    folder = Path(palmette.__file__).parent / "runtime"
    for file in folder.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        }
        assert not names & {"httpx", "httpx2", "requests", "aiohttp", "urllib", "http"}, file
        assert "tcp://" not in text, file
