"""The body of /v1/responses. Items of its input have one lenient shape: what each must have is told by its place."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from palmette.runtime.server.openai.schema import (
    Content,
    Data,
    DialogueBody,
    JsonObject,
    Name,
    Parts,
    TokenCount,
)


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class InputItem(BaseModel):
    """A message, a call, its output, or reasoning."""

    model_config = ConfigDict(strict=True)

    type: Name | None = None  # None = message
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts | None = None
    summary: Parts | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: Content | None = None
    output: Parts | None = None


class ResponseTool(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Name
    name: Name | None = None
    description: Content | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class TextOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    format: JsonObject | None = None


Items: TypeAlias = Annotated[
    list[InputItem], Field(min_length=1, max_length=4096, fail_fast=True), BeforeValidator(_as_items)
]


class ResponsesBody(DialogueBody):
    input: Items
    instructions: Content | None = None
    max_output_tokens: TokenCount | None = None
    stream: bool | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Data = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Name], Field(max_length=64)] | None = None
    metadata: JsonObject | None = None
    # refused, all of them: nothing is kept here between requests
    previous_response_id: Data = None
    conversation: Data = None
    background: Data = None
    prompt: Data = None
