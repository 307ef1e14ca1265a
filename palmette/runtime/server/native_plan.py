"""From the body of /generate to requests of the engine: prompts, columns, sampling, seeds, what a text must satisfy.

    2 prompts, n = 3   ->   6 samples: the prompt's three, then the other's three

Knows the model's card and tokenizer. Knows neither answers nor streams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from palmette.errors import InvalidOption, PromptTooLong, UnsupportedFeature
from palmette.formats.structural_tags import structural_spec
from palmette.runtime.server.clients import Client
from palmette.runtime.server.native_schema import (
    MAX_PROMPTS,
    GenerateBody,
    SamplingBody,
    check_extra,
    schema_text,
    spec_from,
)
from palmette.runtime.server.programs import ProgramBody, check_token_ids
from palmette.runtime.server.service import ModelCard, Service
from palmette.specs import Grammar, JsonSchema, Regex, Spec
from palmette.types import GenerateRequest, Hints, LogprobParams, SamplingParams, TextPiece

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation of one prompt."""

    index: int  # in the answer
    id: str  # what the client knows it by
    rids: tuple[str, ...]  # the ids under which it can be aborted
    request: GenerateRequest
    keeps_stop: bool  # the stop string stays in the text
    row_text: bool  # logprob rows tell the token's text
    tells_prompt: bool  # the answer repeats the prompt's token ids


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request asks for."""

    samples: tuple[Sample, ...]
    is_single: bool  # the answer is one object, not a list
    program: ProgramBody | None


async def plan_of(service: Service, client: Client, body: GenerateBody) -> Plan:
    """
    Raises:
        InvalidOption, UnsupportedConstraint, UnsupportedFeature, PromptTooLong: before a token is paid for.
    """
    card = service.model
    count = _count(body)
    given = _column("sampling_params", body.sampling_params, count, SamplingBody())
    check_extra(body, given)
    _check_counts(given, count)
    samples = given[0].n or 1
    names = _names(service, body, count)
    starts = _column("logprob_start_len", body.logprob_start_len, count, -1)
    tops = _column("top_logprobs_num", body.top_logprobs_num, count, 0)
    wanted = _column("return_logprob", body.return_logprob, count, False)
    prompts = await _prompts(service, body)
    constraint = None if body.constraint is None else spec_from(body.constraint)
    namespace = client.scope("\0".join(filter(None, (body.cache_salt, body.extra_key))))
    made: list[Sample] = []
    for i, prompt in enumerate(prompts):
        sampling = given[i]
        check_token_ids(card, prompt, "text" if body.text is not None else "input_ids")
        params = _params(card, sampling, len(prompt))
        logprobs = _logprobs(params, len(prompt), start=starts[i], top=tops[i]) if wanted[i] else None
        spec = _spec(sampling, constraint)
        seed = _seed(service, sampling)
        hints = Hints(shared_len=len(prompt), siblings=samples) if samples > 1 else Hints()
        for k in range(samples):
            request = GenerateRequest(
                service.new_id(), prompt, params, _sample_seed(seed, k), logprobs, hints, namespace,
                body.priority or 0, body.timeout, spec,
            )  # fmt: skip
            name, rids = names[i]
            if samples > 1:
                name, rids = f"{name}_{k}", (*rids, f"{name}_{k}")
            made.append(
                Sample(
                    len(made), name, rids, request, keeps_stop=bool(sampling.no_stop_trim),
                    row_text=bool(body.return_text_in_logprobs), tells_prompt=bool(body.return_prompt_token_ids),
                )
            )  # fmt: skip
    is_single = samples == 1 and not _is_batch(body)
    return Plan(tuple(made), is_single, body.program)


# -- prompts and columns ---------------------------------------------------------------------------------------------


def _is_batch(body: GenerateBody) -> bool:
    if body.text is not None:
        return isinstance(body.text, list)
    return bool(body.input_ids) and isinstance(body.input_ids[0], list)  # type: ignore[index]


def _count(body: GenerateBody) -> int:
    """Prompts."""
    if (body.text is None) == (body.input_ids is None):
        raise InvalidOption("text", "..." if body.text is not None else None, "exactly one of text and input_ids")
    prompts = body.text if body.text is not None else body.input_ids
    if not prompts and prompts != "":
        raise InvalidOption("text" if body.text is not None else "input_ids", [], "at least one prompt")
    return len(prompts) if _is_batch(body) and prompts is not None else 1


def _column(name: str, value: T | list[T] | None, count: int, default: T) -> list[T]:
    """One value for each prompt."""
    if isinstance(value, list):
        if len(value) != count:
            raise InvalidOption(name, f"{len(value)} values", f"one, or one for each of the {count} prompts")
        return value
    return [default if value is None else value] * count


def _check_counts(given: Sequence[SamplingBody], count: int) -> None:
    samples = {each.n or 1 for each in given}
    if len(samples) > 1:
        raise InvalidOption("n", sorted(samples), "the same for all prompts of one request")
    if count * max(samples) > MAX_PROMPTS:
        raise InvalidOption(
            "n", max(samples), f"at most {MAX_PROMPTS} samples in one request; there are {count} prompts"
        )


def _names(service: Service, body: GenerateBody, count: int) -> list[tuple[str, tuple[str, ...]]]:
    """What each prompt's request is called, and by which names it can be aborted: the client's `rid`, or ours."""
    if isinstance(body.rid, list):
        rids = _column("rid", body.rid, count, "")
        if len(set(rids)) < count:
            raise InvalidOption("rid", "...", "a different one for each prompt")
        return [(rid, (rid,)) for rid in rids]
    rid = body.rid or service.new_id()
    if not _is_batch(body):
        return [(rid, (rid,))]
    return [(f"{rid}_{i}", (rid, f"{rid}_{i}")) for i in range(count)]


async def _prompts(service: Service, body: GenerateBody) -> list[tuple[int, ...]]:
    if body.text is not None:
        texts = body.text if isinstance(body.text, list) else [body.text]
        return [await _encoded(service, text, special=body.parse_special is not False) for text in texts]
    assert body.input_ids is not None, "_count looked"
    if not _is_batch(body):
        return [tuple(token for token in body.input_ids if isinstance(token, int))]
    return [tuple(row) for row in body.input_ids if isinstance(row, list)]


async def _encoded(service: Service, text: str, *, special: bool) -> tuple[int, ...]:
    """The text is a whole prompt, what a chat template wrote included; it begins as the model wants it to, once."""
    ids = await service.encode([TextPiece(text, special)])
    begin = service.tokenizer.begin_ids()
    return ids if ids[: len(begin)] == begin else (*begin, *ids)


# -- sampling ----------------------------------------------------------------------------------------------------------


def _params(card: ModelCard, body: SamplingBody, prompt_len: int) -> SamplingParams:
    """What was asked for, or fewer tokens where the context ends earlier."""
    asked = body.max_new_tokens
    left = card.context_len - prompt_len
    if asked != 0 and left < 1:
        raise PromptTooLong(prompt_len, card.context_len - 1, "the context")
    room = left if asked is None else min(asked, left)
    least = body.min_new_tokens or 0
    if asked is not None and least > asked:
        raise InvalidOption("min_new_tokens", least, f"at most max_new_tokens, {asked}")
    if body.skip_special_tokens is False:
        raise UnsupportedFeature("skip_special_tokens=false", "special tokens are no text; `output_ids` has them")
    if body.no_stop_trim and body.stop_regex:
        raise UnsupportedFeature("no_stop_trim", "what a stop_regex matched is not kept; send `stop`")
    for token in body.stop_token_ids or ():
        if token >= card.vocab_size:
            raise InvalidOption("stop_token_ids", token, f"token ids from 0 to {card.vocab_size - 1}")
    return SamplingParams(
        max_new_tokens=room,
        min_new_tokens=min(least, room),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=-1 if body.top_k is None else body.top_k,
        min_p=body.min_p or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        stop=tuple(body.stop or ()),
        stop_regex=tuple(body.stop_regex or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logit_bias=tuple((_biased(card, token), bias) for token, bias in (body.logit_bias or {}).items()),
    )


def _biased(card: ModelCard, key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < card.vocab_size):
        raise InvalidOption("logit_bias", key[:40], f"token ids from 0 to {card.vocab_size - 1} as keys")
    return int(key)


def _logprobs(params: SamplingParams, prompt_len: int, *, start: int, top: int) -> LogprobParams:
    """A request that generates nothing and names no start asks for the prompt's."""
    if start > prompt_len:
        raise InvalidOption("logprob_start_len", start, f"at most the {prompt_len} tokens of the prompt")
    if start < 0:
        return LogprobParams(start_len=0 if params.max_new_tokens == 0 else None, top=top)
    return LogprobParams(start_len=start, top=top)


