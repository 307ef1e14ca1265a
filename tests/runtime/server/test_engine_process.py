"""The engine's end of the wire: no answer is too large to be told of."""

from __future__ import annotations

from typing import Any

import pytest

from palmette.runtime.server import wire
from palmette.runtime.server.engine_process import EngineServer
from palmette.types import Finish, FinishReason, TokenEvent, TokenLogprob

SECRET = b"s" * 32


class Outbox:
    def __init__(self) -> None:
        self.sent: list[wire.Step] = []

    def send_multipart(self, frames: list[bytes], copy: bool) -> None:
        self.sent.append(wire.read_for_front(SECRET, frames))


class Thread:
    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


def large(request_id: str, rows: int, finish: Finish | None = None) -> TokenEvent:
    return TokenEvent(request_id, "x", (1,) * rows, tuple(TokenLogprob(1, -0.5) for _ in range(rows)), finish)


def test_a_step_that_is_too_large_goes_in_parts_and_a_part_that_is_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE", 4000)
    server: Any = object.__new__(EngineServer)  # without its sockets
    server._secret, server._outbox, server._thread, server._live = SECRET, Outbox(), Thread(), {"a", "b", "c"}
    server._deliver([large("a", 20), large("b", 500), large("c", 20, Finish(FinishReason.STOP))])
    events = [wire.event_of(event) for step in server._outbox.sent for event in step.events]
    assert [event.request_id for event in events] == ["a", "b", "c"]
    failed = events[1]
    assert isinstance(failed, TokenEvent)
    assert failed.finish is not None
    assert failed.finish.reason is FinishReason.FAILED
    assert "fewer logprobs" in str(failed.finish.error)
    assert server._thread.cancelled == ["b"]
