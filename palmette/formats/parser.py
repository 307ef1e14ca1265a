"""Tool calls out of a model's text while it streams, in the format of its family.

    CONTENT --trigger--> LEAD --> OBJECT or NAME --> ARGUMENTS --> CLOSE --> AFTER --> OBJECT, NAME or CONTENT

One character at a time, so that the events do not depend on how the text was cut. What could still become a call is
held back; once it cannot, it is content, every character of it. Whitespace between the parts of a format is free, the
keys of a call may come in any order, and others are passed over: a model that was not constrained writes them so.
The text must hold the special tokens of the format, written as the template writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeAlias

from palmette.formats.calls import NAME
from palmette.formats.tools import ToolFormat


@dataclass(frozen=True, slots=True)
class Content:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    index: int  # from 0 in each message
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """JSON text; those of one call concatenate to its arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    index: int
    is_complete: bool  # False: the text ended, or left the format, before the call was over


Event: TypeAlias = Content | CallStarted | ArgumentsDelta | CallEnded


@dataclass(frozen=True, slots=True)
class ParsedCall:
    name: str
    arguments: str = ""  # JSON text
    is_complete: bool = False


def parse_calls(form: ToolFormat, text: str) -> tuple[str, tuple[ParsedCall, ...]]:
    """The content and the calls of a whole message."""
    parser = ToolCallParser(form)
    content: list[str] = []
    calls: list[ParsedCall] = []
    for event in [*parser.feed(text), *parser.finish()]:
        if isinstance(event, Content):
            content.append(event.text)
        elif isinstance(event, CallStarted):
            calls.append(ParsedCall(event.name))
        elif isinstance(event, ArgumentsDelta):
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + event.text)
        else:
            calls[-1] = replace(calls[-1], is_complete=event.is_complete)
    return "".join(content), tuple(calls)


class _Value(Enum):
    MORE = auto()  # the character belongs to the value, which goes on
    LAST = auto()  # it ends the value
    PAST = auto()  # the value ended before it


