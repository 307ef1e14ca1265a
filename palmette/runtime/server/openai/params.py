"""From a request's fields to the engine's requests: sampling, seeds, room in the context; and what is refused.

Knows bodies and the model's card. Knows neither messages nor answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from palmette.errors import InvalidOption, PromptTooLong
from palmette.ir.spec_data import spec_data
from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import HTTPError
from palmette.runtime.server.openai.reply import answer_spec
from palmette.runtime.server.openai.schema import MAX_PROMPTS, Body, ChoicesBody, SamplingBody
from palmette.runtime.server.service import ModelCard, Service
from palmette.specs import Spec
from palmette.types import GenerateRequest, Hints, LogprobParams, SamplingParams

CONSTRAINTS: Final = (
    "regex", "ebnf", "choices", "json_schema", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar",
)  # fmt: skip

# Fields that others know and that would change the answer. Each is refused unless it has one of these values, which
# ask for nothing.
_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [], {})
_REFUSED: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    # constraints
    "grammar": (_NOTHING, "absent; send `ebnf`"),
    "structural_tag": (_NOTHING, "absent; send it as `response_format`"),
    "guided_regex_list": (_NOTHING, "absent; send `regex`"),
    "guided_whitespace_pattern": (_NOTHING, "absent; white space in JSON is fixed"),
    "bad_words": (_NOTHING, "absent; forbid tokens with `logit_bias`, or a text's form with `regex`"),
    "allowed_token_ids": (_NOTHING, "absent; send `choices` or `regex`"),
    "logits_processors": (_NOTHING, "absent; no code comes from a request"),
    "functions": (_NOTHING, "absent; send `tools`"),
    "function_call": ((*_NOTHING, "none", "auto"), "absent; send `tool_choice`"),
    # other models' and servers' abilities
    "suffix": (_NOTHING, "absent; nothing is filled in before a suffix"),
    "use_beam_search": (_NOTHING, "absent; sample with `n` instead"),
    "chat_template": (_NOTHING, "absent; one is never taken from a request: start the server with --chat-template"),
    "documents": (_NOTHING, "absent; write them into a message"),
    "truncate_prompt_tokens": (_NOTHING, "absent; shorten the prompt"),
    "include_stop_str_in_output": (_NOTHING, "absent; a stop string is never part of the text"),
    "skip_special_tokens": ((None, True), "true: special tokens are never part of the text"),
    "prompt_logprobs": (_NOTHING, "absent; send `echo` and `logprobs` to /v1/completions"),
    "audio": (_NOTHING, "absent; this model writes text"),
    "modalities": ((*_NOTHING, ["text"]), 'only ["text"]'),
    "web_search_options": (_NOTHING, "absent; this server opens no connection"),
}


def check_body(service: Service, body: Body) -> ModelCard:
    """The model that is asked for.

    Raises:
        HTTPError: 404, another model.
        InvalidOption: a field that would have to do something it does not do here.
    """
    card = service.model
    if body.model is not None and body.model != card.name:
        raise HTTPError(
            404, f"there is no model {body.model!r} here; the one that is served is {card.name!r}",
            code="model_not_found", param="model",
        )  # fmt: skip
    for name, value in (body.model_extra or {}).items():
        if name in _REFUSED:
            nothing, reason = _REFUSED[name]
            if value not in nothing:
                raise InvalidOption(name, _shown(value), reason)
        elif name.startswith("guided_") and name != "guided_decoding_backend" and value not in _NOTHING:
            raise InvalidOption(name, _shown(value), "unknown; constraints are response_format and " + _listed())
    if isinstance(body, ChoicesBody):
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise InvalidOption("best_of", body.best_of, "the same as n: every sample is an answer")
        if body.stream_options is not None and not body.stream:
            raise InvalidOption("stream_options", "...", "only together with stream")
    return card


def constraint_of(body: SamplingBody) -> Spec | None:
    """What an answer must satisfy.

    Raises:
        InvalidOption, UnsupportedConstraint: more than one constraint, or none that is known.
    """
    given = {name: value for name in CONSTRAINTS if (value := getattr(body, name)) is not None}
    return writable(answer_spec(body.response_format, given), next(iter(given), "response_format"))


def writable(spec: Spec | None, field: str) -> Spec | None:
    """A specification goes on as text: one with a lone surrogate is refused here."""
    try:
        json.dumps(None if spec is None else spec_data(spec), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidOption(field, "...", "Unicode text; a string in it holds a lone surrogate") from None
    return spec


def prompts_of(value: Any, field: str = "prompt") -> list[str | list[int]]:
    """A prompt or a list of prompts, each a text or token ids, as a list.

    Raises:
        InvalidOption: naming the item that is neither.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise InvalidOption(field, _shown(value), "a text, a list of token ids, or a list of those, not empty")
    if isinstance(value[0], int):
        return [_token_ids(value, field)]
    if len(value) > MAX_PROMPTS:
        raise InvalidOption(field, f"{len(value)} prompts", f"at most {MAX_PROMPTS} in one request")
    if isinstance(value[0], str):
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise InvalidOption(f"{field}[{i}]", _shown(item), "a text, as the first one")
        return list(value)
    return [_token_ids(item, f"{field}[{i}]") for i, item in enumerate(value)]


