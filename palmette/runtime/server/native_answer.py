"""What /generate answers: texts, token ids and SGLang's `meta_info`, whole or chunk by chunk.

In a stream `text` and `output_ids` are those so far, as SGLang has them; rows of logprobs are each told once, by the
chunk of their tokens, those of the prompt by the last one. What RuntimeEndpoint asks for (`palmette`) is told in
pieces alone, so that a stream costs what it says. Knows events; knows neither requests' ways nor HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from palmette.errors import PalmetteError
from palmette.runtime.server.native_plan import Sample
from palmette.runtime.server.wire import error_to_wire
from palmette.runtime.tokenizer import Tokenizer
from palmette.types import Finish, FinishReason, TokenEvent, TokenLogprob, Usage

Row = tuple[float | None, int, str | None]  # (logprob, token id, its text where that was asked for)


class Writer:
    """The answer of one sample, as its events come."""

    def __init__(self, sample: Sample, tokenizer: Tokenizer, *, palmette: bool, indexed: bool) -> None:
        """
        Args:
            palmette: tell what RuntimeEndpoint reads.
            indexed: say which of several samples a chunk is of.
        """
        self._sample, self._tokenizer, self._palmette, self._indexed = sample, tokenizer, palmette, indexed
        self._text = ""
        self._ids: list[int] = []
        self._rows: list[TokenLogprob] = []

    def take(self, event: TokenEvent) -> None:
        """For a whole answer: keep what came."""
        self._text += event.text
        self._ids += event.token_ids
        self._rows += event.logprobs

    def whole(self, finish: Finish) -> dict[str, Any]:
        """The answer, once the last event was taken."""
        info = self._final_info(finish)
        if self._palmette:
            info["palmette"] = {"text": self._text, "token_ids": self._ids, **_palmette(finish)}
        self._text += self._stop_text(finish)
        info |= self._row_info(finish.prompt_logprobs, self._rows)
        return self._answer(info)

    def chunk(self, event: TokenEvent) -> dict[str, Any]:
        """For a stream: what the event adds."""
        finish = event.finish
        self._ids += event.token_ids
        if not self._palmette:
            self._text += event.text if finish is None else event.text + self._stop_text(finish)
        if finish is None:
            info: dict[str, Any] = {
                "id": self._sample.id,
                "finish_reason": None,
                "prompt_tokens": len(self._sample.request.token_ids),
                "completion_tokens": len(self._ids),
            }
            info |= self._row_info((), event.logprobs)
        else:
            info = self._final_info(finish) | self._row_info(finish.prompt_logprobs, event.logprobs)
        if self._palmette:
            own = {"text": event.text, "token_ids": event.token_ids}
            info["palmette"] = own if finish is None else own | _palmette(finish)
            answer: dict[str, Any] = {"meta_info": info}
        else:
            answer = self._answer(info)
        if self._indexed:
            answer["index"] = self._sample.index
        return answer

    def _answer(self, info: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"text": self._text, "output_ids": self._ids, "meta_info": info}
        if self._sample.tells_prompt:
            answer["prompt_token_ids"] = self._sample.request.token_ids
        return answer

    def _final_info(self, finish: Finish) -> dict[str, Any]:
        info: dict[str, Any] = {
            "id": self._sample.id,
            "finish_reason": _reason(finish, self._sample.request.params.max_new_tokens),
            **_usage_info(finish.usage),
            "steered": finish.steered,
        }
        if finish.unenforced:
            info["unenforced"] = finish.unenforced
        return info

    def _row_info(self, prompt: Sequence[TokenLogprob], output: Sequence[TokenLogprob]) -> dict[str, Any]:
        params = self._sample.request.logprobs
        if params is None:
            return {}
        info: dict[str, Any] = {
            "input_token_logprobs": [self._row(row) for row in prompt],
            "output_token_logprobs": [self._row(row) for row in output],
        }
        if params.top:
            info["input_top_logprobs"] = [self._top(row) for row in prompt]
            info["output_top_logprobs"] = [self._top(row) for row in output]
        return info

    def _row(self, row: TokenLogprob) -> Row:
        return row.logprob, row.token_id, self._token_text(row.token_id)

    def _top(self, row: TokenLogprob) -> list[Row] | None:
        """None where the row itself has no logprob."""
        if row.logprob is None:
            return None
        return [(logprob, token, self._token_text(token)) for token, logprob in row.top]

    def _token_text(self, token_id: int) -> str | None:
        if not self._sample.row_text:
            return None
        return self._tokenizer.shown_bytes(token_id).decode("utf-8", "replace")

    def _stop_text(self, finish: Finish) -> str:
        """What ended the text, where the client wants that to be part of it."""
        if not self._sample.keeps_stop or finish.matched is None:
            return ""
        if isinstance(finish.matched, str):
            return finish.matched
        return self._tokenizer.decode([finish.matched])


def _reason(finish: Finish, max_new_tokens: int) -> dict[str, Any]:
    """As SGLang writes it."""
    if finish.reason is FinishReason.LENGTH:
        return {"type": "length", "length": max_new_tokens}
    if finish.reason is FinishReason.STOP:
        return {"type": "stop", "matched": finish.matched}
    message = PalmetteError.__str__(finish.error) if finish.error is not None else str(finish.reason)
    return {"type": "abort", "message": message}


def _usage_info(usage: Usage) -> dict[str, Any]:
    """Token counts by SGLang's names, and ours beside them; seconds."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "sampled_tokens": usage.sampled_tokens,
        "forced_tokens": usage.forced_tokens,
        "wasted_tokens": usage.wasted_tokens,
        "retokenized_tokens": usage.retokenized_tokens,
        "e2e_latency": usage.seconds,
    }


def _palmette(finish: Finish) -> dict[str, Any]:
    """The end, so that the same Finish can be made of it."""
    return {
        "kept": finish.token_ids,
        "tail": finish.tail,
        "matched": finish.matched,
        "usage": asdict(finish.usage),
        "steered": finish.steered,
        "unenforced": finish.unenforced,
        "reason": finish.reason,
        "error": error_to_wire(finish.error),
    }
