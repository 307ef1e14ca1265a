"""OpenAI's messages and tools as turns and schemas, and the prompt that the model's chat template makes of them.

Knows bodies and `runtime.conversation`. Texts only: a part of another kind is refused by its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from palmette.errors import InvalidOption
from palmette.formats import ToolSchema
from palmette.runtime.conversation import ToolRequest, Turn, conversation_pieces
from palmette.runtime.server.openai.schema import ChatMessage, FunctionBody, Part, TemplateFields, ToolBody
from palmette.runtime.server.service import Service
from palmette.specs import JsonSchema, SchemaOptions
from palmette.types import TextPiece

_TEXT_PARTS = ("text", "input_text", "output_text")


def turns_of(messages: Iterable[ChatMessage]) -> list[Turn]:
    """
    Raises:
        InvalidOption: a content part that is no text, a message of tools without what it answers.
    """
    turns = []
    for i, message in enumerate(messages):
        place = f"messages[{i}]"
        if message.role == "tool" and message.content is None:
            raise InvalidOption(f"{place}.content", None, "the tool's result, as a text")
        calls = tuple(
            _call(f"{place}.tool_calls[{j}]", call.type, call.id, call.function.name, call.function.arguments)
            for j, call in enumerate(message.tool_calls or ())
        )
        turns.append(
            Turn(
                message.role, content_text(message.content, f"{place}.content"), message.name, calls,
                message.tool_call_id, message.reasoning_content,
            )
        )  # fmt: skip
    return turns


def content_text(parts: Sequence[Part] | None, place: str) -> str | None:
    """The text of content parts; None for none.

    Raises:
        InvalidOption: naming a part that is no text.
    """
    if parts is None:
        return None
    texts = []
    for j, part in enumerate(parts):
        text = part.refusal if part.type == "refusal" else part.text if part.type in _TEXT_PARTS else None
        if part.type not in (*_TEXT_PARTS, "refusal"):
            raise InvalidOption(f"{place}[{j}]", part.type, "a part of type text: this model reads text only")
        if text is None:
            raise InvalidOption(f"{place}[{j}].text", None, "a text")
        texts.append(text)
    return "".join(texts)


def tools_of(tools: Sequence[ToolBody] | None) -> tuple[ToolSchema, ...]:
    """The functions that the model is told of.

    Raises:
        InvalidOption: a tool that is no function, or whose name cannot be.
        UnsupportedConstraint: a schema that is none.
    """
    schemas = []
    for i, tool in enumerate(tools or ()):
        if tool.type != "function" or tool.function is None:
            raise InvalidOption(f"tools[{i}].type", tool.type, 'only {"type": "function", "function": {...}}')
        schemas.append(tool_schema(tool.function, f"tools[{i}].function"))
    return checked_names(schemas)


def tool_schema(function: FunctionBody, place: str) -> ToolSchema:
    """Its arguments are held to the schema whether `strict` is set or not; without, what cannot be is left out."""
    parameters = function.parameters or {"type": "object", "properties": {}}
    try:
        schema = JsonSchema.of(parameters, SchemaOptions(strict=bool(function.strict)))
        return ToolSchema(function.name, function.description or "", schema)
    except InvalidOption as error:
        raise InvalidOption(f"{place}.{error.field}", error.value, error.allowed) from None


def checked_names(schemas: Sequence[ToolSchema]) -> tuple[ToolSchema, ...]:
    """Raises InvalidOption for two tools of one name."""
    names = set()
    for i, schema in enumerate(schemas):
        if schema.name in names:
            raise InvalidOption(f"tools[{i}]", schema.name, "a name that no other tool has")
        names.add(schema.name)
    return tuple(schemas)


async def prompt_of(
    service: Service, body: TemplateFields, turns: Sequence[Turn], tools: Sequence[ToolSchema]
) -> tuple[TextPiece, ...]:
    """The prompt's pieces: a template runs off the loop.

    Raises:
        PromptTooLong: it cannot fit, which is seen before a template reads it.
        PalmetteError: as `conversation_pieces`.
    """
    continue_last = bool(body.continue_final_message)
    if continue_last and body.add_generation_prompt:
        raise InvalidOption("add_generation_prompt", True, "false or absent together with continue_final_message")
    if body.add_generation_prompt is False and not continue_last:
        raise InvalidOption(
            "add_generation_prompt", False, "true or absent, or false together with continue_final_message"
        )
    service.check_length(sum(len(turn.content or "") for turn in turns))
    kwargs: dict[str, Any] = body.chat_template_kwargs or {}
    return await asyncio.to_thread(
        conversation_pieces, service.template, turns, tools=tools, continue_last=continue_last, template_kwargs=kwargs
    )


def _call(place: str, kind: str, call_id: str, name: str, arguments: str) -> ToolRequest:
    if kind != "function":
        raise InvalidOption(f"{place}.type", kind, "function")
    return ToolRequest(call_id, name, arguments)
