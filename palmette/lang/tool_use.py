"""Tools in free text: what a model may write, in the format of its family, and what comes of it.

    s += gen("reply", tools=[weather, search])
    s["reply"].text, s["reply"].calls

The family is told by the model's chat template. Where that knows no tool calls, a call is the whole message, as JSON:
{"name": "weather", "arguments": {...}}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from palmette.errors import InvalidOption, UnsupportedConstraint
from palmette.formats import Content, Event, ToolCallParser, ToolFormat, ToolSchema, detect, parse_calls, tool_spec
from palmette.formats.tools import PLAIN as PLAIN  # constraints.py has it from here
from palmette.ir import ToolUse
from palmette.lang.tools import Tool, ToolCall
from palmette.lang.types import typed
from palmette.specs import JsonSchema, Spec


@dataclass(frozen=True, slots=True)
class ToolReply:
    """What a model with tools wrote: text, calls, or text and then calls.

    Attributes:
        text: what is no call.
        calls: in the order in which they were written.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()


def tool_use(tools: Any, choice: Any, parallel: bool | None) -> ToolUse:
    """The options of `gen` as data.

    Raises:
        InvalidOption: no tools, two of one name, a choice that is none of them.
    """
    listed = tools if isinstance(tools, Sequence) and not isinstance(tools, str) else (tools,)
    for function in listed:
        if not callable(function) or isinstance(function, type):
            raise InvalidOption("tools", function, "functions or tools")
    made = tuple(f if isinstance(f, Tool) else Tool(f) for f in listed)
    name = choice if isinstance(choice, str) else next((t.name for t in made if choice in (t, t.func)), None)
    known = ["auto", "required", *(t.name for t in made)]
    if choice is not None and name not in known:
        raise InvalidOption("tool_choice", choice, f"one of {', '.join(known)}")
    if parallel not in (None, True, False):
        raise InvalidOption("parallel_tool_calls", parallel, "True or False")
    return ToolUse(made, name or "auto", parallel is not False)


def use_spec(use: ToolUse, form: ToolFormat) -> Spec:
    """What a message may be.

    Raises:
        InvalidOption: no tools, or two of one name.
        UnsupportedConstraint: a parameter's type has no form that is enforced.
    """
    return tool_spec(form, [_schema(t) for t in use.tools], choice=use.choice, parallel=use.parallel)


@lru_cache(maxsize=64)
def form_of(chat_template: str) -> ToolFormat:
    """The format in which a model with this chat template writes calls."""
    return detect(chat_template) or PLAIN


def read_reply(use: ToolUse, form: ToolFormat, text: str) -> ToolReply:
    """What a whole message comes to.

    Raises:
        ValueError: a call that was cut, or that a validator of its parameters' types refuses.
    """
    content, parsed = (text, ()) if _is_answer(form, text) else parse_calls(form, text)
    if _begins_call(form, content):
        raise ValueError("a call was begun and is not whole")
    tools: dict[str, Tool[..., Any]] = {t.name: t for t in use.tools}
    calls: list[ToolCall] = []
    for call in parsed:
        if not call.is_complete or call.name not in tools:
            raise ValueError(f"the call of {call.name} is not whole")
        found = tools[call.name]
        try:
            calls.append(ToolCall(found, typed(found.arguments_type).parse(call.arguments)))
        except ValueError as error:
            raise ValueError(f"call of {call.name}: {error}") from error
    if use.choice != "auto" and not calls:
        raise ValueError("there is no call")
    return ToolReply(content, tuple(calls))


class WithoutCalls:
    """Passes on what of a streaming message belongs to no call."""

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._parser: ToolCallParser | None = None  # made with the first character, which may settle that no call comes
        self._is_answer = False

    def feed(self, text: str) -> str:
        if text and self._parser is None:
            self._parser, self._is_answer = ToolCallParser(self._form), _is_answer(self._form, text)
        return text if self._is_answer or self._parser is None else _content(self._parser.feed(text))

    def finish(self) -> str:
        return "" if self._is_answer or self._parser is None else _content(self._parser.finish())


def _is_answer(form: ToolFormat, text: str) -> bool:
    """Whether a message is no call, as its first character tells where a call is the whole message.

    The parser would pass over white space, behind which nothing was enforced.
    """
    return not form.trigger and text[:1].isspace()


def _begins_call(form: ToolFormat, content: str) -> bool:
    """Whether what was left over holds the beginning of a call, which free text cannot."""
    return form.trigger in content if form.trigger else content.startswith("{")


def _content(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def _schema(of: Tool[..., Any]) -> ToolSchema:
    try:
        return ToolSchema(of.name, of.description, JsonSchema(typed(of.arguments_type).schema))
    except UnsupportedConstraint as error:
        place = f"tool {of.name}{error.path}"
        raise UnsupportedConstraint(place, error.keyword, error.reason, error.hint) from error.__cause__
