"""A conversation as requests of the engine, and what each sample of it said: what chats and responses have in common.

    turns, tools, answer --prepare--> Dialogue --its requests--> the engine --events--> Speech --> deltas

Knows the service, plans and readers of replies. Knows no form of an answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palmette.errors import InvalidOption
from palmette.formats import ReasoningFormat, ToolSchema, reasoning_format, tool_format
from palmette.runtime.conversation import Turn
from palmette.runtime.server.clients import Client
from palmette.runtime.server.openai.messages import prompt_of
from palmette.runtime.server.openai.params import requests_for, writable
from palmette.runtime.server.openai.reply import Delta, Reply, ReplyPlan, ReplyReader, plan_reply, reasoning_behind
from palmette.runtime.server.openai.sampling import kept_rows
from palmette.runtime.server.openai.schema import DialogueBody
from palmette.runtime.server.service import Answer, Service
from palmette.runtime.tokenizer import Tokenizer
from palmette.specs import Spec
from palmette.types import Finish, GenerateRequest, LogprobParams, TokenEvent, TokenLogprob


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What is asked of the engine, one request a sample, and how what comes is read."""

    plan: ReplyPlan
    requests: list[GenerateRequest]
    tokenizer: Tokenizer

    def speech(self) -> Speech:
        """For one sample."""
        return Speech(self)


async def prepare(
    service: Service,
    client: Client,
    body: DialogueBody,
    turns: Sequence[Turn],
    *,
    tools: Sequence[ToolSchema],
    choice: str,
    parallel: bool,
    answer: Spec | None,
    request_id: str,
    max_tokens: int | None,
    logprobs: LogprobParams | None,
    n: int = 1,
    field: str = "messages",
) -> Dialogue:
    """
    Args:
        choice: "none", "auto", "required", or a tool's name.
        answer: what content must satisfy.
        field: what the messages are called in errors.

    Raises:
        PalmetteError: what is asked for cannot be.
    """
    pieces = await prompt_of(service, body, turns, tools)
    config = service.config
    form = reasoning_format(config.reasoning_format) if config.reasoning_format else None
    plan = plan_reply(
        chat_template=_call_marks(service), tools=tools, choice=choice, parallel=parallel, answer=answer,
        reasoning=reasoning_behind(form, pieces),
    )  # fmt: skip
    requests = requests_for(
        service, client, body, await service.encode(pieces), request_id=request_id, max_tokens=max_tokens,
        logprobs=logprobs, constraint=writable(plan.spec, "tools"), n=n, field=field,
    )  # fmt: skip
    return Dialogue(plan, requests, service.tokenizer)


class Speech:
    """One sample, read as it comes."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._plan, self._tokenizer = dialogue.plan, dialogue.tokenizer
        self._reader = ReplyReader(dialogue.plan)
        self._token_ids: list[int] = []
        self.rows: Sequence[TokenLogprob] = ()  # of the last event
        self.finish: Finish | None = None

    def hear(self, event: TokenEvent) -> list[Delta]:
        """What an event adds to the message."""
        self._token_ids += event.token_ids
        self.finish = event.finish
        self.rows = kept_rows(event.logprobs, event.finish)
        deltas = self._reader.feed(event.text) if event.text else []
        return deltas + self._reader.finish() if event.finish is not None else deltas

    @property
    def reply(self) -> Reply:
        """What was said so far."""
        return self._reader.reply

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning and its marks."""
        reasoning = self._reader.reply.reasoning
        if self._plan.reasoning is None or not reasoning:
            return 0
        form: ReasoningFormat = self._plan.reasoning.form
        size = len(reasoning) + len(form.end) + (0 if self._plan.reasoning.is_open else len(form.begin))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        count = 0
        for token_id in self._token_ids:
            if size <= 0:
                break
            size -= len(decoder.decode(self._tokenizer.shown_bytes(token_id)))
            count += 1
        return count


def heard(dialogue: Dialogue, answer: Answer) -> Speech:
    """A sample that came whole."""
    speech = dialogue.speech()
    speech.hear(TokenEvent("", answer.text, answer.token_ids, answer.logprobs, answer.finish))
    return speech


def choice_of(value: Any, tools: Sequence[ToolSchema]) -> str:
    """`tool_choice`, as chats and responses write it: "none", "auto", "required" or a tool's name.

    Raises:
        InvalidOption: it is none of them.
    """
    if value is None:
        return "auto" if tools else "none"
    if value in ("none", "auto", "required"):
        return str(value)
    name = None
    if isinstance(value, dict) and value.get("type", "function") == "function":
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else value.get("name")
    names = [tool.name for tool in tools]
    if not isinstance(name, str) or name not in names:
        shown = str(name if isinstance(name, str) else value)[:60]
        raise InvalidOption("tool_choice", shown, f"none, auto, required, or one of the tools: {', '.join(names)}")
    return name


def _call_marks(service: Service) -> str:
    """Text that tells how the model writes calls: its template, or the marks of the format that the operator named."""
    if service.config.tool_format:
        return "".join(tool_format(service.config.tool_format).markers)
    return service.template.source or ""
