"""What a finished request tells its author: a plain dict under the names SGLang uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from palmette.types import Finish, FinishReason, TokenLogprob, Usage


def meta_info(
    request_id: str,
    finish: Finish,
    logprobs: Sequence[TokenLogprob],
    *,
    max_new_tokens: int,
    with_logprobs: bool = False,
    with_top: bool = False,
    token_text: Callable[[int], str] | None = None,
) -> dict[str, Any]:
    """`token_text` adds the text of each token to its logprob row. Times are in seconds."""
    usage = finish.usage
    info: dict[str, Any] = {"id": request_id, "finish_reason": _reason(finish, max_new_tokens), **usage_info(usage)}
    info["steered"] = finish.steered
    if finish.unenforced:
        info["unenforced"] = list(finish.unenforced)
    if with_logprobs:
        info["input_token_logprobs"] = _rows(finish.prompt_logprobs, token_text)
        info["output_token_logprobs"] = _rows(logprobs, token_text)
        if with_top:
            info["input_top_logprobs"] = _top_rows(finish.prompt_logprobs, token_text)
            info["output_top_logprobs"] = _top_rows(logprobs, token_text)
    return info


def usage_info(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "forced_tokens": usage.forced_tokens,
        "sampled_tokens": usage.sampled_tokens,
        "retokenized_tokens": usage.retokenized_tokens,
        "wasted_tokens": usage.wasted_tokens,
        "e2e_latency": usage.seconds,
    }


def _reason(finish: Finish, max_new_tokens: int) -> dict[str, Any]:
    if finish.reason is FinishReason.LENGTH:
        return {"type": "length", "length": max_new_tokens}
    if finish.reason is FinishReason.STOP:
        return {"type": "stop", "matched": finish.matched}
    return {"type": "abort", "message": str(finish.error or finish.reason)}


def _rows(
    rows: Sequence[TokenLogprob], text: Callable[[int], str] | None
) -> list[tuple[float | None, int, str | None]]:
    return [(row.logprob, row.token_id, text(row.token_id) if text else None) for row in rows]


def _top_rows(
    rows: Sequence[TokenLogprob], text: Callable[[int], str] | None
) -> list[list[tuple[float, int, str | None]]]:
    return [[(logprob, token, text(token) if text else None) for token, logprob in row.top] for row in rows]
