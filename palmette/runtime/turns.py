"""Messages of a conversation as clients send them, and the ways to say one without what a chat template does not know.

    tools      a list in the system message, with the form of a call
    calls      the assistant's text
    results    a message of the user's
    system     in front of what the user says next

Knows the families' formats of calls. Does not know what a template accepts: conversation.py finds out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from palmette.formats import ToolFormat, ToolSchema
from palmette.runtime.given_data import parameters_of
from palmette.runtime.template_origin import Given, Joined


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A call that the assistant made."""

    id: str
    name: str
    arguments: str  # JSON text, as the model wrote it: not necessarily whole


@dataclass(frozen=True, slots=True)
class Turn:
    """A message. `developer` is the same as `system`."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolRequest, ...] = ()
    tool_call_id: str | None = None  # of the call that a message of role "tool" answers
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A message on its way. `index` is its turn's, or the one it stands before."""

    index: int
    role: str
    content: Joined | None
    name: str | None = None
    calls: tuple[ToolRequest, ...] = ()
    call_id: str | None = None
    reasoning: str | None = None


def with_tools(drafts: list[Draft], tools: Sequence[ToolSchema], form: ToolFormat) -> list[Draft]:
    """The tools in the system message that comes first, or in one of their own."""
    listed = [{"name": t.name, "description": t.description, "parameters": parameters_of(t)} for t in tools]
    text = Joined(
        (
            "You can call these functions:\n",
            Given(json.dumps(listed, ensure_ascii=False)),
            "\nTo call one, write nothing but its name and its arguments as JSON, in this form:\n",
            *_written(form, [("NAME", '{"ARGUMENT": "VALUE"}')]),
        )
    )
    if drafts[0].role == "system":
        return [replace(drafts[0], content=Joined((*(drafts[0].content or ()), "\n\n", *text))), *drafts[1:]]
    return [Draft(0, "system", text), *drafts]


def with_written_calls(draft: Draft, form: ToolFormat) -> Draft:
    """The calls of a message as its text."""
    written = _written(form, [(Given(call.name), Given(call.arguments or "{}")) for call in draft.calls])
    before = (*draft.content, "\n") if draft.content and "".join(draft.content) else ()
    return replace(draft, content=Joined((*before, *written)), calls=())


def _written(form: ToolFormat, calls: Sequence[tuple[str, str]]) -> list[str]:
    """Calls, name and arguments of each, as the family writes them."""
    parts: list[str] = [form.section_begin]
    for i, (name, arguments) in enumerate(calls):
        parts += [form.separator or "\n"] if i else []
        if form.name_end is None:
            call = ['{"name": "', name, f'", "{form.arguments_key}": ', arguments, "}"]
        else:
            call = [name, form.name_end, arguments]
        parts += [form.call_begin, *call, form.call_end]
    return [*parts, form.section_end]


def with_results_by_user(drafts: list[Draft]) -> list[Draft]:
    """Results of calls, and what the user says right behind them, as one message of the user's."""
    out: list[Draft] = []
    is_open = False  # the last message holds results
    for draft in drafts:
        content = draft.content or Joined()
        if draft.role == "tool":
            of = ("Result of ", Given(draft.name), ":\n") if draft.name else ("Result:\n",)
            content = Joined((*of, *content))
        if is_open and draft.role in ("tool", "user"):
            out[-1] = replace(out[-1], content=Joined((*(out[-1].content or ()), "\n\n", *content)))
        else:
            out.append(Draft(draft.index, "user", content) if draft.role == "tool" else draft)
        is_open = draft.role == "tool"
    return out


def with_moved_systems(drafts: list[Draft], *, keep_first: bool) -> list[Draft]:
    """System messages in front of what the user says next, or as the user's where nothing comes any more."""
    out: list[Draft] = []
    moved: tuple[str, ...] = ()
    index = 0
    for i, draft in enumerate(drafts):
        if draft.role == "system" and not (keep_first and i == 0):
            index = index if moved else draft.index
            moved = (*moved, *(draft.content or ()), "\n\n")
        elif draft.role == "user" and moved:
            out.append(replace(draft, content=Joined((*moved, *(draft.content or ())))))
            moved = ()
        else:
            out.append(draft)
    if not moved:
        return out
    last = Draft(index, "user", Joined(moved[:-1]))
    return [*out, last] if not drafts or drafts[-1].role != "assistant" else [*out[:-1], last, out[-1]]
