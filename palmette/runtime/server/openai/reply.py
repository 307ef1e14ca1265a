"""What the model may write for a chat request, and what it wrote: reasoning, content, tool calls.

    tools, choice, response_format  --plan_reply-->  ReplyPlan.spec  --the model-->  text  --ReplyReader-->  deltas

A plan and its reader belong together: since the text satisfies the plan's specification, its beginning tells calls from
an answer, and the reader never guesses. Where an answer could begin exactly as a call does, it is read as a call.

Knows the families' formats and no bodies of requests; `answer_spec` reads those (answer.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias

from palmette.errors import InvalidOption
from palmette.formats import (
    ArgumentsDelta,
    CallStarted,
    Content,
    ReasoningFormat,
    ToolCallParser,
    ToolFormat,
    ToolSchema,
    detect,
    tool_spec,
)
from palmette.formats.tools import PLAIN
from palmette.runtime.conversation import ToolRequest
from palmette.runtime.server.openai.answer import answer_spec
from palmette.specs import Concat, Reasoned, Spec
from palmette.types import FinishReason, TextPiece

__all__ = [
    "CallArguments",
    "CallStart",
    "ContentDelta",
    "Delta",
    "Reasoning",
    "ReasoningDelta",
    "Reply",
    "ReplyPlan",
    "ReplyReader",
    "answer_spec",
    "new_call_id",
    "plan_reply",
    "read_reply",
    "reasoning_behind",
]


class Kind(Enum):
    """What a message can be."""

    ANSWER = "answer"  # content alone
    CALLS = "calls"  # calls alone
    EITHER = "either"  # one of the two, as its beginning tells
    MIXED = "mixed"  # content and then, perhaps, calls


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How the model reasons first; `is_open`: the prompt has begun it already."""

    form: ReasoningFormat
    is_open: bool


@dataclass(frozen=True, slots=True)
class ReplyPlan:
    """`spec` for the request, None if any text will do; the rest for the reader."""

    spec: Spec | None
    kind: Kind = Kind.ANSWER
    form: ToolFormat | None = None  # None: there are no calls
    openings: tuple[str, ...] = ()  # what calls begin with, where a message is one or the other
    reasoning: Reasoning | None = None


def plan_reply(
    *,
    chat_template: str,
    tools: Sequence[ToolSchema] = (),
    choice: str = "auto",
    parallel: bool = True,
    answer: Spec | None = None,
    reasoning: Reasoning | None = None,
    thinking_budget: int | None = None,
) -> ReplyPlan:
    """
    Args:
        chat_template: its source, which tells how the family writes calls.
        choice: "none" (tools are only shown), "auto", "required", or a tool's name.
        parallel: several calls may stand in one message, if the family writes them.
        answer: what an answer must satisfy; None = any text.
        reasoning: None = the model does not reason, or its reasoning is part of the content.
        thinking_budget: tokens of reasoning after which its end is forced.

    Raises:
        InvalidOption: a choice that needs tools where there are none, one that is no tool; a budget without reasoning.
    """
    if thinking_budget is not None and reasoning is None:
        raise InvalidOption("thinking_budget", thinking_budget, "absent: this model does not reason here")
    if not tools and choice not in ("none", "auto"):
        raise InvalidOption("tool_choice", choice, '"none", "auto" or absent without tools')
    if not tools or choice == "none":
        return ReplyPlan(_answer_only(answer, reasoning, thinking_budget), reasoning=reasoning)
    form = detect(chat_template) or PLAIN
    spec = tool_spec(
        form,
        tools,
        choice=choice,
        parallel=parallel,
        answer=answer,
        reasoning=None if reasoning is None else reasoning.form,
        is_open=None if reasoning is None else reasoning.is_open,
        thinking_budget=thinking_budget,
    )
    if choice != "auto":
        kind = Kind.CALLS
    elif answer is None and form.trigger and not form.answer_begin:
        kind = Kind.MIXED
    else:
        kind = Kind.EITHER
    return ReplyPlan(spec, kind, form, _openings(form, tools), reasoning)


def reasoning_behind(form: ReasoningFormat | None, prompt: Sequence[TextPiece]) -> Reasoning | None:
    """How the model goes on behind a prompt: None where that has ended the reasoning, or ends inside an answer."""
    if form is None or not prompt or not prompt[-1].special:
        return None
    end = prompt[-1].text
    if form.is_open(end):
        return Reasoning(form, is_open=True)
    is_closed = end.rstrip().endswith(form.end.rstrip())
    return None if is_closed else Reasoning(form, is_open=False)


def _answer_only(answer: Spec | None, reasoning: Reasoning | None, budget: int | None) -> Spec | None:
    if reasoning is None:
        return answer
    after = reasoning.form.after
    content = Concat((after, answer)) if answer is not None and after else answer
    return Reasoned(reasoning.form.end, content, budget, begin="" if reasoning.is_open else reasoning.form.begin)


def _openings(form: ToolFormat, tools: Sequence[ToolSchema]) -> tuple[str, ...]:
    if form.name_end is None:
        calls = [f'{form.lead}{{"name": "{tool.name}", "{form.arguments_key}": ' for tool in tools]
    else:
        calls = [f"{form.lead}{tool.name}{form.name_end}" for tool in tools]
    return (*calls, *(form.may_begin + call for call in calls if form.may_begin))


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    index: int  # from 0 in each message
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """JSON text; those of one call concatenate to its arguments."""

    index: int
    text: str


