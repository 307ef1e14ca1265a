"""HTTP as every endpoint needs it: bodies in, errors out, streams that notice when their reader is gone or slow.

Knows Starlette and pydantic; knows no endpoint.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from palmette.errors import (
    Cancelled,
    EngineDied,
    HoleTimeout,
    InvalidOption,
    Overloaded,
    PalmetteError,
    PromptTooLong,
    RequestError,
    TemplateError,
    UnsupportedConstraint,
    UsageError,
)
from palmette.runtime.server.clients import Client
from palmette.runtime.server.protocol import ABORT
from palmette.runtime.server.service import Service

logger = logging.getLogger(__name__)

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

_json = msgspec.json.Encoder()
DONE = b"data: [DONE]\n\n"
CLIENT_GONE = 499  # nginx's code; nobody reads it
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class HTTPError(Exception):
    """An answer that is an error before any endpoint is asked."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


# -- what endpoints use ----------------------------------------------------------------------------------------------


def service_of(request: Request) -> Service:
    """The service behind the application."""
    service: Service = request.app.state.service
    return service


def client_of(request: Request) -> Client:
    """Who sent it; the guard put it there."""
    client: Client = request.state.client
    return client


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The request's JSON as `kind`.

    Raises:
        HTTPError: 400, naming the first field that is wrong; 408, it did not come in time.
    """
    seconds = service_of(request).config.limits.read_timeout
    try:
        async with asyncio.timeout(seconds):
            raw = await request.body()
    except TimeoutError:
        raise HTTPError(408, f"the body did not come within {seconds:g} s", code="timeout") from None
    try:
        data = json.loads(raw)  # as lenient with big numbers as clients are; NaN is refused by the fields
    except (ValueError, RecursionError) as error:
        raise HTTPError(400, f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise HTTPError(400, "the body must be a JSON object")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = _field_path(first["loc"])
        raise HTTPError(400, f"{param}: {first['msg']}", param=param, code="invalid_value") from None
    except RecursionError:
        raise HTTPError(400, "the body is nested too deep") from None


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`data`: anything msgspec writes as JSON."""
    return Response(_json.encode(data), status, headers, media_type="application/json")


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    body = b"data: " + _json.encode(data) + b"\n\n"
    return b"event: " + event.encode() + b"\n" + body if event else body


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`; if the client leaves first, cancel it.

    Raises:
        HTTPError: 499, the client left.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPError(CLIENT_GONE, "the client left")
        return task.result()
    finally:
        for each in (task, watcher):
            if not each.done():
                each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def stream_response(
    request: Request,
    chunks: AsyncIterator[bytes],
    *,
    on_error: Callable[[PalmetteError], bytes] | None = None,
    done: bytes = DONE,
) -> Response:
    """Answer with server-sent events as `chunks` brings them.

    The first chunk is waited for, so that what is refused is answered with its own status. An error after it becomes
    one last event, and `done` is sent only behind a stream that came to its own end.

    Args:
        chunks: closed in any case; give the first only once something came of the request.
        on_error: the event that tells of an error behind the first chunk.
    """
    first = await until_gone(request, _first(chunks))
    return _EventStream(first, chunks, on_error or (lambda error: sse(error_body(error))), done,
                        service_of(request).config.limits.write_timeout)  # fmt: skip


# -- errors ------------------------------------------------------------------------------------------------------------


def error_body(error: Exception) -> dict[str, Any]:
    """OpenAI's form. Says nothing of paths, addresses and stacks."""
    status, code, param = _classify(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": _message(error, status), "type": kind, "param": param, "code": code or status}}


def error_response(error: Exception) -> Response:
    """The answer to a request that failed before anything of it was sent."""
    status = _classify(error)[0]
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(error.retry_after)
    elif status == 503:
        headers["retry-after"] = "2"
    elif status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response(error_body(error), status, headers)


def answered(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The handler, with its errors as answers."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except (PalmetteError, HTTPError) as error:
            return error_response(error)
        except ClientDisconnect:
            return error_response(HTTPError(CLIENT_GONE, "the client left"))
        except Exception as error:
            logger.exception("a request failed by an error of ours")
            return error_response(error)

    return answer


def _classify(error: Exception) -> tuple[int, str | None, str | None]:
    """(status, code, param)"""
    match error:
        case HTTPError(status=status, code=code, param=param):
            return status, code, param
        case Overloaded():
            return 429, "rate_limit_exceeded", None
        case InvalidOption(field=field):
            return 400, "invalid_value", field
        case PromptTooLong():
            return 400, "context_length_exceeded", "messages"
        case UnsupportedConstraint(path=path):
            return 400, "unsupported_constraint", path or None
        case UsageError() | TemplateError():
            return 400, "invalid_request", None
        case HoleTimeout():
            return 504, "timeout", None
        case EngineDied():
            return 503, "engine_unavailable", None
        case Cancelled():
            return CLIENT_GONE, "cancelled", None
        case RequestError():
            return 500 if type(error) is not RequestError else 422, "request_failed", None
    return 500, "internal_error", None


def _message(error: Exception, status: int) -> str:
    if isinstance(error, PromptTooLong):  # in the words by which client libraries know it
        return (
            f"This model's maximum context length is {error.limit} tokens, but the prompt has {error.prompt_len}: "
            "shorten the prompt"
        )
    if isinstance(error, PalmetteError | HTTPError):
        return str(error)
    return f"an internal error ({type(error).__name__}); the server's log says more"


def _field_path(loc: tuple[int | str, ...]) -> str:
    """messages[0].content; pydantic's names of union branches are left out."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{part}" if text else part
    return text or "body"


# -- streams -----------------------------------------------------------------------------------------------------------


async def _first(chunks: AsyncIterator[bytes]) -> bytes | None:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        return None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(Response):
    """Starlette's StreamingResponse would wait for ever for a reader that does not read."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes | None,
        chunks: AsyncIterator[bytes],
        on_error: Callable[[PalmetteError], bytes],
        done: bytes,
        write_timeout: float,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._first, self._chunks, self._on_error, self._done = first, chunks, on_error, done
        self._write_timeout = write_timeout

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers(headers)
        self.raw_headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(scope, send))
        watcher = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (writer, watcher):
                each.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()  # what it follows is cancelled
        if not writer.cancelled() and (error := writer.exception()) is not None:
            raise error

    async def _write(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if self._first is not None:
                await self._send(send, self._first)
            async for chunk in self._chunks:
                await self._send(send, chunk)
            await self._send(send, self._done)
        except PalmetteError as error:  # before TimeoutError, which HoleTimeout is too
            await self._send(send, self._on_error(error))
        except TimeoutError:
            logger.info("a client did not read its stream for %s s: hung up", self._write_timeout)
            scope["extensions"][ABORT]()
            return
        except Exception as error:
            logger.exception("a stream failed by an error of ours")
            await self._send(send, sse(error_body(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        if chunk:
            async with asyncio.timeout(self._write_timeout):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
