"""/v1/chat/completions: a conversation, and the assistant's next message; whole, or in deltas that add up to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from palmette.errors import InvalidOption
from palmette.runtime.server.clients import Client
from palmette.runtime.server.http import client_of, read_body, service_of, stream_response, until_gone
from palmette.runtime.server.openai.dialogue import Dialogue, Speech, choice_of, heard, prepare
from palmette.runtime.server.openai.envelope import Envelope, notes, usage_data
from palmette.runtime.server.openai.logprobs import chat_rows
from palmette.runtime.server.openai.messages import tools_of, turns_of
from palmette.runtime.server.openai.params import check_body, constraint_of
from palmette.runtime.server.openai.reply import CallArguments, CallStart, ContentDelta, Delta, Kind, Reply
from palmette.runtime.server.openai.sampling import answers, events, stop_reason, usage_of
from palmette.runtime.server.openai.schema import ChatBody
from palmette.runtime.server.service import Service
from palmette.types import Finish, LogprobParams, TokenEvent, TokenLogprob, Usage


async def chat_completions(request: Request) -> Response:
    body = await read_body(request, ChatBody)
    service, client = service_of(request), client_of(request)
    card = check_body(service, body)
    answer_id = service.new_id("chatcmpl-")
    envelope = Envelope.of(answer_id, "chat.completion.chunk" if body.stream else "chat.completion", card, body)
    dialogue = await _dialogue(service, client, body, answer_id)
    if body.stream:
        writer = _Stream(service, body, envelope, dialogue)
        response = await stream_response(request, writer.chunks(client))
        response.headers.update(envelope.headers)
        return response
    found = await until_gone(request, answers(service, client, dialogue.requests))
    said = [heard(dialogue, answer) for answer in found]
    choices = [
        {
            "index": i,
            "message": _message(speech.reply),
            "logprobs": {"content": chat_rows(service.tokenizer, speech.rows), "refusal": None}
            if body.logprobs
            else None,
            **_ending(answer.finish, speech.reply, body),
        }
        for i, (answer, speech) in enumerate(zip(found, said, strict=True))
    ]
    return envelope.whole(choices, _usage(service, [answer.finish for answer in found], said))


async def _dialogue(service: Service, client: Client, body: ChatBody, answer_id: str) -> Dialogue:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidOption("top_logprobs", body.top_logprobs, "only together with logprobs: true")
    tools = tools_of(body.tools)
    return await prepare(
        service, client, body, turns_of(body.messages), tools=tools, choice=choice_of(body.tool_choice, tools),
        parallel=body.parallel_tool_calls is not False, answer=constraint_of(body), request_id=answer_id,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=LogprobParams(top=body.top_logprobs or 0) if body.logprobs else None, n=body.n or 1,
    )  # fmt: skip


def _message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.calls
        ]
    return message


def _ending(finish: Finish, reply: Reply, body: ChatBody) -> dict[str, Any]:
    return {
        "finish_reason": reply.finish_reason(finish.reason),
        "stop_reason": stop_reason(finish, body.stop_token_ids),
        **notes(finish),
    }


def _usage(service: Service, finishes: Sequence[Finish], said: Sequence[Speech]) -> dict[str, Any]:
    reasoning = sum(speech.reasoning_tokens for speech in said) if service.config.reasoning_format else None
    return usage_data(usage_of([finishes]), reasoning)


class _Stream:
    """The chunks of a streamed answer. Each choice begins with its role and ends with its finish_reason."""

    def __init__(self, service: Service, body: ChatBody, envelope: Envelope, dialogue: Dialogue) -> None:
        self._service, self._body, self._envelope, self._dialogue = service, body, envelope, dialogue
        self._said = [dialogue.speech() for _ in dialogue.requests]
        self._has_begun = [False] * len(dialogue.requests)

    async def chunks(self, client: Client) -> AsyncIterator[bytes]:
        async with aclosing(events(self._service, client, self._dialogue.requests)) as source:
            async for index, event in source:
                told = b"".join(self._chunks(index, event))
                if told:
                    yield told
        finishes = [speech.finish for speech in self._said if speech.finish is not None]
        yield self._envelope.usage_chunk(_usage(self._service, finishes, self._said))

    def _chunks(self, index: int, event: TokenEvent) -> list[bytes]:
        speech = self._said[index]
        deltas = _joined(speech.hear(event))
        rows = speech.rows if self._body.logprobs else ()
        told = []
        if not self._has_begun[index]:
            self._has_begun[index] = True
            content = None if self._dialogue.plan.kind is Kind.CALLS else ""
            told.append(self._chunk(index, {"role": "assistant", "content": content}, ()))
        for delta in deltas:
            told.append(self._chunk(index, _delta(delta), rows))
            rows = ()
        if rows:  # their text is held back
            told.append(self._chunk(index, {}, rows))
        if event.finish is not None:
            told.append(self._chunk(index, {}, (), _ending(event.finish, speech.reply, self._body)))
        return told

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        rows: Sequence[TokenLogprob],
        ending: dict[str, Any] | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if rows:
            choice["logprobs"] = {"content": chat_rows(self._service.tokenizer, rows), "refusal": None}
        if ending is not None:
            choice.update(ending)
        return self._envelope.chunk(choice, self._running() if self._envelope.with_running_usage else None)

    def _running(self) -> dict[str, Any]:
        prompt_tokens = len(self._dialogue.requests[0].token_ids)
        return usage_data(Usage(prompt_tokens=prompt_tokens, sampled_tokens=sum(s.num_tokens for s in self._said)))


def _joined(deltas: list[Delta]) -> list[Delta]:
    """Neighbours of one kind as one."""
    joined: list[Delta] = []
    for delta in deltas:
        last = joined[-1] if joined else None
        if isinstance(delta, ContentDelta) and isinstance(last, ContentDelta):
            joined[-1] = ContentDelta(last.text + delta.text)
        elif isinstance(delta, CallArguments) and isinstance(last, CallArguments) and last.index == delta.index:
            joined[-1] = CallArguments(delta.index, last.text + delta.text)
        else:
            joined.append(delta)
    return joined


def _delta(delta: Delta) -> dict[str, Any]:
    if isinstance(delta, ContentDelta):
        return {"content": delta.text}
    if isinstance(delta, CallStart):
        function = {"name": delta.name, "arguments": ""}
        return {"tool_calls": ({"index": delta.index, "id": delta.id, "type": "function", "function": function},)}
    if isinstance(delta, CallArguments):
        return {"tool_calls": ({"index": delta.index, "function": {"arguments": delta.text}},)}
    return {"reasoning_content": delta.text}


ROUTES = (("/v1/chat/completions", ("POST",), chat_completions),)
