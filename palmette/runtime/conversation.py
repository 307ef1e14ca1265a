"""A whole conversation as a prompt, for servers: any client's messages and tools, by the model's own chat template.

    turns --drafts--> what a template of this kind can say --> rendered plainly --> rendered with marks --> pieces

Whatever a user supplied is told from the template's text by marks (template_origin.py), so that it never becomes a
special token; the text is what the template makes of the messages as they are.

Where a template knows no tools or calls, or refuses a role, the conversation is said in another way (turns.py). The
first way is taken that the template writes and that loses no message.

Programs do not come here: their streams grow message by message, by `ChatTemplate.role_pieces`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from palmette.errors import InvalidOption, NoChatTemplate, TemplateError
from palmette.formats import ToolFormat, ToolSchema, detect
from palmette.formats.tools import PLAIN
from palmette.runtime.chat_template import OWN_VARIABLES, ChatTemplate
from palmette.runtime.given_data import WORD, given_arguments, given_schema, given_variable, parameters_of
from palmette.runtime.template_origin import (
    Given,
    Joined,
    Marks,
    Write,
    as_given,
    given_texts,
    marked,
    marked_inside,
    pattern_of,
    resolved,
    try_told_apart,
    unused_characters,
)
from palmette.runtime.template_reading import Reading, read_template
from palmette.runtime.turns import (
    Draft,
    ToolRequest,
    Turn,
    with_moved_systems,
    with_results_by_user,
    with_tools,
    with_written_calls,
)
from palmette.types import TextPiece

__all__ = ["ROLES", "ToolRequest", "Turn", "conversation_pieces"]

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")  # what templates call the reasoning of a message
END_OF_REASONING = "</think>"
MAX_DEVIATIONS = 3  # from what was sent, at once


def conversation_pieces(
    template: ChatTemplate,
    turns: Sequence[Turn],
    *,
    tools: Sequence[ToolSchema] = (),
    continue_last: bool = False,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[TextPiece, ...]:
    """The prompt of a conversation: only the template's text is `special`, never what a user supplied.

    Args:
        tools: what the model is told of; its calls are held to a form elsewhere.
        continue_last: the prompt ends inside the last message, which is the assistant's, instead of beginning another.
        template_kwargs: variables of the template's, such as enable_thinking.

    Raises:
        InvalidOption: messages that cannot be, a variable that is not for users.
        NoChatTemplate: the model has none.
        TemplateError: the template refuses the conversation, drops a message or makes something else of one.
        UnsupportedConstraint: a tool's schema that is no JSON object or too deep.
    """
    if template.source is None:
        raise NoChatTemplate(
            "the model brings no chat template, so messages have no text: send a prompt to /v1/completions, or serve "
            "an instruct model"
        )
    _check(turns, continue_last=continue_last, template_kwargs=template_kwargs)
    conversation = _Conversation(template, tuple(turns), tuple(tools), continue_last, template_kwargs)
    refusal: TemplateError | None = None
    first: _Shape | None = None
    for shape in conversation.shapes():
        first = first or shape
        try:
            said = conversation.said(shape)
            conversation.check_nothing_lost(said)
        except TemplateError as error:
            refusal = refusal or error
        else:
            return conversation.pieces(said)
    assert first is not None, "there is at least one way to say it"
    assert refusal is not None, "which was refused"
    raise conversation.blamed(first, refusal)


def _check(turns: Sequence[Turn], *, continue_last: bool, template_kwargs: Mapping[str, Any]) -> None:
    if not turns:
        raise InvalidOption("messages", [], "at least one message")
    for i, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise InvalidOption(f"messages[{i}].role", turn.role, f"one of {', '.join(ROLES)}")
        if turn.tool_calls and turn.role != "assistant":
            raise InvalidOption(f"messages[{i}].tool_calls", turn.role, "calls in messages of role assistant only")
    if continue_last and (turns[-1].role != "assistant" or turns[-1].tool_calls):
        raise InvalidOption(
            "continue_final_message", True, "a last message of role assistant, without tool calls, to be continued"
        )
    for name in template_kwargs:
        if name in OWN_VARIABLES or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise InvalidOption("chat_template_kwargs", name, f"names other than {', '.join(sorted(OWN_VARIABLES))}")


# -- ways to say it ---------------------------------------------------------------------------------------------------

Systems: TypeAlias = Literal["all", "first", "none"]


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a conversation is put to a template."""

    own_tools: bool  # tools are told of in the system message, by us
    written_calls: bool  # calls are the assistant's text
    results_by_user: bool  # results of calls are messages of the user's
    systems: Systems  # which system messages stay messages of their own
    null_content: bool  # a message of calls alone has the content None instead of ""
    short_ids: bool  # ids of calls have the nine letters and digits that some templates insist on


