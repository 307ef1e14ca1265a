"""The server says whether it serves."""

from __future__ import annotations

from tests.runtime.server.serving import Served


def test_a_server_with_an_engine_is_healthy_and_generates(served: Served) -> None:
    with served.client() as client:
        assert client.get("/live").status_code == 200
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/health_generate").json() == {"status": "ok"}


def test_an_unknown_path_is_answered_in_openais_form(served: Served) -> None:
    with served.client() as client:
        answer = client.get("/v1/nothing")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_another_sites_host_header_is_refused(served: Served) -> None:
    with served.client() as client:
        assert client.get("/live", headers={"host": "evil.example"}).status_code == 421
