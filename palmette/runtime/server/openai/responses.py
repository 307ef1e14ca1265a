"""/v1/responses: OpenAI's newer way to ask the same, as a thin layer over what chats do.

Nothing is kept between requests: the client sends the whole conversation. `store` asks for nothing here; what only
makes sense with a store is refused.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from palmette.errors import InvalidOption, Overloaded, PalmetteError
from palmette.formats import ToolSchema
from palmette.runtime.conversation import ToolRequest, Turn
from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import (
    client_of,
    json_response,
    read_body,
    service_of,
    sse,
    stream_response,
    until_gone,
)
from palmette.runtime.server.openai.dialogue import Dialogue, Speech, choice_of, prepare
from palmette.runtime.server.openai.envelope import notes
from palmette.runtime.server.openai.logprobs import chat_rows
from palmette.runtime.server.openai.messages import checked_names, content_text, tool_schema
from palmette.runtime.server.openai.params import check_body, constraint_of, writable
from palmette.runtime.server.openai.reply import answer_spec
from palmette.runtime.server.openai.responses_output import Output, Told
from palmette.runtime.server.openai.responses_schema import InputItem, ResponsesBody, ResponseTool
from palmette.runtime.server.openai.sampling import answers, events
from palmette.runtime.server.openai.schema import FunctionBody, Part
from palmette.runtime.server.service import Service
from palmette.specs import Spec
from palmette.types import Finish, FinishReason, LogprobParams, TokenEvent

_KEPT = "absent: nothing is kept between requests here; send the whole conversation as `input`"
_LOGPROBS = "message.output_text.logprobs"


async def responses(request: Request) -> Response:
    body = await read_body(request, ResponsesBody)
    service, client = service_of(request), client_of(request)
    answer = _Answer(service, body, service.new_id("resp_"))
    dialogue = await _dialogue(service, client, body, answer.id)
    headers = {"x-request-id": answer.id}
    if body.stream:
        chunks = answer.chunks(client, dialogue)
        response = await stream_response(request, chunks, on_error=answer.failed, done=b"")
        response.headers.update(headers)
        return response
    (whole,) = await until_gone(request, answers(service, client, dialogue.requests))
    answer.begin(dialogue)
    answer.hear(TokenEvent("", whole.text, whole.token_ids, whole.logprobs, whole.finish))
    return json_response(answer.data(), headers=headers)


async def _dialogue(service: Service, client: Client, body: ResponsesBody, answer_id: str) -> Dialogue:
    check_body(service, body)
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise InvalidOption(name, str(getattr(body, name))[:60], _KEPT)
    if body.background:
        raise InvalidOption("background", True, "false or absent: the answer comes to the request that asks for it")
    tools = _tools(body.tools)
    wants_rows = body.top_logprobs is not None or _LOGPROBS in (body.include or ())
    return await prepare(
        service, client, body, turns_of_items(body.instructions, body.input), tools=tools,
        choice=choice_of(body.tool_choice, tools), parallel=body.parallel_tool_calls is not False,
        answer=_constraint(body), request_id=answer_id, max_tokens=body.max_output_tokens,
        logprobs=LogprobParams(top=body.top_logprobs or 0) if wants_rows else None, field="input",
    )  # fmt: skip


def turns_of_items(instructions: str | None, items: Sequence[InputItem]) -> list[Turn]:
    """Items as turns: neighbouring calls, and the message they follow, are one turn of the assistant's.

    Raises:
        InvalidOption: naming an item that is not known or lacks something.
    """
    turns = [] if instructions is None else [Turn("system", instructions)]
    reasoning: str | None = None
    for i, item in enumerate(items):
        place = f"input[{i}]"
        if item.type in (None, "message"):
            if item.role is None:
                raise InvalidOption(f"{place}.role", None, "system, developer, user or assistant")
            turns.append(Turn(item.role, content_text(item.content, f"{place}.content"), reasoning=reasoning))
            reasoning = None
        elif item.type == "reasoning":
            reasoning = _reasoning(item) or reasoning
        elif item.type == "function_call":
            call = _call(item, place)
            if turns and turns[-1].role == "assistant" and reasoning is None:
                turns[-1] = replace(turns[-1], tool_calls=(*turns[-1].tool_calls, call))
            else:
                turns.append(Turn("assistant", None, tool_calls=(call,), reasoning=reasoning))
            reasoning = None
        elif item.type == "function_call_output":
            if item.call_id is None or item.output is None:
                raise InvalidOption(f"{place}.call_id", item.call_id, "a call's id, and its output as a text")
            turns.append(Turn("tool", content_text(item.output, f"{place}.output"), tool_call_id=item.call_id))
        else:
            raise InvalidOption(f"{place}.type", item.type, "message, reasoning, function_call or function_call_output")
    return turns


def _reasoning(item: InputItem) -> str | None:
    parts: list[Part] = [*(item.content or ()), *(() if item.content else item.summary or ())]
    return "\n".join(part.text for part in parts if part.text) or None


def _call(item: InputItem, place: str) -> ToolRequest:
    for name, value in (("call_id", item.call_id), ("name", item.name), ("arguments", item.arguments)):
        if value is None:
            raise InvalidOption(f"{place}.{name}", None, "a text")
    return ToolRequest(item.call_id or "", item.name or "", item.arguments or "")


def _tools(tools: Sequence[ResponseTool] | None) -> tuple[ToolSchema, ...]:
    schemas = []
    for i, tool in enumerate(tools or ()):
        if tool.type != "function":
            raise InvalidOption(f"tools[{i}].type", tool.type, "function: other tools would run on this server")
        if tool.name is None:
            raise InvalidOption(f"tools[{i}].name", None, "the function's name")
        function = FunctionBody(
            name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
        )
        schemas.append(tool_schema(function, f"tools[{i}]"))
    return checked_names(schemas)


def _constraint(body: ResponsesBody) -> Spec | None:
    own = constraint_of(body)
    form = body.text.format if body.text is not None else None
    asked = writable(answer_spec(form, {}, field="text.format"), "text.format")
    if own is not None and asked is not None:
        raise InvalidOption("text.format", "...", "one constraint in a request")
    return own or asked


class _Answer:
    """One response, while it grows and whole."""

    def __init__(self, service: Service, body: ResponsesBody, answer_id: str) -> None:
        self.id = answer_id
        self._service, self._body = service, body
        self._created = int(time.time())
        self._output = Output(answer_id.removeprefix("resp_"))
        self._speech: Speech | None = None
        self._finish: Finish | None = None
        self._error: dict[str, Any] | None = None
        self._number = 0

    def begin(self, dialogue: Dialogue) -> None:
        """The speech begins."""
        self._speech = dialogue.speech()

    async def chunks(self, client: Client, dialogue: Dialogue) -> AsyncIterator[bytes]:
        """The events of a streamed response, the failure of one excepted."""
        async with aclosing(events(self._service, client, dialogue.requests)) as source:
            async for _, event in source:
                sent = b""
                if self._speech is None:
                    self.begin(dialogue)
                    sent = self._sent("response.created", self._whole())
                    sent += self._sent("response.in_progress", self._whole())
                sent += b"".join(self._sent(*each) for each in self.hear(event))
                if sent:
                    yield sent
        yield self._sent(f"response.{self._status}", self._whole())

    def hear(self, event: TokenEvent) -> list[Told]:
        """What an event adds."""
        assert self._speech is not None, "it has begun"
        deltas = self._speech.hear(event)
        rows = chat_rows(self._service.tokenizer, self._speech.rows)
        told: list[Told] = []
        for delta in deltas:
            told += self._output.take(delta, rows)
            rows = []
        self._output.hold(rows)
        if event.finish is not None:
            self._finish = event.finish
            told += self._output.finish(self._status)
        return told

    def failed(self, error: PalmetteError) -> bytes:
        """The last event of a stream that failed."""
        code = "rate_limit_exceeded" if isinstance(error, Overloaded) else "server_error"
        self._error = {"code": code, "message": str(error)}
        return self._sent("response.failed", self._whole())

    def data(self) -> dict[str, Any]:
        """The response object, as far as it has come."""
        body = self._body
        asked = body.text.format if body.text is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._service.model.name,
            "output": self._output.items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": asked or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": self._usage(),
            **(notes(self._finish) if self._finish is not None else {}),
        }

    @property
    def _status(self) -> str:
        if self._error is not None:
            return "failed"
        if self._finish is None:
            return "in_progress"
        return "incomplete" if self._finish.reason is FinishReason.LENGTH else "completed"

    def _usage(self) -> dict[str, Any] | None:
        if self._finish is None or self._speech is None:
            return None
        used = self._finish.usage
        return {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens},
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._speech.reasoning_tokens},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        }

    def _whole(self) -> dict[str, Any]:
        return {"response": self.data()}

    def _sent(self, kind: str, fields: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return sse({"type": kind, "sequence_number": number, **fields}, kind)


ROUTES = (("/v1/responses", ("POST",), responses),)
