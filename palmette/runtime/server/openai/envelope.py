"""What stands around the choices of an answer: id, model, usage; whole or as chunks of a stream.

Knows JSON's form. Knows neither requests nor what a choice holds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from palmette.runtime.server.http import json_response, sse
from palmette.runtime.server.openai.schema import ChoicesBody
from palmette.runtime.server.service import ModelCard
from palmette.types import Finish, Usage


@dataclass(slots=True)
class Envelope:
    """Of one answer."""

    id: str
    object: str
    card: ModelCard
    with_usage: bool = False  # a last chunk tells it, and the others say null
    with_running_usage: bool = False  # every chunk tells it
    created: int = field(default_factory=lambda: int(time.time()))

    @staticmethod
    def of(answer_id: str, kind: str, card: ModelCard, body: ChoicesBody) -> Envelope:
        options = body.stream_options
        with_usage = bool(options and options.include_usage)
        return Envelope(
            answer_id, kind, card, with_usage, with_usage and bool(options and options.continuous_usage_stats)
        )

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> Response:
        """The answer to a request that does not stream."""
        return json_response({**self._head(), "choices": choices, "usage": usage}, headers=self.headers)

    def chunk(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        """One event of a stream."""
        data = self._head()
        data["choices"] = (choice,)
        if self.with_usage:
            data["usage"] = usage if self.with_running_usage else None
        return sse(data)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last event before the end, where the client asked for it."""
        return sse({**self._head(), "choices": (), "usage": usage}) if self.with_usage else b""

    @property
    def headers(self) -> dict[str, str]:
        return {"x-request-id": self.id}

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.card.name,
            "system_fingerprint": self.card.digest[:16],
        }


def usage_data(usage: Usage, reasoning_tokens: int | None = None) -> dict[str, Any]:
    """OpenAI's `usage`. Tokens that a constraint forced count as generated.

    Args:
        reasoning_tokens: None = the server splits no reasoning off.
    """
    data: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if reasoning_tokens is not None:
        data["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return data


def notes(finish: Finish) -> dict[str, Any]:
    """What a choice tells of its constraint, where there is something to tell."""
    told: dict[str, Any] = {}
    if finish.unenforced:
        told["unenforced"] = finish.unenforced  # keywords of a schema that was not strict
    if finish.steered:
        told["steered"] = True  # the end of the token budget changed what was drawn
    return told
