"""The bodies of SGLang's native endpoints: every field with its type and bounds, and those that are refused.

A field that would change the answer and that this server cannot serve is refused, and so is every name of a constraint
that is none of ours; what else is unknown is ignored. Knows pydantic; knows neither the model nor the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from palmette.errors import InvalidOption, UnsupportedConstraint, UnsupportedFeature, UsageError
from palmette.ir.spec_data import spec_of
from palmette.runtime.server.programs import ProgramBody, TokenIds
from palmette.specs import MAX_SPEC_DEPTH, Spec
from palmette.types import MAX_STOPS, MAX_TOP_LOGPROBS

MAX_PROMPTS = 1024  # of one request
MAX_SAMPLES = 64  # `n`
MAX_BIASES = 1024
MAX_SPEC_NODES = 4096  # specifications, tags and options of one `constraint`
MAX_SPEC_ITEMS = 1 << 17  # texts and numbers in it
MAX_SPEC_TEXT = 1 << 20  # characters of those

T = TypeVar("T")


def _shape(value: object) -> str:
    return "(many)" if isinstance(value, list) else "(one)"


def _ids_shape(value: object) -> str:
    return "(many)" if isinstance(value, list) and value and isinstance(value[0], list) else "(one)"


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _few(value: object) -> object:
    """Counted before its items are looked at, each of which could be an error."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens")
    return value


def _without_nulls(value: object) -> object:
    return [item for item in value if item is not None] if isinstance(value, list) else value


# The names of the branches are no identifiers, so that an error's place leaves them out.
OneOrMany = Annotated[
    Annotated[T, Tag("(one)")] | Annotated[list[T], Tag("(many)"), Field(max_length=MAX_PROMPTS, fail_fast=True)],
    Discriminator(_shape),
]
Prompts = Annotated[
    Annotated[TokenIds, Tag("(one)")]
    | Annotated[list[TokenIds], Tag("(many)"), Field(max_length=MAX_PROMPTS, fail_fast=True)],
    Discriminator(_ids_shape),
]
Finite = Field(allow_inf_nan=False)
Number = Annotated[float, Finite]
Name = Annotated[str, Field(max_length=256)]
Rid = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(max_length=1 << 26)]  # with a bound pydantic looks for lone surrogates
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=MAX_STOPS), BeforeValidator(_listed)
]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Priority = Annotated[int, Field(ge=-1000, le=1000)]
Seconds = Annotated[float, Field(gt=0, le=1e7), Finite]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
StopIds = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 31)]],
    Field(max_length=1024, fail_fast=True),
    BeforeValidator(_without_nulls),
]


class Body(BaseModel):
    """Strict: no text passes for a number. Unknown fields are kept, to be looked at."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)


class SamplingBody(Body):
    """SGLang's sampling parameters; null is the default."""

    max_new_tokens: Annotated[int, Field(ge=0, le=1 << 24)] | None = 128  # null: as many as fit
    min_new_tokens: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    stop_regex: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=100), Finite] | None = None
    top_p: Annotated[float, Field(gt=0, le=1), Finite] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None  # -1: the whole vocabulary
    min_p: Annotated[float, Field(ge=0, le=1), Finite] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), Finite] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2), Finite] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10), Finite] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None  # of no effect: special tokens are no text
    no_stop_trim: bool | None = None  # the stop string stays in the text
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    sampling_seed: Seed | None = None
    seed: Seed | None = None  # the same
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-1000, le=1000), Finite]], BeforeValidator(_few)] | None
    ) = None
    # constraints, at most one; an empty text is none
    json_schema: Text | dict[str, Any] | bool | None = None
    regex: Text | None = None
    ebnf: Text | None = None
    structural_tag: Text | dict[str, Any] | None = None


class GenerateBody(Body):
    """POST /generate."""

    text: OneOrMany[Text] | None = None
    input_ids: Prompts | None = None
    sampling_params: OneOrMany[SamplingBody] | None = None
    rid: OneOrMany[Rid] | None = None
    stream: bool | None = None
    return_logprob: OneOrMany[bool] | None = None
    logprob_start_len: OneOrMany[Annotated[int, Field(ge=-1, lt=1 << 31)]] | None = None
    top_logprobs_num: OneOrMany[Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]] | None = None
    return_text_in_logprobs: bool | None = None
    return_prompt_token_ids: bool | None = None
    extra_key: Name | None = None  # apart from others in the cache, as cache_salt
    # extensions
    cache_salt: Name | None = None
    priority: Priority | None = None  # higher first
    timeout: Seconds | None = None
    program: ProgramBody | None = None
    constraint: dict[str, Any] | None = None  # palmette.ir.spec_data
    palmette: bool | None = None  # tell what RuntimeEndpoint wants to know
    parse_special: bool | None = None  # false: "<|im_end|>" in `text` is ordinary text


class AbortBody(Body):
    """POST /abort_request."""

    rid: Annotated[str, Field(max_length=256)] | None = None
    abort_all: bool | None = None


