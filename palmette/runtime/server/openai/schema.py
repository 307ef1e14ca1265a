"""The bodies of OpenAI requests: every field with its type and bounds. Unknown fields are let through to be ignored.

Knows pydantic; knows neither the model nor what a field does. What is known and refused is a table in `params`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_CHOICES = 64  # `n`
MAX_TOKENS = 1 << 24
MAX_STOP_LEN = 1024  # characters of one stop string or pattern
MAX_PROMPTS = 1024
MAX_BIASES = 1024
MAX_DETOKENIZED = 1 << 18


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _writable(value: Any) -> Any:
    """Data of any shape goes on as JSON text: what cannot be written is refused here."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds a lone surrogate, which no encoding can write") from None
    return value


def _few(value: object) -> object:
    """Counted before its items are looked at, each of which could be an error."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens")
    return value


# `fail_fast`: of a list's errors only the first is told, and a million would take seconds and a gigabyte.
Finite = Field(allow_inf_nan=False)
Content: TypeAlias = Annotated[str, Field(max_length=1 << 26)]  # with a bound pydantic looks for lone surrogates
Name: TypeAlias = Annotated[str, Field(max_length=256)]
Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LEN)]
Texts: TypeAlias = Annotated[list[Text], Field(max_length=64, fail_fast=True), BeforeValidator(_as_list)]
TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenCount: TypeAlias = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Data: TypeAlias = Annotated[Any, AfterValidator(_writable)]
JsonObject: TypeAlias = Annotated[dict[str, Any], AfterValidator(_writable)]


class Body(BaseModel):
    """What every body has. Strict: no text passes for a number."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    model: Name | None = None  # the served one; another is an error


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None  # one more chunk at the end, with the usage alone
    continuous_usage_stats: bool | None = None  # the usage so far in every chunk


class SamplingBody(Body):
    """How text is drawn, and what it must satisfy: the same for chats, completions and responses."""

    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100), Finite] | None = None
    top_p: Annotated[float, Field(gt=0, le=1), Finite] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), Finite] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2), Finite] | None = None
    stop: Texts | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100), Finite]], BeforeValidator(_few)] | None = (
        None
    )
    # extensions that vLLM and SGLang know as well
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None  # -1 and 0: off
    min_p: Annotated[float, Field(ge=0, le=1), Finite] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10), Finite] | None = None
    ignore_eos: bool | None = None
    min_tokens: TokenCount | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024, fail_fast=True)] | None = None
    stop_regex: Texts | None = None
    cache_salt: Name | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None  # higher first
    timeout: Annotated[float, Field(gt=0, le=1e6), Finite] | None = None  # seconds
    # constraints
    response_format: JsonObject | None = None
    regex: Data = None
    ebnf: Data = None
    choices: Data = None
    json_schema: Data = None
    structured_outputs: Data = None
    guided_json: Data = None
    guided_regex: Data = None
    guided_choice: Data = None
    guided_grammar: Data = None


class ChoicesBody(SamplingBody):
    """What chats and completions have in common."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None


class CompletionBody(ChoicesBody):
    prompt: Any = None  # str, token ids, or a list of either; params.prompts_of
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingBody(Body):
    input: Any = None  # as a completion's prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Any = None


# -- chats ---------------------------------------------------------------------------------------------------------


class Part(BaseModel):
    """A content part. Which types there are is told where the part's place is known."""

    model_config = ConfigDict(strict=True)

    type: Name
    text: Content | None = None
    refusal: Content | None = None


Parts: TypeAlias = Annotated[list[Part], Field(max_length=4096, fail_fast=True), BeforeValidator(_as_parts)]


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Name
    arguments: Content = ""


class CalledTool(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Name = ""
    type: Name = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Parts | None = None
    name: Name | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: Content | None = None


class FunctionBody(BaseModel):
    model_config = ConfigDict(strict=True)

    name: Name
    description: Content | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolBody(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Name
    function: FunctionBody | None = None


class TemplateFields(Body):
    """How messages become a prompt."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: JsonObject | None = None


Tools: TypeAlias = Annotated[list[ToolBody], Field(max_length=128, fail_fast=True)]
Messages: TypeAlias = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]


class DialogueBody(TemplateFields, SamplingBody):
    """The fields of every request that brings messages and wants one."""


class ChatBody(DialogueBody, ChoicesBody):
    messages: Messages
    max_completion_tokens: TokenCount | None = None  # wins over max_tokens
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: Data = None
    parallel_tool_calls: bool | None = None


class TokenizeBody(TemplateFields):
    prompt: Content | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    tokens: Annotated[list[TokenId], Field(max_length=MAX_DETOKENIZED, fail_fast=True)]
