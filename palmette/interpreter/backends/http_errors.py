"""A server's refusals as the exceptions that the same request raises on a local Runtime, with the server's words.

Knows status codes, OpenAI's form of an error and the exception tree. Does not know what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from palmette import errors
from palmette.errors import (
    EngineDied,
    HoleTimeout,
    InvalidOption,
    Overloaded,
    PalmetteError,
    PromptTooLong,
    RequestError,
    UnsupportedConstraint,
    UnsupportedFeature,
    UsageError,
)

MAX_WORDS = 2000  # characters of a server's own words that an error repeats

_KINDS: dict[str, type[PalmetteError]] = {
    name: kind
    for name in errors.__all__
    if isinstance(kind := getattr(errors, name), type) and issubclass(kind, PalmetteError)
}
_CODES: dict[str, type[PalmetteError]] = {  # what our server writes as `code`
    "invalid_value": InvalidOption,
    "context_length_exceeded": PromptTooLong,
    "unsupported_constraint": UnsupportedConstraint,
    "invalid_request": UsageError,
    "rate_limit_exceeded": Overloaded,
    "timeout": HoleTimeout,
    "engine_unavailable": EngineDied,
}
_STATUSES: dict[int, type[PalmetteError]] = {
    429: Overloaded,
    502: EngineDied,
    503: EngineDied,
    504: HoleTimeout,
}
# Attributes that readers of a class may count on, where the server did not send them.
_FIELDS: dict[type[PalmetteError], Mapping[str, Any]] = {
    InvalidOption: {"field": "", "value": None, "allowed": ""},
    UnsupportedConstraint: {"path": "", "keyword": "", "reason": "", "hint": ""},
    UnsupportedFeature: {"feature": "", "reason": ""},
    PromptTooLong: {"prompt_len": 0, "limit": 0},
    Overloaded: {"retry_after": 1},
}


class NotThere(RequestError):
    """There is no such endpoint."""


class TryAgain(Exception):
    """Nothing came of an attempt, and another may do better.

    `error` is what to raise if none does, `after` the seconds that the server asked to wait, `lost` whether the
    connection was what failed.
    """

    def __init__(self, error: PalmetteError, *, after: float | None = None, lost: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.after, self.lost = error, after, lost


def named_error(kind: str, message: str, fields: Mapping[str, Any] | None = None) -> PalmetteError:
    """An exception by the name of its class; a RequestError if there is no such class."""
    return _made(_KINDS.get(kind, RequestError), message, fields or {})


def refusal(status: int, body: bytes, retry_after: str | None, url: str) -> PalmetteError | TryAgain:
    """What an answer that is no success means.

    Args:
        retry_after: the header of this name.
        url: whom the answer came from, for messages.
    """
    data = _read(body)
    message, code, param = _words(data, body)
    if status == 401:
        return InvalidOption("api_key", "...", f"a key that {url} accepts ({message}): RuntimeEndpoint(url, api_key=)")
    if status == 403:
        return InvalidOption("api_key", "...", f"a key that may do this on {url} ({message})")
    if status == 404:
        return NotThere(f"{url} is not there: {message}")
    kind = _CODES.get(code or "") or _STATUSES.get(status)
    if kind is None:
        words = message if 400 <= status < 500 and code else f"{url} answered {status}: {message}"
        return RequestError(words)
    seconds = float(retry_after) if retry_after and retry_after.strip().isdigit() else None
    fields: dict[str, Any] = {}
    if kind is Overloaded:
        fields = {"retry_after": int(seconds or 1)}
    elif kind is InvalidOption:
        fields = {"field": param or "", "allowed": message}
    elif kind is UnsupportedConstraint:
        fields = {"path": param or "", "reason": message}
    error = _made(kind, message, fields)
    return TryAgain(error, after=seconds) if status in (429, 502, 503) else error


def chunk_error(data: Any) -> PalmetteError:
    """What the `error` of a stream's event means."""
    message, code, _ = _words({"error": data}, b"")
    return _made(_CODES.get(code or "", RequestError), message, {})


def _made(kind: type[PalmetteError], message: str, fields: Mapping[str, Any]) -> PalmetteError:
    """Of the class, with the message as it is: a constructor would write its own."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    for parent, defaults in _FIELDS.items():
        if isinstance(error, parent):
            vars(error).update(defaults)
    vars(error).update(fields)
    return error


def _read(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def _words(data: Any, body: bytes) -> tuple[str, str | None, str | None]:
    """(message, code, param) of an error in OpenAI's form, or of whatever came instead."""
    error = data.get("error", data.get("detail", data)) if isinstance(data, Mapping) else data
    if isinstance(error, Mapping):
        message, code, param = error.get("message"), error.get("code"), error.get("param")
        return (
            str(message if message is not None else dict(error))[:MAX_WORDS],
            code if isinstance(code, str) else None,
            param if isinstance(param, str) else None,
        )
    text = error if isinstance(error, str) else body.decode("utf-8", "replace").strip()
    return text[:MAX_WORDS] or "it gave no reason", None, None