class TrieBody(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    token_ids: TokenIds
    parents: Annotated[list[Annotated[int, Field(ge=-1, lt=1 << 31)]], Field(fail_fast=True)]


class ScoreBody(Body):
    """POST /palmette/score."""

    input_ids: TokenIds
    trie: TrieBody
    unconditional: bool | None = None
    rid: Rid | None = None
    cache_salt: Name | None = None
    priority: Priority | None = None
    timeout: Seconds | None = None
    program: ProgramBody | None = None


# -- what is refused ---------------------------------------------------------------------------------------------------

_NO_MEDIA = "the model has no part that sees or hears"
_NO_CODE = "no code comes from a request"
_FEATURES: Final[Mapping[str, str]] = {
    "image_data": _NO_MEDIA,
    "video_data": _NO_MEDIA,
    "audio_data": _NO_MEDIA,
    "input_embeds": "send `text` or `input_ids`",
    "positional_embed_overrides": "send `text` or `input_ids`",
    "lora_path": "no adapters are loaded",
    "lora_id": "no adapters are loaded",
    "session_id": "send the whole prompt: what of it is cached costs nothing",
    "session_params": "send the whole prompt: what of it is cached costs nothing",
    "custom_logit_processor": _NO_CODE,
    "custom_params": _NO_CODE,
    "token_ids_logprob": "ask for `top_logprobs_num`, or score given tokens with /palmette/score",
    "return_hidden_states": "hidden states do not leave the engine",
    "return_sampling_mask": "it does not leave the engine",
    "return_routed_experts": "it does not leave the engine",
    "return_indexer_topk": "it does not leave the engine",
    "return_entropy": "ask for `top_logprobs_num`",
    "return_flat_raw_top_logprobs": "ask for `top_logprobs_num`",
    "return_flat_raw_output_top_logprobs": "ask for `top_logprobs_num`",
    "return_bytes": "texts are text here",
    "multi_item_delimiter_indices": "score with /palmette/score",
    "token_indices_to_pool": "score with /palmette/score",
    "max_thinking_tokens": "send a `constraint` with a budget",
    "require_reasoning": "send a `constraint`",
    "watermark": "texts are not marked here",
}
_CONSTRAINTS: Final[Mapping[str, str]] = {
    "json": "json_schema",
    "guided_json": "json_schema",
    "response_format": "json_schema",
    "guided_regex": "regex",
    "pattern": "regex",
    "grammar": "ebnf",
    "guided_grammar": "ebnf",
    "lark": "ebnf",
    "gbnf": "ebnf",
    "choices": "regex",
    "choice": "regex",
    "guided_choice": "regex",
    "structured_outputs": "json_schema, regex, ebnf or structural_tag",
    "guided_decoding": "json_schema, regex, ebnf or structural_tag",
}
_OURS: Final = ("json_schema", "regex", "ebnf", "structural_tag")
_NOTHING: Final = (None, False, "", 0)


def check_extra(body: GenerateBody, sampling: Sequence[SamplingBody]) -> None:
    """
    Raises:
        UnsupportedFeature: a field that this server would have to ignore, and that would change the answer.
        InvalidOption: a constraint by a name that is none, or in a place that is not its.
    """
    for given, is_top in ((body, True), *((each, False) for each in sampling)):
        for name, value in (given.model_extra or {}).items():
            if value is None or value == "":
                continue
            if is_top and name in _OURS:
                raise InvalidOption(name, "...", f"not beside sampling_params: write it as sampling_params.{name}")
            if name in _CONSTRAINTS or name.startswith(("guided_", "structural_", "json_", "regex_")):
                known = _CONSTRAINTS.get(name, "json_schema, regex, ebnf or structural_tag")
                raise InvalidOption(name, "...", f"no such constraint; write it as sampling_params.{known}")
            if name in _FEATURES and not _asks_for_nothing(value):
                raise UnsupportedFeature(name, _FEATURES[name])
            if name == "beam_width" and value != 1:
                raise UnsupportedFeature(name, "sample with `n` instead")


def _asks_for_nothing(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_asks_for_nothing, value))
    return value == {} if isinstance(value, Mapping) else any(value is nothing for nothing in _NOTHING)


def spec_from(data: Mapping[str, Any]) -> Spec:
    """The specification that a `constraint` holds.

    Raises:
        InvalidOption, UnsupportedConstraint: it holds none, or one beyond the bounds of a request.
    """
    _check_size(data)
    try:
        return spec_of(data)
    except (InvalidOption, UnsupportedConstraint):
        raise
    except (UsageError, TypeError) as error:  # TypeError: a field too many or too few
        raise InvalidOption("constraint", "...", f"what palmette.ir.spec_data writes; {error}") from None


def _check_size(data: Mapping[str, Any]) -> None:
    """Before anything recurses into it."""
    nodes = items = text = 0
    level: list[Any] = [data]
    for _ in range(4 * MAX_SPEC_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                nodes += 1
                below += value.values()
            elif isinstance(value, list):
                below += value
            else:
                items += 1
                text += len(value) if isinstance(value, str) else 0
                _check_text("constraint", value)
        if nodes > MAX_SPEC_NODES or items > MAX_SPEC_ITEMS or text > MAX_SPEC_TEXT:
            raise UnsupportedConstraint(
                "", "constraint", f"it is larger than {MAX_SPEC_NODES} parts or {MAX_SPEC_TEXT} characters"
            )
        if not below:
            return
        level = below
    raise UnsupportedConstraint("", "constraint", f"it is nested deeper than {MAX_SPEC_DEPTH} levels")


def schema_text(value: str | Mapping[str, Any] | bool) -> str:
    """A JSON schema as text, however it was sent.

    Raises:
        InvalidOption: a lone surrogate in it.
        UnsupportedConstraint: it is too deep to be written.
    """
    if value == "$$ANY$$":  # SGLang's word for any JSON value
        return "true"
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise UnsupportedConstraint("", "schema_depth", "it is too deep to be written") from None
    _check_text("json_schema", text)
    return text


def _check_text(field: str, value: object) -> None:
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        raise InvalidOption(field, "...", "Unicode text; it holds a lone surrogate") from None
