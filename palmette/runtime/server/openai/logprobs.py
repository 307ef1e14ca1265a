"""Rows of logprobs as OpenAI writes them: in chats one object a token, in completions parallel lists.

Knows a tokenizer's bytes. A token that is no whole text is shown as "bytes:\\xe2\\x82".
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import Any

from palmette.runtime.tokenizer import Tokenizer
from palmette.types import TokenLogprob

LOWEST = -9999.0  # stands for a probability of 0, which JSON's numbers cannot


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """What a token is called in an answer: its text, a special token's name, or its bytes."""
    data = tokenizer.shown_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_rows(tokenizer: Tokenizer, rows: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`."""
    return [
        {
            **_named(tokenizer, row.token_id, row.logprob),
            "top_logprobs": [_named(tokenizer, token_id, logprob) for token_id, logprob in row.top],
        }
        for row in rows
    ]


class CompletionRows:
    """`choices[].logprobs` of a completion, piece by piece: offsets go on where the last piece ended."""

    def __init__(self, tokenizer: Tokenizer, *, shows_special: bool = False) -> None:
        """
        Args:
            shows_special: special tokens are part of the text, as behind a constraint that asks for them.
        """
        self._tokenizer = tokenizer
        self._spell = tokenizer.shown_bytes if shows_special else tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # characters

    def take(self, rows: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """The next rows. `top_logprobs` always tells of the token itself as well."""
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for row in rows:
            text = token_text(self._tokenizer, row.token_id)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(self._spell(row.token_id)))
            logprobs.append(None if row.logprob is None else _finite(row.logprob))
            if row.logprob is None:
                tops.append(None)
                continue
            top = {token_text(self._tokenizer, token_id): _finite(logprob) for token_id, logprob in row.top}
            tops.append(top | {text: _finite(row.logprob)})
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def _named(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": None if logprob is None else _finite(logprob),
        "bytes": list(tokenizer.shown_bytes(token_id)),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST) if not math.isnan(logprob) else LOWEST
