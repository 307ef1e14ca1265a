"""What the tests of these endpoints ask with: a body posted, a stream read as its events."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import httpx2

from tests.runtime.server.serving import Served


class Told(NamedTuple):
    """A server-sent event."""

    event: str  # "" where it has no name
    data: Any  # JSON, or the text [DONE]


def connected(served: Served) -> httpx2.Client:
    """A client. Without the certificates, which take 25 ms to load and are of no use on the loopback."""
    return served.client(verify=False)


def ask(served: Served, path: str, **body: Any) -> Any:
    """The JSON that answers a body; the request must succeed."""
    with connected(served) as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(served: Served, path: str, *, status: int = 400, **body: Any) -> Any:
    """The error that answers a body."""
    with connected(served) as client:
        answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def streamed(served: Served, path: str, **body: Any) -> list[Told]:
    """All events of a streamed answer, as they were sent."""
    with connected(served) as client:
        answer = client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [_told(block) for block in answer.text.split("\n\n") if block]


def chunks(served: Served, path: str, **body: Any) -> list[Any]:
    """The chunks of a stream that came to its own end."""
    told = streamed(served, path, **body)
    assert told[-1].data == "[DONE]", told[-1]
    return [each.data for each in told[:-1]]


def _told(block: str) -> Told:
    name, data = "", ""
    for line in block.splitlines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        else:
            assert field == "data", line
            data = value
    return Told(name, data if data == "[DONE]" else json.loads(data))