def _spec(body: SamplingBody, constraint: Spec | None) -> Spec | None:
    given = {
        "json_schema": body.json_schema,
        "regex": body.regex,
        "ebnf": body.ebnf,
        "structural_tag": body.structural_tag,
        "constraint": constraint,
    }
    named = [name for name, value in given.items() if value is not None and value != ""]
    if len(named) > 1:
        raise InvalidOption(named[1], "...", f"not together with {named[0]}: one constraint at most")
    match named:
        case ["json_schema"] if body.json_schema is not None:
            return JsonSchema(schema_text(body.json_schema))
        case ["regex"] if body.regex is not None:
            return Regex(body.regex)
        case ["ebnf"] if body.ebnf is not None:
            return Grammar(body.ebnf)
        case ["structural_tag"]:
            return structural_spec(body.structural_tag)
    return constraint


def _seed(service: Service, body: SamplingBody) -> int:
    """64 bits. The first sample draws with the seed that was given."""
    if body.sampling_seed is not None and body.seed is not None and body.sampling_seed != body.seed:
        raise InvalidOption("seed", body.seed, "the same as sampling_seed, or only one of them")
    given = body.sampling_seed if body.sampling_seed is not None else body.seed
    return service.new_seed() if given is None else given & (2**64 - 1)


def _sample_seed(seed: int, sample: int) -> int:
    """The same whatever n is."""
    if sample == 0:
        return seed
    data = seed.to_bytes(8, "little") + sample.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