def check_token_ids(card: ModelCard, token_ids: Sequence[int], field: str) -> None:
    """Raises InvalidOption for a token that the model does not have."""
    if token_ids and max(token_ids) >= card.vocab_size:
        wrong = next(t for t in token_ids if t >= card.vocab_size)
        raise InvalidOption(field, wrong, f"token ids from 0 to {card.vocab_size - 1}")


def requests_for(
    service: Service,
    client: Client,
    body: SamplingBody,
    prompt: tuple[int, ...],
    *,
    request_id: str,
    max_tokens: int | None,
    logprobs: LogprobParams | None = None,
    constraint: Spec | None = None,
    n: int = 1,
    field: str = "prompt",
) -> list[GenerateRequest]:
    """The engine's requests for one prompt: one for each sample, siblings that share it.

    Args:
        request_id: what their ids begin with.
        max_tokens: None = as many as fit.
        logprobs: of prompt tokens only the first sample tells.
        field: where the prompt came from, for errors.

    Raises:
        PromptTooLong: the prompt leaves no room.
        InvalidOption: an empty prompt, or a field that does not fit the model.
    """
    card = service.model
    if not prompt:
        raise InvalidOption(field, "", "a prompt of at least one token")
    params = _sampling(card, body, _room(card, len(prompt), max_tokens))
    seed = service.new_seed() if body.seed is None else body.seed
    hints = Hints(program=request_id, shared_len=len(prompt), siblings=n) if n > 1 else Hints()
    generated = LogprobParams(top=logprobs.top) if logprobs is not None else None
    return [
        GenerateRequest(
            f"{request_id}-{i}", prompt, params, sample_seed(seed, i), generated if i else logprobs, hints,
            client.scope(body.cache_salt or ""), body.priority or 0, body.timeout, constraint,
        )
        for i in range(n)
    ]  # fmt: skip


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one of n samples: 63 bits of a hash, the same whatever n is."""
    data = (seed & (2**64 - 1)).to_bytes(8, "little") + sample.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def _sampling(card: ModelCard, body: SamplingBody, max_new_tokens: int) -> SamplingParams:
    min_tokens = body.min_tokens or 0
    if min_tokens > max_new_tokens:
        raise InvalidOption("min_tokens", min_tokens, f"at most the {max_new_tokens} tokens that may be generated")
    check_token_ids(card, body.stop_token_ids or (), "stop_token_ids")
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_tokens,
        temperature=_given(body.temperature, 1.0),
        top_p=_given(body.top_p, 1.0),
        top_k=body.top_k or -1,
        min_p=body.min_p or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=_given(body.repetition_penalty, 1.0),
        stop=tuple(body.stop or ()),
        stop_regex=tuple(body.stop_regex or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logit_bias=_logit_bias(card, body.logit_bias or {}),
    )


def _logit_bias(card: ModelCard, biases: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < card.vocab_size):
            raise InvalidOption("logit_bias", key[:40], f"token ids from 0 to {card.vocab_size - 1} as keys")
    return tuple((int(key), bias) for key, bias in biases.items())


def _room(card: ModelCard, prompt_len: int, max_tokens: int | None) -> int:
    """Tokens to generate: what was asked for, or less where context or pool end earlier."""
    needed = 0 if max_tokens == 0 else 1
    for limit, what in ((card.context_len, "the context"), (card.kv_tokens, "the KV pool")):
        if prompt_len + needed > limit:
            raise PromptTooLong(prompt_len, limit - needed, what)
    left = min(card.context_len, card.kv_tokens) - prompt_len
    return left if max_tokens is None else min(max_tokens, left)


def _token_ids(value: Any, field: str) -> list[int]:
    if not isinstance(value, list) or not value:
        raise InvalidOption(field, _shown(value), "a text or a list of token ids, not empty")
    for i, item in enumerate(value):
        if type(item) is not int or not 0 <= item < 1 << 31:
            raise InvalidOption(f"{field}[{i}]", _shown(item), "a token id: an integer, 0 or more")
    return value


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _listed() -> str:
    return ", ".join(CONSTRAINTS)


def _shown(value: Any) -> Any:
    """A value as an error may show it."""
    return value if value is None or isinstance(value, bool | int | float) else str(value)[:60]
