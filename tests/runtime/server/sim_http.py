"""The simulation's way in over HTTP: the real application as ASGI calls it, without a socket.

What a client sees is read back into its visit: statuses become errors again, server-sent events become events. A client
that leaves is a disconnect, a slow one a `send` that takes its time, and no failed stream ever says [DONE].
"""

from __future__ import annotations

import asyncio
import json
from contextvars import ContextVar
from typing import Any

import msgspec
from starlette.types import Message, Scope

from palmette.errors import (
    EngineDied,
    HoleTimeout,
    NumericalError,
    Overloaded,
    PalmetteError,
    PromptTooLong,
    RequestError,
    UnsupportedConstraint,
)
from palmette.ir.spec_data import spec_data
from palmette.runtime.server import wire
from palmette.runtime.server.app import build_app
from palmette.runtime.server.protocol import ABORT
from palmette.runtime.server.service import Service, checked
from palmette.types import Finish, FinishReason, GenerateRequest, TokenEvent
from tests.runtime.server.sim_world import Violation, Visit

_GOOD_ENDS = (FinishReason.STOP, FinishReason.LENGTH)
_LEAVING_SECONDS = 1.0  # that the application may take to notice that its client is gone

_visit: ContextVar[str] = ContextVar("visit", default="")


class SimService(Service):
    """Gives requests the names of their visits."""

    __slots__ = ()

    def new_id(self, prefix: str = "") -> str:
        return prefix + _visit.get()


class Door:
    """The application of one front."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._app = build_app(service)

    @property
    def num_remembered(self) -> int:
        """Requests that somebody could abort."""
        aborts = getattr(self._app.state, "aborts", None)
        return 0 if aborts is None else len(aborts)

    def abort(self, visit: Visit) -> None:
        """As POST /abort_request does for the visit's client."""
        client = self._service.clients.find(_key_of(visit))
        aborts = getattr(self._app.state, "aborts", None)
        if client is not None and aborts is not None and aborts.abort(client, visit.name):
            visit.is_aborted = True

    async def ask(self, visit: Visit) -> None:
        """POST /generate, to its end.

        Raises:
            PalmetteError: what the client was told.
            CancelledError: it left, or the server hung up on it.
        """
        _visit.set(visit.name)
        call = _Call(visit)
        task = asyncio.ensure_future(self._app(call.scope(), call.receive, call.send))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            call.disconnected.set()
            await asyncio.wait([task], timeout=_LEAVING_SECONDS)
            if not task.done():
                raise Violation(f"the application does not notice that {visit.name} left") from None
            raise
        call.check_end()


class _Call:
    """One HTTP request, as its client sees it."""

    def __init__(self, visit: Visit) -> None:
        self.disconnected = asyncio.Event()
        self._visit = visit
        self._is_read = False
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._is_over = False
        self._is_hung_up = False
        self._is_done = False  # [DONE] came
        self._error: PalmetteError | None = None  # as an event of the stream

    def scope(self) -> Scope:
        key = _key_of(self._visit).encode()
        headers = [(b"host", b"127.0.0.1"), (b"authorization", key), (b"content-type", b"application/json")]
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/generate", "raw_path": b"/generate", "query_string": b"", "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "extensions": {ABORT: self._hang_up},
        }  # fmt: skip

    async def receive(self) -> Message:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": json.dumps(self._asked()).encode(), "more_body": False}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.disconnected.is_set():
            return
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], dict(message["headers"])
            return
        if self._is_over:
            raise Violation(f"{self._visit.name} got a body behind its end")
        self._body += message.get("body", b"")
        self._is_over = not message.get("more_body", False)
        if self._status == 200 and self._visit.kind == "stream":
            self._read_events()
        if self._visit.pause and not self._is_over:
            await asyncio.sleep(self._visit.pause)

    def check_end(self) -> None:
        """The application is done with it.

        Raises:
            PalmetteError: what the client was told.
            CancelledError: the server hung up.
        """
        visit = self._visit
        if self._is_hung_up:
            visit.is_sent_away = True
            raise asyncio.CancelledError
        if not self._is_over:
            raise Violation(f"the answer to {visit.name} has no end")
        if self._status != 200:
            raise self._told(json.loads(self._body)["error"])
        if visit.kind == "whole":
            self._take(json.loads(self._body))
        # To be aborted by its client is an answer.
        ends = (*_GOOD_ENDS, FinishReason.CANCELLED) if visit.is_aborted else _GOOD_ENDS
        good = visit.finish is not None and visit.finish.reason in ends
        if visit.kind == "stream" and self._is_done != (good and self._error is None):
            raise Violation(f"{visit.name} ended with {visit.finish} and {self._error!r}; [DONE] is {self._is_done}")
        if self._error is not None:
            raise self._error
        if visit.finish is None:
            raise Violation(f"the stream of {visit.name} ended without an end")
        checked(visit.finish)

    def _asked(self) -> dict[str, Any]:
        request = self._visit.request
        assert isinstance(request, GenerateRequest), "the others do not come over HTTP"
        params = request.params
        asked: dict[str, Any] = {
            "input_ids": list(request.token_ids),
            "sampling_params": {
                "max_new_tokens": params.max_new_tokens, "stop": list(params.stop) or None,
                "stop_token_ids": list(params.stop_token_ids) or None,
            },
            "stream": self._visit.kind == "stream", "rid": request.request_id, "priority": request.priority,
            "timeout": request.timeout, "palmette": True,
        }  # fmt: skip
        if request.constraint is not None:
            asked["constraint"] = spec_data(request.constraint)
        return asked

    def _hang_up(self) -> None:
        self._is_hung_up = True
        self.disconnected.set()

    def _read_events(self) -> None:
        *events, self._body = self._body.split(b"\n\n")
        for event in events:
            if self._is_done or self._error is not None:
                raise Violation(f"{self._visit.name} got {event!r} behind its end")
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                self._is_done = True
                continue
            told = json.loads(data)
            if "error" in told:
                self._error = self._told(told["error"])
            else:
                self._take(told)

    def _take(self, answer: dict[str, Any]) -> None:
        own = answer["meta_info"]["palmette"]
        finish = None
        if "reason" in own:
            error = None if own["error"] is None else wire.error_of(msgspec.convert(own["error"], wire.WireError))
            finish = Finish(
                FinishReason(own["reason"]), tuple(own["kept"]), own["tail"], own["matched"], error=error,
            )  # fmt: skip
        self._visit.take(TokenEvent(self._visit.name, own["text"], tuple(own["token_ids"]), finish=finish))

    def _told(self, error: dict[str, Any]) -> PalmetteError:
        """The error behind what a client is told."""
        code, message = error["code"], error["message"]
        match code:
            case "rate_limit_exceeded":
                return Overloaded(int(self._headers[b"retry-after"]))
            case "unsupported_constraint":
                return UnsupportedConstraint("", "", message)
            case "context_length_exceeded":
                return PromptTooLong(len(self._visit.request.token_ids), 0, "the pool")
            case "timeout":
                return HoleTimeout(message)
            case "engine_unavailable":
                return EngineDied(message)
            case "request_failed":
                return NumericalError(message) if self._status == 500 else RequestError(message)
        raise Violation(f"{self._visit.name} was told {self._status} {error}")


def _key_of(visit: Visit) -> str:
    return f"Bearer key of {visit.client.name}"