class ToolCallParser:
    """Parses one message."""

    def __init__(self, form: ToolFormat) -> None:
        self.form = form
        self._marks = [m for m in (form.trigger, form.answer_begin) if m]
        self._events: list[Event] = []
        self._run: list[str] = []  # of content or arguments, not an event yet
        self._run_is_content = True
        self._held = ""  # not given away yet: it may still belong to a call
        self._index = -1  # of the call that was started last
        self._is_started = False  # between CallStarted and CallEnded
        self._state: Callable[[str], bool] = self._content if form.trigger else self._bare
        self._expected = ""  # of a fixed text: what is still to come, without whitespace
        self._then: Callable[[], None] = self._begin_call
        self._back = ""  # text to be read again
        self._text = ""  # of the key, name or value being read
        self._name_of_key = ""
        self._waiting = ""  # arguments read before the name
        self._depth, self._in_string, self._escaped = 0, False, False  # inside a value

    def feed(self, text: str) -> list[Event]:
        """The events of a further piece of text."""
        at = 0
        while at < len(text):
            if self._state == self._content and not self._held:  # most of a text is neither held nor looked at
                found = [n for n in (text.find(mark[0], at) for mark in self._marks) if n >= 0]
                start, at = at, min(found, default=len(text))
                self._emit(text[start:at])
                if at == len(text):
                    break
            if not self._state(text[at]):  # not read: the state has changed, or given text back
                text, at, self._back = self._back + text[at:], 0, ""
                continue
            at += 1
        return self._taken()

    def finish(self) -> list[Event]:
        """What was held back, when nothing more will come."""
        if self._is_started:
            self._end_call(is_complete=False)
        elif self._state != self._after or self._held.strip():
            self._emit(self._held)
        self._held = ""
        return self._taken()

    # -- states: each reads one character, or returns False to have it read again in another state --------------------

    def _content(self, char: str) -> bool:
        self._held += char
        while self._held:
            if self._held in self._marks:
                if self._held == self.form.trigger:
                    self._expect(self.form.lead[len(self.form.trigger) :], self._begin_call)
                else:
                    self._held = ""
                return True
            if any(m.startswith(self._held) for m in self._marks):
                return True
            self._emit(self._held[0])
            self._held = self._held[1:]
        return True

    def _bare(self, char: str) -> bool:
        """The beginning of a message that is a call as a whole, or no call at all."""
        mark, seen = self.form.may_begin, self._text
        self._held += char
        if char.isspace() and seen in ("", mark):
            return True
        rest = char if mark and seen == mark else seen + char
        if mark.startswith(rest) and seen != mark:
            self._text = rest
            return True
        self._text = ""
        self._held = self._held[: -len(rest)]
        if rest != "{":
            return self._give_up(rest)
        self._begin_call()
        return self._state(rest)

    def _fixed(self, char: str) -> bool:
        """A fixed text of the format, whitespace aside."""
        if char == self._expected[:1]:
            self._expected = self._expected[1:]
        elif not char.isspace():
            return self._give_up("")
        self._held += char
        if not self._expected:
            self._then()
        return True

    def _open(self, char: str) -> bool:
        return self._punctuation(char, {"{": self._key})

    def _key(self, char: str) -> bool:
        if not self._text:
            if char == "}":
                return self._close_object(char)
            if char != '"':
                return self._skip_space(char)
        self._text += char
        self._held += char
        if char == '"' and len(self._text) > 1 and not self._escaped:
            self._name_of_key, self._text = self._text[1:-1], ""
            self._state = self._colon
        self._escaped = char == "\\" and not self._escaped
        return True

    def _colon(self, char: str) -> bool:
        self._begin_value()
        return self._punctuation(char, {":": self._member})

    def _member(self, char: str) -> bool:
        """A value of the object that is a call."""
        is_arguments = self._name_of_key == self.form.arguments_key
        if self._depth == 0 and not self._text and char.isspace():
            return self._skip_space(char)
        found = self._value(char)
        if found is not _Value.PAST:
            self._text += char
            if is_arguments:
                self._argument(char)
            else:
                self._held += char
        if found is not _Value.MORE:
            if self._name_of_key == "name" and not self._is_started and not self._start_call(self._text):
                self._held = self._held[: -1 if found is _Value.LAST else None]  # this character is read again
                return self._give_up("")
            self._text = ""
            self._state = self._next
        return found is not _Value.PAST

    def _next(self, char: str) -> bool:
        if char == "}":
            return self._close_object(char)
        return self._punctuation(char, {",": self._key})

    def _name(self, char: str) -> bool:
        """A name that stands bare."""
        if NAME.fullmatch(self._text + char):
            self._text += char
            self._held += char
            return True
        if not self._text:
            return self._skip_space(char)
        self._expect(self.form.name_end or "", self._begin_arguments)
        return False

    def _arguments(self, char: str) -> bool:
        """The arguments of a call that is no object."""
        if not self._text:
            if char.isspace():
                return True
            if char != "{":
                return self._give_up("")
        self._text = char
        self._argument(char)
        if self._value(char) is not _Value.MORE:
            self._expect(self.form.call_end, self._end_call)
        return True

    def _after(self, char: str) -> bool:
        """Behind a call: another one, the end of the section, or content."""
        form = self.form
        self._held += char
        if char.isspace():
            return True
        seen = _squeezed(self._held)
        if seen == _squeezed(form.section_end):
            self._held = ""
            self._state = self._content
            return True
        leads = [form.lead, form.separator + form.call_begin] if form.parallel and form.trigger else []
        if seen in map(_squeezed, leads):
            self._begin_call()
            return True
        if any(_squeezed(t).startswith(seen) for t in (*leads, form.section_end)):
            return True
        self._back, self._held = self._held[:-1], ""
        self._state = self._content
        return False

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _expect(self, text: str, then: Callable[[], None]) -> None:
        """Read `text`, whitespace aside, and then call `then`."""
        self._expected, self._then, self._state = _squeezed(text), then, self._fixed
        if not self._expected:
            then()

    def _punctuation(self, char: str, following: dict[str, Callable[[str], bool]]) -> bool:
        if char in following:
            self._state = following[char]
            self._held += char
            return True
        return self._skip_space(char)

    def _skip_space(self, char: str) -> bool:
        if not char.isspace():
            return self._give_up("")
        self._held += char
        return True

    def _value(self, char: str) -> _Value:
        """How `char` stands to a JSON value; brackets are counted, not matched."""
        if self._in_string:
            ends = char == '"' and not self._escaped
            self._escaped = char == "\\" and not self._escaped
            if not ends:
                return _Value.MORE
            self._in_string = False
            return _Value.MORE if self._depth else _Value.LAST
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif self._depth:
            self._depth -= char in "}]"
            return _Value.MORE if self._depth else _Value.LAST
        elif char in ",}]" or char.isspace():
            return _Value.PAST
        return _Value.MORE

    def _argument(self, text: str) -> None:
        """Arguments that come before the name wait for it."""
        if self._is_started:
            self._emit_arguments(text)
        else:
            self._waiting += text
            self._held += text

    def _start_call(self, name: str) -> bool:
        """A call whose name, as JSON text, is known; False if it is none."""
        try:
            value = json.loads(name)
        except ValueError:
            return False
        if not isinstance(value, str) or not NAME.fullmatch(value):
            return False
        self._close_run()
        self._index += 1
        self._is_started = True
        self._held = ""
        self._events.append(CallStarted(self._index, value))
        if self._waiting:
            self._emit_arguments(self._waiting)
        return True

    def _begin_call(self) -> None:
        self._text = self._waiting = ""
        self._begin_value()
        self._state = self._open if self.form.name_end is None else self._name

    def _begin_arguments(self) -> None:
        name, self._text = self._text, ""
        self._begin_value()
        self._start_call(json.dumps(name))
        self._state = self._arguments

    def _begin_value(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False

    def _close_object(self, char: str) -> bool:
        if not self._is_started:
            return self._give_up("")
        self._held = ""
        self._expect(self.form.call_end, self._end_call)
        return True

    def _end_call(self, *, is_complete: bool = True) -> None:
        self._close_run()
        self._events.append(CallEnded(self._index, is_complete))
        self._is_started = False
        self._held = ""
        self._state = self._after

    def _give_up(self, rest: str) -> bool:
        """What was held is no call: its first character is content, and the others are read again, `rest` too."""
        held, self._held = self._held, ""
        if self._is_started:
            self._end_call(is_complete=False)
            self._back = held + rest[:-1]
        else:
            self._emit(held[:1])
            self._back = held[1:] + rest[:-1]
        self._state = self._content
        return False

    # -- events --------------------------------------------------------------------------------------------------------

    def _emit(self, text: str) -> None:
        if text:
            self._add(text, is_content=True)

    def _emit_arguments(self, text: str) -> None:
        self._add(text, is_content=False)

    def _add(self, text: str, *, is_content: bool) -> None:
        if is_content != self._run_is_content:
            self._close_run()
        self._run.append(text)
        self._run_is_content = is_content

    def _close_run(self) -> None:
        """What follows is another event than the last pieces of text."""
        if self._run:
            text = "".join(self._run)
            self._events.append(Content(text) if self._run_is_content else ArgumentsDelta(self._index, text))
            self._run.clear()

    def _taken(self) -> list[Event]:
        self._close_run()
        events, self._events = self._events, []
        return events


def _squeezed(text: str) -> str:
    return "".join(text.split())
