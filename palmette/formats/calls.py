"""What a model may write when it has tools: a specification made of a family's format and the tools' schemas."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from palmette.errors import InvalidOption
from palmette.formats.reasoning import ReasoningFormat
from palmette.formats.tools import ToolFormat
from palmette.specs import Concat, JsonSchema, OneOf, Reasoned, Regex, Repeated, Spec, Tag, Tagged

NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_CHOICES = ("auto", "required")


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool as the model is told of it."""

    name: str
    description: str
    parameters: JsonSchema  # of the arguments, an object

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in _CHOICES:
            allowed = f"letters, digits, _ . and -, at most 64, and none of {', '.join(_CHOICES)}"
            raise InvalidOption("name", self.name, allowed)


def tool_spec(
    form: ToolFormat,
    tools: Sequence[ToolSchema],
    *,
    choice: str = "auto",
    parallel: bool = True,
    answer: Spec | None = None,
    reasoning: ReasoningFormat | None = None,
    is_open: bool | None = None,
    thinking_budget: int | None = None,
) -> Spec:
    """The messages that use `tools` rightly.

    Args:
        choice: "auto": an answer or calls; "required": calls; a tool's name: a call of that tool.
        parallel: several calls may stand in one message, if the family writes them.
        answer: what an answer must satisfy; None = any text, in front of calls as well.
        reasoning: how the model reasons first; None = it does not.
        is_open: whether the prompt ends inside the reasoning (`ReasoningFormat.is_open`); None = as its
            family usually does.
        thinking_budget: tokens of reasoning after which its end is forced.

    Raises:
        InvalidOption: no tools, two of one name, a choice that is no tool, a budget without reasoning.
    """
    if thinking_budget is not None and reasoning is None:
        raise InvalidOption("thinking_budget", thinking_budget, "None, or given with a reasoning format")
    chosen = _chosen(tools, choice)
    many = parallel and form.parallel and (choice == "required" or choice == "auto")
    if choice != "auto":
        body, is_free = _calls(form, chosen, many=many), False
    elif answer is not None:
        body, is_free = OneOf((Concat((form.answer_begin, answer)), _calls(form, chosen, many=many))), False
    elif form.answer_begin:
        free = Concat((form.answer_begin, Regex("(?s:.)*")))
        body, is_free = OneOf((free, _calls(form, chosen, many=many))), False
    elif not form.trigger:  # a call is the whole message, told from an answer by its first character
        body, is_free = OneOf((Regex(r"(?s:[^{].*)?"), _calls(form, chosen, many=many))), False
    else:
        tag = Tag(form.lead, _behind_lead(form, chosen, many=many))
        body, is_free = Tagged((tag,), triggers=(form.trigger,), stop_after_first=True), True
    if reasoning is None:
        return body
    content = body if is_free or not reasoning.after else Concat((reasoning.after, body))
    inside = reasoning.starts_inside if is_open is None else is_open
    return Reasoned(reasoning.end, content, thinking_budget, begin="" if inside else reasoning.begin)


def _chosen(tools: Sequence[ToolSchema], choice: str) -> tuple[ToolSchema, ...]:
    names = [tool.name for tool in tools]
    if not names or len(set(names)) < len(names):
        raise InvalidOption("tools", names, "at least one, each with a name of its own")
    if choice in _CHOICES:
        return tuple(tools)
    if choice not in names:
        raise InvalidOption("tool choice", choice, f"{', '.join(_CHOICES)}, or one of {', '.join(names)}")
    return tuple(tool for tool in tools if tool.name == choice)


def _calls(form: ToolFormat, tools: tuple[ToolSchema, ...], *, many: bool) -> Spec:
    calls = Concat((form.lead, _behind_lead(form, tools, many=many)))
    return OneOf((calls, Concat((form.may_begin, calls)))) if form.may_begin else calls


def _behind_lead(form: ToolFormat, tools: tuple[ToolSchema, ...], *, many: bool) -> Spec:
    """One call without what leads to it, then others if `many`, then the end of the section."""
    call = OneOf(tuple(_call(form, tool) for tool in tools))
    more = Repeated(Concat((form.separator + form.call_begin, call, form.call_end)), 0, None)
    return Concat((call, form.call_end, *((more,) if many else ()), form.section_end))


def _call(form: ToolFormat, tool: ToolSchema) -> Spec:
    if form.name_end is not None:
        return Concat((tool.name + form.name_end, tool.parameters))
    return Concat((f'{{"name": "{tool.name}", "{form.arguments_key}": ', tool.parameters, "}"))