Delta: TypeAlias = ReasoningDelta | ContentDelta | CallStart | CallArguments


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole message. A call that was cut has what was written of its arguments."""

    content: str | None = None  # None: there are calls and no text
    calls: tuple[ToolRequest, ...] = ()
    reasoning: str | None = None

    def finish_reason(self, reason: FinishReason) -> Literal["stop", "length", "tool_calls"]:
        """OpenAI's word for how it ended, if it did not fail."""
        if reason is FinishReason.LENGTH:
            return "length"
        return "tool_calls" if self.calls else "stop"


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def read_reply(plan: ReplyPlan, text: str, *, new_id: Callable[[], str] = new_call_id) -> Reply:
    """What a whole text comes to."""
    reader = ReplyReader(plan, new_id=new_id)
    reader.feed(text)
    reader.finish()
    return reader.reply


class ReplyReader:
    """Reads one text while it comes, in pieces cut anywhere. What is held back is what may still become something else.

    begin -> REASONING -> end -> after -> beginning of the message -> content, or calls
    """

    def __init__(self, plan: ReplyPlan, *, new_id: Callable[[], str] = new_call_id) -> None:
        self._plan, self._new_id = plan, new_id
        self._held = ""
        self._step: Callable[[bool], list[Delta] | None] = self._begin if plan.reasoning else self._open
        self._parser: ToolCallParser | None = None
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolRequest] = []
        self._arguments: list[list[str]] = []

    def feed(self, text: str) -> list[Delta]:
        """What a further piece of text adds."""
        self._held += text
        return self._read(is_last=False)

    def finish(self) -> list[Delta]:
        """What was held back, when nothing more will come."""
        deltas = self._read(is_last=True)
        if self._parser is not None:
            deltas += self._parsed(self._parser.finish())
        return deltas

    @property
    def reply(self) -> Reply:
        """All that was handed out so far."""
        calls = tuple(replace(c, arguments="".join(a)) for c, a in zip(self._calls, self._arguments, strict=True))
        content = "".join(self._content)
        reasoning = "".join(self._reasoning) if self._plan.reasoning else None
        return Reply(content if content or not calls else None, calls, reasoning)

    def _read(self, *, is_last: bool) -> list[Delta]:
        deltas: list[Delta] = []
        while self._held and (read := self._step(is_last)) is not None:
            deltas += read
        return deltas

    # -- steps: each takes from what is held and may choose the next; None = it must see more --------------------------

    def _begin(self, is_last: bool) -> list[Delta] | None:
        """The mark that begins the reasoning, where the prompt has not written it."""
        assert self._plan.reasoning is not None, "there is reasoning"
        begin = "" if self._plan.reasoning.is_open else self._plan.reasoning.form.begin
        return self._skip(begin, self._reason, is_last=is_last)

    def _reason(self, is_last: bool) -> list[Delta] | None:
        assert self._plan.reasoning is not None, "there is reasoning"
        end = self._plan.reasoning.form.end
        text, found, rest = self._held.partition(end)
        if found:
            self._held, self._step = rest, self._behind_reasoning
        else:
            kept = 0 if is_last else _overlap(text, end)
            text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        if text:
            self._reasoning.append(text)
            return [ReasoningDelta(text)]
        return [] if found else None

    def _behind_reasoning(self, is_last: bool) -> list[Delta] | None:
        assert self._plan.reasoning is not None, "there is reasoning"
        return self._skip(self._plan.reasoning.form.after, self._open, is_last=is_last)

    def _open(self, is_last: bool) -> list[Delta] | None:
        """What the beginning of a message says of it."""
        plan = self._plan
        if plan.form is None:
            self._step = self._answer
        elif plan.kind is not Kind.EITHER or self._held.startswith(plan.openings):
            self._parser, self._step = ToolCallParser(plan.form), self._parse
        elif not is_last and any(opening.startswith(self._held) for opening in plan.openings):
            return None
        else:
            return self._skip(plan.form.answer_begin, self._answer, is_last=is_last)
        return []

    def _answer(self, is_last: bool) -> list[Delta] | None:
        text, self._held = self._held, ""
        self._content.append(text)
        return [ContentDelta(text)]

    def _parse(self, is_last: bool) -> list[Delta] | None:
        assert self._parser is not None, "there are calls"
        text, self._held = self._held, ""
        return self._parsed(self._parser.feed(text))

    def _skip(self, text: str, then: Callable[[bool], list[Delta] | None], *, is_last: bool) -> list[Delta] | None:
        """Passes over `text`, if it comes."""
        if text and not is_last and len(self._held) < len(text) and text.startswith(self._held):
            return None
        self._held, self._step = self._held.removeprefix(text), then
        return []

    def _parsed(self, events: Sequence[object]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if isinstance(event, Content):
                self._content.append(event.text)
                deltas.append(ContentDelta(event.text))
            elif isinstance(event, CallStarted):
                start = CallStart(event.index, self._new_id(), event.name)
                self._calls.append(ToolRequest(start.id, start.name, ""))
                self._arguments.append([])
                deltas.append(start)
            elif isinstance(event, ArgumentsDelta):
                self._arguments[event.index].append(event.text)
                deltas.append(CallArguments(event.index, event.text))
        return deltas


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters of `text` begin `mark`, at most all but one of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