@dataclass(frozen=True, slots=True)
class _Said:
    """A conversation in one shape, and its plain rendering, cut where the model goes on."""

    drafts: tuple[Draft, ...]
    shape: _Shape
    text: str


@dataclass(frozen=True)
class _Conversation:
    template: ChatTemplate
    turns: tuple[Turn, ...]
    tools: tuple[ToolSchema, ...]
    continue_last: bool
    template_kwargs: Mapping[str, Any]

    def shapes(self) -> Iterator[_Shape]:
        """From the nearest to what was sent to the farthest."""
        reading = self._reading
        has = {"system" if turn.role == "developer" else turn.role for turn in self.turns}
        has_calls = any(turn.tool_calls for turn in self.turns)
        tells_tools = "tools" in reading.variables
        knows_calls = "tool_calls" in reading.keys
        no, yes, either = [False], [True], [False, True]
        own_tools = no if not self.tools else either if tells_tools else yes
        is_told_late = any(turn.role in ("system", "developer") for turn in self.turns[1:])
        systems: list[Systems] = ["all", "first", "none"] if is_told_late else ["all", "none"]
        ways: tuple[Sequence[Any], ...] = (
            own_tools,
            no if not has_calls else either if knows_calls else yes,
            either if "tool" in has else no,
            systems if own_tools[-1] or "system" in has else ["all"],
            either if knows_calls and any(t.tool_calls and not t.content for t in self.turns) else no,
            either if (has_calls or "tool" in has) and reading.keys & {"id", "tool_call_id"} else no,
        )
        for places in sorted(product(*(range(len(way)) for way in ways)), key=sum):
            if sum(places) <= MAX_DEVIATIONS:
                yield _Shape(*(way[i] for way, i in zip(ways, places, strict=True)))

    def said(self, shape: _Shape) -> _Said:
        """Raises TemplateError."""
        drafts = self._drafts(shape)
        return _Said(drafts, shape, self._rendered(drafts, shape, as_given))

    def check_nothing_lost(self, said: _Said) -> None:
        """See that the template writes each message, tool and call, by putting numbers in their places.

        Raises:
            TemplateError: one is missing.
        """
        mark = self._cut
        numbered: list[tuple[str, int, str]] = []

        def number(what: str, index: int) -> Given:
            numbered.append((f"{mark}{len(numbered)}{mark}", index, what))
            return Given(numbered[-1][0])

        drafts = tuple(
            replace(
                d,
                content=Joined((number("content", d.index),)) if d.content and not d.calls else d.content,
                calls=tuple(replace(c, name=number("call", d.index)) for c in d.calls),
            )
            for d in said.drafts
        )
        told = [] if said.shape.own_tools else [number("tool", i) for i in range(len(self.tools))]
        try:
            text = self._rendered(drafts, said.shape, as_given, tool_names=told)
        except TemplateError:
            return  # it reads the contents, and could not read these
        for number_, index, what in numbered:
            if number_ not in text:
                where = f"tool {index}" if what == "tool" else f"message {index} (role {self.turns[index].role!r})"
                raise TemplateError(f"{where}: the chat template does not write {what if what != 'tool' else 'it'}")

    def pieces(self, said: _Said, *, retries: int = 1) -> tuple[TextPiece, ...]:
        """What was said, told apart; the first way to mark it that changes nothing in what the template writes."""
        marks = self._marks
        whole = pattern_of([t for t in self._reading.looked_for if any(t in given for given in self._given)])
        apart = tuple(map(self._apart, said.drafts))
        ways: list[tuple[tuple[Draft, ...], Write, re.Pattern[str] | None]] = [
            (said.drafts, lambda text: marked(text, marks), None),
            (said.drafts, lambda text: marked_inside(text, marks), None),
        ]
        if apart != said.drafts:
            ways.insert(0, (apart, lambda text: marked_inside(text, marks), None))
        if whole is not None:
            ways.append((said.drafts, lambda text: marked_inside(text, marks, whole), whole))
        for drafts, write, never_special in ways:
            try:
                text = self._rendered(drafts, said.shape, write)
            except TemplateError:
                continue
            found = try_told_apart(text, marks, never_special)
            if found is not None and "".join(piece.text for piece in found) == said.text:
                return found
        again = self.said(said.shape)
        if again.text != said.text and retries:  # it writes the time, which went on
            return self.pieces(again, retries=retries - 1)
        index = _end_of(said.drafts, lambda drafts: self._is_followed(drafts, said.shape))
        raise TemplateError(
            f"message {index} (role {self.turns[index].role!r}): the chat template makes something else of it than it "
            f"was given, so that its text cannot be told from the template's own"
        )

    def blamed(self, shape: _Shape, refusal: TemplateError) -> TemplateError:
        """The refusal with the message that it is about."""
        if str(refusal).startswith(("message ", "tool ")):
            return refusal

        def is_accepted(before: Sequence[Draft]) -> bool:
            try:
                self._uncut(before, shape, as_given)
            except TemplateError:
                return False
            return True

        index = _end_of(self._drafts(shape), is_accepted)
        return TemplateError(f"message {index} (role {self.turns[index].role!r}): {refusal}")

    # -- drafts --

    def _drafts(self, shape: _Shape) -> tuple[Draft, ...]:
        drafts = [self._draft(i, turn) for i, turn in enumerate(self.turns)]
        if shape.own_tools:
            drafts = with_tools(drafts, self.tools, self._form)
        if shape.written_calls:
            drafts = [with_written_calls(d, self._form) if d.calls else d for d in drafts]
        if shape.results_by_user:
            drafts = with_results_by_user(drafts)
        if shape.systems != "all":
            drafts = with_moved_systems(drafts, keep_first=shape.systems == "first")
        return tuple(drafts)

    def _draft(self, index: int, turn: Turn) -> Draft:
        name = turn.name
        if turn.role == "tool" and name is None:  # OpenAI's messages say it by the call
            name = self._called.get(turn.tool_call_id or "")
        role = "system" if turn.role == "developer" else turn.role
        content = None if turn.content is None else Joined((Given(turn.content),))
        return Draft(index, role, content, name, turn.tool_calls, turn.tool_call_id, turn.reasoning)

    def _apart(self, draft: Draft) -> Draft:
        """The reasoning in a content as what it is, for templates that would find it there by its end mark."""
        if draft.role != "assistant" or not draft.content or END_OF_REASONING not in self._reading.looked_for:
            return draft
        reasoning, end, answer = "".join(draft.content).rpartition(END_OF_REASONING)
        if not end:
            return draft
        content = Joined((Given(answer.lstrip("\n")),))
        return replace(draft, content=content, reasoning=reasoning.rpartition("<think>")[2].strip("\n"))

    # -- data for the template --

    def _rendered(self, drafts: Sequence[Draft], shape: _Shape, write: Write, *, tool_names: Sequence[str] = ()) -> str:
        text = self._uncut(drafts, shape, write, tool_names=tool_names, asks=not self.continue_last)
        if not self.continue_last:
            return text
        parts = text.split(self._cut)
        if len(parts) != 2:
            raise TemplateError(
                f"message {len(self.turns) - 1} (role 'assistant'): the chat template writes its content "
                f"{len(parts) - 1} times instead of once, so it cannot be continued"
            )
        return parts[0]

    def _uncut(
        self,
        drafts: Sequence[Draft],
        shape: _Shape,
        write: Write,
        *,
        tool_names: Sequence[str] = (),
        asks: bool = False,
    ) -> str:
        return self.template.render_data(
            self._messages(drafts, shape, write),
            tools=self._told(shape, write, tool_names),
            variables={name: resolved(given_variable(value), write) for name, value in self.template_kwargs.items()},
            add_generation_prompt=asks,
        )

    def _messages(self, drafts: Sequence[Draft], shape: _Shape, write: Write) -> list[dict[str, Any]]:
        messages = [self._message(d, shape) for d in drafts]
        if self.continue_last and drafts[-1].index == len(self.turns) - 1:
            messages[-1]["content"] = Joined((*(messages[-1]["content"] or ()), self._cut))
        made: list[dict[str, Any]] = resolved(messages, write)
        return made

    def _message(self, draft: Draft, shape: _Shape) -> dict[str, Any]:
        no_content = None if draft.calls and shape.null_content else ""
        message: dict[str, Any] = {"role": draft.role, "content": draft.content or no_content}
        if draft.name is not None:
            message["name"] = Given(draft.name)
        if draft.call_id is not None:
            message["tool_call_id"] = _id(draft.call_id, is_short=shape.short_ids)
        if draft.calls:
            message["tool_calls"] = [_call(call, short_ids=shape.short_ids) for call in draft.calls]
        if draft.reasoning is not None:
            key = next((k for k in REASONING_KEYS if k in self._reading.keys), None)
            if key is not None:
                message[key] = Given(draft.reasoning)
        return message

    def _told(self, shape: _Shape, write: Write, names: Sequence[str] = ()) -> list[dict[str, Any]] | None:
        if shape.own_tools or not self.tools:
            return None
        functions = [
            {
                "name": Given(names[i] if names else tool.name),
                "description": Given(tool.description),
                "parameters": given_schema(parameters_of(tool)),
            }
            for i, tool in enumerate(self.tools)
        ]
        told: list[dict[str, Any]] = resolved([{"type": "function", "function": f} for f in functions], write)
        return told

    # -- what is known of the template and of the texts --

    @cached_property
    def _reading(self) -> Reading:
        return read_template(self.template.source or "")

    @cached_property
    def _called(self) -> dict[str, str]:
        """Names of called tools by their calls' ids."""
        return {call.id: call.name for turn in self.turns for call in turn.tool_calls}

    @cached_property
    def _form(self) -> ToolFormat:
        return detect(self.template.source or "") or PLAIN

    @cached_property
    def _given(self) -> list[str]:
        """Every text that came from outside."""
        texts = [tool.description + tool.parameters.text for tool in self.tools]
        for turn in self.turns:
            calls = [text for call in turn.tool_calls for text in (call.id, call.name, call.arguments)]
            fields = (turn.content, turn.name, turn.tool_call_id, turn.reasoning)
            texts += [text for text in (*fields, *calls) if text]
            # JSON may hold any character in disguise.
            texts += [t for c in turn.tool_calls for t in given_texts(given_arguments(c.arguments))]
        for tool in self.tools:
            texts += given_texts(given_schema(parameters_of(tool)))
        return texts + given_texts([given_variable(value) for value in self.template_kwargs.values()])

    @cached_property
    def _unused(self) -> str:
        template = self.template
        return unused_characters(3, [*self._given, template.source or "", template.bos_token, template.eos_token])

    @cached_property
    def _marks(self) -> Marks:
        return Marks(*self._unused[:2])

    @cached_property
    def _cut(self) -> str:
        """Where the model goes on."""
        return self._unused[2]

    def _is_followed(self, drafts: Sequence[Draft], shape: _Shape) -> bool:
        try:
            text = self._uncut(drafts, shape, lambda text: marked_inside(text, self._marks))
            found = try_told_apart(text, self._marks)
            return found is not None and "".join(p.text for p in found) == self._uncut(drafts, shape, as_given)
        except TemplateError:
            return False


def _end_of(drafts: Sequence[Draft], holds: Callable[[Sequence[Draft]], bool]) -> int:
    """The turn of the first draft with which `holds` is over, by halving: right if it does not hold again behind it."""
    low, high = 0, len(drafts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(drafts[:middle]) else (low, middle)
    return drafts[low].index


def _call(call: ToolRequest, *, short_ids: bool) -> dict[str, Any]:
    function = {"name": Given(call.name), "arguments": given_arguments(call.arguments)}
    return {"id": _id(call.id, is_short=short_ids), "type": "function", "function": function}


def _id(text: str, *, is_short: bool) -> str:
    """An id as templates take it. Some check its length, which marks would change: so it stays if it is a plain word,
    and is a digest of itself otherwise."""
    if is_short or not WORD.fullmatch(text):
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:9]
    return text
